"""What a run is told about post-processing: thresholds and label overrides, chosen on validation people."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from fair_prune_plugins.workflow.sections import Section

NO_EFFECT = "{key} is set but does nothing with objective: {objective}; leave it out"
ALWAYS_PER_GROUP = "fairlearn's thresholds always differ between groups; leave out per_group, or set it to true"

_BUDGETED = ("equal_opportunity", "equalized_odds")


class ThresholdsConfig(Section):
    """One way to choose decision thresholds; in the list a bare objective will do."""

    objective: Literal[
        "match_labels", "match_dense", "equal_opportunity", "equalized_odds", "worst_group", "fairlearn"
    ] = Field(
        description="what thresholds are chosen for, on validation people: match_labels, as many positive decisions as "
        "positive labels; match_dense, as many as the dense network makes; equal_opportunity and equalized_odds, the "
        "smallest difference between groups in true positive rates (and in false positive rates) within "
        "the budget; worst_group, the highest accuracy of the worst group; fairlearn, its ThresholdOptimizer, which "
        "makes the rates of postprocess.thresholds.constraint equal by drawing lots"
    )
    label: str = Field(default="", description="what the report calls it; empty takes the objective")
    per_group: bool = Field(
        default=False,
        description="a threshold for each group: the group of a person is then used when that person is decided about, "
        "which may be forbidden; small groups keep the threshold for everybody",
    )
    budget: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.01,
        description="for equal_opportunity and equalized_odds: share of validation people who may be decided wrongly "
        "in addition",
    )
    constraint: Literal[
        "demographic_parity", "equalized_odds", "true_positive_rate_parity", "false_positive_rate_parity"
    ] = Field(default="equalized_odds", description="for fairlearn: what shall be equal between groups")

    @model_validator(mode="after")
    def _has_effect(self) -> ThresholdsConfig:
        if "budget" in self.model_fields_set and self.objective not in _BUDGETED:
            raise ValueError(NO_EFFECT.format(key="budget", objective=self.objective))
        if "constraint" in self.model_fields_set and self.objective != "fairlearn":
            raise ValueError(NO_EFFECT.format(key="constraint", objective=self.objective))
        if self.objective == "fairlearn" and "per_group" in self.model_fields_set and not self.per_group:
            raise ValueError(ALWAYS_PER_GROUP)
        return self

    @property
    def title(self) -> str:
        """What the report calls it."""
        if self.label:
            return self.label
        if self.objective == "fairlearn":
            return f"fairlearn {self.constraint}"
        return f"{self.objective} per group" if self.per_group else self.objective


class OverridesConfig(Section):
    """One policy of label overrides; any number of classes."""

    label: str = Field(default="", description="what the report calls it; empty takes the choices")
    uncertain_under: Literal["dense", "pruned"] = Field(
        default="dense",
        description="whose least certain answers are overridden. With dense, the dense network has to run on "
        "everybody; with pruned, and answer_of: dense, on the picked people alone",
    )
    answer_of: Literal["dense", "human"] = Field(
        default="dense", description="who answers instead; a human is taken to be always right"
    )
    budgets: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)] = Field(
        default=[0.05, 0.1, 0.2],
        description="shares of people to override; the margin below which an answer is overridden is fixed on "
        "validation people for each",
    )

    @property
    def title(self) -> str:
        """What the report calls it."""
        return self.label or f"unsure under {self.uncertain_under}, answered by {self.answer_of}"


def _objective(value: Any) -> Any:
    return {"objective": value} if isinstance(value, str) else value


class PostprocessConfig(Section):
    """What is done with the networks' answers afterwards; nothing unless asked for."""

    thresholds: list[Annotated[ThresholdsConfig, BeforeValidator(_objective)]] = Field(
        default_factory=list,
        description="ways to choose decision thresholds, by objective, or {objective, label, per_group, ...}; for "
        "tasks of two classes. Chosen on validation people, judged on test people, for every network",
    )
    overrides: list[OverridesConfig] = Field(
        default_factory=list,
        description="policies that have the least certain answers given by the dense network or a human",
    )

    @model_validator(mode="after")
    def _different(self) -> PostprocessConfig:
        slugs = [step.slug for step in self.steps]
        if len(set(slugs)) != len(slugs):
            raise ValueError(f"steps must be different, got {[s.title for s in self.steps]}; give them labels")
        return self

    @property
    def steps(self) -> list[Step]:
        """Everything to be done, in the order of the configuration; a policy is one step for each budget."""
        steps = [Step(t.title, thresholds=t) for t in self.thresholds]
        for policy in self.overrides:
            steps += [
                Step(f"{policy.title}, {100 * budget:g} %", override=policy, budget=budget) for budget in policy.budgets
            ]
        return steps


@dataclass(frozen=True)
class Step:
    """One thing done with a network's answers: thresholds, or an override policy at one budget."""

    title: str
    thresholds: ThresholdsConfig | None = None
    override: OverridesConfig | None = None
    budget: float = 0.0

    @property
    def slug(self) -> str:
        """The title as a part of a folder's name."""
        return re.sub(r"[^\w.-]+", "-", self.title).strip("-")

    @property
    def kind(self) -> Literal["thresholds", "override"]:
        """What it is."""
        return "override" if self.thresholds is None else "thresholds"

    @property
    def concerns_dense(self) -> bool:
        """Whether it can change the dense network's own answers."""
        if self.thresholds is not None:
            return self.thresholds.objective != "match_dense"
        return self.override is not None and self.override.answer_of == "human"

    def as_json(self) -> dict[str, Any]:
        """What its outcome depends on."""
        config = self.thresholds or self.override
        assert config is not None
        values = config.model_dump(mode="json", exclude={"label", "budgets"})
        return {"kind": self.kind, "title": self.title, "share": self.budget, **values}
