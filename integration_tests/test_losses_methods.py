"""Each loss by hand: numbers worked out on paper, sequences of multipliers and buffers, and the teacher's memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fair_prune_plugins import losses
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.groups import GroupLabels, GroupReader
from fair_prune_plugins.losses import (
    DenseAccuracy,
    Distillation,
    EqualisedLoss,
    ExcessGapConstraint,
    GroupBalancedCrossEntropy,
    GroupDRO,
    PerformanceWeightedLoss,
    Teacher,
    TeacherCache,
)
from fair_prune_plugins.statistics.checksum import model_checksum

LOG2 = math.log(2)


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def losses_of(*wanted: float) -> torch.Tensor:
    """One logit per person whose cross-entropy with label 0 is what is wanted: ``log(1 + e^z) = loss``."""
    return torch.tensor([math.log(math.expm1(w)) for w in wanted], dtype=torch.float64, requires_grad=True)


class Says(nn.Module):
    """A dense model that reads its logits off the inputs, and counts how many people it is asked about."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))
        self.asked = [0]

    def __deepcopy__(self, memo: Any) -> Says:
        other = Says(float(self.factor.detach()))
        other.asked = self.asked
        return other

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.asked[0] += len(x)
        return self.factor * x


# --- performance-weighted -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["original", "soft", "corrected"])
@pytest.mark.parametrize(("theta", "gamma"), [(0.5, 1.0), (0.3, 2.5), (1.0, 1.0), (0.0, 0.5)])
def test_performance_weights_and_labels_on_paper(labels: Any, theta: float, gamma: float) -> None:
    """Binary: the dense model says 0.8 to a 1 (right), 0.9 to a 0 (wrong), 0.5 to a 0 (right: 0.5 rounds to 0)."""
    q, y, p = [0.8, 0.9, 0.5], [1.0, 0.0, 0.0], [0.6, 0.3, 0.2]
    dense = torch.tensor([logit(v) for v in q], dtype=torch.float64)
    student = torch.tensor([logit(v) for v in p], dtype=torch.float64)
    hook = PerformanceWeightedLoss(Says(), theta, gamma, labels)
    value = hook(student, torch.tensor(y), inputs=dense)
    truth = [0.8, 0.1, 0.5]
    weights = [theta + (1 - theta) * (1 - t) ** gamma for t in truth]
    targets = {"original": y, "soft": q, "corrected": [0.8, 0.0, 0.5]}[labels]
    terms = [-(t * math.log(s) + (1 - t) * math.log(1 - s)) for t, s in zip(targets, p, strict=True)]
    assert value.item() == pytest.approx(sum(w * t for w, t in zip(weights, terms, strict=True)) / 3, rel=1e-12)
    normalised = PerformanceWeightedLoss(Says(), theta, gamma, labels, normalise=True)
    assert normalised(student, torch.tensor(y), inputs=dense).item() == pytest.approx(
        value.item() / (sum(weights) / 3), rel=1e-12
    )


def test_performance_weights_of_three_classes_on_paper() -> None:
    q = torch.tensor([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]], dtype=torch.float64)
    p = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]], dtype=torch.float64)
    value = PerformanceWeightedLoss(Says(), 0.4, 2.0)(p.log(), torch.tensor([0, 1]), inputs=q.log())
    right = -(0.7 * math.log(0.5) + 0.3 * math.log(0.25)) * (0.4 + 0.6 * 0.3**2)
    wrong = -math.log(0.25) * (0.4 + 0.6 * 0.8**2)
    assert value.item() == pytest.approx((right + wrong) / 2, rel=1e-12)


def test_with_theta_one_and_original_labels_it_is_plain() -> None:
    z, y = torch.randn(8, 4), torch.randint(4, (8,))
    plain = losses.CrossEntropy()(z, y)
    hook = PerformanceWeightedLoss(nn.Linear(3, 4), 1.0, 3.0, "original")
    torch.testing.assert_close(hook(z, y, inputs=torch.randn(8, 3)), plain)


