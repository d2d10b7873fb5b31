"""What cannot be evaluated is refused with a message that names the input, what was expected and what to do."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.evaluation import evaluate, pick_worst_group, predicted_classes
from fair_prune_plugins.evaluation.evaluate import NONE_LARGE_ENOUGH
from fair_prune_plugins.evaluation.intervals import CONFIDENCE_RANGE, TOO_FEW_RESAMPLES
from fair_prune_plugins.evaluation.outcomes import (
    CLASS_COUNT,
    LABEL_RANGE,
    LABELS_SHAPE,
    LABELS_TYPE,
    LENGTHS,
    LOGITS_SHAPE,
    LOGITS_TYPE,
    NO_PEOPLE,
    NOT_FINITE,
    NOT_GROUPS,
)
from fair_prune_plugins.evaluation.result import NO_SUCH_GROUP
from fair_prune_plugins.groups import EMPTY_GROUPS, GroupLabels

N, CLASSES = 6, 3
LABELS = np.arange(N) % CLASSES
LOGITS = np.random.default_rng(0).normal(size=(N, CLASSES))
GROUPS = GroupLabels(("a", "b"), np.arange(N) % 2, "gender")


def changed(array: npt.NDArray[Any], row: Any, value: float) -> npt.NDArray[Any]:
    array = array.copy()
    array[row] = value
    return array


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": changed(LABELS, 4, 3)}, LABEL_RANGE.format(count=1, n=N, last=2, value=3, row=4)),
        ({"labels": LABELS - 1}, LABEL_RANGE.format(count=2, n=N, last=2, value=-1, row=0)),
        ({"logits": LOGITS[:, :1]}, LABEL_RANGE.format(count=2, n=N, last=1, value=2, row=2)),
        ({"labels": LABELS.astype(float)}, LABELS_TYPE.format(dtype="float64")),
        ({"labels": LABELS.astype(str)}, LABELS_TYPE.format(dtype=LABELS.astype(str).dtype)),
        ({"labels": LABELS[:, None]}, LABELS_SHAPE.format(shape=(N, 1))),
        ({"labels": np.eye(CLASSES, dtype=int)[LABELS]}, LABELS_SHAPE.format(shape=(N, CLASSES))),
        ({"labels": LABELS[:-1]}, LENGTHS.format(lengths={"labels": N - 1, "logits": N, "groups": N})),
        ({"groups": GROUPS.take([0, 1])}, LENGTHS.format(lengths={"labels": N, "logits": N, "groups": 2})),
        (
            {"dense_logits": LOGITS[1:]},
            LENGTHS.format(lengths={"labels": N, "logits": N, "groups": N, "dense_logits": N - 1}),
        ),
        ({"logits": LOGITS[:, :, None]}, LOGITS_SHAPE.format(what="logits", shape=(N, CLASSES, 1))),
        ({"logits": LOGITS[:, :0]}, LOGITS_SHAPE.format(what="logits", shape=(N, 0))),
        ({"logits": np.float64(1)}, LOGITS_SHAPE.format(what="logits", shape=())),
        ({"logits": LOGITS.argmax(axis=1)}, LOGITS_TYPE.format(what="logits", dtype="int64")),
        ({"logits": LOGITS.astype(complex)}, LOGITS_TYPE.format(what="logits", dtype="complex128")),
        ({"logits": changed(LOGITS, (2, 1), np.nan)}, NOT_FINITE.format(what="logits", count=1, n=N, row=2)),
        ({"logits": changed(LOGITS, slice(3, 5), np.inf)}, NOT_FINITE.format(what="logits", count=2, n=N, row=3)),
        (
            {"dense_logits": changed(LOGITS, (0, 0), -np.inf)},
            NOT_FINITE.format(what="dense_logits", count=1, n=N, row=0),
        ),
        ({"dense_logits": LOGITS[:, :2]}, CLASS_COUNT.format(dense=2, pruned=3)),
        ({"dense_logits": LOGITS[:, 0]}, CLASS_COUNT.format(dense=1, pruned=3)),
        ({"groups": GROUPS.codes}, NOT_GROUPS.format(got="ndarray")),
        (
            {"groups": GroupLabels(("a",), np.full(N, -1), "gender")},
            EMPTY_GROUPS.format(n=N, attribute="gender"),
        ),
        ({"worst_group": "c"}, NO_SUCH_GROUP.format(name="c", attribute="gender", names=["a", "b"])),
        ({"confidence": 95}, CONFIDENCE_RANGE.format(confidence=95)),
        ({"confidence": 0.0}, CONFIDENCE_RANGE.format(confidence=0.0)),
        ({"confidence": np.nan}, CONFIDENCE_RANGE.format(confidence=np.nan)),
        ({"resamples": 39}, TOO_FEW_RESAMPLES.format(resamples=39, confidence=0.95, least=40)),
        (
            {"resamples": 1000, "confidence": 0.999},
            TOO_FEW_RESAMPLES.format(resamples=1000, confidence=0.999, least=2000),
        ),
    ],
)
def test_unusable_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    arguments = {"labels": LABELS, "logits": LOGITS, "groups": GROUPS, **arguments}
    with pytest.raises(InputError) as error:
        evaluate(arguments.pop("labels"), arguments.pop("logits"), arguments.pop("groups"), **arguments)
    assert str(error.value) == message


def test_the_fewest_resamples_asked_for_are_enough() -> None:
    assert evaluate(LABELS, LOGITS, GROUPS, resamples=40).accuracy.interval is not None


def test_nobody_cannot_be_evaluated() -> None:
    with pytest.raises(InputError) as error:
        evaluate(LABELS[:0], LOGITS[:0], GROUPS.take(LABELS < 0))
    assert str(error.value) == NO_PEOPLE.format(what="logits")


def test_logits_are_checked_before_classes_are_read_from_them() -> None:
    with pytest.raises(InputError) as error:
        predicted_classes(changed(LOGITS, (1, 1), np.nan), what="the exported model's logits")
    assert str(error.value) == NOT_FINITE.format(what="the exported model's logits", count=1, n=N, row=1)


def test_a_worst_group_cannot_be_picked_among_too_small_ones() -> None:
    with pytest.raises(InputError) as error:
        pick_worst_group(LABELS, LOGITS, GROUPS)
    assert str(error.value) == NONE_LARGE_ENOUGH.format(attribute="gender", minimum=30, largest=3)


def test_asking_for_a_group_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(InputError) as error:
        evaluate(LABELS, LOGITS, GROUPS).group("A")
    assert str(error.value) == NO_SUCH_GROUP.format(name="A", attribute="gender", names=["a", "b"])
