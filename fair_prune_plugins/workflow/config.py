"""What a run is told: every key, its default, what is allowed, and what it means.

The models below are the one place where keys are written down: they validate a configuration, and ``fair-prune
explain`` prints them (:mod:`fair_prune_plugins.workflow.explain`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import Field, ValidationError, model_validator

from fair_prune_plugins import yaml_text
from fair_prune_plugins.errors import ConfigError
from fair_prune_plugins.workflow.data_config import FunctionData, NpzData, PartedData, TableData
from fair_prune_plugins.workflow.postprocess_config import PostprocessConfig
from fair_prune_plugins.workflow.prune_config import PruneConfig
from fair_prune_plugins.workflow.sections import Count, Section, near
from fair_prune_plugins.workflow.sweep.config import SweepConfig
from fair_prune_plugins.workflow.training_config import FinetuneConfig, TrainingConfig

UNKNOWN_KEY = "{origin}: unknown key {key!r}; {near}allowed here: {allowed}"
BAD_VALUE = "{origin}: {key}: {reason}{got}. `fair-prune explain{section}` says what is allowed"
MISSING_KEY = "{origin}: the key {key!r} is missing. `fair-prune explain {key}` says what it is"
NOT_YAML = "{origin} is not valid YAML: {reason}"
NOT_A_MAPPING = "{origin} must hold keys and values, got {type}"
NO_FILE = "there is no configuration file at {path}"
NO_VARIABLE = (
    "{key}: the environment variable {name} is not set; set it, give a default as in ${{{name}:-folder}}, or write the "
    "path itself"
)
UNUSED = "{key} is set but does nothing {where}; leave it out{instead}"
BAD_OPSET = (
    "export.opset: this version of onnx knows the opsets {low} to {high}, got {got}; null takes the exporter's own"
)
BAD_OVERRIDE = "--set takes KEY=VALUE, e.g. --set prune.ratios=[0.5], got {text!r}"

LOWEST_OPSET = 11
ENVIRONMENT = re.compile(r"\$\{(?P<braced>\w+)(?::-(?P<default>[^}]*))?\}|\$(?P<bare>\w+)")


class ModelConfig(Section):
    """The network before pruning."""

    factory: str = Field(
        description="digits_resnet, face_resnet, face_mobilenet, or module:function returning a torch.nn.Module"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the factory")
    checkpoint: str | None = Field(
        default=None,
        description="trained weights (.safetensors, or .pt/.pth read with weights_only); null trains the network",
    )
    ignored_layers: list[str] = Field(
        default_factory=list,
        description="module paths that must keep their width; the outputs are found without being named",
    )
    num_heads: dict[str, Count] = Field(
        default_factory=dict, description="number of attention heads by module path, where attention is to be pruned"
    )


class EvaluationConfig(Section):
    """How people are compared."""

    resamples: Annotated[int, Field(ge=100)] = Field(
        default=1000, description="bootstrap resamples behind every interval"
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(default=0.95, description="of the intervals")
    minimum_group: Count = Field(
        default=30, description="groups with fewer people are called too small to judge and never the worst group"
    )


class ExportConfig(Section):
    """The ONNX files."""

    opset: Annotated[int, Field(ge=LOWEST_OPSET)] | None = Field(
        default=None, description="ONNX opset, up to what the installed onnx knows; null takes the exporter's own"
    )
    tolerance: Annotated[float, Field(gt=0)] = Field(
        default=1e-4,
        description="largest difference to torch, relative to the outputs' scale, at which a file is accepted",
    )
    samples: Count = Field(default=256, description="test people on whom ONNX Runtime and torch are compared")

    @model_validator(mode="after")
    def _known_opset(self) -> ExportConfig:
        if self.opset is not None:
            check_opset(self.opset)
        return self


class BenchmarkConfig(Section):
    """How latency is measured in ONNX Runtime."""

    threads: Count = Field(default=1, description="threads of ONNX Runtime")
    batch_size: Count = Field(default=1, description="people per call")
    rounds: Annotated[int, Field(ge=2)] = Field(
        default=10, description="rounds in which all models are timed in turn, in random order"
    )
    warmup: Annotated[int, Field(ge=1)] = Field(default=10, description="calls before the first timed one")
    min_iterations: Annotated[int, Field(ge=10)] = Field(default=10, description="timed calls of each model, at least")
    min_seconds: Annotated[float, Field(gt=0)] = Field(default=1.0, description="timed seconds of each model, at least")


class RunConfig(Section):
    """A whole run: data to decision."""

    name: str = Field(default="run", description="what the run is called in the report")
    output: str | None = Field(
        default=None,
        description="run folder, relative to where the command is called; null takes runs/ and this file's name",
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="of everything random: the parts that are drawn (also by a data.function that takes a seed), fresh "
        "weights, training, bootstrap; the same seed gives the same run",
    )
    device: str = Field(default="cpu", description="where torch trains and collects: cpu, cuda, cuda:1, ..., or auto")
    threads: Count | None = Field(default=None, description="threads of torch; null leaves torch's own choice")
    data: Annotated[TableData | NpzData | FunctionData, Field(discriminator="kind")] = Field(
        description="people, labels and groups; data.kind is table, npz or function"
    )
    model: ModelConfig = Field(description="the network before pruning")
    training: TrainingConfig = Field(
        default_factory=TrainingConfig, description="how the network is trained before pruning"
    )
    prune: PruneConfig = Field(description="what is removed, by which criteria")
    finetune: FinetuneConfig = Field(default_factory=FinetuneConfig, description="how pruned networks are trained on")
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig, description="how people are compared")
    postprocess: PostprocessConfig = Field(
        default_factory=PostprocessConfig,
        description="thresholds and label overrides, tried on every network's answers; nothing unless asked for",
    )
    export: ExportConfig = Field(default_factory=ExportConfig, description="the ONNX files")
    benchmark: BenchmarkConfig = Field(
        default_factory=BenchmarkConfig, description="how latency is measured in ONNX Runtime"
    )
    sweep: SweepConfig = Field(
        default_factory=SweepConfig, description="what `fair-prune sweep` tries; `fair-prune run` does not look at it"
    )

    @model_validator(mode="after")
    def _devices(self) -> RunConfig:
        if not re.fullmatch(r"cpu|auto|cuda(:\d+)?", self.device):
            raise ValueError(f"device must be cpu, cuda, cuda:N or auto, got {self.device!r}")
        return self


DATA_KINDS: Mapping[str, type[Section]] = {"table": TableData, "npz": NpzData, "function": FunctionData}
"""The configuration of ``data`` for each value of ``data.kind``."""


def read(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and validate a configuration file.

    Args:
        path: the YAML file.
        overrides: ``KEY=VALUE`` texts that replace single keys; values are YAML.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, a missing key or a value that is not allowed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        raise ConfigError(NO_FILE.format(path=path)) from None
    return parse(text, origin=str(path), overrides=overrides)


def parse(text: str, *, origin: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Validate the text of a configuration; see :func:`read`."""
    values = _yaml(text, origin)
    if not isinstance(values, dict):
        raise ConfigError(NOT_A_MAPPING.format(origin=origin, type=type(values).__name__))
    for override in overrides:
        _replace(values, override)
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_message(error, origin)) from None
    stray = list(_without_effect(config))
    if stray:
        raise ConfigError("\n".join(f"{origin}: {message}" for message in stray))
    return config