def test_performance_weights_need_the_true_class_and_the_same_classes() -> None:
    hook = PerformanceWeightedLoss(nn.Linear(3, 4), task="multiclass")
    with pytest.raises(InputError, match="targets are soft"):
        hook(torch.randn(2, 4), torch.full((2, 4), 0.25), inputs=torch.randn(2, 3))
    with pytest.raises(InputError, match=r"dense model gives logits of shape \(2, 4\), the student \(2, 5\)"):
        hook(torch.randn(2, 5), torch.tensor([0, 1]), inputs=torch.randn(2, 3))
    for options, message in (
        ({"theta": 1.5}, "theta must lie"),
        ({"gamma": 0.0}, "gamma be above 0"),
        ({"labels": "hard"}, "'original', 'soft' or 'corrected', got 'hard'"),
    ):
        with pytest.raises(InputError, match=message):
            PerformanceWeightedLoss(nn.Linear(3, 4), **options)  # type: ignore[arg-type]


def test_the_teacher_takes_no_gradient_and_its_weights_are_constants() -> None:
    """The same tensor may serve as inputs of both models: only the student's part has a gradient."""
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    model = Says(2.0)
    hook = PerformanceWeightedLoss(model)
    y = torch.tensor([0, 1, 0, 1, 1])
    student = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    hook(student, y, inputs=x).backward()
    assert x.grad is None
    assert model.factor.grad is None
    assert student.grad is not None


# --- balanced -------------------------------------------------------------------------------------------------------


def test_balanced_over_the_batch_or_over_the_training_data() -> None:
    z = losses_of(1.0, 2.0, 3.0, 6.0)  # groups a, a, a, b
    y, codes = torch.zeros(4), torch.tensor([0, 0, 0, 1])
    assert GroupBalancedCrossEntropy(2)(z, y, groups=codes).item() == pytest.approx((2 + 6) / 2)
    assert GroupBalancedCrossEntropy(5)(z, y, groups=codes).item() == pytest.approx((2 + 6) / 2)
    # In the data a is 30 of 40: a's people count 40 / (2 x 30), b's 40 / (2 x 10), whatever the batch.
    hook = GroupBalancedCrossEntropy({"a": 30, "b": 10})
    assert hook(z, y, groups=codes).item() == pytest.approx((6 * 40 / 60 + 6 * 40 / 20) / 4)
    assert hook(z[:1], y[:1], groups=codes[:1]).item() == pytest.approx(40 / 60)
    labels = GroupLabels(("a", "b"), np.array([0] * 30 + [1] * 10 + [-1] * 7))
    assert GroupBalancedCrossEntropy(labels)(z, y, groups=codes) == hook(z, y, groups=codes)


def test_balanced_over_the_training_data_is_exact_over_an_epoch() -> None:
    """The mean over the epoch's batches is the mean of the groups' means, although no batch has the data's shares."""
    torch.manual_seed(0)
    z, y = torch.randn(30, dtype=torch.float64), torch.randint(2, (30,))
    codes = torch.tensor([0] * 20 + [1] * 6 + [2] * 4)
    hook = GroupBalancedCrossEntropy({"a": 20, "b": 6, "c": 4})
    parts = [hook(z[i : i + 5], y[i : i + 5], groups=codes[i : i + 5]).item() for i in range(0, 30, 5)]
    plain = nn.BCEWithLogitsLoss()
    means = [plain(z[codes == g], y[codes == g].double()).item() for g in range(3)]
    assert np.mean(parts) == pytest.approx(np.mean(means), rel=1e-12)


def test_people_of_a_group_that_the_data_has_not_are_refused() -> None:
    hook = GroupBalancedCrossEntropy({"a": 3, "b": 0})
    with pytest.raises(InputError, match=r"people of \['b'\], groups that have nobody in the training data"):
        hook(torch.zeros(2), torch.zeros(2), groups=torch.tensor([0, 1]))


# --- group DRO ------------------------------------------------------------------------------------------------------


