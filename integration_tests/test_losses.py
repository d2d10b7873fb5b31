"""All losses through one harness, against each method's definition written out person by person and differentiated by
autograd."""

from __future__ import annotations

import copy
import io
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fair_prune_plugins import losses
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.gates import build_plan
from fair_prune_plugins.losses import DenseAccuracy, GroupSizes, LossHook
from fair_prune_plugins.statistics import collect
from integration_tests import networks

GROUPS = 3
BUILT_IN = [
    "cross_entropy", "distillation", "equalised_loss", "excess_gap", "group_balanced", "group_dro",
    "performance_weighted",
]  # fmt: skip
TASKS = ["binary", "multiclass", "multilabel"]
STATE = {"group_dro": "log_shares", "equalised_loss": "multipliers", "excess_gap": "multipliers"}
FEATURES, CLASSES = 4, 3


@dataclass
class Batch:
    outputs: torch.Tensor
    targets: torch.Tensor
    groups: torch.Tensor
    inputs: torch.Tensor
    weights: torch.Tensor

    def rows(self, rows: Any) -> Batch:
        return Batch(*(getattr(self, f)[rows] for f in ("outputs", "targets", "groups", "inputs", "weights")))

    def loss(self, hook: LossHook, **changed: Any) -> torch.Tensor:
        named = {"groups": self.groups, "inputs": self.inputs, "weights": self.weights, **changed}
        return hook(self.outputs, self.targets, **named)


def batch_of(task: str, people: int = 12, seed: int = 0) -> Batch:
    """People of all groups and of none, with weights."""
    generator = torch.Generator().manual_seed(seed)
    width = 1 if task == "binary" else CLASSES
    outputs = torch.randn(people, width, generator=generator, dtype=torch.float64) * 2
    if task == "multiclass":
        targets = torch.randint(CLASSES, (people,), generator=generator)
    else:
        targets = torch.randint(2, (people, width), generator=generator)
    groups = torch.arange(people) % (GROUPS + 1) - 1
    inputs = torch.randn(people, FEATURES, generator=generator, dtype=torch.float64)
    weights = torch.rand(people, generator=generator, dtype=torch.float64) + 0.5
    return Batch(outputs.requires_grad_(), targets, groups, inputs, weights)


def teacher_of(task: str) -> nn.Linear:
    torch.manual_seed(7)
    return nn.Linear(FEATURES, 1 if task == "binary" else CLASSES, dtype=torch.float64)


DENSE = DenseAccuracy(("a", "b", "c"), (0.9, 0.6, 0.8), (50, 10, 20))


def hook_of(name: str, task: str, **options: Any) -> LossHook:
    if name == "excess_gap":
        options = {"memory": 2, "step_size": 0.5, **options}
    if name in ("equalised_loss", "group_dro"):
        options = {"step_size": 0.5, **options}
    return losses.get(name).make(groups=GROUPS, teacher=teacher_of(task), dense=DENSE, task=task, **options)


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=BUILT_IN)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- each method, written out ---------------------------------------------------------------------------------------


def person_cross_entropy(z: torch.Tensor, y: torch.Tensor, task: str) -> torch.Tensor:
    """Of one person: ``z`` ``[K]``; ``y`` a class, or labels ``[K]``."""
    if task == "multiclass":
        return torch.logsumexp(z, 0) - z[y]
    y = y.double()
    return (y * F.softplus(-z) + (1 - y) * F.softplus(z)).mean()


def imitation(z: torch.Tensor, t: torch.Tensor, task: str, temperature: float) -> torch.Tensor:
    kl = torch.distributions.kl_divergence
    if task == "multiclass":
        categorical = torch.distributions.Categorical
        return kl(categorical(logits=t / temperature), categorical(logits=z / temperature))
    bernoulli = torch.distributions.Bernoulli
    return kl(bernoulli(logits=t / temperature), bernoulli(logits=z / temperature)).mean()


