"""A step of post-processing for one network: chosen on validation people, judged once on test people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fair_prune_plugins.errors import ConfigError
from fair_prune_plugins.evaluation import evaluate, predicted_classes
from fair_prune_plugins.groups import GroupLabels
from fair_prune_plugins.postprocessing import (
    OverridePolicy,
    ThresholdRule,
    choose_override,
    choose_thresholds,
    choose_with_fairlearn,
    judge,
)
from fair_prune_plugins.postprocessing.choosing import comparable
from fair_prune_plugins.postprocessing.overrides import share_by_group
from fair_prune_plugins.postprocessing.scores import as_logits
from fair_prune_plugins.workflow.config import EvaluationConfig, RunConfig
from fair_prune_plugins.workflow.postprocess_config import OverridesConfig, Step, ThresholdsConfig

TWO_CLASSES = (
    "postprocess.thresholds: a threshold decides between two classes, this task has {classes}; leave it out, or use "
    "postprocess.overrides, which takes any number of classes"
)
FEW_GROUPS = (
    "postprocess.thresholds: {title} compares groups, and {have} of {total} groups by {attribute} can be: each needs "
    "{minimum} validation people (evaluation.minimum_group){labels}"
)

_COMPARING = ("equal_opportunity", "equalized_odds", "worst_group", "fairlearn")

Logits = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Answers:
    """What networks said about the people of one part.

    Attributes:
        labels: int64 ``[N]``.
        groups: of each person.
        logits: of the network in question ``[N, K]``.
        dense: of the dense network ``[N, K]``.
    """

    labels: npt.NDArray[np.int64]
    groups: GroupLabels
    logits: Logits
    dense: Logits


def check(config: RunConfig, labels: npt.NDArray[np.int64], groups: GroupLabels, classes: int) -> None:
    """Refuse before anything is trained what could not be chosen on the validation people.

    Args:
        config: of the run.
        labels: of the validation people.
        groups: of the validation people.
        classes: number of classes.

    Raises:
        ConfigError: thresholds for more than two classes, or too few groups to compare.
    """
    thresholds = config.postprocess.thresholds
    if thresholds and classes != 2:
        raise ConfigError(TWO_CLASSES.format(classes=classes))
    minimum = config.evaluation.minimum_group
    for one in thresholds:
        both = one.objective != "worst_group"
        able = comparable(labels, groups, minimum, both_labels=both)
        if one.objective in _COMPARING and able.sum() < 2:
            raise ConfigError(
                FEW_GROUPS.format(
                    title=one.title,
                    have=int(able.sum()),
                    total=len(able),
                    attribute=groups.attribute,
                    minimum=minimum,
                    labels=" of both classes" if both else "",
                )
            )


def carry_out(
    step: Step,
    validation: Answers,
    test: Answers,
    *,
    worst_group: str,
    evaluation: EvaluationConfig,
    seed: int,
    is_dense: bool,
    output: str,
) -> dict[str, Any]:
    """Choose on validation people, then decide about and judge the test people.

    Args:
        step: what to do.
        validation: answers to choose on.
        test: answers to judge.
        worst_group: picked on validation people.
        evaluation: resamples, confidence and smallest group.
        seed: of the bootstrap and of a lottery.
        is_dense: whether the network is the dense one, which is not compared with itself.
        output: what is decided, as messages call it.

    Returns:
        JSON-ready: ``rule``, ``validation`` (before and after), ``effect``, ``against_dense``, ``overridden``,
        ``uses_groups``, ``by_chance``.
    """
    classes = test.logits.shape[1]
    rule: ThresholdRule | OverridePolicy
    if step.thresholds is not None:
        rule = _choose(step.thresholds, validation, evaluation.minimum_group, seed, output)
    else:
        assert step.override is not None
        rule = _policy(step.override, step.budget, validation)
    chosen, _ = _decide(rule, validation)
    decisions, overridden = _decide(rule, test)
    before = predicted_classes(test.logits)
    judging: dict[str, Any] = {
        "worst_group": worst_group,
        "resamples": evaluation.resamples,
        "confidence": evaluation.confidence,
        "seed": seed,
        "minimum": evaluation.minimum_group,
    }
    effect = judge(test.labels, decisions, before, test.groups, classes=classes, **judging)
    dense = as_logits(predicted_classes(test.dense), classes)
    against = evaluate(
        test.labels, as_logits(decisions, classes), test.groups, dense_logits=None if is_dense else dense, **judging
    )
    return {
        "rule": rule.as_dict(),
        "validation": {
            "before": _level(validation, predicted_classes(validation.logits), worst_group),
            "after": _level(validation, chosen, worst_group),
        },
        "effect": effect.as_dict(),
        "against_dense": {} if is_dense else against.as_dict(),
        "overridden": {} if overridden is None else _burden(overridden, test.groups),
        "uses_groups": isinstance(rule, ThresholdRule) and rule.uses_groups,
        "by_chance": isinstance(rule, ThresholdRule) and rule.is_lottery,
    }


def expected_macs(step: Step, own: int, dense: int, share: float | None) -> float:
    """Multiply-accumulates for one person on average, the dense network's included where it has to run.

    Args:
        step: what is done.
        own: of the network.
        dense: of the dense network.
        share: of the people overridden.
    """
    policy = step.override
    if policy is None or share is None:
        return own
    if policy.uncertain_under == "dense":
        return own + dense
    return own + share * dense if policy.answer_of == "dense" else own


def _choose(config: ThresholdsConfig, people: Answers, minimum: int, seed: int, output: str) -> ThresholdRule:
    if config.objective == "fairlearn":
        return choose_with_fairlearn(
            people.labels,
            people.logits,
            people.groups,
            config.constraint,
            minimum=minimum,
            names=[output],
            seed=seed,
        )
    return choose_thresholds(
        people.labels,
        people.logits,
        people.groups,
        config.objective,
        per_group=config.per_group,
        dense_logits=people.dense,
        budget=config.budget,
        minimum=minimum,
        names=[output],
    )


def _policy(config: OverridesConfig, budget: float, people: Answers) -> OverridePolicy:
    return choose_override(
        people.logits,
        people.dense,
        budget=budget,
        uncertain_under=config.uncertain_under,
        answer_of=config.answer_of,
    )


def _decide(
    rule: ThresholdRule | OverridePolicy, people: Answers
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_] | None]:
    if isinstance(rule, ThresholdRule):
        return rule.decide(people.logits, people.groups), None
    done = rule.apply(people.logits, dense_logits=people.dense, labels=people.labels)
    return done.decisions, done.overridden


def _level(people: Answers, decisions: npt.NDArray[np.int64], worst_group: str) -> dict[str, float]:
    right = decisions == people.labels
    worst = share_by_group(right, people.groups)[people.groups.names.index(worst_group)]
    return {"accuracy": float(right.mean()), "worst_group_accuracy": float(worst)}


def _burden(overridden: npt.NDArray[np.bool_], groups: GroupLabels) -> dict[str, Any]:
    shares = share_by_group(overridden, groups).tolist()
    by_group = {name: None if share != share else share for name, share in zip(groups.names, shares, strict=True)}
    return {"share": float(overridden.mean()), "by_group": by_group}