def test_the_shares_of_group_dro_by_hand() -> None:
    hook = GroupDRO(2, step_size=1.0)
    y, codes = torch.zeros(2), torch.tensor([0, 1])
    z = losses_of(LOG2, 2 * LOG2)
    # (1/2, 1/2) x (2, 4) = (1/3, 2/3); then x (2, 4) = (1/5, 4/5); then group 1 is absent: x (2, 1) = (1/3, 2/3)
    assert hook(z, y, groups=codes).item() == pytest.approx((1 / 3 + 2 * 2 / 3) * LOG2)
    assert hook.shares.tolist() == pytest.approx([1 / 3, 2 / 3])
    assert hook(z, y, groups=codes).item() == pytest.approx((1 / 5 + 2 * 4 / 5) * LOG2)
    assert hook(z[:1], y[:1], groups=codes[:1]).item() == pytest.approx(1 / 3 * LOG2)
    assert hook.shares.tolist() == pytest.approx([1 / 3, 2 / 3])
    hook.eval()
    assert hook(z, y, groups=codes).item() == pytest.approx((1 / 3 + 2 * 2 / 3) * LOG2)


def test_a_share_that_underflows_comes_back() -> None:
    hook = GroupDRO(2, step_size=100.0)
    y, codes = torch.zeros(2), torch.tensor([0, 1])
    for _ in range(5):
        hook(losses_of(10.0, 0.1), y, groups=codes)
    assert hook.shares.tolist() == [1.0, 0.0]
    for _ in range(10):
        hook(losses_of(0.1, 10.0), y, groups=codes)
    assert hook.shares.tolist() == [0.0, 1.0]


def test_the_adjustment_favours_small_groups() -> None:
    hook = GroupDRO({"a": 16, "b": 4}, step_size=1.0, adjustment=4 * LOG2)
    z = losses_of(LOG2, LOG2)
    hook(z, torch.zeros(2), groups=torch.tensor([0, 1]))
    # exp(L + C / sqrt(n)): 2 x 2 and 2 x 4
    assert hook.shares.tolist() == pytest.approx([1 / 3, 2 / 3])
    with pytest.raises(InputError, match="needs the groups' sizes"):
        GroupDRO(2, adjustment=1.0)
    with pytest.raises(InputError, match="step_size must be above 0"):
        GroupDRO(2, step_size=0.0)


# --- equalised loss -------------------------------------------------------------------------------------------------


def test_the_multipliers_of_the_equalised_loss_by_hand() -> None:
    hook = EqualisedLoss(2, step_size=0.1)
    z, y, codes = losses_of(1.0, 3.0, 3.0, 3.0), torch.zeros(4), torch.tensor([0, 1, 1, 1])
    # mean 2.5: gaps 1.5 and 0.5
    assert hook(z, y, groups=codes).item() == pytest.approx(2.5 + 0.15 * 1.5 + 0.05 * 0.5)
    assert hook(z, y, groups=codes).item() == pytest.approx(2.5 + 0.30 * 1.5 + 0.10 * 0.5)
    z = losses_of(3.0, 1.0, 1.0, 1.0)  # mean 1.5: gaps 1.5 and 0.5 the other way round
    assert hook(z, y, groups=codes).item() == pytest.approx(1.5 + 0.45 * 1.5 + 0.15 * 0.5)
    assert hook.multipliers.tolist() == pytest.approx([0.45, 0.15])
    with pytest.raises(InputError, match="step_size must be above 0"):
        EqualisedLoss(2, step_size=-1.0)


# --- excess gap -----------------------------------------------------------------------------------------------------


def people(*right: bool) -> torch.Tensor:
    """One logit per person of label 0 with loss log 2 on either side: right below 0, wrong above."""
    return torch.tensor([-1.0 if r else 1.0 for r in right], dtype=torch.float64)


