"""What compression did to single people, against hand-worked tables, loops over people, and scipy."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields

import numpy as np
import numpy.typing as npt
import pytest
from scipy.spatial.distance import cityblock
from scipy.stats import binomtest

from fair_prune_plugins.audit import changes
from fair_prune_plugins.audit.changes import CLASS, Changed, Changes, comparing
from fair_prune_plugins.audit.data import AuditData, ModelPredictions, People
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.evaluation.intervals import Estimate
from fair_prune_plugins.groups import GroupLabels

ARRAY = npt.NDArray[np.float64]


def groups_of(names: str, attribute: str = "side") -> GroupLabels:
    return GroupLabels.from_columns({attribute: [None if n == "?" else n for n in names]})


def binary(labels: str, sides: str, dense: list[list[float]], pruned: list[list[float]]) -> AuditData:
    """One character per person; a list of logits per run."""
    people = People(
        tuple(f"p{i}" for i in range(len(labels))),
        np.array([int(c) for c in labels]),
        (groups_of(sides),),
        ("yes",),
        "binary",
    )
    dense_model = ModelPredictions("dense", tuple(np.array(run) for run in dense))
    return AuditData(people, dense_model, (ModelPredictions("small", tuple(np.array(run) for run in pruned)),))


def only(data: AuditData, **options: object) -> Changes:
    (result,) = changes.compare(data, **options)  # type: ignore[arg-type]
    return result


def value(estimate: Estimate | None) -> float | None:
    assert estimate is not None
    return estimate.value


# people        p0    p1    p2    p3    p4    p5    p6    p7
LABELS = "11110000"
SIDES = "aabbaab?"
DENSE = [5.0, 0.1, 3.0, -0.5, -5.0, 0.2, -4.0, -3.0]  # answers 1 1 1 0 0 1 0 0; unsure at p1, p3, p5
PRUNED = [4.0, -0.1, -3.0, 0.5, -5.0, -0.2, -4.0, 3.0]  # answers 1 0 0 1 0 0 0 1


def test_hand_worked_table_of_one_run() -> None:
    found = only(binary(LABELS, SIDES, [DENSE], [PRUNED]), minimum=1)

    assert found.plain
    assert found.dense_runs == found.pruned_runs == 1
    assert comparing.PLAIN.format(dense="dense", pruned="small") in found.notes
    everyone = found.questions[0].everyone
    # Changed: p1 right->wrong, p2 right->wrong, p3 wrong->right, p5 wrong->right, p7 right->wrong.
    assert everyone.exemplars == 5
    assert value(everyone.share) == 5 / 8
    assert value(everyone.flips.right_to_wrong) == 3 / 8
    assert value(everyone.flips.wrong_to_right) == 2 / 8
    assert value(everyone.flips.positive_to_negative) == 3 / 8  # p1, p2, p5
    assert value(everyone.flips.negative_to_positive) == 2 / 8  # p3, p7
    assert everyone.flips.wrong_to_wrong is None
    assert value(everyone.unsure) == 3 / 8
    assert value(everyone.unsure_exemplars) == 3 / 5
    assert value(everyone.dense_error) == 2 / 8
    assert value(everyone.pruned_error) == 3 / 8
    assert value(everyone.dense_error_of_exemplars) == 2 / 5
    assert value(everyone.pruned_error_of_exemplars) == 3 / 5
    assert value(everyone.distance) == 2 * 5 / 8

    a, b = found.attributes[0].groups
    assert (a.group, a.people, a.exemplars) == ("a", 4, 2)
    assert (b.group, b.people, b.exemplars) == ("b", 3, 2)
    assert found.attributes[0].unknown == 1
    assert value(a.share_of_all) == 2 / 5
    assert a.share_of_people == 4 / 8
    assert (a.test.lost, a.test.gained, b.test.lost, b.test.gained) == (1, 1, 1, 1)
    assert value(b.unsure_exemplars) == 1 / 2
    assert value(b.flips.positive_to_negative) == value(b.flips.negative_to_positive) == 1 / 3
    assert value(b.dense_error_of_exemplars) == 1 / 2


def test_unsure_is_near_a_half_and_not_merely_below_nine_tenths() -> None:
    """The published code's misplaced parenthesis, abs((p - 0.5) < 0.4), calls every sure "no" uncertain."""
    p = np.array([0.01, 0.0999, 0.11, 0.5, 0.89, 0.9001, 0.99])
    logits = np.log(p / (1 - p))
    flipped = (-logits - 1e-9).tolist()
    found = only(binary("0" * 7, "a" * 7, [logits.tolist()], [flipped]))
    assert value(found.questions[0].everyone.unsure) == 3 / 7
    assert np.mean(np.abs((p - 0.5) < 0.4)) == 5 / 7  # what the bug would have said
    edge = np.array([0.1, 0.9, np.nextafter(0.9, 0), np.nextafter(0.1, 1)])
    assert changes.unsure(edge).tolist() == [False, False, True, True]


