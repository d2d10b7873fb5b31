"""Decision rules: thresholds per output, for everybody or per sensitive group, that are kept as JSON.

A rule sees logits and, where it was made per group, groups; whether the logits came from torch, numpy or ONNX Runtime
makes no difference to it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.groups import GroupLabels
from fair_prune_plugins.postprocessing.scores import FloatArray, IntArray, Task, as_labels, check_rows, scores

OWN = float(np.nextafter(0.0, 1.0))
"""The threshold of a model left alone: a score of at least this is a score above 0."""

GROUPS_NEEDED = (
    "these thresholds differ by {attribute}, so deciding about people needs their group: pass groups=. Choose with "
    "per_group=False where the group is not known, or must not be used, when decisions are made"
)
OTHER_ATTRIBUTE = "these thresholds were chosen per {expected}, the groups given are by {got}"
OUTPUT_COUNT = "the rule decides {expected} outputs, the logits have {got}"
NOT_A_RULE = "not a threshold rule as ThresholdRule.as_dict() writes it: {reason}"

_WORDS = {math.inf: "never", -math.inf: "always"}


@dataclass(frozen=True)
class Cut:
    """Where decisions turn from 0 to 1.

    Attributes:
        thresholds: a score of at least this is decided 1; infinite is never, minus infinite always.
        probabilities: one for each threshold, sum 1. More than one threshold is a lottery: for each person one of them
            is drawn.
    """

    thresholds: tuple[float, ...] = (OWN,)
    probabilities: tuple[float, ...] = (1.0,)

    def chance(self, values: FloatArray) -> FloatArray:
        """Probability of deciding 1 at each score, the shape of ``values``."""
        total = np.zeros(values.shape)
        for threshold, probability in zip(self.thresholds, self.probabilities, strict=True):
            total += probability * (values >= threshold)
        return total

    @property
    def is_lottery(self) -> bool:
        """Whether the same score may be decided either way."""
        return len(self.thresholds) > 1

    def as_json(self) -> Any:
        """A number, ``"always"`` or ``"never"``; a list of them with probabilities for a lottery."""
        if not self.is_lottery:
            return _word(self.thresholds[0])
        pairs = zip(self.thresholds, self.probabilities, strict=True)
        return [{"threshold": _word(t), "probability": p} for t, p in pairs]

    @classmethod
    def from_json(cls, value: Any) -> Cut:
        """Read what :meth:`as_json` wrote."""
        if not isinstance(value, list):
            return cls((_number(value),))
        return cls(tuple(_number(v["threshold"]) for v in value), tuple(float(v["probability"]) for v in value))


@dataclass(frozen=True)
class OutputCuts:
    """The cuts of one output.

    Attributes:
        name: of the output.
        everyone: for people of unknown group and of groups without a cut of their own.
        groups: by the group's name; empty where one cut serves everybody.
    """

    name: str
    everyone: Cut = Cut()
    groups: Mapping[str, Cut] = field(default_factory=dict)


@dataclass(frozen=True)
class ThresholdRule:
    """Thresholds per output.

    Attributes:
        task: ``"binary"`` or ``"multilabel"``.
        objective: what they were chosen for.
        outputs: one entry per output.
        attribute: what the groups are groups of, where thresholds differ between groups: the group of a person is then
            used when a decision is made about that person.
        seed: of a lottery's draws.
        notes: ties, groups that were too small and the like, in sentences.
    """

    task: Task
    objective: str
    outputs: tuple[OutputCuts, ...]
    attribute: str | None = None
    seed: int = 0
    notes: tuple[str, ...] = ()

    @property
    def uses_groups(self) -> bool:
        """Whether the group of a person is needed to decide about that person."""
        return any(o.groups for o in self.outputs)

    @property
    def is_lottery(self) -> bool:
        """Whether chance takes part in decisions."""
        return any(cut.is_lottery for o in self.outputs for cut in (o.everyone, *o.groups.values()))

    def chances(self, logits: npt.ArrayLike, groups: GroupLabels | None = None) -> FloatArray:
        """Probability of deciding 1, float64 ``[N, outputs]``: 0 or 1 unless the rule is a lottery.

        Raises:
            InputError: logits that do not fit the task, or groups that are needed and missing or by something else.
        """
        values = scores(logits, self.task)
        if values.shape[1] != len(self.outputs):
            raise InputError(OUTPUT_COUNT.format(expected=len(self.outputs), got=values.shape[1]))
        if self.uses_groups:
            if groups is None:
                raise InputError(GROUPS_NEEDED.format(attribute=self.attribute))
            if groups.attribute != self.attribute:
                raise InputError(OTHER_ATTRIBUTE.format(expected=self.attribute, got=groups.attribute))
            check_rows(groups, logits=values)
        chances = np.empty(values.shape)
        for i, output in enumerate(self.outputs):
            chances[:, i] = output.everyone.chance(values[:, i])
            for name, cut in output.groups.items():
                if groups is not None and name in groups.names:
                    mine = groups.codes == groups.names.index(name)
                    chances[mine, i] = cut.chance(values[mine, i])
        return chances

    def decide(self, logits: npt.ArrayLike, groups: GroupLabels | None = None) -> IntArray:
        """Decide about people.

        Args:
            logits: as the model gives them: ``[N]``, ``[N, 1]``, ``[N, 2]`` (binary) or ``[N, A]`` (multi-label).
            groups: of the same people; needed where :attr:`uses_groups`. A group that the rule does not know is treated
                as unknown people are.

        Returns:
            0 or 1, int64 ``[N]`` (binary) or ``[N, A]``. A lottery draws from its seed, row after row, so the same
            people in the same order get the same decisions.

        Raises:
            InputError: as :meth:`chances`.
        """
        chances = self.chances(logits, groups)
        if self.is_lottery:
            drawn = np.random.default_rng(self.seed).random(chances.shape)
            return as_labels((drawn < chances).astype(np.int64), self.task)
        return as_labels((chances > 0.5).astype(np.int64), self.task)

    def as_dict(self) -> dict[str, Any]:
        """The rule in strict JSON types; thresholds keep every digit."""
        return {
            "kind": "thresholds",
            "task": self.task,
            "objective": self.objective,
            "attribute": self.attribute,
            "seed": self.seed,
            "outputs": [
                {
                    "name": o.name,
                    "everyone": o.everyone.as_json(),
                    "groups": {name: cut.as_json() for name, cut in o.groups.items()},
                }
                for o in self.outputs
            ],
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ThresholdRule:
        """Read what :meth:`as_dict` wrote.

        Raises:
            InputError: something is missing or of the wrong type.
        """
        try:
            outputs = tuple(
                OutputCuts(
                    o["name"],
                    Cut.from_json(o["everyone"]),
                    {name: Cut.from_json(cut) for name, cut in o["groups"].items()},
                )
                for o in data["outputs"]
            )
            if data["kind"] != "thresholds" or data["task"] not in ("binary", "multilabel") or not outputs:
                raise ValueError(f"kind {data['kind']!r}, task {data['task']!r}, {len(outputs)} outputs")
            return cls(
                data["task"], data["objective"], outputs, data["attribute"], int(data["seed"]), tuple(data["notes"])
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(NOT_A_RULE.format(reason=f"{type(error).__name__}: {error}")) from error

    def to_json(self) -> str:
        """:meth:`as_dict` as indented text."""
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def output_names(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """Names of outputs, ``output 0`` and so on where none are given.

    Raises:
        InputError: another number of names than of outputs.
    """
    if names is None:
        return tuple(f"output {i}" for i in range(count))
    if len(names) != count:
        raise InputError(f"{count} outputs need {count} names, got {list(names)}")
    return tuple(names)


def _word(threshold: float) -> float | str:
    return _WORDS.get(threshold, threshold)


def _number(value: Any) -> float:
    words = {word: number for number, word in _WORDS.items()}
    number = words[value] if isinstance(value, str) else float(value)
    if math.isnan(number):
        raise ValueError("a threshold is NaN")
    return number