def test_dual_ascent_and_replay_buffers_by_hand() -> None:
    dense = DenseAccuracy(("a", "b"), (1.0, 0.5), (3, 1))
    hook = ExcessGapConstraint(dense, tolerance=0.1, step_size=2.0, memory=2)
    y = torch.zeros

    hook(people(True, False), y(2), groups=torch.tensor([0, 1]))  # one bit each: no buffer is full
    assert hook.filled.tolist() == [1, 1]
    assert hook.multipliers.tolist() == [0, 0]
    assert torch.isnan(hook.excess()).all()

    hook(people(False), y(1), groups=torch.tensor([0]))  # a: right, wrong. Alone it is everybody: no excess
    assert hook.filled.tolist() == [2, 1]
    assert hook.excess()[0].item() == 0
    assert hook.multipliers.tolist() == [0, 0]

    # b: wrong, right. a lost 1 - 1/2, b 1/2 - 1/2; everybody (3 x 1/2 + 0) / 4 = 3/8: excess 1/8 and -3/8
    value = hook(people(True), y(1), groups=torch.tensor([1]))
    assert hook.excess().tolist() == pytest.approx([1 / 8, -3 / 8])
    assert hook.multipliers.tolist() == pytest.approx([2 * (1 / 8 - 0.1), 0])
    assert value.item() == pytest.approx(math.log1p(math.exp(-1)))  # a is absent, b has no multiplier

    # Nobody of a: but its buffer is full, so its multiplier goes on. Of three people the last two stay.
    hook(people(True, False, False), y(3), groups=torch.tensor([1, 1, 1]))
    assert hook.recent[1].tolist() == [0, 0]
    # b lost 1/2: everybody lost 1/2, excess 0 and 0
    assert hook.excess().tolist() == pytest.approx([0, 0])
    assert hook.multipliers.tolist() == pytest.approx([max(0, 0.05 - 2 * 0.1), 0])

    # b recovers, a does not: a has 1/8 + more
    hook(people(True, True, False), y(3), groups=torch.tensor([1, 1, 0]))
    # a: wrong, wrong lost 1; b: right, right lost -1/2; everybody (3 - 1/2) / 4 = 5/8
    assert hook.excess().tolist() == pytest.approx([3 / 8, -9 / 8])
    assert hook.multipliers.tolist() == pytest.approx([2 * (3 / 8 - 0.1), 0])
    hook.eval()
    z = losses_of(1.0, 2.0, 4.0, 5.0)  # unknown, a, b, b: the mean of the known is 11/3
    value = hook(z, y(4), groups=torch.tensor([-1, 0, 1, 1]))
    assert value.item() == pytest.approx(12 / 4 + 0.55 * (2 - 11 / 3))


def test_a_model_that_lost_nothing_has_no_excess_gap_however_unequal_the_groups() -> None:
    """Everybody's accuracy must be weighted alike for the dense model and for now, or this would be off."""
    dense = DenseAccuracy(("a", "b"), (0.9, 0.6), (90, 10))
    hook = ExcessGapConstraint(dense, memory=10)
    bits = [True] * 9 + [False] + [True] * 6 + [False] * 4
    hook(people(*bits), torch.zeros(20), groups=torch.tensor([0] * 10 + [1] * 10))
    assert hook.excess().tolist() == pytest.approx([0, 0], abs=1e-12)


def test_the_excess_gaps_weighted_by_people_cancel() -> None:
    torch.manual_seed(0)
    dense = DenseAccuracy(("a", "b", "c"), (0.9, 0.6, 0.7), (90, 10, 35))
    hook = ExcessGapConstraint(dense, memory=5)
    for _ in range(10):
        hook(torch.randn(12), torch.randint(2, (12,)), groups=torch.randint(3, (12,)))
    assert (hook.excess() * torch.tensor(dense.people)).sum().item() == pytest.approx(0, abs=1e-12)


def test_excess_gap_refuses_soft_labels_bad_options_and_other_accuracies() -> None:
    dense = DenseAccuracy(("a", "b"), (0.9, 0.6), (90, 10))
    with pytest.raises(InputError, match="targets are soft"):
        ExcessGapConstraint(dense)(torch.zeros(2), torch.tensor([0.5, 1.0]), groups=torch.tensor([0, 1]))
    for option in ({"tolerance": -0.1}, {"step_size": 0.0}, {"memory": 0}):
        with pytest.raises(InputError, match="tolerance must be at least 0"):
            ExcessGapConstraint(dense, **option)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="must be a DenseAccuracy"):
        ExcessGapConstraint({"a": 0.9})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\('b',\) have nobody|\['b'\] have nobody"):
        DenseAccuracy(("a", "b"), (0.9, 0.0), (90, 0))
    with pytest.raises(InputError, match="are needed for every group"):
        DenseAccuracy(("a", "b"), (0.9, 1.5), (90, 10))