def remarks(config: RunConfig) -> list[str]:
    """What a run should say about its configuration before it starts: allowed, but perhaps not what was meant."""
    one_step = all(config.prune.steps_to(a) == 1 for a in config.prune.amounts)
    if one_step and "epochs_between" in config.finetune.model_fields_set:
        return [
            UNUSED.format(
                key="finetune.epochs_between", where="with one pruning step", instead=", or set prune.steps to more"
            )
        ]
    return []


def _without_effect(config: RunConfig) -> Iterator[str]:
    """Keys that were written down and contradict others: whoever wrote them believes in something that is not so."""
    prune, data = config.prune, config.data
    if prune.schedule != "keep_fraction" and "keep_fraction" in prune.model_fields_set:
        where, instead = f"with prune.schedule: {prune.schedule}", ", or set prune.schedule: keep_fraction"
        yield UNUSED.format(key="prune.keep_fraction", where=where, instead=instead)
    if isinstance(data, PartedData) and data.parts is not None:
        for part, named in (("test", data.parts.test), ("validation", data.parts.validation)):
            if part in data.model_fields_set and named is not None:
                where, instead = f"where data.parts.{part} names those people", f", or set data.parts.{part}: null"
                yield UNUSED.format(key=f"data.{part}", where=where, instead=instead)


