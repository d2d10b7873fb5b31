"""Point estimates agree with fairlearn, scikit-learn and arithmetic, also where groups or classes are missing."""

import json
import statistics
import subprocess
import sys
from functools import partial
from typing import NamedTuple, TypeVar

import fairlearn.metrics as flm
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, recall_score

from fair_prune_plugins.evaluation import Estimate, Evaluation, evaluate, pick_worst_group, predicted_classes
from fair_prune_plugins.evaluation.evaluate import NONE_PICKED, ONE_CLASS, PICKED_HERE, WORST_ABSENT
from fair_prune_plugins.groups import UNKNOWN, GroupLabels

NAMES = ("a", "b", "c", "d")

Ints = npt.NDArray[np.int64]
T = TypeVar("T")


class Population(NamedTuple):
    labels: Ints
    dense: Ints
    pruned: Ints
    codes: Ints
    classes: int
    rng: np.random.Generator


def sure(value: T | None) -> T:
    """What a result may leave undefined in general is defined here."""
    assert value is not None
    return value


def logits_for(predicted: Ints, classes: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Random logits whose largest entry is at the wanted class."""
    logits = rng.normal(size=(len(predicted), classes)).astype(np.float32)
    logits[np.arange(len(predicted)), predicted] = logits.max(axis=1) + 1
    return logits


def group_labels(codes: npt.ArrayLike, names: tuple[str, ...] = NAMES) -> GroupLabels:
    return GroupLabels(names, np.asarray(codes))


@st.composite
def populations(draw: st.DrawFn, classes: int | None = None) -> Population:
    """Few people in up to four groups: groups of nobody, of one person or of one class, and unknown people abound."""
    classes = draw(st.integers(2, 4)) if classes is None else classes
    n = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    present = draw(st.lists(st.integers(UNKNOWN, len(NAMES) - 1), min_size=1, unique=True))
    codes = rng.choice(present, n)
    codes[0] = abs(codes[0])  # somebody's group is known
    labels, dense, pruned = rng.integers(0, classes, (3, n))
    return Population(labels, dense, pruned, codes, classes, rng)


def same(estimate: Estimate | None, oracle: float) -> None:
    """Equal numbers, or undefined on both sides."""
    estimate = sure(estimate)
    if estimate.value is None:
        assert np.isnan(oracle)
    else:
        assert estimate.value == pytest.approx(oracle, abs=1e-12)


def known(codes: Ints, labels: Ints, predicted: Ints) -> tuple[list[int], Ints, Ints]:
    """The rows of known group; groups as a list, since fairlearn squeezes an array of one row to no dimension."""
    rows = codes >= 0
    return codes[rows].tolist(), labels[rows], predicted[rows]


@settings(max_examples=60, deadline=None)
@given(populations())
def test_accuracy_per_group_pooled_gap_ratio_and_worst_are_fairlearns(population: Population) -> None:
    labels, _, predicted, codes, classes, rng = population
    result = evaluate(labels, logits_for(predicted, classes, rng), group_labels(codes), minimum=1)

    sensitive, y, p = known(codes, labels, predicted)
    frame = flm.MetricFrame(metrics=accuracy_score, y_true=y, y_pred=p, sensitive_features=sensitive)
    assert result.accuracy.value == pytest.approx(accuracy_score(labels, predicted))
    assert result.unknown == (codes < 0).sum()
    for code, name in enumerate(NAMES):
        entry = result.group(name)
        assert entry.n == (codes == code).sum()
        same(entry.accuracy, frame.by_group.get(code, np.nan))
    assert result.worst_group.accuracy.value == pytest.approx(frame.group_min())
    if len(frame.by_group) == 1:  # fairlearn compares a group with itself; nothing was compared
        assert frame.difference() == 0
        assert result.gap.value is None
        assert result.ratio.value is None
    else:
        same(result.gap, frame.difference(method="between_groups"))
        same(result.ratio, frame.ratio(method="between_groups"))


@settings(max_examples=60, deadline=None)
@given(populations(classes=2))
def test_binary_rates_and_differences_are_fairlearns_over_groups_whose_rate_is_defined(population: Population) -> None:
    labels, _, predicted, codes, classes, rng = population
    result = evaluate(labels, logits_for(predicted, classes, rng), group_labels(codes))

    sensitive, y, p = known(codes, labels, predicted)
    # scikit-learn's recall can be told to leave rates without cases undefined; fairlearn's own rates turn them into 0.
    frame = flm.MetricFrame(
        metrics={
            "selection": flm.selection_rate,
            "true_positive": partial(recall_score, pos_label=1, zero_division=np.nan),
            "true_negative": partial(recall_score, pos_label=0, zero_division=np.nan),
        },
        y_true=y,
        y_pred=p,
        sensitive_features=sensitive,
    )
    by_group = frame.by_group.astype(float)
    for code in by_group.index:
        rates = sure(result.groups[code].rates)
        same(rates.selection, by_group.selection[code])
        same(rates.true_positive, by_group.true_positive[code])
        same(rates.false_positive, 1 - by_group.true_negative[code])
    comparable = by_group.notna().sum() >= 2
    expected = (by_group.max() - by_group.min()).where(comparable)
    same(sure(result.binary).demographic_parity_difference, expected.selection)
    same(sure(result.binary).equal_opportunity_difference, expected.true_positive)
    same(sure(result.binary).equalized_odds_difference, np.maximum(expected.true_positive, expected.true_negative))

    if comparable.all() and by_group.notna().all(axis=None):
        arguments = {"y_true": y, "y_pred": p, "sensitive_features": sensitive}
        same(sure(result.binary).demographic_parity_difference, flm.demographic_parity_difference(**arguments))
        same(sure(result.binary).equal_opportunity_difference, flm.equal_opportunity_difference(**arguments))
        same(sure(result.binary).equalized_odds_difference, flm.equalized_odds_difference(**arguments))


def test_a_group_of_one_class_has_an_undefined_rate_where_fairlearn_has_zero() -> None:
    labels = np.array([0, 0, 1, 1, 0, 1, 1, 0])
    predicted = np.array([0, 1, 1, 0, 0, 1, 1, 1])
    codes = np.array([0, 0, 1, 1, 1, 2, 2, 2])
    result = evaluate(labels, logits_for(predicted, 2, np.random.default_rng(0)), group_labels(codes, NAMES[:3]))

    assert (
        flm.equal_opportunity_difference(labels, predicted, sensitive_features=codes) == 1
    )  # b: 0.5, c: 1, a: no positives
    assert sure(result.group("a").rates).true_positive.value is None
    assert sure(result.group("a").rates).true_positive.interval is None
    assert sure(result.binary).equal_opportunity_difference.value == 0.5
    assert ONE_CLASS.format(names="a") in result.notes


def test_a_difference_in_rates_with_one_defined_group_is_undefined() -> None:
    labels, predicted, codes = np.array([0, 0, 1, 0]), np.array([0, 1, 1, 0]), np.array([0, 0, 1, 1])
    result = evaluate(labels, logits_for(predicted, 2, np.random.default_rng(0)), group_labels(codes, NAMES[:2]))
    assert sure(result.binary).equal_opportunity_difference.value is None
    assert sure(result.binary).equalized_odds_difference.value is None
    assert sure(result.binary).demographic_parity_difference.value == 0


@settings(max_examples=60, deadline=None)
@given(populations())
def test_comparison_with_dense_is_what_its_definitions_say(population: Population) -> None:
    labels, dense, pruned, codes, classes, rng = population
    result = evaluate(
        labels, logits_for(pruned, classes, rng), group_labels(codes), dense_logits=logits_for(dense, classes, rng)
    )

    pooled = accuracy_score(labels, pruned) - accuracy_score(labels, dense)
    changes = {}
    for code, name in enumerate(NAMES):
        rows = codes == code
        entry = result.group(name)
        if not rows.any():
            assert sure(entry.change).value is sure(entry.excess_gap).value is sure(entry.dense_accuracy).value is None
            continue
        before, after = accuracy_score(labels[rows], dense[rows]), accuracy_score(labels[rows], pruned[rows])
        changes[name] = after - before
        same(entry.dense_accuracy, before)
        same(entry.change, after - before)
        same(entry.excess_gap, (before - after) - (-pooled))
    values = list(changes.values())
    assert sure(result.dense).accuracy.value == pytest.approx(accuracy_score(labels, dense))
    same(sure(result.dense).change, pooled)
    same(sure(result.dense).rho, statistics.stdev(values) if len(values) > 1 else np.nan)
    same(sure(result.dense).max_excess_gap, max(pooled - v for v in values))
    same(
        sure(result.dense).pairwise_excess_gap,
        max(v - w for v in values for w in values) if len(values) > 1 else np.nan,
    )
    assert sure(result.dense).reclassified == (dense != pruned).sum()
    alone = evaluate(labels, logits_for(dense, classes, rng), group_labels(codes))
    assert sure(result.dense).gap.value == alone.gap.value
    if len(values) > 1:
        assert sure(result.dense).gap_change.value == pytest.approx(sure(result.gap.value) - sure(alone.gap.value))


def test_batches_that_lack_groups_are_not_shifted_onto_other_groups() -> None:
    # The case in which torchmetrics assigns groups 1 and 2 to 0 and 1.
    labels, predicted, codes = np.array([1, 1, 1, 1]), np.array([1, 1, 0, 0]), np.array([1, 1, 2, 2])
    rng = np.random.default_rng(0)
    result = evaluate(labels, logits_for(predicted, 2, rng), group_labels(codes, NAMES[:3]))
    assert [g.n for g in result.groups] == [0, 2, 2]
    assert [g.accuracy.value for g in result.groups] == [None, 1.0, 0.0]
    assert [sure(g.rates).true_positive.value for g in result.groups] == [None, 1.0, 0.0]
    assert result.gap.value == 1


def test_single_logits_are_class_one_above_zero() -> None:
    labels = np.array([1, 0, 1, 0])
    logits = np.array([0.5, 0.0, -0.1, -3.0], dtype=np.float32)
    groups = group_labels([0, 0, 1, 1], NAMES[:2])
    assert predicted_classes(logits).tolist() == [1, 0, 0, 0]
    flat, column = evaluate(labels, logits, groups), evaluate(labels, logits[:, None], groups)
    assert flat == column
    assert flat.classes == 2
    assert flat.accuracy.value == 0.75
    two = evaluate(labels, np.stack([np.zeros(4, np.float32), logits], axis=1), groups)
    assert two.binary == flat.binary


def test_labels_may_be_booleans_lists_or_small_integers() -> None:
    logits, groups = np.array([0.5, -1.0, 2.0]), group_labels([0, 1, 1], NAMES[:2])
    results = [
        evaluate(labels, logits, groups)
        for labels in (np.array([True, False, False]), [1, 0, 0], np.array([1, 0, 0], dtype=np.uint8))
    ]
    assert results[0] == results[1] == results[2]


def test_the_worst_group_is_picked_among_groups_large_enough_and_the_first_of_equals() -> None:
    labels = np.zeros(100, dtype=int)
    predicted = np.zeros(100, dtype=int)
    codes = np.repeat([0, 1, 2], [49, 2, 49])
    predicted[codes == 1] = 1  # the tiny group is wrong throughout
    predicted[[0, 60]] = 1
    logits = logits_for(predicted, 3, np.random.default_rng(0))
    groups = group_labels(codes, NAMES[:3])
    assert pick_worst_group(labels, logits, groups, minimum=30) == "a"
    assert pick_worst_group(labels, logits, groups, minimum=2) == "b"
    assert pick_worst_group(labels, logits, groups, minimum=1) == "b"

    result = evaluate(labels, logits, groups)
    assert (result.worst_group.name, result.worst_group.picked_on_this_data) == ("a", True)
    assert PICKED_HERE.format(name="a") in result.notes
    assert result.gap.value == 48 / 49  # the gap is fairlearn's, over all groups
    assert [g.too_small for g in result.groups] == [False, True, False]


def test_a_fixed_worst_group_stays_fixed_and_carries_its_own_estimate() -> None:
    rng = np.random.default_rng(1)
    labels, codes = rng.integers(0, 3, 200), np.repeat([0, 1], 100)
    predicted = np.where((codes == 0) & (rng.random(200) < 0.5), (labels + 1) % 3, labels)
    groups = group_labels(codes, NAMES[:2])
    result = evaluate(labels, logits_for(predicted, 3, rng), groups, worst_group="b")
    assert (result.worst_group.name, result.worst_group.picked_on_this_data) == ("b", False)
    assert result.worst_group.accuracy == result.group("b").accuracy
    assert not any("picked" in note for note in result.notes)


def test_a_fixed_worst_group_without_people_is_undefined_and_said() -> None:
    labels, codes = np.zeros(4, dtype=int), np.zeros(4, dtype=int)
    result = evaluate(labels, np.eye(3)[labels], group_labels(codes, NAMES[:2]), worst_group="b")
    assert result.worst_group.accuracy.value is None
    assert WORST_ABSENT.format(name="b") in result.notes


def test_without_a_large_group_none_is_called_the_worst() -> None:
    labels = np.array([0, 1])
    result = evaluate(labels, np.eye(3)[labels], group_labels([0, 1], NAMES[:2]))
    assert result.worst_group.name is None
    assert result.worst_group.accuracy.value is None
    assert NONE_PICKED.format(minimum=30) in result.notes


def example(seed: int = 0, n: int = 300) -> Evaluation:
    rng = np.random.default_rng(seed)
    labels, codes = rng.integers(0, 2, n), rng.integers(-1, 3, n)
    dense, pruned = rng.normal(size=(2, n, 2))
    return evaluate(labels, pruned, group_labels(codes), dense_logits=dense, seed=7)


def test_the_result_turns_into_strict_json_and_back() -> None:
    result = example()
    content = result.as_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["groups"][3]["name"] == "d"
    assert content["groups"][3]["accuracy"] == {"value": None, "interval": None}
    assert content["dense"]["rho"]["value"] == sure(result.dense).rho.value
    assert content["binary"]["equalized_odds_difference"]["interval"]["method"] == "bootstrap"


def test_the_result_is_a_function_of_people_and_seed_not_of_row_order() -> None:
    rng = np.random.default_rng(3)
    labels, codes = rng.integers(0, 2, 300), rng.integers(-1, 3, 300)
    dense, pruned = rng.normal(size=(2, 300, 2))
    rows = rng.permutation(300)

    def run(rows: Ints, seed: int) -> Evaluation:
        return evaluate(labels[rows], pruned[rows], group_labels(codes[rows]), dense_logits=dense[rows], seed=seed)

    assert run(np.arange(300), 1) == run(rows, 1)
    assert run(rows, 1).accuracy.interval != run(rows, 2).accuracy.interval


def test_the_package_evaluates_with_the_core_dependencies_only() -> None:
    code = (
        "import sys\n"
        "for name in ('onnx', 'onnxruntime', 'pandas', 'scipy', 'sklearn', 'fairlearn'): sys.modules[name] = None\n"
        "import numpy as np\n"
        "from fair_prune_plugins.evaluation import evaluate\n"
        "from fair_prune_plugins.groups import GroupLabels\n"
        "groups = GroupLabels.from_columns({'gender': ['f', 'm', 'f']})\n"
        "print(evaluate([0, 1, 1], np.eye(2)[[0, 1, 0]], groups).gap.value)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0.5"