def test_dense_accuracy_is_counted_and_the_model_left_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)).train()
    x, y, who = torch.randn(40, 4), torch.randint(3, (40,)), [["f", "m", ""][i % 3] for i in range(40)]
    before = model_checksum(model)
    batches = [{"x": x[i : i + 7], "y": y[i : i + 7], "sex": who[i : i + 7]} for i in range(0, 40, 7)]
    dense = DenseAccuracy.measure(model, batches, groups=GroupReader({"sex": "sex"}, names=["m", "f"]))
    assert model_checksum(model) == before
    assert all(m.training for m in model.modules())
    right = (model.eval()(x).argmax(1) == y).tolist()
    assert dense.names == ("m", "f")
    for name, accuracy, number in zip(dense.names, dense.accuracy, dense.people, strict=True):
        mine = [r for r, w in zip(right, who, strict=True) if w == name]
        assert (accuracy, number) == (pytest.approx(sum(mine) / len(mine)), len(mine))
    learned = DenseAccuracy.measure(model, batches, groups="sex")
    assert learned.names == ("f", "m")
    assert learned.accuracy == dense.accuracy[::-1]
    with pytest.raises(InputError, match="have nobody to measure"):
        DenseAccuracy.measure(model, batches, groups=GroupReader({"sex": "sex"}, names=["m", "f", "x"]))


# --- distillation ---------------------------------------------------------------------------------------------------


def test_distillation_mixes_labels_and_imitation_with_a_factor_per_group() -> None:
    dense, student = torch.tensor([logit(0.8)] * 3), torch.tensor([logit(0.6)] * 3)
    y, codes = torch.ones(3), torch.tensor([0, 1, -1])
    soft = 0.8 * math.log(0.8 / 0.6) + 0.2 * math.log(0.2 / 0.4)
    one = 0.75 * -math.log(0.6) + 0.25 * soft
    hook = Distillation(Says(), 2, temperature=1.0, share=0.25, group_weights=[3.0, 0.5])
    assert hook(student, y, groups=codes, inputs=dense).item() == pytest.approx(one * (3 + 0.5 + 1) / 3, rel=1e-6)
    same = Distillation(Says(), 2, temperature=4.0, share=1.0)
    assert same(dense, y, groups=codes, inputs=dense).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"share": 1.1}, "share lie in"),
        ({"group_weights": "equal"}, "group_weights must be 'balanced'"),
        ({"group_weights": [1.0]}, "one finite, non-negative number per group"),
        ({"group_weights": [1.0, -1.0]}, "one finite, non-negative number per group"),
    ],
)
def test_bad_options_of_distillation_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Distillation(Says(), 2, **options)


# --- the teacher ----------------------------------------------------------------------------------------------------


def test_the_teacher_is_a_frozen_copy_of_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    x = torch.randn(6, 3)
    expected = model.eval()(x).detach()
    model.train()
    teacher = Teacher(model)
    with torch.no_grad():
        model[0].weight.zero_()
    hook = PerformanceWeightedLoss(teacher).train()
    torch.testing.assert_close(hook.teacher.logits(x), expected)
    assert model.training
    assert not hook.teacher.logits(x).requires_grad
    assert "teacher" not in dict(hook.named_modules())


def test_a_cache_asks_once_about_each_person_and_answers_the_same() -> None:
    model, cache = Says(3.0), TeacherCache()
    teacher = Teacher(model, cache=cache)
    x = torch.randn(10, 2, dtype=torch.float64)
    for _ in range(3):
        torch.testing.assert_close(teacher.logits(x), 3 * x)
    assert model.asked == [10]
    subset = [7, 2, 9]  # another order, another subset: the same people
    torch.testing.assert_close(teacher.logits(x[subset]), 3 * x[subset])
    assert model.asked == [10]
    assert (cache.hits, cache.misses, len(cache)) == (23, 10, 10)


