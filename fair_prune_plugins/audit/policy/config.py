"""What a pruned model may do to people: limits, and how sure a verdict must be."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fair_prune_plugins import yaml_text
from fair_prune_plugins.audit.policy.rules import RULES, Rule
from fair_prune_plugins.errors import ConfigError
from fair_prune_plugins.groups import SMALL_GROUP

NO_POLICY = "there is no policy file at {path}"
NOT_YAML = "{origin} is not valid YAML: {reason}"
NOT_A_MAPPING = "{origin} must hold keys and values, such as max_group_drop: 0.02, got {type}"
UNKNOWN_KEY = "{origin}: unknown key {key!r}; {near}allowed are {allowed}"
BAD_VALUE = "{origin}: {key}: {reason} (got {value!r})"
NO_RULE = "{origin} sets no limit; give at least one, such as max_group_drop: 0.02. There are {rules}"

Limit = Annotated[float, Field(ge=0, le=1)]

OVERALL = "overall"
"""Among ``outputs``: the accuracy over all outputs (multi-label, their mean) or classes."""


class Policy(BaseModel):
    """Limits for a pruned model; all limits are shares, so that 0.02 is two points. Those left out are not judged."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    max_pooled_drop: Limit | None = Field(default=None, description="most accuracy that everybody together may lose")
    max_group_drop: Limit | None = Field(default=None, description="most accuracy that any group may lose")
    min_group_accuracy: Limit | None = Field(default=None, description="least accuracy that any group must have")
    max_excess_gap: Limit | None = Field(
        default=None, description="most accuracy that any group may lose beyond what everybody lost"
    )
    max_gap_increase: Limit | None = Field(
        default=None, description="most that the accuracy gap between the best and the worst served group may grow"
    )
    max_flip_rate: Limit | None = Field(
        default=None, description="most people, of all and of any group, whose decision may change, right or wrong"
    )
    max_true_positive_drop: Limit | None = Field(
        default=None, description="most true positive rate that any group may lose, of each output"
    )
    max_demographic_parity_increase: Limit | None = Field(
        default=None, description="most that the gap in positive decisions may grow, of each output"
    )
    max_equal_opportunity_increase: Limit | None = Field(
        default=None, description="most that the gap in true positive rates may grow, of each output"
    )
    max_equalized_odds_increase: Limit | None = Field(
        default=None,
        description="most that the mean of the gaps in true and in false positive rates may grow, of each output",
    )
    attributes: list[str] | None = Field(
        default=None, description="sensitive attributes to judge, e.g. [gender, race x gender]; all by default"
    )
    outputs: list[str] | None = Field(
        default=None,
        description="outputs to judge; by default each label, or in multi-class tasks overall, the class",
    )
    minimum_group: Annotated[int, Field(ge=1)] = Field(
        default=SMALL_GROUP, description="groups with fewer people are named and not judged"
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(default=0.95, description="of the verdicts")
    correction: Literal["simultaneous", "none"] = Field(
        default="simultaneous",
        description="simultaneous: the confidence holds for all comparisons of a model together (Bonferroni); none: "
        "for each by itself, so that of 100 comparisons some are wrong by chance",
    )
    strict: bool = Field(default=False, description="also refuse a model where a rule cannot be told")

    @property
    def simultaneous(self) -> bool:
        """Whether the confidence is for all comparisons of a model together."""
        return self.correction == "simultaneous"

    @property
    def rules(self) -> tuple[tuple[Rule, float], ...]:
        """The rules that are set, with their limits."""
        return tuple((rule, getattr(self, rule.key)) for rule in RULES if getattr(self, rule.key) is not None)


def read_policy(path: Path | None = None, options: Mapping[str, Any] | None = None) -> Policy:
    """A policy from a YAML file, from options, or from both.

    Args:
        path: the file; none takes options alone.
        options: keys that replace the file's; ``None`` leaves a key alone.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, a value that is not allowed, or no limit at all.
    """
    origin = "the policy" if path is None else str(path)
    values: dict[str, Any] = {} if path is None else _yaml(path)
    values = {**values, **{key: value for key, value in (options or {}).items() if value is not None}}
    try:
        policy = Policy.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_problem(dict(e), origin) for e in error.errors(include_url=False))) from None
    if not policy.rules:
        raise ConfigError(NO_RULE.format(origin=origin, rules=", ".join(rule.key for rule in RULES)))
    return policy


def _yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml_text.load(path.read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(NO_POLICY.format(path=path)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(NOT_YAML.format(origin=path, reason=" ".join(str(error).split()))) from None
    if not isinstance(values, dict):
        raise ConfigError(NOT_A_MAPPING.format(origin=path, type=type(values).__name__))
    return {str(key): value for key, value in values.items()}


def _problem(problem: dict[str, Any], origin: str) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        allowed = list(Policy.model_fields)
        close = difflib.get_close_matches(key, allowed, n=1)
        near = f"did you mean {close[0]!r}? " if close else ""
        return UNKNOWN_KEY.format(origin=origin, key=key, near=near, allowed=", ".join(allowed))
    reason = problem["msg"].replace("Input should", "should")
    return BAD_VALUE.format(origin=origin, key=key, reason=reason, value=problem["input"])