def check_opset(opset: int) -> None:
    """Refuse an ONNX opset that the installed onnx does not know.

    Raises:
        ConfigError: likewise.
    """
    from onnx.defs import onnx_opset_version

    if not LOWEST_OPSET <= opset <= onnx_opset_version():
        raise ConfigError(BAD_OPSET.format(low=LOWEST_OPSET, high=onnx_opset_version(), got=opset))


def path_of(text: str, base: Path, *, key: str) -> Path:
    """A path from the configuration: environment variables filled in, relative to the configuration's folder.

    ``$NAME`` and ``${NAME}`` must be set; ``${NAME:-default}`` takes the default where it is not, or is empty.

    Raises:
        ConfigError: it names an environment variable that is not set.
    """

    def value(match: re.Match[str]) -> str:
        name = match["braced"] or match["bare"]
        found = os.environ.get(name)
        if match["default"] is not None:
            return found or str(match["default"])
        if found is None:
            raise ConfigError(NO_VARIABLE.format(key=key, name=name))
        return found

    return base / Path(ENVIRONMENT.sub(value, text)).expanduser()


def _yaml(text: str, origin: str) -> Any:
    try:
        return yaml_text.load(text)
    except yaml.YAMLError as error:
        raise ConfigError(NOT_YAML.format(origin=origin, reason=" ".join(str(error).split()))) from None


def _replace(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(BAD_OVERRIDE.format(text=override))
    *parents, last = key.strip().split(".")
    for parent in parents:
        inner = values.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(BAD_OVERRIDE.format(text=override) + f"; {parent} holds no keys")
        values = inner
    values[last] = _yaml(text, f"--set {key}")


def _message(error: ValidationError, origin: str) -> str:
    """One line per problem, each naming the key as it is written in the file."""
    return "\n".join(_problem(dict(e), origin) for e in error.errors(include_url=False))


def _problem(problem: dict[str, Any], origin: str) -> str:
    location = [
        p for i, p in enumerate(problem["loc"]) if not (i == 1 and problem["loc"][0] == "data" and p in DATA_KINDS)
    ]
    key = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        allowed = sorted(section_of(location[:-1], problem["loc"]).model_fields)
        return UNKNOWN_KEY.format(
            origin=origin, key=key, near=near(str(location[-1]), allowed), allowed=", ".join(allowed)
        )
    if problem["type"] == "missing":
        return MISSING_KEY.format(origin=origin, key=key)
    if problem["type"] == "union_tag_not_found":
        return MISSING_KEY.format(origin=origin, key="data.kind")
    if problem["type"] == "union_tag_invalid":
        tag = str(problem["ctx"]["tag"])
        reason = f"{near(tag, list(DATA_KINDS))}allowed: {', '.join(DATA_KINDS)}"
        return _bad_value(origin, ["data", "kind"], reason, tag)
    reason = problem["msg"].removeprefix("Value error, ").replace("Input should", "should")
    return _bad_value(origin, location, reason, problem["input"])


def _bad_value(origin: str, location: Sequence[str | int], reason: str, value: Any) -> str:
    named = ".".join(part for part in location if isinstance(part, str))
    return BAD_VALUE.format(
        origin=origin,
        key=".".join(str(part) for part in location) or "the configuration",
        reason=reason,
        got="" if isinstance(value, dict) else f" (got {value!r})",
        section=f" {named}" if named else "",
    )


def section_of(location: Sequence[str | int], tagged: Sequence[str | int] = ()) -> type[Section]:
    """The configuration class that a location of keys leads to; list positions are skipped.

    Args:
        location: keys from the top, without the tag of a data kind.
        tagged: the same with the tag, as pydantic gives it, to know which kind of data is meant.
    """
    section: type[Section] = RunConfig
    for part in location:
        if isinstance(part, int):
            continue
        if part == "data" and section is RunConfig:
            section = DATA_KINDS[str(tagged[1])] if len(tagged) > 1 else TableData
            continue
        found = inner_section(section.model_fields[part].annotation)
        if found is not None:
            section = found
    return section


def inner_section(annotation: Any) -> type[Section] | None:
    """The configuration class inside an annotation such as ``list[Section]``, or ``None`` where there is none."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for argument in get_args(annotation):
        found = inner_section(argument)
        if found is not None:
            return found
    return None
