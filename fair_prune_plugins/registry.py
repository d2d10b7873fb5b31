"""One strict registry for everything that has a name and may come from another installed package.

A bad or duplicate entry is refused when it is registered, not when it is used. Other packages take part by entry
points, which are looked for at the first question, never at import; one that fails to load is reported once and breaks
nothing else.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points, packages_distributions
from types import NoneType, UnionType
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fair_prune_plugins.errors import InputError

T = TypeVar("T")

DUPLICATE = "the {kind} {name!r} is registered already, by {first}; {second} may not take the same name"
UNKNOWN_OPTION = "the {kind} {name!r} has no option {option!r}; it takes {have}"
OPTION_VALUE = "{option} must be {allowed} for the {kind} {name!r}, got {value!r}"
UNKNOWN = "there is no {kind} {name!r}; there are {have}.{hint}"
FAILED = (
    "the entry point {entry!r} of the installed package {distribution} brings no {kind}: {error}. All other {plural} "
    "work; repair or uninstall that package"
)
BROKEN = "the {kind} {name!r} cannot be used: {failure}"
ALSO_FAILED = " Some packages failed to load: {failures}."
REGISTERS_NOTHING = (
    "{value!r} was imported, but nothing there is registered as a {kind}. An entry point names a module, or something "
    "in it, whose import registers; functions are not called"
)


@dataclass
class _Load:
    """An entry point being imported, and what it has registered, or tried to, so far."""

    distribution: str
    tried: list[tuple[Registry[Any], str]] = field(default_factory=list)
    done: list[tuple[Registry[Any], str]] = field(default_factory=list)


_LOADING: list[_Load] = []
"""Entry points being imported now, the innermost last: shared, since one module may register in several registries."""


@dataclass(frozen=True)
class _Registered(Generic[T]):
    entry: T
    target: Callable[..., Any]
    distribution: str | None


@dataclass(frozen=True)
class _Failure:
    message: str
    error: BaseException


class Registry(Generic[T]):
    """Named entries of one kind.

    Args:
        kind: what an entry is, for messages: ``"criterion"``.
        plural: the same of many.
        entry_points: the group of entry points by which installed packages bring theirs.
    """

    def __init__(self, kind: str, plural: str, entry_points: str) -> None:
        self.kind = kind
        self.plural = plural
        self.entry_points = entry_points
        self._entries: dict[str, _Registered[T]] = {}
        self._failures: dict[str, _Failure] = {}
        self._discovered = False

    def copy(self) -> Registry[T]:
        """The same entries; what is added to one is not in the other."""
        other: Registry[T] = Registry(self.kind, self.plural, self.entry_points)
        other._entries, other._failures = dict(self._entries), dict(self._failures)
        other._discovered = self._discovered
        return other

    def add(self, name: str, target: Callable[..., Any], make: Callable[[], T]) -> None:
        """Register ``make()``.

        Args:
            name: how it is asked for.
            target: the function or class behind it, whose place in the code messages name.
            make: builds the entry; it may refuse the target's signature.

        Raises:
            InputError: the name is taken, with both places; or whatever ``make`` raises.
        """
        load = _LOADING[-1] if _LOADING else None
        if load is not None:
            load.tried.append((self, name))
        distribution = load.distribution if load else None
        if name in self._entries:
            known = self._entries[name]
            first, second = place(known.target, known.distribution), place(target, distribution)
            raise InputError(DUPLICATE.format(kind=self.kind, name=name, first=first, second=second))
        self._entries[name] = _Registered(make(), target, distribution)
        if load is not None:
            load.done.append((self, name))

    def names(self) -> list[str]:
        """All names, sorted; those of other installed packages among them."""
        self._discover()
        return sorted(self._entries)

    def get(self, name: str) -> T:
        """An entry by name.

        Raises:
            InputError: there is none of that name, or the package that brings it failed to load: then with the cause.
        """
        self._discover()
        if name in self._entries:
            return self._entries[name].entry
        if name in self._failures:
            failure = self._failures[name]
            raise InputError(BROKEN.format(kind=self.kind, name=name, failure=failure.message)) from failure.error
        near = get_close_matches(name, self._entries, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        if self._failures:
            hint += ALSO_FAILED.format(failures="; ".join(sorted({f.message for f in self._failures.values()})))
        raise InputError(UNKNOWN.format(kind=self.kind, name=name, have=sorted(self._entries), hint=hint))

    def _discover(self) -> None:
        """Import what installed packages declare, once; a package that asks for names while it is imported gets those
        that there are so far.
        """
        if self._discovered:
            return
        self._discovered = True
        try:
            # In a fixed order, so that of two packages with one name it is always the same one that is refused.
            found = sorted(entry_points(group=self.entry_points), key=lambda e: (_distribution(e), e.name, e.value))
            messages = [message for message in map(self._load, found) if message]
        except BaseException:  # an interrupt: look again next time
            self._discovered = False
            raise
        for message in messages:
            warnings.warn(message, stacklevel=4)

    def _load(self, entry: EntryPoint) -> str | None:
        """Import one entry point; what went wrong, if anything did. A package that fails brings nothing."""
        load = _Load(_distribution(entry))
        _LOADING.append(load)
        try:
            entry.load()
            if not self._brought(entry, load):
                raise InputError(REGISTERS_NOTHING.format(value=entry.value, kind=self.kind))
        except (Exception, SystemExit) as error:
            for registry, name in load.done:
                registry._entries.pop(name)
            reason = f"{type(error).__name__}: {error}"
            message = FAILED.format(
                entry=entry.name, distribution=load.distribution, error=reason, kind=self.kind, plural=self.plural
            )
            for name in {entry.name, *(n for registry, n in load.tried if registry is self)}:
                self._failures.setdefault(name, _Failure(message, error))
            return message
        finally:
            _LOADING.pop()
        return None

    def _brought(self, entry: EntryPoint, load: _Load) -> bool:
        """Whether the entry point registered something here, now or when somebody imported its package before."""
        package = entry.module.partition(".")[0]
        return any(registry is self for registry, _ in load.done) or any(
            known.target.__module__.partition(".")[0] == package for known in self._entries.values()
        )


def place(target: Callable[..., Any], distribution: str | None = None) -> str:
    """Where something is defined: module, name, file, line, and the installed package it is of, if any."""
    name = f"{target.__module__}.{getattr(target, '__qualname__', target)}"
    code = getattr(inspect.unwrap(target), "__code__", None)
    where = _class_place(target) if code is None else [f"{code.co_filename}:{code.co_firstlineno}"]
    if distribution is None:
        owners = packages_distributions().get(target.__module__.partition(".")[0], ())
        distribution = ", ".join(sorted(set(owners)))
    where += [distribution] if distribution else []
    return f"{name} ({', '.join(where)})" if where else name


def _class_place(target: Callable[..., Any]) -> list[str]:
    try:
        return [f"{inspect.getsourcefile(target)}:{inspect.getsourcelines(target)[1]}"]
    except (OSError, TypeError):  # defined in a prompt, or no class at all
        return []


def options_of(parameters: Sequence[inspect.Parameter]) -> dict[str, Any]:
    """Options and their defaults."""
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def check_options(
    kind: str, name: str, target: Callable[..., Any], options: Mapping[str, Any], given: Mapping[str, Any]
) -> None:
    """Refuse options that an entry does not have, and values that its annotations rule out.

    Args:
        kind: what the entry is, for messages.
        name: of the entry.
        target: the function or class behind it. Options annotated with ``Literal`` take these values only.
        options: its options and their defaults.
        given: what was given for them.

    Raises:
        InputError: naming the option and what there is, or what it takes.
    """
    for option in given:
        if option not in options:
            have = sorted(options) or "none"
            raise InputError(UNKNOWN_OPTION.format(kind=kind, name=name, option=option, have=have))
    for option, allowed in _allowed_values(target).items():
        if option not in given or given[option] is options.get(option):
            continue
        value = given[option]
        if not any(isinstance(value, type(one)) and value == one for one in allowed):
            either = " or ".join(map(repr, allowed))
            raise InputError(OPTION_VALUE.format(kind=kind, name=name, option=option, allowed=either, value=value))


def _allowed_values(target: Callable[..., Any]) -> dict[str, tuple[Any, ...]]:
    """Argument name to the values it takes, of those annotated with ``Literal`` alone, or with ``Literal`` or None."""
    function = target.__init__ if inspect.isclass(target) else inspect.unwrap(target)
    try:
        hints = get_type_hints(function)
    except Exception:  # names that another package imports for type checkers alone: it checks values itself
        return {}
    found = {name: _literals(hint) for name, hint in hints.items()}
    return {name: values for name, values in found.items() if values is not None}


def _literals(hint: Any) -> tuple[Any, ...] | None:
    if get_origin(hint) is Literal:
        return get_args(hint)
    if hint is NoneType:
        return (None,)
    if get_origin(hint) not in (Union, UnionType):
        return None
    parts = [_literals(part) for part in get_args(hint)]
    return None if None in parts else tuple(value for part in parts if part is not None for value in part)


def _distribution(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "(unknown)"