def test_a_cache_never_takes_one_person_model_or_picture_for_another() -> None:
    cache = TeacherCache()
    first, second = Says(1.0), Says(2.0)
    x = torch.randn(6, 3, dtype=torch.float64)
    one, two = Teacher(first, cache=cache), Teacher(second, cache=cache)
    torch.testing.assert_close(one.logits(x), x)
    torch.testing.assert_close(two.logits(x), 2 * x)  # another model
    torch.testing.assert_close(one.logits(-x), -x)  # another subset with the same row numbers
    augmented = x.flip(1)
    torch.testing.assert_close(one.logits(augmented), augmented)  # the same people, flipped
    half = torch.cat([x[:3], x[:3] + 1e-12])  # some known, some hardly changed
    torch.testing.assert_close(one.logits(half), half, rtol=0, atol=0)
    late = x + torch.tensor([0.0, 0.0, 1.0])  # the same up to their last number
    torch.testing.assert_close(one.logits(late), late, rtol=0, atol=0)
    assert first.asked == [6 + 6 + 6 + 3 + 6]
    assert cache.misses == 6 + 6 + 6 + 6 + 3 + 6

    class Negates(Says):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return -super().forward(x)

        def __deepcopy__(self, memo: Any) -> Negates:
            return self

    torch.testing.assert_close(Teacher(Negates(1.0), cache=cache).logits(x), -x)  # the same weights in another model
    picked = Teacher(Says(1.0), cache=cache, output=lambda outputs: outputs + 1)
    torch.testing.assert_close(picked.logits(x), x + 1)
    changed = Teacher(Says(1.0), cache=cache, forward_fn=lambda model, inputs: model(inputs) - 1)
    torch.testing.assert_close(changed.logits(x), x - 1)


