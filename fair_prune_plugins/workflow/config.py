"""What a run is told: every key, its default, what is allowed, and what it means.

The models below are the one place where keys are written down: they validate a configuration, and ``fair-prune
explain`` prints them (:mod:`fair_prune_plugins.workflow.explain`).
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from fair_prune_plugins import criteria
from fair_prune_plugins.errors import ConfigError

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
TOO_FEW_STEPS = (
    "prune.steps: {steps} steps are too few for prune.schedule: keep_fraction: keeping {keep_fraction} of the units "
    "per step takes {needed} steps to the ratio {ratio}. Set prune.steps: null to take as many as each ratio needs, or "
    "at least {needed}"
)
UNUSED = "{key} is set but does nothing {where}; leave it out{instead}"
BAD_OPSET = (
    "export.opset: this version of onnx knows the opsets {low} to {high}, got {got}; null takes the exporter's own"
)
BAD_OVERRIDE = "--set takes KEY=VALUE, e.g. --set prune.ratios=[0.5], got {text!r}"

LOWEST_OPSET = 11
ENVIRONMENT = re.compile(r"\$\{(?P<braced>\w+)(?::-(?P<default>[^}]*))?\}|\$(?P<bare>\w+)")

Ratio = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
PartsKey = Literal["column", "train", "validation", "test"]


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused and nothing changes after it is read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False, coerce_numbers_to_str=True
    )


class _Described(Section):
    name: str = Field(default="", description="what the data set is called in the report")
    target: str = Field(default="target", description="what is predicted, as the report calls it")
    description: str = Field(
        default="", description="one or two sentences for a reader who sees the task for the first time"
    )
    attribution: list[str] = Field(
        default_factory=list, description="lines that the data's licence asks to be shown; printed in the report"
    )


class Parts(Section):
    """Which rows are training, validation and test people, where the data says so itself."""

    column: str = Field(description="the column (table) or array (npz) that says which part a row belongs to")
    train: str = Field(default="train", description="its value for training people")
    validation: str | None = Field(
        default=None, description="its value for validation people; null draws them from the training people"
    )
    test: str | None = Field(
        default="test", description="its value for test people; null draws them from the training people"
    )


class _Parted(_Described):
    parts: Parts | None = Field(
        default=None,
        description="where the data itself says which part a row belongs to; otherwise parts are drawn at random",
    )
    validation: Share = Field(
        default=0.15,
        description="share drawn as validation people, who rank the channels and pick the worst group; of all "
        "people, or of the "
        "training people where data.parts names the test part",
    )
    test: Share = Field(
        default=0.2,
        description="share drawn as test people, who are used once, at the end; not to be set where data.parts names "
        "them",
    )
    classes: list[str] | None = Field(
        default=None, description="the classes in order; null takes the values of the training people, sorted"
    )


class TableData(_Parted):
    """A table of files (CSV or Parquet) and a folder or zip archive of images."""

    kind: Literal["table"] = Field(default="table", description="a table of files plus images")
    images: str = Field(
        description="folder or zip archive of the images; $NAME and ${NAME} are environment variables, "
        "${NAME:-folder} has a default"
    )
    table: str = Field(description=".csv or .parquet file; a name inside the archive or folder of images works too")
    file: str = Field(default="file", description="the column with the image's path inside data.images")
    target: str = Field(default="target", description="the column to predict")
    groups: Annotated[list[str], Field(min_length=1)] = Field(
        description="the sensitive columns; several make intersections, e.g. [race, gender]"
    )
    size: Annotated[int, Field(ge=8)] | None = Field(
        default=None,
        description="height and width in pixels to bring all images to; null keeps theirs, which must then agree",
    )
    channels: Literal[1, 3] = Field(default=3, description="1 grey, 3 RGB")
    skip_corrupt: bool = Field(
        default=False, description="leave damaged images out and count them, instead of stopping"
    )


class NpzData(_Parted):
    """Arrays in a NumPy .npz file."""

    kind: Literal["npz"] = Field(default="npz", description="arrays in one .npz file")
    path: str = Field(
        description="the .npz file; $NAME and ${NAME} are environment variables, ${NAME:-folder} has a default"
    )
    inputs: str = Field(default="inputs", description="array of inputs: uint8 images or float32 numbers")
    layout: Literal["nchw", "nhwc", "nhw", "features"] = Field(
        default="nchw",
        description="dimensions of data.inputs: images with channels first, channels last, without channels, or [N, "
        "features]",
    )
    labels: str = Field(
        default="labels", description="array of labels: class names, or numbers from 0 with data.classes"
    )
    groups: Annotated[list[str], Field(min_length=1)] = Field(
        description="the sensitive arrays; several make intersections"
    )


class FunctionData(_Described):
    """Any data set, from a function."""

    kind: Literal["function"] = Field(default="function", description="a data set that a function returns")
    function: str = Field(
        description="module:function that returns fair_prune_plugins.workflow.data.Samples; looked for beside this "
        "file too"
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="keyword arguments of the function; the run's seed is added where it takes a seed and none is "
        "given here",
    )


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


class TrainingConfig(Section):
    """How a network is trained."""

    epochs: Count = Field(default=20, description="passes over the training people")
    batch_size: Annotated[int, Field(ge=2)] = Field(default=64, description="people per step")
    learning_rate: Annotated[float, Field(gt=0)] = Field(
        default=3e-3, description="the highest learning rate of the schedule"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=5e-4, description="decoupled weight decay")
    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", description="sgd has Nesterov momentum 0.9")
    schedule: Literal["one_cycle", "cosine", "constant"] = Field(
        default="one_cycle", description="how the learning rate goes over the steps"
    )
    flip: bool = Field(default=False, description="mirror training images left and right at random")
    shift: Annotated[int, Field(ge=0, le=16)] = Field(
        default=0, description="move training images by up to this many pixels at random"
    )


class FinetuneConfig(TrainingConfig):
    """How a pruned network is trained on; epochs 0 leaves it as it was pruned."""

    epochs: Annotated[int, Field(ge=0)] = Field(
        default=8, description="passes over the training people after the last pruning step"
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(
        default=1e-3, description="the highest learning rate of the schedule"
    )
    epochs_between: Annotated[int, Field(ge=0)] = Field(
        default=1,
        description="passes over the training people after each pruning step but the last; not to be set with one step",
    )


class MethodConfig(Section):
    """One criterion; in the list a bare name will do."""

    name: str = Field(description="the criterion's registered name")
    label: str = Field(default="", description="what the report calls it; empty takes the name")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the criterion's importance")

    @model_validator(mode="after")
    def _is_registered(self) -> MethodConfig:
        if self.name not in criteria.names():
            raise ValueError(
                f"no criterion {self.name!r}; {_near(self.name, criteria.names())}there are {list(criteria.names())}"
            )
        return self

    @property
    def title(self) -> str:
        """What the report calls the method."""
        return self.label or self.name

    @property
    def slug(self) -> str:
        """The title as a part of a folder's name."""
        return re.sub(r"[^\w.-]", "-", self.title)