def test_majorities_ties_and_their_document() -> None:
    # Two dense runs tie on p0 and p1; the mean of the probabilities decides: 1 for p0, 0 for p1; a full tie is 0.
    dense = [[3.0, 1.0, 1.0, 2.0], [-1.0, -3.0, -1.0, 2.0]]
    pruned = [[-1.0, -1.0, 1.0, -2.0]] * 3
    found = only(binary("1000", "aabb", dense, pruned), minimum=1)
    question = found.questions[0]
    assert question.dense_ties == 3
    assert question.pruned_ties == 0
    assert [p.id for p in found.listed][:1] == ["p3"]
    assert {p.id: (p.dense, p.pruned) for p in found.listed} == {
        "p0": ("1", "0"),
        "p1": ("0", "0"),
        "p2": ("0", "1"),
        "p3": ("1", "0"),
    }
    assert question.everyone.exemplars == 3
    assert not found.plain
    assert any("had no majority" in note for note in found.notes)
    assert comparing.VOTES.format(dense="dense", pruned="small", dense_runs=2, pruned_runs=3) in found.notes


def test_one_run_against_several_says_so() -> None:
    found = only(binary(LABELS, SIDES, [DENSE], [PRUNED] * 3))
    assert not found.plain
    assert any(note.startswith("Only one of") for note in found.notes)


def random_multiclass(n: int, dense_runs: int, pruned_runs: int, seed: int = 0) -> AuditData:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 3))
    people = People(
        tuple(map(str, range(n))),
        rng.integers(0, 3, n),
        (
            groups_of("".join(rng.choice(list("abc?"), n)), "first"),
            groups_of("".join(rng.choice(list("xy"), n)), "second"),
        ),
        ("red", "green", "blue"),
        "multiclass",
    )
    dense = ModelPredictions("dense", tuple(z + rng.normal(size=z.shape) for _ in range(dense_runs)))
    pruned = ModelPredictions("small", tuple(z + rng.normal(size=z.shape) for _ in range(pruned_runs)))
    return AuditData(people, dense, (pruned,))


def softmax(logits: ARRAY) -> ARRAY:
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def majority(runs: list[ARRAY], person: int) -> int:
    """The most frequent class; of equally frequent ones that of the largest mean probability."""
    said = Counter(int(run[person].argmax()) for run in runs)
    most = max(said.values())
    mean = np.mean([softmax(run[person]) for run in runs], axis=0)
    return max((c for c, votes in said.items() if votes == most), key=lambda c: mean[c])