def test_a_cache_tells_apart_what_is_shared_types_and_structure() -> None:
    class Shifted(nn.Module):
        def forward(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
            return x.double() + shift.double()

    teacher = Teacher(Shifted(), cache=TeacherCache())
    x = torch.ones(3, 2, dtype=torch.int32)
    for inputs, expected in (
        ((x, torch.tensor(1.0)), 2.0),
        ((x, torch.tensor(2.0)), 3.0),
        ({"x": x, "shift": torch.tensor(3.0)}, 4.0),
        ((x.view(torch.float32), torch.tensor(1.0)), 1.0),  # the same bytes, another meaning
    ):
        torch.testing.assert_close(teacher.logits(inputs), torch.full((3, 2), expected, dtype=torch.float64))


def test_a_cache_takes_lists_apart_by_person() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.asked: list[str] = []

        def __deepcopy__(self, memo: Any) -> Named:
            return self

        def forward(self, x: torch.Tensor, names: list[str]) -> torch.Tensor:
            self.asked += names
            return x + torch.tensor([len(name) for name in names])[:, None]

    model = Named()
    teacher = Teacher(model, cache=TeacherCache())
    x, names = torch.zeros(3, 1, dtype=torch.float64), ["ab", "c", "defg"]
    assert teacher.logits((x, names)).flatten().tolist() == [2, 1, 4]
    assert teacher.logits((x[:2], ["c", "xyz"])).flatten().tolist() == [1, 3]  # only one of them is new
    assert model.asked == ["ab", "c", "defg", "xyz"]


class Remembers(nn.Module):
    """Keeps what its forward computed, as many hand-written models do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.kept = nn.Linear(3, 2), {"features": [torch.zeros(1)]}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept = {"features": [self.fc(x)]}
        return self.kept["features"][0].relu()


def test_a_teacher_of_a_model_that_keeps_an_activation() -> None:
    model, x = Remembers(), torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    expected = model(x).detach()
    feature = model.kept["features"][0]
    before = feature.detach().clone()
    torch.testing.assert_close(Teacher(model).logits(x[:2]), expected[:2])
    assert model.kept["features"][0] is feature
    assert feature.grad_fn is not None
    assert torch.equal(feature, before)


def test_a_full_cache_keeps_what_it_has_and_goes_on_asking() -> None:
    model = Says(1.0)
    teacher = Teacher(model, cache=TeacherCache(capacity=4))
    x = torch.randn(6, 1, dtype=torch.float64)
    for _ in range(2):
        torch.testing.assert_close(teacher.logits(x), x)
    assert model.asked == [6 + 2]


def test_a_loss_is_the_same_with_and_without_a_cache() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    plain, cached = (PerformanceWeightedLoss(Teacher(dense, cache=c)) for c in (None, TeacherCache()))
    z, y, x = torch.randn(9, 3), torch.randint(3, (9,)), torch.randn(9, 5)
    for rows in (torch.arange(9), torch.tensor([3, 3, 1]), torch.arange(9).flip(0)):
        a, b = (hook(z[rows], y[rows], inputs=x[rows]) for hook in (plain, cached))
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


@pytest.mark.parametrize("make", [PerformanceWeightedLoss, lambda teacher: Distillation(teacher, 2)])
def test_state_of_a_loss_with_another_dense_model_is_refused(make: Any) -> None:
    saved = make(Says(1.0)).state_dict()
    make(Says(1.0)).load_state_dict(saved)
    with pytest.raises(InputError, match="another dense model"):
        make(Says(2.0)).load_state_dict(saved)
    with pytest.raises(InputError, match="must be a torch module or a Teacher, got str"):
        make("model.pt")


# --- groups out of batches ------------------------------------------------------------------------------------------


def test_groups_are_read_by_name_in_the_hooks_order() -> None:
    batch = {"x": torch.zeros(4, 2), "y": torch.zeros(4), "sex": ["m", "f", None, "m"]}
    z = losses_of(1.0, 4.0, 7.0, 3.0)
    expected = (3 * (0.5 * 2.0 + 0.5 * 4.0) + 7.0) / 4
    for names in (["m", "f"], ["f", "m"]):
        hook = GroupBalancedCrossEntropy(names)
        assert hook.on_batches(groups="sex")(z, batch).item() == pytest.approx(expected)
    coded = {**batch, "sex": torch.tensor([1, 0, -1, 1])}
    assert GroupBalancedCrossEntropy(2).on_batches(groups="sex")(z, coded).item() == pytest.approx(expected)
    reader = GroupReader({"sex": "sex"}, value_names={"sex": ["f", "m"]})
    assert GroupBalancedCrossEntropy(["m", "f"]).on_batches(groups=reader)(z, coded).item() == pytest.approx(expected)
    with pytest.raises(InputError, match=r"outside the known groups \['m', 'x'\]: \['f'\]"):
        GroupBalancedCrossEntropy(["m", "x"]).on_batches(groups="sex")(z, batch)
    with pytest.raises(InputError, match="the groups read from batches are"):
        GroupBalancedCrossEntropy(["m", "f"]).on_batches(groups=GroupReader({"sex": "sex"}, names=["f", "m"]))
    with pytest.raises(InputError, match="outputs must be a tensor, got dict"):
        hook.on_batches(groups="sex")({"logits": z}, batch)  # type: ignore[arg-type]


def test_a_stateful_loss_has_one_order_of_groups_whatever_comes_first() -> None:
    """Codes in order of appearance would give the multipliers to other people in every epoch."""
    one, two = GroupDRO(["a", "b"], step_size=1.0), GroupDRO(["a", "b"], step_size=1.0)
    z = losses_of(LOG2, 2 * LOG2)
    one.on_batches(groups="g")(z, {"x": z, "y": torch.zeros(2), "g": ["a", "b"]})
    two.on_batches(groups="g")(z.flip(0), {"x": z, "y": torch.zeros(2), "g": ["b", "a"]})
    assert one.shares.tolist() == two.shares.tolist() == pytest.approx([1 / 3, 2 / 3])
