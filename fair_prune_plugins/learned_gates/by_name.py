"""The methods that learn gates, as configurations call them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.learned_gates.autobot_pruner import AutoBotPruner
from fair_prune_plugins.learned_gates.base import LearnedGatePruner, check_count
from fair_prune_plugins.learned_gates.bifp import BiFPPruner, BiPPruner
from fair_prune_plugins.learned_gates.settings import AutoBotSettings, BiFPSettings
from fair_prune_plugins.losses.batch_loss import BatchLoss
from fair_prune_plugins.statistics.walking import Groups

NO_OPTION = "{name!r} has no option {option!r}; it has {known}"
DECIDED_ELSEWHERE = ("seed", "allocation")
FAIRNESS_TERM = (
    "weight_penalty",
    "mask_penalty",
    "dual_rate",
    "surrogate",
    "sharpness",
    "penalty",
    "tau",
    "task",
)
"""What BiP, which has no such term, has no use for."""

STEPS = 500
"""Upper steps of the bi-level methods unless said otherwise; a compromise of this package's, no paper's."""


@dataclass(frozen=True)
class LearnedMethod:
    """A method that learns gates.

    Attributes:
        name: how configurations call it.
        pruner: its pruner.
        summary: what it does, in one sentence.
        source: the paper that it comes from.
        needs_groups: whether it compares sensitive groups by itself.
    """

    name: str
    pruner: type[BiFPPruner] | type[AutoBotPruner]
    summary: str
    source: str
    needs_groups: bool = False
    needs_data: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """Options and their defaults."""
        bilevel = self.pruner is not AutoBotPruner
        settings: Any = BiFPSettings() if bilevel else AutoBotSettings()
        hidden = DECIDED_ELSEWHERE if self.pruner is not BiPPruner else (*DECIDED_ELSEWHERE, *FAIRNESS_TERM)
        own = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name not in hidden}
        return {**own, "steps": STEPS} if bilevel else own

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse options that it does not have, and values out of range.

        Raises:
            InputError: naming the option.
        """
        for option in options:
            if option not in self.options:
                raise InputError(NO_OPTION.format(name=self.name, option=option, known=sorted(self.options)))
        if "steps" in self.options:
            check_count("steps", options.get("steps", STEPS))
        self._settings(options)

    def make(self, model: Any, example_inputs: Any, *, seed: int, together: bool, options: Mapping[str, Any],
             **pruner_options: Any) -> LearnedGatePruner:  # fmt: skip
        """Its pruner.

        Args:
            model: see :class:`LearnedGatePruner`.
            example_inputs: see there.
            seed: of its randomness.
            together: whether the gates of all layers are ranked together; AutoBot's always are.
            options: the method's own.
            pruner_options: amount, widths, ignored layers.
        """
        self.check_options(options)
        of_ranking = {} if self.pruner is AutoBotPruner else {"allocation": "macs" if together else "uniform"}
        settings = self._settings({**options, **of_ranking, "seed": seed})
        return self.pruner(model, example_inputs, settings=settings, **pruner_options)

    def fit(
        self,
        pruner: LearnedGatePruner,
        lower: Iterable[Any],
        upper: Iterable[Any],
        loss: BatchLoss,
        *,
        groups: Groups,
        options: Mapping[str, Any],
        progress: bool,
    ) -> None:
        """Learn: weights, where the method trains them, from ``lower``, gates from ``upper``."""
        if isinstance(pruner, AutoBotPruner):
            pruner.fit(upper, loss, progress=progress, inputs="inputs", targets="targets")
        elif isinstance(pruner, BiFPPruner):
            pruner.fit(
                lower,
                upper,
                loss,
                steps=options.get("steps", STEPS),
                groups=groups if pruner.settings.fair else None,
                inputs="inputs",
                targets="targets",
                progress=progress,
            )

    def _settings(self, options: Mapping[str, Any]) -> Any:
        own = {k: v for k, v in options.items() if k != "steps"}
        return AutoBotSettings(**own) if self.pruner is AutoBotPruner else BiFPSettings(**own)


LEARNED = {
    m.name: m
    for m in (
        LearnedMethod(
            "bifp", BiFPPruner, "Gates and weights are learned in turn, both with a term on the gap between groups.",
            "Dai, Li, Luo, Ma and Wu, 2023, arXiv:2312.10181", needs_groups=True,
        ),
        LearnedMethod(
            "bip", BiPPruner, "Gates and weights are learned in turn (BiFP without its fairness term).",
            "Zhang et al., 2022 (BiP)",
        ),
        LearnedMethod(
            "autobot", AutoBotPruner, "Gates are learned on frozen weights under a MACs budget.",
            "as in Meyer and Wong, 2022, arXiv:2211.10285",
        ),
    )
}  # fmt: skip
