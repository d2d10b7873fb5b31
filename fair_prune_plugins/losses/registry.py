"""The losses there are: built in, registered by hand, or brought by installed packages through entry points of the
group ``fair_prune_plugins.losses``.

A loss is a class, so that it can hold state. What it must be given is told by its signature: arguments without a
default are among :data:`REQUIREMENTS`, everything else is an option.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.losses.hook import LossHook
from fair_prune_plugins.registry import Registry, check_options, options_of, place

REQUIREMENTS = {
    "groups": "the sensitive groups of the training people",
    "teacher": "the dense model",
    "dense": "the dense model's accuracy per group",
}
"""What a loss may ask for, by argument name."""

BAD_SIGNATURE = (
    "{place}: a loss is a subclass of LossHook; its arguments have defaults, except those it must be given, which are "
    "named among {requirements}; {problem}"
)
MISSING = "the loss {name!r} needs {argument}=, {meaning}"

HookClass = TypeVar("HookClass", bound=type[LossHook])


@dataclass(frozen=True)
class Loss:
    """A named loss.

    Attributes:
        name: how configurations and code call it.
        hook: its class.
        summary: what it does, in one sentence.
        source: the paper (and equation) it comes from.
    """

    name: str
    hook: type[LossHook]
    summary: str
    source: str

    @property
    def options(self) -> dict[str, Any]:
        """Options and their defaults."""
        return options_of(_parameters(self.hook))

    @property
    def requirements(self) -> tuple[str, ...]:
        """What it must be given, among :data:`REQUIREMENTS`."""
        return tuple(p.name for p in _parameters(self.hook) if p.default is inspect.Parameter.empty)

    @property
    def needs_groups(self) -> bool:
        """Whether every call needs the people's groups."""
        return self.hook.needs_groups

    @property
    def needs_inputs(self) -> bool:
        """Whether every call needs the model's inputs."""
        return self.hook.needs_inputs

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse options the loss does not have, and values that an option annotated with ``Literal`` does not.

        Raises:
            InputError: naming the option and what there is, or what it takes.
        """
        check_options("loss", self.name, self.hook, self.options, options)

    def make(self, *, groups: Any = None, teacher: Any = None, dense: Any = None, **options: Any) -> LossHook:
        """A hook, of what it asks for among what is given here, and its options.

        Raises:
            InputError: something it needs is missing, or an option it does not have.
        """
        self.check_options(options)
        given = {"groups": groups, "teacher": teacher, "dense": dense}
        for argument in self.requirements:
            if given[argument] is None:
                raise InputError(MISSING.format(name=self.name, argument=argument, meaning=REQUIREMENTS[argument]))
        return self.hook(**{a: given[a] for a in self.requirements}, **options)


_REGISTRY: Registry[Loss] = Registry("loss", "losses", "fair_prune_plugins.losses")


def loss(name: str, *, summary: str, source: str) -> Callable[[HookClass], HookClass]:
    """Register a class as a loss; see :class:`Loss` for the arguments.

    Raises:
        InputError: the name is taken, or the class or its signature is not that of a loss.
    """

    def register(hook: HookClass) -> HookClass:
        def make() -> Loss:
            _check_signature(hook)
            return Loss(name, hook, summary, source)

        _REGISTRY.add(name, hook, make)
        return hook

    return register


def names() -> list[str]:
    """Names of all registered losses, those of other installed packages among them."""
    return _REGISTRY.names()


def get(name: str) -> Loss:
    """A loss by name.

    Raises:
        InputError: there is none of that name (the message lists what there is), or its package failed to load.
    """
    return _REGISTRY.get(name)


def _parameters(hook: type[LossHook]) -> list[inspect.Parameter]:
    return list(inspect.signature(hook).parameters.values())


def _check_signature(hook: Any) -> None:
    problem = _problem(hook)
    if problem is not None:
        raise InputError(BAD_SIGNATURE.format(place=place(hook), requirements=sorted(REQUIREMENTS), problem=problem))


def _problem(hook: Any) -> str | None:
    if not (inspect.isclass(hook) and issubclass(hook, LossHook)):
        return "this is not one"
    for method, arguments in (("sample_losses", ("self", "batch")), ("factors", ("self", "batch", "losses"))):
        try:
            inspect.signature(getattr(hook, method)).bind(*arguments)
        except TypeError:
            return f"{method} must take ({', '.join(arguments)})"
    for p in _parameters(hook):
        if p.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            return f"{p.name!r} takes anything"
        if p.kind is inspect.Parameter.POSITIONAL_ONLY:
            return f"{p.name!r} cannot be given by name"
        required = p.default is inspect.Parameter.empty
        if required and p.name not in REQUIREMENTS:
            return f"the option {p.name!r} has no default"
        if not required and p.name in REQUIREMENTS:
            return f"{p.name!r} has a default: then it is no requirement, and needs another name"
    return None
