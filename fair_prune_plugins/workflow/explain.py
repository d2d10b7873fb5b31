"""Every configuration key with its default, what is allowed and what it means, from the models that validate it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fair_prune_plugins import losses
from fair_prune_plugins.errors import ConfigError
from fair_prune_plugins.workflow import methods
from fair_prune_plugins.workflow.config import DATA_KINDS, RunConfig, inner_section
from fair_prune_plugins.workflow.prune_config import MethodConfig
from fair_prune_plugins.workflow.sections import NamedSection, Section
from fair_prune_plugins.workflow.training_config import LossConfig

NO_SUCH_KEY = "there is no configuration key {key!r}; {near}`fair-prune explain` lists all"


@dataclass(frozen=True)
class Key:
    """One configuration key.

    Attributes:
        name: dotted, as in ``prune.ratios``.
        default: as YAML writes it; ``required`` where there is none.
        allowed: type and limits in words.
        meaning: what it does.
        applies: a condition under which the key exists, e.g. ``data.kind: table``.
    """

    name: str
    default: str
    allowed: str
    meaning: str
    applies: str = ""


def keys(under: str | None = None) -> list[Key]:
    """All keys, or one key and those below it.

    Raises:
        ConfigError: there is no such key.
    """
    every = list(_walk(RunConfig, "", ""))
    if under is None:
        return every
    found = [k for k in every if k.name == under or k.name.startswith(under + ".")]
    if not found:
        names = sorted({k.name for k in every})
        close = difflib.get_close_matches(under, names, n=1) or [n for n in names if n.rsplit(".")[-1] == under][:1]
        raise ConfigError(NO_SUCH_KEY.format(key=under, near=f"did you mean {close[0]!r}? " if close else ""))
    return found


def _walk(section: type[Section], prefix: str, applies: str) -> Iterator[Key]:
    for name, info in section.model_fields.items():
        key = prefix + name
        if section is RunConfig and name == "data":
            yield Key("data", "required", "keys below", info.description or "")
            for kind, data_section in DATA_KINDS.items():
                yield from _walk(data_section, "data.", f"data.kind: {kind}")
            continue
        inside = inner_section(info.annotation)
        # Those of other installed packages are among the names, so they are not known before somebody asks.
        registry = {MethodConfig: methods.names, LossConfig: losses.names}.get(section) if name == "name" else None
        allowed = _allowed(info, inside) if registry is None else " | ".join(registry())
        yield Key(key, _default(info), allowed, info.description or "", applies)
        if inside is not None:
            yield from _walk(inside, key + ".", applies)


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    if info.default_factory is not None:
        made = info.get_default(call_default_factory=True, validated_data={})
        return "as below" if isinstance(made, Section) else _yaml(made)
    return "required" if info.default is PydanticUndefined else _yaml(info.default)


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, NamedSection) and value.model_fields_set == {"name"}:
        return value.name
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    return '""' if value == "" else str(value)


def _allowed(info: FieldInfo, inside: type[Section] | None) -> str:
    limits = _limits(info.metadata)
    if inside is not None:
        what = "names or keys below" if issubclass(inside, NamedSection) else "keys below"
        return f"a list of {what}" if get_origin(info.annotation) is list else what.replace("names", "a name")
    return _words(info.annotation) + limits


def _words(annotation: Any) -> str:
    if annotation is Any:
        return "any value"
    if annotation is NoneType:
        return "null"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        extra = [m for a in arguments[1:] for m in (a.metadata if isinstance(a, FieldInfo) else [a])]
        return _words(arguments[0]) + _limits(extra)
    if origin is Literal:
        return " | ".join(str(a) for a in arguments)
    if origin in (Union, UnionType):
        return " | ".join(_words(a) for a in arguments)
    if origin is list:
        return f"list of {_words(arguments[0])}"
    if origin is dict:
        return f"mapping of {_words(arguments[0])} to {_words(arguments[1])}"
    names = {str: "text", int: "whole number", float: "number", bool: "true | false"}
    return names[annotation]


def _limits(metadata: list[Any]) -> str:
    signs = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
    parts = [f"{sign} {getattr(m, name)}" for m in metadata for name, sign in signs if hasattr(m, name)]
    parts += [f"at least {m.min_length}" for m in metadata if getattr(m, "min_length", None)]
    return f" ({', '.join(parts)})" if parts else ""
