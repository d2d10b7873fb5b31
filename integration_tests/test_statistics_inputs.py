"""Losses, batches and bad input of the statistics: each works, or says what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.gates import build_plan
from fair_prune_plugins.gates.plan import GatePlan
from fair_prune_plugins.groups import GroupReader
from fair_prune_plugins.statistics import GateStatistics, collect
from integration_tests.gate_oracles import Net
from integration_tests.networks import CLASSES, build

N = 10
GENERATOR = torch.Generator().manual_seed(4)
X = torch.randn(N, 3, 16, 16, generator=GENERATOR, dtype=torch.float64)
Y = torch.randint(0, CLASSES, (N,), generator=GENERATOR)
G = ["a", "b", "b", "a", None, "b", "a", "a", "b", "c"]

each = partial(F.cross_entropy, reduction="none")


def loader(size: int = 4, x: torch.Tensor = X, y: torch.Tensor = Y, **more: Any) -> list[dict[str, Any]]:
    data: Mapping[str, Any] = {"x": x, "y": y, "g": G, **more}
    return [{k: v[i : i + size] for k, v in data.items()} for i in range(0, len(x), size)]


@pytest.fixture(scope="module")
def plan() -> GatePlan:
    return build_plan(build("plain").double(), X)


@pytest.fixture(scope="module")
def images_plan() -> GatePlan:
    return build_plan(build("transposed convolution").double(), X)


@pytest.fixture(scope="module")
def truth(plan: GatePlan) -> GateStatistics:
    return gathered(plan, each)


def gathered(plan: GatePlan, loss: Any = each, batches: Any = None, **options: Any) -> GateStatistics:
    batches = loader() if batches is None else batches
    return collect(plan, batches, loss, **{"groups": "g", "progress": False, **options})


def assert_same(a: GateStatistics, b: GateStatistics, tolerance: float = 1e-11) -> None:
    assert a.names == b.names
    assert torch.equal(a.people, b.people)
    for state in ("weight", "sum", "absolute", "square"):
        x, y = getattr(a, state), getattr(b, state)
        assert float((x - y).abs().max()) <= tolerance * float(y.abs().max()), state


# Losses


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (each, {}),
        (each, {"reduction": "none"}),
        (lambda out, y: each(out, y)[:, None], {}),
        (nn.CrossEntropyLoss(reduction="none"), {}),
        (nn.CrossEntropyLoss(), {}),
        (nn.CrossEntropyLoss(), {"reduction": "mean"}),
        (nn.CrossEntropyLoss(reduction="sum"), {}),
        (F.cross_entropy, {}),
        (F.cross_entropy, {"reduction": "mean"}),
        (lambda out, y: each(out, y).sum(), {}),
        (lambda out, y: each(out, y).sum(), {"reduction": "sum"}),
        (partial(F.cross_entropy, reduction="sum"), {}),
    ],
)
@pytest.mark.parametrize("size", [1, 4, 10])
def test_losses_of_any_reduction(plan: GatePlan, truth: GateStatistics, loss: Any, options: Any, size: int) -> None:
    """Batches of 4, 4 and 2: a mean that was not scaled back would weigh people by their batch."""
    assert_same(gathered(plan, loss, loader(size), **options), truth)


@pytest.mark.parametrize(
    ("declared", "loss"), [("sum", F.cross_entropy), ("mean", partial(F.cross_entropy, reduction="sum"))]
)
def test_a_wrong_declared_reduction(plan: GatePlan, declared: str, loss: Any) -> None:
    with pytest.raises(InputError, match=rf"reduction='{declared}' was declared, but the loss gives .* Declare what"):
        gathered(plan, loss, reduction=declared)
    with pytest.raises(InputError, match=rf"reduction='{declared}' was declared"):
        gathered(plan, loss, [*loader(1)[:2], *loader(4)], reduction=declared)


def test_other_declarations(plan: GatePlan) -> None:
    with pytest.raises(InputError, match="'auto', 'none', 'mean' or 'sum', got 'average'"):
        gathered(plan, reduction="average")
    with pytest.raises(InputError, match="reduction='none' was declared, but the loss is a single number"):
        gathered(plan, F.cross_entropy, reduction="none")


@pytest.mark.parametrize("declared", ["auto", "mean"])
def test_a_class_weighted_mean_is_refused(plan: GatePlan, declared: str) -> None:
    weighted = nn.CrossEntropyLoss(weight=torch.arange(1.0, CLASSES + 1).double())
    with pytest.raises(InputError, match=r"neither the mean nor the sum.*Class weights.*reduction='none'"):
        gathered(plan, weighted, reduction=declared)
    weighted.reduction = "none"
    assert gathered(plan, weighted).counts == {"a": 4, "b": 4, "c": 1}


def test_a_reduction_that_shows_only_later_is_refused_too(plan: GatePlan) -> None:
    """Nothing is ignored in the first batch."""
    y = Y.clone()
    y[5] = -100
    with pytest.raises(InputError, match=r"neither the mean nor the sum.*ignored targets"):
        gathered(plan, F.cross_entropy, loader(y=y))
    ignored = gathered(plan, each, loader(y=y))
    assert ignored.counts["b"] == 4


def test_a_first_batch_without_loss_does_not_decide(plan: GatePlan) -> None:
    def hinge(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (each(out, y % 100) * (y < 100)).sum()

    y = Y.clone()
    y[:4] += 100
    later = gathered(plan, hinge, loader(y=y))
    expected = gathered(plan, lambda out, y: each(out, y % 100) * (y < 100), loader(y=y))
    assert_same(later, expected)


def test_a_loss_that_cannot_be_taken_apart(plan: GatePlan) -> None:
    def whole(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert len(y) > 1, "two at least"
        return F.cross_entropy(out, y)

    with pytest.raises(InputError, match=r"with parts of the batch, where it fails: AssertionError: two at least"):
        gathered(plan, whole)


def test_the_loss_may_take_the_batch(plan: GatePlan, truth: GateStatistics) -> None:
    assert_same(gathered(plan, lambda out, batch: each(out, batch["y"]), targets=None), truth)
    assert_same(gathered(plan, lambda out, batch: F.cross_entropy(out, batch["y"]), targets=None), truth)
    with pytest.raises(InputError, match="the loss failed on batch 0: KeyError"):
        gathered(plan, lambda out, batch: each(out, batch["z"]), targets=None)


def test_segmentation_targets(images_plan: GatePlan) -> None:
    y = torch.randint(0, 2, (N, 16, 16), generator=GENERATOR)
    per_pixel = gathered(images_plan, each, loader(y=y))
    assert_same(gathered(images_plan, F.cross_entropy, loader(y=y)), per_pixel)
    assert_same(gathered(images_plan, lambda o, t: each(o, t).mean((1, 2)), loader(5, y=y)), per_pixel)
    with pytest.raises(InputError, match=r"one value per sample \(4 samples\) or a single number, got shape \(1024,\)"):
        gathered(images_plan, lambda o, t: each(o, t).flatten(), loader(y=y))


def test_weight_two_is_the_same_person_twice(plan: GatePlan) -> None:
    weights = [1.0, 2, 1, 0, 3, 1, 1, 2, 1, 1]
    rows = [i for i, w in enumerate(weights) for _ in range(int(w))]
    twice = [{"x": X[rows], "y": Y[rows], "g": [G[i] for i in rows]}]
    weighted, repeated = (
        gathered(plan, batches=loader(weights=weights), weights="weights"),
        gathered(plan, batches=twice),
    )
    for state in ("weight", "sum", "absolute", "square"):
        torch.testing.assert_close(getattr(weighted, state), getattr(repeated, state), rtol=1e-10, atol=1e-15)
    assert weighted.counts == {"a": 4, "b": 4, "c": 1}
    assert weighted.weight.tolist() == [4.0, 5.0, 1.0, 3.0]
    for given in (np.array(weights), torch.tensor(weights)):
        assert_same(gathered(plan, batches=loader(weights=given), weights="weights"), weighted)


@pytest.mark.parametrize("bad", [[-1.0] * N, [float("nan")] * N, torch.ones(N, 2), [1.0] * (N - 1)])
def test_weights_that_are_none(plan: GatePlan, bad: Any) -> None:
    with pytest.raises(InputError, match="sample weights must be one finite, non-negative number per sample"):
        gathered(plan, batches=loader(weights=bad), weights="weights")
    with pytest.raises(InputError, match="no 'importance' to take the sample weights from"):
        gathered(plan, weights="importance")


def test_weights_need_a_loss_per_sample(plan: GatePlan) -> None:
    with pytest.raises(InputError, match="sample weights need one loss per sample"):
        gathered(plan, F.cross_entropy, loader(w=[1.0] * N), weights="w")


@pytest.mark.parametrize("loss", [each, F.cross_entropy])
def test_a_loss_that_is_not_a_number(plan: GatePlan, loss: Any) -> None:
    x = X.clone()
    x[6, 0, 3, 3] = torch.nan
    with pytest.raises(InputError, match=r"the loss is not finite on batch 1 \(samples \[2\] of it\)"):
        gathered(plan, loss, loader(x=x))


def test_a_backward_pass_that_overflows(plan: GatePlan) -> None:
    def steep(out: torch.Tensor, _y: torch.Tensor) -> torch.Tensor:
        return (out[:, 0] - out[:, 0].detach()).abs().sqrt()

    with pytest.raises(InputError, match=r"derivatives are not finite on batch 0, first at body"):
        gathered(plan, steep)


@pytest.mark.parametrize("label", [CLASSES, -1])
def test_labels_out_of_range(plan: GatePlan, label: int) -> None:
    y = Y.clone()
    y[5] = label
    expected = r"failed on batch 1: IndexError.*outputs float64 of shape \(4, 5\) and int64 of shape \(4,\) with values"
    with pytest.raises(InputError, match=expected):
        gathered(plan, each, loader(y=y))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda out, _: float(out.detach().sum()), "the loss must be a tensor, got float"),
        (lambda out, _: out.detach().sum(1), "does not depend on any gate"),
        (lambda out, y: each(out.detach().requires_grad_(), y), "does not depend on any gate"),
        (lambda out, y: each(out, y)[:2], r"one value per sample \(4 samples\) or a single number, got shape \(2,\)"),
        (lambda out, y: each(out, y.float()), "the loss failed on batch 0: RuntimeError"),
    ],
)
def test_losses_that_are_none(plan: GatePlan, loss: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        gathered(plan, loss)


# What models take and return


def structured(kind: str) -> GatePlan:
    model = build("plain").double()

    def forward(s: Any, x: torch.Tensor) -> Any:
        logits = s.net(x)
        return {"dict": {"logits": logits, "twice": 2 * logits}, "tuple": (2 * logits, logits)}[kind]

    return build_plan(Net(forward, net=model).eval(), X)


@pytest.mark.parametrize(
    ("kind", "output"), [("dict", "logits"), ("tuple", 1), ("tuple", lambda o: o[-1]), ("tuple", -1)]
)
def test_structured_outputs(truth: GateStatistics, kind: str, output: Any) -> None:
    plan = structured(kind)
    found = gathered(plan, output=output)
    assert_same(found, truth)
    assert set(found.columns) == {f"net.{name}" for name in truth.columns}
    assert_same(gathered(plan, lambda out, y: each(out["logits" if kind == "dict" else 1], y)), truth)
    assert_same(gathered(plan, lambda out, y: F.cross_entropy(out["logits" if kind == "dict" else 1], y)), truth)


@pytest.mark.parametrize("kind", ["dict", "tuple"])
def test_structured_outputs_without_saying_which(kind: str) -> None:
    plan = structured(kind)
    with pytest.raises(InputError, match=rf"The model returns a {kind}: pass output= a key, an index or a callable"):
        gathered(plan)
    with pytest.raises(InputError, match="output='nothing' is not in what the model returns"):
        gathered(plan, output="nothing")


def test_channels_last_inputs(plan: GatePlan, truth: GateStatistics) -> None:
    assert_same(gathered(plan, batches=loader(x=X.to(memory_format=torch.channels_last))), truth)
    strided = torch.empty(N, 16, 3, 16, dtype=X.dtype).transpose(1, 2).copy_(X)
    assert_same(gathered(plan, batches=loader(x=strided)), truth)
    plan.model.to(memory_format=torch.channels_last)
    assert_same(gathered(plan, batches=loader(x=X.to(memory_format=torch.channels_last))), truth)
    plan.model.to(memory_format=torch.contiguous_format)


class Sample(NamedTuple):
    image: Any
    label: Any
    who: Any


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (lambda b: (b["x"], b["y"], b["g"]), {"groups": 2}),
        (lambda b: [b["x"], b["y"], b["g"]], {"groups": -1}),
        (lambda b: Sample(b["x"], b["y"], b["g"]), {"groups": {"g": lambda b: b.who}}),
        (lambda b: {"pixel_values": b["x"], "labels": b["y"], "g": b["g"]}, {}),
        (lambda b: {"p": b["x"], "q": b["y"], "g": b["g"]}, {"inputs": "p", "targets": "q"}),
        (lambda b: {"p": {"x": b["x"]}, "q": b["y"], "g": b["g"]}, {"inputs": "p", "targets": lambda b: b["q"]}),
        (lambda b: {"x": (b["x"],), "y": b["y"], "g": np.array(b["g"], dtype=object)}, {}),
        (lambda b: {"x": b["x"], "y": b["y"], "g": pd.Series(b["g"])}, {}),
        (lambda b: {"x": b["x"], "y": b["y"], "g": [None if v is None else f" {v} " for v in b["g"]]}, {}),
    ],
)
def test_batches_of_any_kind(plan: GatePlan, truth: GateStatistics, change: Any, options: Any) -> None:
    found = gathered(plan, batches=[change(b) for b in loader()], **options)
    assert found.attribute in ("g", "group[2]", "group[-1]")
    assert_same(found, truth)


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        ({"x": X, "image": X, "y": Y, "g": G}, {}, r"cannot tell where the batch's inputs are.*pass inputs="),
        (
            {"x": X, "g": G},
            {},
            r"cannot tell where the batch's targets are: it is a dict with the keys \['g', 'x'\]; pass targets=",
        ),
        ((X,), {"groups": None}, "cannot tell where the batch's targets are: it is a (tuple|list) of 1 items"),
        (X, {"groups": None}, "cannot tell where the batch's targets are: it is a Tensor"),
        (
            {"x": X, "y": Y},
            {"inputs": "z", "groups": None},
            r"'z' to take the inputs from; it is a dict with the keys \['x', 'y'\]",
        ),
        ({"x": X, "y": Y}, {"targets": "z", "groups": None}, "no 'z' to take the targets from"),
        ({"x": X, "y": Y}, {}, "the batch has no 'g' to take the sensitive group from"),
        ({"x": X, "y": Y, "g": G[:-1]}, {}, "'g' has 9 values for a batch of 10"),
        ({"x": "a picture", "y": Y, "g": G}, {}, "the model's inputs hold no tensor"),
    ],
)
def test_batches_that_lack_something(plan: GatePlan, batch: Any, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        gathered(plan, batches=[batch], **options)


def test_no_data(plan: GatePlan) -> None:
    for nothing in ([], iter([]), [{"x": X[:0], "y": Y[:0], "g": []}]):
        with pytest.raises(InputError, match="the loader yielded no sample"):
            gathered(plan, batches=nothing)


def test_empty_batches_among_others(plan: GatePlan, truth: GateStatistics) -> None:
    assert_same(gathered(plan, batches=[{"x": X[:0], "y": Y[:0], "g": []}, *loader()]), truth)


def test_nobody_in_a_known_group(plan: GatePlan) -> None:
    with pytest.raises(InputError, match="every group is unknown: none of the 10 rows has a known value of g"):
        gathered(plan, batches=loader(g=[None] * N))


def test_a_group_of_one_an_empty_group_and_unknown_people(plan: GatePlan) -> None:
    found = gathered(plan, groups=GroupReader({"g": "g"}, names=["a", "b", "c", "never"]))
    assert found.counts == {"a": 4, "b": 4, "c": 1, "never": 0}
    assert found.unknown == 1
    one = gathered(plan, batches=loader(x=X[9:], y=Y[9:], g=G[9:]))
    for name in plan.units:
        torch.testing.assert_close(found.of(name).sum[2], one.of(name).sum[0], rtol=1e-10, atol=1e-15)
        assert not found.of(name).absolute[3].any()
        assert found.of(name).unknown_absolute.any()
    text = found.statement()
    assert "c (1)" in text
    assert "never (0)" in text
    assert "1 have no known group" in text


@pytest.mark.parametrize(
    ("codes", "names"),
    [
        (torch.tensor([0.0, 1, 1, 0, float("nan"), 1, 0, 0, 1, 2]), ("0", "1", "2")),
        (np.array([0, 1, 1, 0, -1, 1, 0, 0, 1, 2]), ("0", "1", "2")),
        (pd.Series([0, 1, 1, 0, None, 1, 0, 0, 1, 2], dtype="Int64"), ("0", "1", "2")),
        (["a", "b", "b", "a", "", "b", "a", "a", "b", "c"], ("a", "b", "c")),
    ],
)
def test_groups_as_codes(plan: GatePlan, truth: GateStatistics, codes: Any, names: tuple[str, ...]) -> None:
    found = gathered(plan, batches=loader(g=codes))
    assert found.names == names
    assert (found.unknown, [*found.counts.values()]) == (1, [4, 4, 1])
    torch.testing.assert_close(found.square, truth.square, rtol=1e-11, atol=0)


def test_intersections(plan: GatePlan, truth: GateStatistics) -> None:
    h = ["u", "u", None, "v", "v", "u", "u", "v", "v", None]
    found = gathered(plan, batches=loader(h=h), groups=["g", "h"])
    assert found.attribute == "g x h"
    assert found.counts == {"a x u": 2, "a x v": 2, "b x u": 2, "b x v": 1}
    assert found.unknown == 3
    torch.testing.assert_close(found.square.sum(0), truth.square.sum(0), rtol=1e-11, atol=0)
    torch.testing.assert_close(found.sum[:2].sum(0), truth.sum[0], rtol=1e-9, atol=1e-14)


def test_everyone_is_one_group(plan: GatePlan, truth: GateStatistics) -> None:
    found = gathered(plan, groups=None)
    assert (found.names, found.counts, found.unknown) == (("everyone",), {"everyone": N}, 0)
    torch.testing.assert_close(found.absolute[0], truth.absolute.sum(0), rtol=1e-11, atol=0)


def test_a_model_without_anything_to_prune() -> None:
    model = Net(lambda s, x: s.fc(x.flatten(1)), fc=nn.Linear(3 * 256, CLASSES)).double().eval()
    with pytest.raises(InputError, match=r"no coupled group of the model can be pruned:\n.*\n.*output of the model"):
        gathered(build_plan(model, X))


def test_the_progress_bar_can_be_switched_off(plan: GatePlan, capsys: pytest.CaptureFixture[str]) -> None:
    gathered(plan)
    assert capsys.readouterr().err == ""
    gathered(plan, progress=True)
    assert "gate statistics" in capsys.readouterr().err


def test_images_with_channels_last_are_a_clear_error(plan: GatePlan) -> None:
    data = {"x": torch.randn(4, 16, 16, 3), "y": torch.zeros(4, dtype=torch.int64)}
    with pytest.raises(InputError, match=r"fails on batch 0 .*inputs are \(4, 16, 16, 3\) float\d+\. Images are"):
        collect(plan, [data], F.cross_entropy, inputs="x", targets="y", progress=False)


def test_inputs_are_cast_to_the_models_dtype(plan: GatePlan) -> None:
    x, y = torch.randn(6, 3, 16, 16, dtype=torch.float64), torch.zeros(6, dtype=torch.int64)
    per_sample = torch.nn.CrossEntropyLoss(reduction="none")
    wide, narrow = (collect(plan, [(t, y)], per_sample, progress=False) for t in (x.float().double(), x.float()))
    assert torch.equal(wide.absolute, narrow.absolute)


def test_small_groups_and_unknown_people_are_told(plan: GatePlan, caplog: pytest.LogCaptureFixture) -> None:
    batch = (torch.randn(4, 3, 16, 16), torch.zeros(4, dtype=torch.int64), ["a", "b", None, "a"])
    collect(plan, [batch], torch.nn.CrossEntropyLoss(reduction="none"), groups=2, progress=False)
    assert "1 have no known group" in caplog.text
    assert "Too small to judge (under 30): a (2), b (1)" in caplog.text
