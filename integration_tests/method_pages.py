"""The pages of ``docs/methods`` taken apart, and what the code says of each method."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError

from fair_prune_plugins import criteria, losses
from fair_prune_plugins.learned_gates import LEARNED, AutoBotSettings, BiFPSettings, FairnessTerm
from fair_prune_plugins.learned_gates.by_name import DECIDED_ELSEWHERE
from fair_prune_plugins.postprocessing import choose_override, choose_thresholds, choose_with_fairlearn
from fair_prune_plugins.torch_pruning.host_criteria import HOST_CRITERIA
from fair_prune_plugins.workflow.postprocess_config import OverridesConfig, ThresholdsConfig
from fair_prune_plugins.workflow.prune_config import MethodConfig

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "methods"
INDEX = "README"
OURS = "fair_prune_plugins."
REQUIRED = "required"
THRESHOLDS = "thresholds_"

COMBINED = ("pw_taylor",)
"""Methods that are a registered criterion under a registered loss, and have a page of their own."""

OPTIONS, HEADER = "Options", ["option", "type", "default", "meaning"]

CRITERIA = [n for n in criteria.names() if criteria.get(n).function.__module__.startswith(OURS)]
LOSSES = [n for n in losses.names() if losses.get(n).hook.__module__.startswith(OURS)]
OBJECTIVES = list(get_args(ThresholdsConfig.model_fields["objective"].annotation))
METHODS = [*CRITERIA, *HOST_CRITERIA, *LEARNED, *COMBINED, *LOSSES, *(THRESHOLDS + o for o in OBJECTIVES), "overrides"]

TERM = {f.name for f in fields(FairnessTerm)} | {"weight_penalty", "mask_penalty", "dual_rate"}
"""Options that concern BiFP's fairness term, which BiP does not have."""


@dataclass(frozen=True)
class Option:
    """An option as a table, or the code, has it; ``types`` is empty where the code does not say."""

    types: tuple[str, ...]
    default: Any


def page(name: str) -> str:
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


def sections(text: str) -> dict[str, str]:
    """Heading to what stands under it; what stands before the first is under ``""``."""
    parts = re.split(r"^##+ (.+)$", text, flags=re.MULTILINE)
    return dict(zip(["", *parts[1::2]], parts[::2], strict=True))


def snippets(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def rows(text: str) -> Iterator[list[str]]:
    """Cells of all rows of Markdown tables, headers too."""
    for line in text.splitlines():
        if line.startswith("|") and not re.fullmatch(r"[|:\- ]+", line):
            yield [cell.strip() for cell in line.strip().strip("|").split("|")]


def option_table(text: str) -> dict[str, Option]:
    """The options of the only table of options in ``text``."""
    header, *body = rows(text)
    assert header == HEADER, header
    found = {}
    for name, types, default, meaning in body:
        assert meaning, name
        key = _code(name)
        assert key not in found, f"{key} stands there twice"
        value = REQUIRED if default == REQUIRED else ast.literal_eval(_code(default))
        found[key] = Option(tuple(re.findall(r"`([^`]*)`", types)), value)
    return found


def code_tables(name: str) -> dict[str, dict[str, Option]]:
    """What the code says that a page's tables of options must hold, by their headings."""
    if name == INDEX:
        return {
            "Keys of a method in `prune.methods`": of_model(MethodConfig),
            "Arguments of `choose_thresholds`": of_function(choose_thresholds),
        }
    if name in CRITERIA:
        found = of_function(criteria.get(name).function)
        return {OPTIONS: found} if found else {}
    if name in HOST_CRITERIA:
        found = of_function(HOST_CRITERIA[name].make)
        return {OPTIONS: found} if found else {}
    if name in COMBINED:
        return {}
    if name in LEARNED:
        return {OPTIONS: _of_learned(name)}
    if name in LOSSES:
        return {OPTIONS: of_function(losses.get(name).hook.__init__, needed=losses.registry.REQUIREMENTS)}
    if name == "overrides":
        return {OPTIONS: of_model(OverridesConfig), "Arguments of `choose_override`": of_function(choose_override)}
    objective = name.removeprefix(THRESHOLDS)
    tables = {OPTIONS: {k: v for k, v in of_model(ThresholdsConfig).items() if _accepted(objective, k, v.default)}}
    if objective == "fairlearn":
        tables["Arguments of `choose_with_fairlearn`"] = of_function(choose_with_fairlearn)
    return tables


def of_function(function: Callable[..., Any], needed: Collection[str] = ()) -> dict[str, Option]:
    """Arguments with a default or by keyword alone, and those that are ``needed``: what stands before them is data."""
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError):  # of Torch-Pruning, which annotates little
        hints = {}
    found = {}
    for p in inspect.signature(function).parameters.values():
        required = p.default is inspect.Parameter.empty
        if p.name == "self" or (required and p.kind is not p.KEYWORD_ONLY and p.name not in needed):
            continue
        raw = p.annotation if isinstance(p.annotation, str) else ""
        if "ArrayLike" in raw:  # an alias of what would fill the page
            types = tuple(part.removeprefix("npt.") for part in raw.split(" | "))
        else:
            types = tuple(alternatives(hints[p.name])) if p.name in hints else ()
        found[p.name] = Option(types, REQUIRED if required else p.default)
    return found


def of_model(model: type[BaseModel]) -> dict[str, Option]:
    found = {}
    for name, field in model.model_fields.items():
        default = REQUIRED if field.is_required() else field.get_default(call_default_factory=True)
        found[name] = Option(tuple(alternatives(field.annotation)), default)
    return found


def alternatives(annotation: Any) -> Iterator[str]:
    """What an annotation allows, one text each: values of a ``Literal``, members of a union."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from alternatives(arguments[0])
    elif origin in (Union, UnionType):
        for argument in arguments:
            yield from alternatives(argument)
    elif origin is Literal:
        yield from (f'"{value}"' if isinstance(value, str) else repr(value) for value in arguments)
    elif annotation in (None, NoneType):
        yield "None"
    elif arguments:
        inner = ", ".join(" or ".join(alternatives(a)) for a in arguments)
        yield f"{annotation.__name__}[{inner}]"
    else:
        yield annotation.__name__


def _of_learned(name: str) -> dict[str, Option]:
    """Settings as a run knows them, and those that a run decides about elsewhere."""
    settings = AutoBotSettings if name == "autobot" else BiFPSettings
    hints = get_type_hints(settings)
    known: Mapping[str, Any] = LEARNED[name].options
    found = {}
    for f in fields(settings):
        if f.name in known or f.name in DECIDED_ELSEWHERE:
            assert f.default is not MISSING
            found[f.name] = Option(tuple(alternatives(hints[f.name])), known.get(f.name, f.default))
    found |= {k: Option((type(v).__name__,), v) for k, v in known.items() if k not in found}
    return {k: v for k, v in found.items() if name != "bip" or k not in TERM}


def _accepted(objective: str, key: str, value: Any) -> bool:
    """Whether an objective of thresholds takes a key, even at its default."""
    if key == "objective":
        return False
    try:
        ThresholdsConfig.model_validate({"objective": objective, key: value})
    except ValidationError:
        return False
    return True


def _code(cell: str) -> str:
    match = re.fullmatch(r"`([^`]+)`", cell)
    assert match, f"{cell!r} is not in backticks"
    return match[1]