@pytest.mark.parametrize(("dense_runs", "pruned_runs"), [(1, 1), (3, 3), (4, 3)])
def test_multiclass_against_a_loop_over_people(dense_runs: int, pruned_runs: int) -> None:
    data = random_multiclass(300, dense_runs, pruned_runs)
    found = only(data, top=0.1)
    dense, pruned = [list(m.runs) for m in data.models]
    truth = data.people.labels
    before = np.array([majority(dense, i) for i in range(300)])
    after = np.array([majority(pruned, i) for i in range(300)])

    def distribution(runs: list[ARRAY], person: int) -> ARRAY:
        return np.bincount([int(r[person].argmax()) for r in runs], minlength=3) / len(runs)

    distance = np.array([cityblock(distribution(dense, i), distribution(pruned, i)) for i in range(300)])
    mean_p = np.mean([softmax(run) for run in dense], axis=0)
    sure = mean_p.max(axis=1) >= 0.9
    assert [q.name for q in found.questions] == [CLASS, "red", "green", "blue"]
    for attribute, labels in zip(found.attributes, data.people.groups, strict=True):
        for entry in attribute.of(CLASS):
            mine = labels.codes == labels.names.index(str(entry.group))
            changed = mine & (before != after)
            n = mine.sum()
            assert (entry.people, entry.exemplars) == (n, changed.sum())
            assert value(entry.share) == pytest.approx(changed.sum() / n)
            assert value(entry.share_of_all) == pytest.approx(changed.sum() / (before != after).sum())
            flips = entry.flips
            was, now = before == truth, after == truth
            assert value(flips.right_to_wrong) == pytest.approx((mine & was & ~now).sum() / n)
            assert value(flips.wrong_to_right) == pytest.approx((mine & ~was & now).sum() / n)
            assert value(flips.wrong_to_wrong) == pytest.approx((changed & ~was & ~now).sum() / n)
            assert flips.positive_to_negative is None
            assert value(entry.unsure) == pytest.approx((mine & ~sure).sum() / n)
            assert value(entry.unsure_exemplars) == pytest.approx((changed & ~sure).sum() / changed.sum())
            assert value(entry.dense_error_of_exemplars) == pytest.approx((changed & ~was).sum() / changed.sum())
            assert value(entry.pruned_error) == pytest.approx((mine & ~now).sum() / n)
            assert value(entry.distance) == pytest.approx(distance[mine].mean())
            cutoff = found.questions[0].cutoff
            assert cutoff == pytest.approx(np.sort(distance)[-30])
            assert value(entry.far) == pytest.approx((distance[mine] >= cutoff - 1e-9).mean())
        for c, name in enumerate(data.people.outputs):
            for entry in attribute.of(name):
                mine = labels.codes == labels.names.index(str(entry.group))
                assert value(entry.flips.positive_to_negative) == pytest.approx(
                    (mine & (before == c) & (after != c)).sum() / mine.sum()
                )
                assert value(entry.flips.negative_to_positive) == pytest.approx(
                    (mine & (before != c) & (after == c)).sum() / mine.sum()
                )
    assert np.array_equal(changes.exemplars(data, data.pruned[0])[:, 0], before != after)


def random_multilabel(n: int = 500, outputs: int = 5, seed: int = 1) -> AuditData:
    rng = np.random.default_rng(seed)
    z = 3.0 * rng.normal(size=(n, outputs))
    people = People(
        tuple(map(str, range(n))),
        (z + rng.normal(size=z.shape) > 0).astype(np.int64),
        (groups_of("".join(rng.choice(list("abcd?"), n, p=[0.4, 0.3, 0.24, 0.01, 0.05]))),),
        tuple(f"label {i}" for i in range(outputs)),
        "multilabel",
    )
    noise = np.linspace(0.2, 3.0, outputs)
    dense = ModelPredictions("dense", tuple(z + 0.3 * rng.normal(size=z.shape) for _ in range(3)))
    pruned = ModelPredictions("small", tuple(z - 0.2 + noise * rng.normal(size=z.shape) for _ in range(3)))
    return AuditData(people, dense, (pruned,))


def test_tests_against_scipy_and_holm_by_hand() -> None:
    data = random_multilabel()
    found = only(data, minimum=30)
    (attribute,) = found.attributes
    entries = [e for e in attribute.groups if not e.too_small]
    assert {e.group for e in attribute.groups if e.too_small} == {"d"}
    for entry in attribute.groups:
        test = entry.test
        changed = test.lost + test.gained
        expected = binomtest(test.lost, changed, 0.5).pvalue if changed else 1.0
        assert test.p == pytest.approx(expected)
        assert value(entry.flips.right_to_wrong) == pytest.approx(test.lost / entry.people)

    def corrected(family: list[Changed], mine: Changed) -> float:
        """The largest of (number of tests not smaller) times p, over all that are no larger than mine."""
        p = [e.test.p for e in family]
        return min(1.0, max(q * sum(r >= q for r in p) for q in p if q <= mine.test.p))

    for entry in entries:
        assert entry.test.over_all == pytest.approx(corrected(entries, entry))
        same = [e for e in entries if e.question == entry.question]
        assert entry.test.over_groups == pytest.approx(corrected(same, entry))
    assert all(e.test.over_groups is None and e.test.over_all is None for e in attribute.groups if e.too_small)
    everyone = [q.everyone for q in found.questions]
    assert all(e.test.over_groups is None for e in everyone)
    assert [e.test.over_all for e in everyone] == pytest.approx([corrected(everyone, e) for e in everyone])
    assert any("majority votes, not of single runs" in note for note in found.notes)