def performance_weighted(z: torch.Tensor, y: torch.Tensor, t: torch.Tensor, task: str) -> torch.Tensor:
    """theta 0.5, gamma 1, corrected labels: methods by hand, without any function of the package."""
    if task == "multiclass":
        q = t.exp() / t.exp().sum()
        label = q if int(q.argmax()) == int(y) else F.one_hot(y, len(q)).double()
        return (0.5 + 0.5 * (1 - q[y])) * -(label * z.log_softmax(0)).sum()
    terms = []
    for z_k, y_k, t_k in zip(z, y.double(), t, strict=True):
        q = 1 / (1 + (-t_k).exp())
        label = q if bool(q.round() == y_k) else y_k
        weight = 0.5 + 0.5 * (1 - (q * y_k + (1 - q) * (1 - y_k)))
        terms.append(weight * -(label * F.logsigmoid(z_k) + (1 - label) * F.logsigmoid(-z_k)))
    return torch.stack(terms).mean()


def mean(values: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    return sum((w * v for w, v in zip(weights, values, strict=True)), torch.zeros(())) / sum(weights)


def by_definition(name: str, task: str, batch: Batch) -> torch.Tensor:
    """The first training step of a fresh hook."""
    w, codes = batch.weights.tolist(), batch.groups.tolist()
    with torch.no_grad():
        dense = teacher_of(task)(batch.inputs)
    plain = [person_cross_entropy(z, y, task) for z, y in zip(batch.outputs, batch.targets, strict=True)]
    if name == "performance_weighted":
        rows = zip(batch.outputs, batch.targets, dense, strict=True)
        return mean([performance_weighted(z, y, t, task) for z, y, t in rows], w)
    if name == "distillation":
        soft = [imitation(z, t, task, 2.0) for z, t in zip(batch.outputs, dense, strict=True)]
        plain = [0.5 * a + 0.5 * 4 * b for a, b in zip(plain, soft, strict=True)]
    everybody = mean(plain, w)
    if name == "cross_entropy":
        return everybody
    known = [i for i, c in enumerate(codes) if c >= 0]
    unknown = [i for i, c in enumerate(codes) if c < 0]
    total = {"known": sum(w[i] for i in known), "unknown": sum(w[i] for i in unknown)}
    present = sorted({codes[i] for i in known})
    group = {
        g: mean([plain[i] for i in known if codes[i] == g], [w[i] for i in known if codes[i] == g]) for g in present
    }
    pooled = mean([plain[i] for i in known], [w[i] for i in known])
    if name in ("group_balanced", "distillation", "group_dro"):
        shares = dict.fromkeys(present, 1 / len(present))
        if name == "group_dro":
            rise = {g: math.exp(0.5 * float(group[g].detach())) if g in group else 1.0 for g in range(GROUPS)}
            shares = {g: rise[g] / sum(rise.values()) for g in present}
        fair = sum((shares[g] * group[g] for g in present), torch.zeros(()))
        if not unknown:
            return fair
        rest = mean([plain[i] for i in unknown], [w[i] for i in unknown])
        return (total["known"] * fair + total["unknown"] * rest) / (total["known"] + total["unknown"])
    if name == "equalised_loss":
        multiplier = {g: 0.5 * abs(float(group[g].detach() - pooled.detach())) for g in present}
        return everybody + sum(multiplier[g] * (group[g] - pooled).abs() for g in present)
    assert name == "excess_gap"
    hits: dict[int, list[float]] = {g: [] for g in range(GROUPS)}
    for z, y, c in zip(batch.outputs, batch.targets, codes, strict=True):
        if task == "multiclass":
            hit = float(int(z.argmax()) == int(y))
        else:
            hit = sum(float((v > 0) == bool(t)) for v, t in zip(z, y, strict=True)) / len(z)
        if c >= 0:
            hits[c].append(hit)
    full = [g for g in range(GROUPS) if len(hits[g]) >= 2]
    lost = {g: DENSE.accuracy[g] - sum(hits[g][-2:]) / 2 for g in full}
    all_lost = sum(lost[g] * DENSE.people[g] for g in full) / max(sum(DENSE.people[g] for g in full), 1)
    multiplier = {g: max(0.0, 0.5 * (lost[g] - all_lost - 0.01)) if g in full else 0.0 for g in range(GROUPS)}
    return everybody + sum(multiplier[g] * (group[g] - pooled) for g in present)


@pytest.mark.parametrize("case", ["everybody", "no unknown", "a group is absent", "one person"])
def test_value_and_gradient_are_those_of_the_definition(name: str, task: str, case: str) -> None:
    for seed in range(4):
        batch = batch_of(task, seed=seed)
        keep = {
            "everybody": batch.groups >= -1,
            "no unknown": batch.groups >= 0,
            "a group is absent": batch.groups != 1,
            "one person": torch.arange(12) == 1,
        }[case]
        batch = batch.rows(keep)
        ours = batch.loss(hook_of(name, task))
        theirs = by_definition(name, task, batch)
        torch.testing.assert_close(ours, theirs.double(), rtol=1e-12, atol=1e-12)
        (mine,) = torch.autograd.grad(ours, batch.outputs, retain_graph=True)
        (expected,) = torch.autograd.grad(theirs, batch.outputs)
        torch.testing.assert_close(mine, expected, rtol=1e-11, atol=1e-12)


# --- what holds for all of them -------------------------------------------------------------------------------------


def test_these_are_all_the_losses() -> None:
    assert losses.names() == BUILT_IN


def trained(name: str, task: str, steps: int = 3, **options: Any) -> LossHook:
    """With a state that means something; in evaluation mode, so that it stays."""
    hook = hook_of(name, task, **options)
    for seed in range(steps):
        batch_of(task, seed=seed + 10).loss(hook)
    return hook.eval()


def state(hook: LossHook) -> list[torch.Tensor]:
    return [b.clone() for b in hook.buffers()]


def test_reductions_are_the_mean_the_sum_and_its_terms(name: str, task: str) -> None:
    batch = batch_of(task)
    values = {r: batch.loss(trained(name, task, reduction=r)) for r in ("mean", "sum", "none")}
    assert values["none"].shape == (12,)
    assert values["mean"].shape == values["sum"].shape == ()
    torch.testing.assert_close(values["none"].sum(), values["sum"])
    torch.testing.assert_close(values["sum"] / batch.weights.sum(), values["mean"])


def test_a_weight_of_two_is_a_person_who_is_there_twice(name: str, task: str) -> None:
    batch = batch_of(task)
    times = torch.tensor([1, 2, 0, 1, 3, 1, 0, 2, 1, 1, 2, 1])
    hook = trained(name, task)
    repeated = batch.rows(torch.repeat_interleave(torch.arange(12), times))
    weighted = batch.loss(hook, weights=times)
    torch.testing.assert_close(weighted, repeated.loss(hook, weights=None), rtol=1e-12, atol=1e-13)
    (gradient,) = torch.autograd.grad(weighted, batch.outputs)
    assert not gradient[times == 0].any()


def test_with_nobody_of_a_known_group_a_group_loss_is_a_plain_one(name: str, task: str) -> None:
    batch = batch_of(task)
    batch.groups = torch.full((12,), -1)
    hook = trained(name, task)
    before = state(hook)
    hook.train()
    if name in ("performance_weighted", "distillation"):
        expected = by_definition("performance_weighted", task, batch)
        if name == "distillation":
            plain, soft = hook_of(name, task, share=0.0), hook_of(name, task, share=1.0)
            expected = 0.5 * batch.loss(plain) + 0.5 * batch.loss(soft)
    else:
        expected = by_definition("cross_entropy", task, batch)
    torch.testing.assert_close(batch.loss(hook), expected.double(), rtol=1e-12, atol=1e-13)
    if name == "excess_gap":  # its multipliers follow the buffers at every step, whoever is in the batch
        before[0] = hook.get_buffer("multipliers").clone()
    assert all(torch.equal(a, b) for a, b in zip(state(hook), before, strict=True))


def test_an_empty_batch_is_zero_and_changes_nothing(name: str, task: str) -> None:
    hook = trained(name, task).train()
    before = state(hook)
    empty = batch_of(task).rows(torch.zeros(12, dtype=torch.bool))
    value = empty.loss(hook)
    assert value.item() == 0
    value.backward()
    assert all(torch.equal(a, b) for a, b in zip(state(hook), before, strict=True))
    hook.reduction = "none"
    assert empty.loss(hook).shape == (0,)
    nobody_counts = batch_of(task).loss(trained(name, task), weights=torch.zeros(12))
    assert nobody_counts.item() == 0


@pytest.mark.parametrize("name", [n for n in BUILT_IN if n != "excess_gap"])  # whose groups and people have an order
def test_renumbering_people_and_groups_changes_nothing(name: str, task: str) -> None:
    batch = batch_of(task)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    other = batch.rows(order)
    other.groups = torch.where(other.groups < 0, other.groups, (other.groups + 1) % GROUPS)
    torch.testing.assert_close(batch.loss(hook_of(name, task)), other.loss(hook_of(name, task)), rtol=1e-12, atol=0)


def test_state_moves_in_training_mode_only(name: str, task: str) -> None:
    hook = hook_of(name, task).eval()
    before = state(hook)
    batch_of(task).loss(hook)
    assert all(torch.equal(a, b) for a, b in zip(state(hook), before, strict=True))
    hook.train()
    batch_of(task).loss(hook)
    moved = [n for (n, b), old in zip(hook.named_buffers(), before, strict=True) if not torch.equal(b, old)]
    assert bool(moved) is (name in STATE)
    if name in STATE:
        assert STATE[name] in moved


def test_a_run_that_is_saved_and_taken_up_again_goes_on_identically(name: str, task: str) -> None:
    through = hook_of(name, task)
    for seed in range(3):
        batch_of(task, seed=seed).loss(through)
    file = io.BytesIO()
    torch.save(through.state_dict(), file)
    file.seek(0)
    resumed = hook_of(name, task)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for seed in range(3, 6):
        batch = batch_of(task, seed=seed)
        assert torch.equal(batch.loss(through), batch.loss(resumed))
    assert all(torch.equal(a, b) for a, b in zip(state(through), state(resumed), strict=True))
    if name in STATE:
        fresh = hook_of(name, task)
        assert not torch.equal(state(fresh)[0], state(resumed)[0])


def test_a_hook_has_no_parameters_and_saves_no_model(name: str, task: str) -> None:
    hook = hook_of(name, task)
    assert not list(hook.parameters())
    assert sum(b.numel() for b in hook.buffers()) <= GROUPS * 4
    assert copy.deepcopy(hook).state_dict().keys() == hook.state_dict().keys()


def test_label_smoothing_composes(name: str, task: str) -> None:
    """Smoothing is a change of the labels: so is the same loss with labels smoothed by hand, where it takes such."""
    batch, epsilon = batch_of(task), 0.2
    hook = trained(name, task, label_smoothing=epsilon)
    value = batch.loss(hook)
    width = CLASSES if task == "multiclass" else 2
    if name == "performance_weighted":
        # The loss is linear in the labels: 1 - epsilon of it, and epsilon of it with labels that say nothing.
        uniform = trained(name, task, labels="original", label_smoothing=0.0)
        sharp = batch.loss(trained(name, task))
        with torch.no_grad():
            dense = teacher_of(task)(batch.inputs)
        w = []
        for t, y in zip(dense, batch.targets, strict=True):
            if task == "multiclass":
                w.append((0.5 + 0.5 * (1 - t.softmax(0)[y])).expand(1))
            else:
                q = t.sigmoid()
                w.append(0.5 + 0.5 * (1 - torch.where(y == 1, q, 1 - q)))
        z = batch.outputs
        flat = -z.log_softmax(1).mean(1, keepdim=True) if task == "multiclass" else F.softplus(z) - 0.5 * z
        nothing = ((torch.stack(w) * flat).mean(1) * batch.weights).sum() / batch.weights.sum()
        torch.testing.assert_close(value, (1 - epsilon) * sharp + epsilon * nothing, rtol=1e-12, atol=0)
        assert uniform.label_smoothing == 0
        return
    hard = F.one_hot(batch.targets, CLASSES).double() if task == "multiclass" else batch.targets.double()
    smoothed = Batch(batch.outputs, hard * (1 - epsilon) + epsilon / width, batch.groups, batch.inputs, batch.weights)
    by_hand = trained(name, task)
    by_hand.load_state_dict(hook.state_dict())
    torch.testing.assert_close(value, smoothed.loss(by_hand), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(name: str, task: str, dtype: torch.dtype) -> None:
    batch = batch_of(task)
    outputs = batch.outputs.detach().to(dtype).requires_grad_()
    hook = trained(name, task)
    value = hook(outputs, batch.targets, groups=batch.groups, inputs=batch.inputs, weights=batch.weights)
    assert value.dtype == torch.float32
    exact = hook(outputs.double(), batch.targets, groups=batch.groups, inputs=batch.inputs, weights=batch.weights)
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)
    value.backward()
    assert outputs.grad is not None
    assert torch.isfinite(outputs.grad).all()


# --- collecting statistics ------------------------------------------------------------------------------------------


def collected(hook: LossHook, loss_fn: Callable[..., torch.Tensor], batches: list[Any], model: nn.Module) -> Any:
    plan = build_plan(model, batches[0]["inputs"])
    return collect(plan, batches, loss_fn, groups="who", targets=None, progress=False)


@pytest.mark.filterwarnings("ignore:.*too small.*")
def test_statistics_are_collected_with_the_losses_of_each_person(name: str) -> None:
    """The loss's terms, times their factors by definition, give the same statistics as the loss itself."""
    torch.manual_seed(0)
    model = networks.Plain().eval()
    people = ["a", "b", "c", None, "b", "a", "a", "c"]
    codes = torch.tensor([-1 if p is None else "abc".index(p) for p in people])
    x, y = torch.randn(8, 3, 16, 16), torch.randint(networks.CLASSES, (8,))
    batches = [{"inputs": x[i : i + 4], "targets": y[i : i + 4], "who": people[i : i + 4]} for i in (0, 4)]
    torch.manual_seed(3)
    options: dict[str, Any] = {"memory": 1, "step_size": 5.0} if name == "excess_gap" else {}
    names = ["a", "b", "c"]
    hook = losses.get(name).make(groups=names, teacher=networks.Plain(), dense=DENSE, **options)
    for _ in range(2):  # a state that means something
        hook(model(x), y, groups=codes, inputs=x)
    before = state(hook)
    own = collected(hook, hook.for_statistics(groups="who"), batches, model)
    assert all(torch.equal(a, b) for a, b in zip(state(hook), before, strict=True))
    assert hook.training
    assert own.counts == {"a": 3, "b": 2, "c": 2}

    frozen = copy.deepcopy(hook).eval()
    number = iter(range(2))

    def by_gradient(outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        """Linear in each person's own outputs, with the gradient of the batch's summed loss."""
        i = 4 * next(number)
        logits = outputs.detach().requires_grad_()
        frozen.reduction = "sum"
        total = frozen(logits, batch["targets"], groups=codes[i : i + 4], inputs=batch["inputs"])
        (gradient,) = torch.autograd.grad(total, logits)
        return (gradient * outputs).sum(1)

    other = collected(hook, by_gradient, batches, model)
    torch.testing.assert_close(own.sum, other.sum, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(own.square, other.square, rtol=1e-4, atol=1e-9)


def test_a_training_loop_takes_two_lines(name: str) -> None:
    """And the loss falls, whichever it is."""
    torch.manual_seed(0)
    x = torch.randn(64, 2)
    batch = {"inputs": x, "targets": (x[:, 0] > 0).long(), "race": ["p", "q"] * 32, "weights": torch.ones(64)}
    model, dense = nn.Linear(2, 2), nn.Linear(2, 2)
    with torch.no_grad():
        dense.weight.copy_(torch.tensor([[-5.0, 0.0], [5.0, 0.0]]))
    hook = losses.get(name).make(
        groups=["p", "q"], teacher=dense, dense=DenseAccuracy(("p", "q"), (1.0, 1.0), (32, 32))
    )
    loss_fn = hook.on_batches(groups="race", weights="weights")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        loss_fn(model(x), batch).backward()
        optimizer.step()
        values.append(F.cross_entropy(model(x), batch["targets"]).item())
    assert values[-1] < 0.5 * values[0]


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named(name: str, task: str, bad: float) -> None:
    batch = batch_of(task)
    hook = hook_of(name, task)
    before = state(hook)
    outputs = batch.outputs.detach().clone()
    outputs[4, 0] = bad
    with pytest.raises(InputError, match="outputs are NaN or infinite for 1 of 12 people, first in row 4"):
        hook(outputs, batch.targets, groups=batch.groups, inputs=batch.inputs)
    with pytest.raises(InputError, match="negative or non-finite"):
        batch.loss(hook, weights=torch.tensor([bad, *[1.0] * 11]))
    if hook.needs_inputs:
        inputs = batch.inputs.clone()
        inputs[3] = bad
        with pytest.raises(InputError, match=r"dense model's outputs are NaN .* row 3"):
            batch.loss(hook, inputs=inputs)
    if task != "multiclass":
        targets = batch.targets.double()
        targets[5, 0] = bad
        with pytest.raises(InputError, match=r"between 0 and 1, found .* in row 5"):
            hook(batch.outputs, targets, groups=batch.groups, inputs=batch.inputs)
    assert all(torch.equal(a, b) for a, b in zip(state(hook), before, strict=True))


def test_what_a_loss_needs_it_asks_for(name: str, task: str) -> None:
    hook, batch = hook_of(name, task), batch_of(task)
    if hook.needs_groups:
        with pytest.raises(InputError, match=r"pass groups="):
            batch.loss(hook, groups=None)
        with pytest.raises(InputError, match=r"pass groups="):
            hook.on_batches()
        with pytest.raises(InputError, match="group code is 3, the loss knows the codes 0 to 2"):
            batch.loss(hook, groups=torch.full((12,), 3))
    if hook.needs_inputs:
        with pytest.raises(InputError, match=r"pass inputs="):
            batch.loss(hook, inputs=None)
    for groups in (torch.zeros(11, dtype=torch.int64), torch.zeros(12), torch.zeros(12, dtype=torch.bool)):
        with pytest.raises(InputError, match="one integer code per person"):
            batch.loss(hook, groups=groups)
    with pytest.raises(InputError, match="one finite, non-negative number per person"):
        batch.loss(hook, weights=torch.ones(3))


LOGITS = torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("outputs", "targets", "task", "message"),
    [
        ([0.0], torch.zeros(1), "auto", "outputs must be a tensor, got list"),
        (LOGITS.long(), torch.zeros(4, dtype=torch.int64), "auto", "must be logits"),
        (torch.zeros(4, 3, 2), torch.zeros(4, dtype=torch.int64), "auto", "must be logits"),
        (torch.zeros(4, 0), torch.zeros(4, dtype=torch.int64), "auto", "must be logits"),
        (LOGITS, [0, 1, 2, 0], "auto", "targets must be a tensor, got list"),
        (LOGITS, torch.zeros(3, dtype=torch.int64), "auto", "outputs have 4 rows and targets 3"),
        (LOGITS, torch.tensor([0, 1, 3, 0]), "auto", "outside the classes 0 to 2, first 3 in row 2"),
        (LOGITS, torch.tensor([0, 1, 2, -100]), "auto", "first -100 in row 3"),
        (LOGITS, torch.zeros(4), "auto", "class indices of shape"),
        (LOGITS, torch.full((4, 3), 1 / 3), "auto", "say task='multiclass' or task='multilabel'"),
        (LOGITS, torch.full((4, 3), 0.5), "multiclass", "row 0 sums to 1.5"),
        (LOGITS, torch.zeros(4, dtype=torch.int64), "binary", r"must be \[4\] or \[4, 1\], 0 to 1 \(and one output\)"),
        (LOGITS, torch.zeros(4, dtype=torch.int64), "multilabel", r"must be \[4, 3\]"),
        (torch.zeros(4), torch.tensor([0, 1, 2, 0]), "auto", "binary targets must lie between 0 and 1, found 2"),
        (torch.zeros(4), torch.zeros(4, dtype=torch.int64), "multiclass", "for two outputs or more"),
    ],
)
def test_bad_outputs_and_targets_are_refused(outputs: Any, targets: Any, task: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        losses.CrossEntropy(task=task)(outputs, targets)


@pytest.mark.parametrize(
    "options", [{"task": "regression"}, {"label_smoothing": 1.0}, {"label_smoothing": -0.1}, {"reduction": "max"}]
)
def test_bad_common_options_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(options))} must be"):
        losses.get(name).make(groups=2, teacher=nn.Linear(2, 2), dense=DENSE, **options)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (0, "at least one group"),
        ([], "at least one group"),
        (["a", "a"], "must differ"),
        ("ab", "groups= must be the number of groups"),
        (2.0, "groups= must be the number of groups"),
        ({"a": 0, "b": 0}, "no group has any people"),
        ({"a": -1, "b": 2}, "whole numbers of people"),
    ],
)
def test_bad_groups_are_refused(groups: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        losses.GroupBalancedCrossEntropy(groups)


# --- torch's own losses are the plain case --------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_plain_cross_entropy_is_torchs(smoothing: float) -> None:
    hook = losses.CrossEntropy(label_smoothing=smoothing)
    z, y = torch.randn(9, 4), torch.randint(4, (9,))
    torch.testing.assert_close(hook(z, y), F.cross_entropy(z, y, label_smoothing=smoothing))
    soft = torch.rand(9, 4).softmax(1)
    by_task = losses.CrossEntropy(task="multiclass", label_smoothing=smoothing)
    torch.testing.assert_close(by_task(z, soft), F.cross_entropy(z, soft, label_smoothing=smoothing))
    z, y = torch.randn(9), torch.randint(2, (9,))
    expected = F.binary_cross_entropy_with_logits(z, y * (1 - smoothing) + smoothing / 2)
    for outputs in (z, z[:, None]):
        for targets in (y, y[:, None], y.bool(), y.float()):
            torch.testing.assert_close(hook(outputs, targets), expected)
    z, y = torch.randn(9, 4), torch.randint(2, (9, 4))
    expected = F.binary_cross_entropy_with_logits(z, y * (1 - smoothing) + smoothing / 2)
    torch.testing.assert_close(hook(z, y), expected)


def test_the_room_opens_without_optional_packages() -> None:
    blocked = ["onnx", "onnxruntime", "pandas", "pydantic", "scipy", "sklearn", "typer", "matplotlib"]
    code = f"import sys\nfor m in {blocked}: sys.modules[m] = None\nfrom fair_prune_plugins import losses\n"
    code += "print(len(losses.names()), type(losses.GroupSizes(('a',))).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == GroupSizes.__name__
