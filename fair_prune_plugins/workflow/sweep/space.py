"""What a sweep tries: settings (criterion, amount, loss, varied keys) with seeds, and a configuration for each."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fair_prune_plugins import __version__, yaml_text
from fair_prune_plugins.errors import ConfigError
from fair_prune_plugins.workflow.config import RunConfig, parse
from fair_prune_plugins.workflow.prune_config import QUANTITIES
from fair_prune_plugins.workflow.run_folder import fingerprint
from fair_prune_plugins.workflow.stages import Variant, variants
from fair_prune_plugins.workflow.sweep.config import Scalar, ends

CRITERION, LOSS, SEED = "criterion", "loss", "seed"
"""What these parameters are called in NNI; the amount is called by its quantity, varied keys by themselves."""

NOT_A_TRIAL = "NNI asked for {parameters}, which is no trial of this sweep ({reason}); its parameters are {known}"

ONE_AMOUNT = (
    "sweep.tuner: {tuner} compares trials by accuracy alone and would only learn to prune less; give one "
    "amount in prune, or take sweep.tuner: GridSearch, which compares settings of the same amount (got {amounts})"
)

Parameters = Mapping[str, Scalar]


@dataclass(frozen=True)
class Setting:
    """What is tried, whatever the seed.

    Attributes:
        variant: criterion, amount and loss.
        varied: further keys and their values.
    """

    variant: Variant
    varied: tuple[tuple[str, Scalar], ...] = ()

    @property
    def title(self) -> str:
        """Criterion, loss and varied keys, without the amount: what pictures give one colour."""
        return ", ".join([self.variant.title, *self._varied])

    @property
    def name(self) -> str:
        """As reports call it: ``fairgrape + group_dro 50 %, finetune.epochs 4``."""
        return ", ".join([self.variant.name, *self._varied])

    @property
    def slug(self) -> str:
        """As its folder is called."""
        place = self.variant.folder.removeprefix("models/")
        return f"{place}-{fingerprint(dict(self.varied))[:8]}" if self.varied else place

    @property
    def _varied(self) -> list[str]:
        return [f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}" for key, value in self.varied]


@dataclass(frozen=True)
class Point:
    """A setting with a seed: one `fair-prune run`."""

    setting: Setting
    seed: int

    @property
    def name(self) -> str:
        """As it is called on the console."""
        return f"{self.setting.name}, seed {self.seed}"

    @property
    def folder(self) -> str:
        """Under the sweep folder."""
        return f"trials/{self.setting.slug}/seed-{self.seed}"


class Space:
    """The trials of a configuration.

    Args:
        config: of a run, with what its section ``sweep`` says.

    Raises:
        ConfigError: a varied key that does not exist, or a value that is not allowed for it; several amounts where a
            tuner is to choose.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.sweep = config.sweep
        self.seeds: list[int] = self.sweep.seeds or [config.seed]
        self._variants = variants(config)
        self._quantity = config.prune.amounts[0].quantity
        amounts = [a.title for a in config.prune.amounts]
        if len(amounts) > 1 and not self.sweep.is_grid:
            raise ConfigError(ONE_AMOUNT.format(tuner=self.sweep.tuner.name, amounts=", ".join(amounts)))
        for key, values in self.sweep.vary.items():
            for value in ends(values):
                self.config_of(Point(Setting(self._variants[0], ((key, value),)), self.seeds[0]))
        for setting in self.settings() if self.sweep.is_grid else []:
            self.config_of(Point(setting, self.seeds[0]))

    def settings(self) -> list[Setting]:
        """The whole grid, in the order of the configuration."""
        varied = [[(key, value) for value in values] for key, values in self.sweep.vary.items()]
        return [Setting(v, chosen) for v in self._variants for chosen in itertools.product(*varied)]

    def points(self) -> list[Point]:
        """The whole grid with all seeds."""
        return [Point(setting, seed) for setting in self.settings() for seed in self.seeds]

    def trials(self) -> int:
        """How many trials there are to be."""
        grid = len(self.points()) if self.sweep.is_grid else None
        return min(n for n in (grid, self.sweep.max_trials) if n is not None)

    def search_space(self) -> dict[str, Any]:
        """As NNI writes it."""
        choices: dict[str, Sequence[Scalar]] = {
            CRITERION: [m.title for m in self.config.prune.methods],
            self._quantity: [a.value for a in self.config.prune.amounts],
            LOSS: [loss.title for loss in self.config.finetune.losses],
        }
        space = {name: {"_type": "choice", "_value": list(values)} for name, values in choices.items()}
        for key, values in self.sweep.vary.items():
            space[key] = {"_type": "choice", "_value": values} if isinstance(values, list) else values
        if self.sweep.is_grid:
            space[SEED] = {"_type": "choice", "_value": self.seeds}
        return space

    def parameters_of(self, setting: Setting, seed: int | None = None) -> dict[str, Scalar]:
        """A setting as NNI's parameters, in the order of the search space; with its seed where a grid has it."""
        variant = setting.variant
        found: dict[str, Scalar] = {
            CRITERION: variant.method.title,
            self._quantity: variant.amount.value,
            LOSS: variant.loss.title,
            **dict(setting.varied),
        }
        return found if seed is None else {**found, SEED: seed}

    def points_of(self, parameters: Parameters) -> list[Point]:
        """What a trial with these parameters runs: one point of a grid, or all seeds of what a tuner chose.

        Raises:
            ConfigError: parameters of another sweep.
        """
        try:
            variant = next(
                v
                for v in self._variants
                if v.method.title == parameters[CRITERION]
                and v.amount.value == parameters[self._quantity]
                and v.loss.title == parameters[LOSS]
            )
            setting = Setting(variant, tuple((key, parameters[key]) for key in self.sweep.vary))
            seeds = [int(parameters[SEED])] if self.sweep.is_grid else self.seeds
        except (KeyError, StopIteration) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else "no such combination"
            raise ConfigError(
                NOT_A_TRIAL.format(parameters=dict(parameters), reason=reason, known=list(self.search_space()))
            ) from None
        return [Point(setting, seed) for seed in seeds]

    def config_of(self, point: Point) -> RunConfig:
        """The configuration of one run.

        Raises:
            ConfigError: a varied key that does not exist, or a value that is not allowed for it.
        """
        variant = point.setting.variant
        values = self.config.model_dump(mode="json", exclude_unset=True, exclude={"sweep", "output"})
        values |= {"name": f"{self.config.name}: {point.name}", "seed": point.seed}
        prune: dict[str, Any] = {k: v for k, v in values["prune"].items() if k not in QUANTITIES}
        prune["methods"] = [variant.method.model_dump(mode="json")]
        prune["ratios" if variant.amount.quantity == "ratio" else variant.amount.quantity] = [variant.amount.value]
        values["prune"] = prune
        values["finetune"] = {**values.get("finetune", {}), "losses": [variant.loss.model_dump(mode="json")]}
        for key, value in point.setting.varied:
            _put(values, key, value)
        origin = f"sweep.vary ({', '.join(f'{k}: {v}' for k, v in point.setting.varied)})"
        return parse(yaml_text.dump(values), origin=origin if point.setting.varied else "sweep")

    def stamp(self, point: Point) -> str:
        """Hash of all that a point's result is made from; the data themselves are in the run folder's own stamps."""
        config = self.config_of(point).model_dump(mode="json", exclude={"name", "output", "threads", "sweep"})
        return fingerprint({"version": __version__, "config": config})


def _put(values: dict[str, Any], key: str, value: Scalar) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        inner = values.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"sweep.vary: {key!r} cannot be varied, {parent} holds no keys")
        values = inner
    values[last] = value