def test_mcnemar_by_hand() -> None:
    assert changes.mcnemar([0, 5, 0, 3], [0, 5, 6, 1]).tolist() == pytest.approx([1.0, 1.0, 2 / 64, 10 / 16])


def test_models_of_which_only_decisions_are_known() -> None:
    data = binary(LABELS, SIDES, [DENSE, PRUNED], [PRUNED])
    runs = tuple(np.sign(run) for run in data.dense.runs)
    blind = AuditData(data.people, ModelPredictions("dense", runs, graded=False), data.pruned)
    found = only(blind, minimum=1)
    everyone = found.questions[0].everyone
    assert everyone.unsure == everyone.unsure_exemplars == Estimate(None, None)
    assert found.questions[0].dense_ties == 5  # decided for 0: dense says 1 0 0 0 0 0 0 0
    assert everyone.exemplars == 2  # p3 and p7
    assert {p.id for p in found.listed} == {"p1", "p2", "p3", "p5", "p7"}
    assert all(p.dense_margin is None for p in found.listed)
    assert comparing.UNGRADED.format(dense="dense") in found.notes


def test_touched_people_against_a_loop() -> None:
    data = random_multilabel()
    found = only(data)
    changed = changes.exemplars(data, data.pruned[0])
    codes = data.people.groups[0].codes
    assert value(found.touched.any) == pytest.approx(changed.any(axis=1).mean())
    assert value(found.touched.answers) == pytest.approx(changed.mean())
    for i, entry in enumerate(found.attributes[0].touched):
        assert entry.people == (codes == i).sum()
        assert value(entry.any) == pytest.approx(changed[codes == i].any(axis=1).mean())
        assert value(entry.answers) == pytest.approx(changed[codes == i].mean())


def test_intervals_are_those_of_resampled_rows() -> None:
    data = random_multilabel()
    found = only(data, resamples=4000)
    question = found.questions[4]
    changed = changes.exemplars(data, data.pruned[0])[:, 4]
    probability = np.mean([data.probabilities(data.dense, r)[:, 4] for r in range(3)], axis=0)
    unsure = np.abs(probability - 0.5) < 0.4
    mine = data.people.groups[0].codes == 1
    entry = found.attributes[0].of(question.name)[1]
    shares = [np.mean([data.answers(m, r)[:, 4] for r in range(3)], axis=0) for m in data.models]
    distance = 2 * np.abs(shares[0] - shares[1])
    rng = np.random.default_rng(5)
    draws = []
    for _ in range(4000):
        rows = rng.integers(0, len(changed), len(changed))
        c, u, g = changed[rows], unsure[rows], mine[rows]
        draws.append(
            (
                c[g].mean(),
                u[g & c].mean(),
                (c & g).sum() / c.sum(),
                distance[rows][g].mean(),
                changes_of_answers(data, rows, g),
            )
        )
    expected = np.quantile(draws, [0.025, 0.975], axis=0)
    got = [
        entry.share,
        entry.unsure_exemplars,
        entry.share_of_all,
        entry.distance,
        found.attributes[0].touched[1].answers,
    ]
    for estimate, low, high in zip(got, *expected, strict=True):
        assert estimate.interval is not None
        assert estimate.interval.low == pytest.approx(low, abs=0.1 * (high - low))
        assert estimate.interval.high == pytest.approx(high, abs=0.1 * (high - low))


def changes_of_answers(data: AuditData, rows: npt.NDArray[np.int64], mine: npt.NDArray[np.bool_]) -> float:
    return float(changes.exemplars(data, data.pruned[0])[rows][mine].mean())