def percent_of(ratio: float) -> str:
    """A ratio as names of models and folders have it: 0.5 is ``50``."""
    return f"{100 * ratio:.6g}"


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class PruneConfig(Section):
    """What is removed, by which criteria."""

    methods: Annotated[list[Annotated[MethodConfig, BeforeValidator(_named)]], Field(min_length=1)] = Field(
        description="criteria to compare, by registered name, or {name, label, options}; the first is the plain one "
        "to compare with"
    )
    ratios: Annotated[list[Ratio], Field(min_length=1)] = Field(
        description="pruning ratios: share of the units of every coupled group that goes"
    )
    steps: Count | None = Field(
        default=1,
        description="pruning steps with fresh statistics and fine-tuning between; null takes as many as "
        "prune.schedule needs",
    )
    schedule: Literal["linear", "keep_fraction"] = Field(
        default="linear",
        description="the ratio after each step: linear, or FairGRAPE's constant share kept per step "
        "(prune.keep_fraction)",
    )
    keep_fraction: Ratio = Field(
        default=0.9,
        description="share of units kept in each step of the keep_fraction schedule; not to be set with another",
    )
    collect_on: Literal["validation", "train"] = Field(
        default="validation", description="whose data rank the channels; people the net was not trained on tell more"
    )
    batch_size: Count = Field(default=64, description="people per batch while statistics are collected")
    round_to: Count | None = Field(
        default=4,
        description="widths are multiples of this: a multiple of 4 keeps convolutions in ONNX Runtime's fast CPU "
        "layout, 16 is faster where the width allows; null leaves them as they come",
    )
    global_pruning: bool = Field(
        default=False,
        description="rank the units of all layers together; widths, and so the cost, then differ between methods",
    )
    isomorphic: bool = Field(
        default=False, description="with global_pruning, rank together only layers that are wired alike"
    )
    max_pruning_ratio: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="no layer loses more than this share"
    )

    @model_validator(mode="after")
    def _consistent(self) -> PruneConfig:
        for what, values in (
            ("methods", [m.slug for m in self.methods]),
            ("ratios", [percent_of(r) for r in self.ratios]),
        ):
            if len(set(values)) != len(values):
                raise ValueError(f"{what} must be different, got {values}; give methods of one name different labels")
        if self.steps is None and self.schedule == "linear":
            raise ValueError("steps: null needs schedule: keep_fraction; the linear schedule takes a number")
        if self.schedule == "keep_fraction" and self.steps is not None:
            needed, ratio = max((criteria.keep_fraction_steps(r, self.keep_fraction), r) for r in self.ratios)
            if self.steps < needed:
                raise ValueError(
                    TOO_FEW_STEPS.format(steps=self.steps, keep_fraction=self.keep_fraction, needed=needed, ratio=ratio)
                )
        if self.isomorphic and not self.global_pruning:
            raise ValueError("isomorphic: true needs global_pruning: true")
        return self

    def steps_to(self, ratio: float) -> int:
        """Pruning steps in which a ratio is reached."""
        return self.steps or criteria.keep_fraction_steps(ratio, self.keep_fraction)


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
    export: ExportConfig = Field(default_factory=ExportConfig, description="the ONNX files")
    benchmark: BenchmarkConfig = Field(
        default_factory=BenchmarkConfig, description="how latency is measured in ONNX Runtime"
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
    one_step = all(config.prune.steps_to(r) == 1 for r in config.prune.ratios)
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
    if isinstance(data, _Parted) and data.parts is not None:
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
        return yaml.safe_load(text)
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
        near = _near(str(location[-1]), allowed)
        return UNKNOWN_KEY.format(origin=origin, key=key, near=near, allowed=", ".join(allowed))
    if problem["type"] == "missing":
        return MISSING_KEY.format(origin=origin, key=key)
    if problem["type"] == "union_tag_not_found":
        return MISSING_KEY.format(origin=origin, key="data.kind")
    if problem["type"] == "union_tag_invalid":
        tag = str(problem["ctx"]["tag"])
        reason = f"{_near(tag, list(DATA_KINDS))}allowed: {', '.join(DATA_KINDS)}"
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


def _near(word: str, allowed: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, allowed, n=1)
    return f"did you mean {close[0]!r}? " if close else ""
