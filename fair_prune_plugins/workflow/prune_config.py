"""What a run is told about pruning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from fair_prune_plugins import criteria
from fair_prune_plugins.learned_gates import LEARNED
from fair_prune_plugins.workflow import methods
from fair_prune_plugins.workflow.amounts import Amount
from fair_prune_plugins.workflow.sections import Count, NamedSection, Ratio, Section, named, near
from fair_prune_plugins.workflow.training_config import LossConfig

TOO_FEW_STEPS = (
    "prune.steps: {steps} steps are too few for prune.schedule: keep_fraction: keeping {keep_fraction} of the units "
    "per step takes {needed} steps to the ratio {ratio}. Set prune.steps: null to take as many as each ratio needs, or "
    "at least {needed}"
)
ONE_QUANTITY = (
    "exactly one of ratios (share of the units to go) and macs, params or latency (share of the cost to keep) must be "
    "given, got {got}"
)

LEARNS_ONCE = (
    "prune.methods: {name} learns its gates for one step (prune.steps: 1), layer by layer (allocation: local) or for "
    "all layers together (allocation: global, and autobot always) towards a share of the MACs (prune.macs)"
)

Allocation = Literal["local", "global", "isomorphic"]

COSTS: tuple[Literal["macs", "params", "latency"], ...] = ("macs", "params", "latency")
QUANTITIES = ("ratios", *COSTS)


class MethodConfig(NamedSection):
    """One criterion; in the list a bare name will do."""

    allocation: Allocation | None = Field(
        default=None, description="as prune.allocation, for this method alone; null takes that"
    )

    collect_loss: Annotated[LossConfig, BeforeValidator(named)] | None = Field(
        default=None,
        description="whose derivatives rank the channels, for this method alone: a registered loss, which is told "
        "about the dense network and the training people; null takes prune.collect_loss",
    )

    @model_validator(mode="after")
    def _is_registered(self) -> MethodConfig:
        known = methods.names()
        if self.name not in known:
            raise ValueError(f"no criterion {self.name!r}; {near(self.name, known)}there are {known}")
        if self.collect_loss is not None and not methods.get(self.name).needs_data:
            raise ValueError(f"{self.name!r} looks at no loss: leave out collect_loss")
        return self


class PruneConfig(Section):
    """What is removed, by which criteria."""

    methods: Annotated[list[Annotated[MethodConfig, BeforeValidator(named)]], Field(min_length=1)] = Field(
        description="criteria to compare, by registered name, or {name, label, options, allocation}; the first is the "
        "plain one to compare with"
    )
    ratios: list[Ratio] = Field(
        default_factory=list,
        description="pruning ratios: share of the units of every coupled group that goes. Exactly one of ratios, macs, "
        "params and latency is given",
    )
    macs: list[Ratio] = Field(
        default_factory=list,
        description="instead of ratios: shares of the dense network's MACs to keep; the ratio that gets there is "
        "searched for, and with allocation: local all methods end with the same widths",
    )
    params: list[Ratio] = Field(
        default_factory=list, description="instead of ratios: shares of the dense network's parameters to keep"
    )
    latency: list[Ratio] = Field(
        default_factory=list,
        description="instead of ratios: shares of the dense network's latency to keep, timed in ONNX Runtime with one "
        "thread on this machine; the search exports and times some ten networks per step",
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
    collect_loss: Literal["cross_entropy", "finetune"] = Field(
        default="cross_entropy",
        description="whose derivatives rank the channels: those of cross_entropy, or of the loss of fine-tuning",
    )
    batch_size: Count = Field(default=64, description="people per batch while statistics are collected")
    round_to: Count | Literal["auto"] | None = Field(
        default="auto",
        description="which widths are kept: auto takes those that ONNX Runtime rewards on this machine, a number "
        "multiples of it; null leaves them as they come",
    )
    allocation: Allocation = Field(
        default="local",
        description="who decides how wide each layer stays: local, all layers lose alike and all methods get the same "
        "widths; global, the units of all layers are ranked together; isomorphic, those of layers wired alike. A "
        "method may have its own",
    )
    reestimate_batch_norm: bool = Field(
        default=False,
        description="after each pruning step, measure the statistics of all batch norms anew on the training people, "
        "without augmentation",
    )
    max_pruning_ratio: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="no layer loses more than this share; null is 1, and 0.9 where several layers are ranked together",
    )

    @model_validator(mode="after")
    def _consistent(self) -> PruneConfig:
        for what, values in (
            ("methods", [m.slug for m in self.methods]),
            ("ratios, macs, params and latency", [a.slug for a in self.amounts]),
        ):
            if len(set(values)) != len(values):
                raise ValueError(f"{what} must be different, got {values}; give methods of one name different labels")
        given = [quantity for quantity in QUANTITIES if getattr(self, quantity)]
        if len(given) != 1:
            raise ValueError(ONE_QUANTITY.format(got=" and ".join(given) or "none"))
        for method in self.methods:
            if method.name in LEARNED:
                self._can_learn(method)
        if self.steps is None and self.schedule == "linear":
            raise ValueError("steps: null needs schedule: keep_fraction; the linear schedule takes a number")
        if self.schedule == "keep_fraction" and self.steps is not None:
            needed, ratio = max(
                (criteria.keep_fraction_steps(a.removed, self.keep_fraction), a.removed) for a in self.amounts
            )
            if self.steps < needed:
                raise ValueError(
                    TOO_FEW_STEPS.format(steps=self.steps, keep_fraction=self.keep_fraction, needed=needed, ratio=ratio)
                )
        return self

    def _can_learn(self, method: MethodConfig) -> None:
        together = self.allocation_of(method) == "global" or method.name == "autobot"
        if self.steps != 1 or self.allocation_of(method) == "isomorphic" or (together and not self.macs):
            raise ValueError(LEARNS_ONCE.format(name=method.name))

    @property
    def amounts(self) -> list[Amount]:
        """What is pruned down to, in the order of the configuration."""
        costs = [Amount(quantity, share) for quantity in COSTS for share in getattr(self, quantity)]
        return [Amount("ratio", ratio) for ratio in self.ratios] + costs

    def steps_to(self, amount: Amount) -> int:
        """Pruning steps in which an amount is reached."""
        return self.steps or criteria.keep_fraction_steps(amount.removed, self.keep_fraction)

    def allocation_of(self, method: MethodConfig) -> Allocation:
        """Who decides about widths: the method's own setting, or the run's."""
        return method.allocation or self.allocation