def test_nothing_changed() -> None:
    data = binary(LABELS, SIDES, [DENSE], [DENSE])
    found = only(data, minimum=1)
    everyone = found.questions[0].everyone
    assert everyone.exemplars == 0
    assert everyone.share.value == 0
    assert everyone.share.interval is not None
    assert everyone.share.interval.method == "exact"
    assert everyone.share.interval.high == pytest.approx(binomtest(0, 8).proportion_ci(method="exact").high)
    assert everyone.unsure_exemplars == everyone.dense_error_of_exemplars == Estimate(None, None)
    assert everyone.share_of_all == Estimate(None, None)
    assert everyone.test.p == 1.0
    assert found.questions[0].cutoff is None
    assert value(everyone.far) == 0
    assert found.listed == ()
    assert found.touched.answers == found.touched.any


def test_a_group_without_people_is_undefined() -> None:
    labels = GroupLabels(("a", "b", "nobody"), np.array([0, 0, 1, 1, 0, 0, 1, -1]), "side")
    data = binary(LABELS, SIDES, [DENSE], [PRUNED])
    people = People(data.people.ids, data.people.labels, (labels,), ("yes",), "binary")
    found = only(AuditData(people, data.dense, data.pruned))
    nobody = found.attributes[0].groups[2]
    assert nobody.people == 0
    assert nobody.too_small
    undefined = [getattr(nobody, f.name) for f in fields(nobody) if isinstance(getattr(nobody, f.name), Estimate)]
    assert [e for e in undefined if e.value is not None] == [nobody.share_of_all]  # none of the exemplars: 0
    assert nobody.test.p is nobody.test.over_groups is None
    assert found.attributes[0].touched[2].any.value is None


def test_taxicab_with_ties_and_without() -> None:
    rng = np.random.default_rng(3)
    runs = [rng.normal(size=200) for _ in range(6)]
    data = binary("01" * 100, "ab" * 100, [r.tolist() for r in runs[:3]], [r.tolist() for r in runs[3:]])
    found = only(data, top=0.05)
    shares = np.mean(np.array(runs[:3]) > 0, axis=0), np.mean(np.array(runs[3:]) > 0, axis=0)
    distance = 2 * np.abs(shares[0] - shares[1])
    cutoff = np.sort(distance)[-10]
    assert found.questions[0].cutoff == pytest.approx(cutoff)
    assert value(found.questions[0].everyone.far) == pytest.approx((distance > cutoff - 1e-9).mean())
    assert found.listed[0].distance == pytest.approx(distance.max())
    listed = [p.distance for p in found.listed]
    assert listed == sorted(listed, reverse=True)
    assert listed == pytest.approx(np.sort(distance)[::-1][: len(listed)].tolist())


def test_the_order_of_rows_does_not_matter() -> None:
    data = random_multilabel(200, 2)
    order = np.random.default_rng(9).permutation(200)
    people = People(
        tuple(data.people.ids[i] for i in order),
        data.people.labels[order],
        tuple(g.take(order) for g in data.people.groups),
        data.people.outputs,
        "multilabel",
    )
    turned = [ModelPredictions(m.name, tuple(r[order] for r in m.runs)) for m in data.models]
    assert only(AuditData(people, turned[0], (turned[1],))) == only(data)


def test_several_pruned_models_and_none() -> None:
    data = binary(LABELS, SIDES, [DENSE], [PRUNED])
    more = AuditData(data.people, data.dense, (*data.pruned, ModelPredictions("smaller", data.dense.runs)))
    first, second = changes.compare(more)
    assert (first.model, second.model) == ("small", "smaller")
    assert first == only(data)
    assert second.questions[0].everyone.exemplars == 0
    assert changes.compare(AuditData(data.people, data.dense)) == ()


def test_options_out_of_range() -> None:
    data = binary(LABELS, SIDES, [DENSE], [PRUNED])
    with pytest.raises(InputError, match="top is the share"):
        changes.compare(data, top=0)
    with pytest.raises(InputError, match="listed is how many"):
        changes.compare(data, listed=-1)
    with pytest.raises(InputError, match="confidence"):
        changes.compare(data, confidence=1)
    assert only(data, listed=0).listed == ()
    assert len(only(data, listed=2).listed) == 2
