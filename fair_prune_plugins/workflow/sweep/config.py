"""What a sweep is told beside the configuration of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from fair_prune_plugins.workflow.sections import Count, Section, named, near

GRID = "GridSearch"
LOCAL = "local"

PLATFORMS = (LOCAL, "remote", "openpai", "aml", "dlc", "kubeflow", "frameworkcontroller")

Scalar = str | bool | int | float


DISTRIBUTIONS: Mapping[str, tuple[str, ...]] = {
    "uniform": ("low", "high"),
    "quniform": ("low", "high", "step"),
    "loguniform": ("low", "high"),
    "qloguniform": ("low", "high", "step"),
    "normal": ("mean", "deviation"),
    "qnormal": ("mean", "deviation", "step"),
    "lognormal": ("mean", "deviation"),
    "qlognormal": ("mean", "deviation", "step"),
    "randint": ("low", "high"),
}
"""What NNI draws numbers from, and what it is told."""

VARIED_OTHERWISE = {
    "prune.methods": "list the criteria in prune.methods, each becomes trials of its own",
    "prune.ratios": "list the ratios in prune.ratios, each becomes trials of its own",
    "prune.macs": "list the shares in prune.macs, each becomes trials of its own",
    "prune.params": "list the shares in prune.params, each becomes trials of its own",
    "prune.latency": "list the shares in prune.latency, each becomes trials of its own",
    "finetune.losses": "list the losses in finetune.losses, each becomes trials of its own",
}
SAME_DENSE = (
    "{key!r} cannot be varied: all trials of a seed share people and dense network, so that they can be compared; keys "
    "under prune and finetune can"
)
NOT_VALUES = (
    "{key!r} needs a list of values, or for a tuner {{_type: ..., _value: [...]}} with one of {known}; got {got}"
)
NO_VALUES = "{key!r} has an empty list; give values, or leave the key out"
NOT_SCALAR = "{key!r} takes numbers, texts, true and false, got {got!r}; name the key inside it, as in {key}.name"
TWICE = "{what} must be different"
BAD_DISTRIBUTION = "{key!r}: {kind} takes _value: [{takes}], got {got!r}"
EMPTY_RANGE = "{key!r}: {kind} needs a lower end below the upper one, got {got!r}"
GRID_NEEDS_LISTS = "{key!r}: a grid takes lists of values; a range needs a tuner such as sweep.tuner: TPE"
NEEDS_MAX_TRIALS = "max_trials is missing: {tuner} has no end of its own, say how many trials it may take"
NO_PLATFORM = "training_service needs platform, e.g. {{platform: local}}; {near}NNI has {known}"
LARGER_IS_BETTER = "optimize_mode {got!r}: what trials report is an accuracy, larger is better; leave the option out"


class TunerConfig(Section):
    """Who decides about the next trial; a bare name will do."""

    name: Literal["GridSearch", "Random", "TPE"] = Field(
        default="GridSearch",
        description="GridSearch tries every combination once for each seed; the others are NNI's tuners, which choose "
        "among criteria, losses and sweep.vary by validation accuracy, at one amount. Then each trial runs all seeds "
        "and reports their mean, so that no seed is chosen for its luck",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="arguments of NNI's tuner, as NNI calls them")

    @model_validator(mode="after")
    def _maximises(self) -> TunerConfig:
        mode = self.options.get("optimize_mode", "maximize")
        if mode != "maximize":
            raise ValueError(LARGER_IS_BETTER.format(got=mode))
        return self


class SweepConfig(Section):
    """What `fair-prune sweep` does: each criterion x amount x loss of the configuration is a trial of its own."""

    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = Field(
        default=None, description="each combination is run with each of these; null takes the one of key seed"
    )
    vary: dict[str, Any] = Field(
        default_factory=dict,
        description="further keys under prune and finetune that differ between trials, with their values, e.g. "
        "{finetune.learning_rate: [1e-3, 2e-3]}; for a tuner also ranges as NNI writes them, e.g. "
        "{finetune.learning_rate: {_type: loguniform, _value: [1e-4, 1e-2]}}",
    )
    tuner: Annotated[TunerConfig, BeforeValidator(named)] = Field(
        default_factory=TunerConfig, description="who decides about the next trial"
    )
    max_trials: Count | None = Field(
        default=None, description="trials at most, finished ones of an earlier call included; null is the whole grid"
    )
    concurrency: Count = Field(default=1, description="trials that run at the same time")
    training_service: dict[str, Any] = Field(
        default={"platform": "local"},
        description="where trials run, given to NNI as it is. Other platforms than local are passed through and not "
        "tested; they need this package there, and the sweep folder under the same path",
    )

    @field_validator("seeds")
    @classmethod
    def _different_seeds(cls, seeds: list[int] | None) -> list[int] | None:
        if seeds is not None and len(set(seeds)) != len(seeds):
            raise ValueError(TWICE.format(what="seeds"))
        return seeds

    @field_validator("vary")
    @classmethod
    def _values(cls, vary: dict[str, Any]) -> dict[str, Any]:
        for key, values in vary.items():
            _check_key(key)
            _check_values(key, values)
        return vary

    @field_validator("training_service")
    @classmethod
    def _has_a_platform(cls, service: dict[str, Any]) -> dict[str, Any]:
        platform = str(service.get("platform", ""))
        if platform not in PLATFORMS:
            raise ValueError(NO_PLATFORM.format(near=near(platform, PLATFORMS), known=", ".join(PLATFORMS)))
        return service

    @model_validator(mode="after")
    def _goes_with_the_tuner(self) -> SweepConfig:
        if self.is_grid:
            for key, values in self.vary.items():
                if not isinstance(values, list):
                    raise ValueError(GRID_NEEDS_LISTS.format(key=key))
        elif self.max_trials is None:
            raise ValueError(NEEDS_MAX_TRIALS.format(tuner=self.tuner.name))
        return self

    @property
    def is_grid(self) -> bool:
        """Whether every combination is tried, and no tuner chooses."""
        return self.tuner.name == GRID

    @property
    def is_local(self) -> bool:
        """Whether trials run on this machine."""
        return bool(self.training_service["platform"] == LOCAL)


def ends(values: Any) -> list[Scalar]:
    """The values of a key in ``vary``; of a distribution those between which (or about which) it draws."""
    if isinstance(values, list):
        return values
    kind, told = values["_type"], values["_value"]
    if "normal" in kind:
        return [told[0]]
    return [told[0], told[1] - 1] if kind == "randint" else told[:2]


def _check_key(key: str) -> None:
    for taken, advice in VARIED_OTHERWISE.items():
        if key == taken or key.startswith(taken + "."):
            raise ValueError(f"{key!r} cannot be varied here; {advice}")
    if not key.startswith(("prune.", "finetune.")):
        raise ValueError(SAME_DENSE.format(key=key))


def _check_values(key: str, values: Any) -> None:
    if isinstance(values, list):
        if not values:
            raise ValueError(NO_VALUES.format(key=key))
        for value in values:
            if not isinstance(value, Scalar):
                raise ValueError(NOT_SCALAR.format(key=key, got=value))
        if len({(type(v), v) for v in values}) != len(values):
            raise ValueError(TWICE.format(what=f"the values of {key!r}"))
        return
    if not isinstance(values, dict) or set(values) != {"_type", "_value"} or values["_type"] not in DISTRIBUTIONS:
        raise ValueError(NOT_VALUES.format(key=key, known=", ".join(DISTRIBUTIONS), got=values))
    kind, told = values["_type"], values["_value"]
    takes = DISTRIBUTIONS[kind]
    if not isinstance(told, list) or len(told) != len(takes) or not all(_is_number(v) for v in told):
        raise ValueError(BAD_DISTRIBUTION.format(key=key, kind=kind, takes=", ".join(takes), got=told))
    if "high" in takes and told[0] >= told[1]:
        raise ValueError(EMPTY_RANGE.format(key=key, kind=kind, got=told))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
