"""What the dense model foretells: against explicit Hessians, scikit-learn, scipy and hand-worked numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import rankdata, spearmanr
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score
from torch import nn

from fair_prune_plugins.audit import forecast, measures
from fair_prune_plugins.audit.changes import exemplars
from fair_prune_plugins.audit.data import AuditData, ModelPredictions, People, TrainingPeople
from fair_prune_plugins.audit.forecast import curvature, forecasting, group_batches, judging
from fair_prune_plugins.audit.forecast.ordering import Signal, place, standings
from fair_prune_plugins.audit.forecast.rank_correlation import rank_correlation
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.groups import GroupLabels, GroupReader

Batch = dict[str, Any]
ARRAY = npt.NDArray[np.float64]


# --- group gradients and Hessians ---


def people(n: int = 60, batch: int = 25, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator)
    y = torch.randint(0, 3, (n,), generator=generator)
    names = [
        ["a", "b", None][i] for i in torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), n, True, generator=generator)
    ]
    cuts = range(0, n, batch)
    return [{"x": x[i : i + batch], "y": y[i : i + batch], "who": names[i : i + batch]} for i in cuts]


def of_group(batches: list[Batch], name: str) -> tuple[torch.Tensor, torch.Tensor]:
    keep = torch.tensor([g == name for b in batches for g in b["who"]])
    return torch.cat([b["x"] for b in batches])[keep], torch.cat([b["y"] for b in batches])[keep]


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3))
    model(torch.randn(50, 4))  # running statistics other than 0 and 1
    return model.double()


def losses_of(model: nn.Module, weights: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Every person's loss as a function of all weights in one vector."""
    named = dict(model.named_parameters())
    pieces = weights.split([p.numel() for p in named.values()])
    state = {name: v.view_as(p) for (name, p), v in zip(named.items(), pieces, strict=True)}
    outputs = torch.func.functional_call(model, state, (x.double(),))
    return F.cross_entropy(outputs, y, reduction="none")


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_gradient_norm_and_eigenvalue_against_explicit_ones(reduction: str) -> None:
    model, batches = net(), people()
    found = forecast.gradients(
        model, batches, nn.CrossEntropyLoss(reduction=reduction), "who", inputs="x", targets="y", progress=False
    )
    assert found.attribute == "who"
    assert [g.group for g in found.groups] == ["a", "b"]
    reference = copy.deepcopy(model).eval()
    weights = torch.cat([p.detach().flatten() for p in reference.parameters()])
    for group in found.groups:
        x, y = of_group(batches, group.group)

        def mean(w: torch.Tensor, x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
            return losses_of(reference, w, x, y).mean()

        each = torch.func.jacrev(lambda w, x=x, y=y: losses_of(reference, w, x, y))(weights)
        hessian = torch.func.jacrev(torch.func.jacrev(mean))(weights)
        assert group.people == group.eigenvalue_people == len(x)
        assert group.loss == pytest.approx(float(mean(weights)))
        assert group.norm == pytest.approx(float(each.mean(0).norm()))
        assert group.eigenvalue == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-3)
        # Chance lifts the norm by the trace of the mean's covariance; here told from a few parts of the group.
        true_noise = float((each.var(0).sum() / len(x)).sqrt())
        assert group.noise is not None
        assert 0.5 * true_noise < group.noise < 2 * true_noise


def test_noise_is_exact_where_parts_are_single_people(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_batches, "PART", 1)
    model, batches = net(), people()
    found = forecast.gradients(
        model, batches, nn.CrossEntropyLoss(), "who", inputs="x", targets="y", eigenvalues=False, progress=False
    )
    reference = copy.deepcopy(model).eval()
    weights = torch.cat([p.detach().flatten() for p in reference.parameters()])
    for group in found.groups:
        x, y = of_group(batches, group.group)
        each = torch.func.jacrev(lambda w, x=x, y=y: losses_of(reference, w, x, y))(weights)
        assert group.noise == pytest.approx(float((each.var(0).sum() / len(x)).sqrt()))
        assert group.eigenvalue is None


def test_the_model_is_handed_back_as_it_was() -> None:
    model = net().train()
    frozen = model[0].weight
    frozen.requires_grad_(False)
    model[4].bias.grad = torch.ones(3, dtype=torch.float64)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    thawed = copy.deepcopy(model)
    for p in thawed.parameters():
        p.requires_grad_(True)
    options: dict[str, Any] = {"inputs": "x", "targets": "y", "progress": False}
    found = forecast.gradients(model, people(), nn.CrossEntropyLoss(), "who", **options)
    assert found == forecast.gradients(thawed, people(), nn.CrossEntropyLoss(), "who", **options)  # frozen ones count
    assert model.training
    assert not frozen.requires_grad
    assert torch.equal(model[4].bias.grad, torch.ones(3, dtype=torch.float64))
    assert model[4].weight.grad is None
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_numbers_do_not_depend_on_batches_and_eigenvalues_may_take_some_people() -> None:
    model = net()
    options: dict[str, Any] = {"inputs": "x", "targets": "y", "progress": False}
    one = forecast.gradients(model, people(batch=60), nn.CrossEntropyLoss(), "who", **options)
    many = forecast.gradients(model, people(batch=7), nn.CrossEntropyLoss(), "who", **options)
    for a, b in zip(one.groups, many.groups, strict=True):
        assert (a.loss, a.norm, a.eigenvalue) == pytest.approx((b.loss, b.norm, b.eigenvalue), rel=1e-3)
    some = forecast.gradients(model, people(), nn.CrossEntropyLoss(), "who", most=10, seed=3, **options)
    assert [g.eigenvalue_people for g in some.groups] == [10, 10]
    assert curvature.FEWER.format(most=10) in some.notes
    # Ten people drawn at random: their eigenvalue is that of some ten people of the group.
    assert [g.norm for g in some.groups] == pytest.approx([g.norm for g in one.groups])
    assert some == forecast.gradients(model, people(), nn.CrossEntropyLoss(), "who", most=10, seed=3, **options)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(1, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(x.unsqueeze(-1)).unflatten(-1, (2, 4)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(tokens, tokens, tokens)
        return self.head(mixed.transpose(1, 2).flatten(2).mean(1))  # type: ignore[no-any-return]


def test_attention_is_differentiated_twice() -> None:
    torch.manual_seed(0)
    model = Attention().double()
    batches = people(40)
    found = forecast.gradients(model, batches, nn.CrossEntropyLoss(), "who", inputs="x", targets="y", progress=False)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    x, y = of_group(batches, "a")
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        hessian = torch.func.jacrev(torch.func.jacrev(lambda w: losses_of(model, w, x, y).mean()))(weights)
    assert found.groups[0].eigenvalue == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-3)


def test_the_largest_eigenvalue_is_by_sign() -> None:
    """A loss that is concave along the steepest direction: power iteration would find the wrong end."""
    model = nn.Linear(2, 1, bias=False).double()
    batches = [(torch.eye(2, dtype=torch.float64), torch.tensor([-10.0, 2.0], dtype=torch.float64), [0, 0])]

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return targets * outputs[:, 0] ** 2

    found = forecast.gradients(model, batches, loss, 2, progress=False)
    assert found.groups[0].eigenvalue == pytest.approx(2.0)  # mean over two people of 2 * 2


def test_bad_gradient_inputs() -> None:
    options: dict[str, Any] = {"inputs": "x", "targets": "y", "progress": False}
    loss = nn.CrossEntropyLoss()
    with pytest.raises(InputError, match="can be read only once"):
        forecast.gradients(net(), iter(people()), loss, "who", **options)
    once = forecast.gradients(net(), iter(people()), loss, "who", eigenvalues=False, **options)
    assert len(once.groups) == 2
    with pytest.raises(InputError, match="yielded no sample"):
        forecast.gradients(net(), [], loss, "who", **options)
    nobody = [{**b, "who": [None] * len(b["y"])} for b in people()]
    with pytest.raises(InputError, match="every group is unknown"):
        forecast.gradients(net(), nobody, loss, "who", **options)
    with pytest.raises(InputError, match="no floating-point parameters"):
        forecast.gradients(nn.Identity(), people(), loss, "who", **options)

    class Growing:
        """Other people at every reading."""

        def __init__(self) -> None:
            self.readings = 0

        def __iter__(self) -> Iterator[Batch]:
            self.readings += 1
            return iter(people(30 * self.readings))

    with pytest.raises(InputError, match="must yield the same people"):
        forecast.gradients(net(), Growing(), loss, "who", **options)
    reader = GroupReader({"who": "who"}, names=["a", "b", "c"])
    empty = forecast.gradients(net(), people(), loss, reader, **options).groups[2]
    assert (empty.group, empty.people, empty.norm, empty.eigenvalue) == ("c", 0, None, None)


def test_average_over_runs() -> None:
    options: dict[str, Any] = {"inputs": "x", "targets": "y", "progress": False}
    runs = [forecast.gradients(net(s), people(), nn.CrossEntropyLoss(), "who", **options) for s in (0, 1)]
    mean = forecast.average(runs)
    assert mean.groups[0].norm == pytest.approx(np.mean([r.groups[0].norm for r in runs]))
    assert mean.groups[1].eigenvalue == pytest.approx(np.mean([r.groups[1].eigenvalue for r in runs]))
    other = forecast.gradients(net(), people(), nn.CrossEntropyLoss(), lambda b: b["who"], **options)
    with pytest.raises(InputError, match="of the same groups"):
        forecast.average([runs[0], other])


# --- the order of risks ---


def test_standings_against_rankdata() -> None:
    values = [3.0, None, 1.0, 3.0, 7.0]
    known = rankdata([3.0, 1.0, 3.0, 7.0])
    expected = (known - 1) / 3
    assert standings(values) == [expected[0], None, expected[1], expected[2], expected[3]]
    assert standings([None, 2.0]) == [None, None]
    assert standings([2.0, 2.0]) == [0.5, 0.5]


def test_order_by_hand() -> None:
    def show(v: float) -> str:
        return f"{v:g}"

    signals = [
        Signal("one", [1.0, 2.0, 3.0, 4.0, None], lambda v: f"one is {v:g}", show),
        Signal("two", [4.0, 3.0, 2.0, 9.0, None], lambda v: f"two is {v:g}", show),
    ]
    found = place(signals, 5)
    assert [p.score for p in found] == [pytest.approx(v) for v in (1 / 3, 1 / 3, 1 / 3, 1.0)] + [None]
    assert [p.rank for p in found] == [2, 2, 2, 1, None]
    assert found[3].reason == "One is 4 (typically 2.5); two is 9 (typically 3.5)."
    assert found[0].reason == "Nothing stands out: one is 1; two is 4."
    assert found[4].reason == "Nothing is known that could be compared."


# --- the report ---


def multilabel(n: int = 400, seed: int = 0, runs: int = 2, pruned_runs: int = 2) -> AuditData:
    rng = np.random.default_rng(seed)
    side = rng.choice(["a", "b", "c", "tiny", ""], n, p=[0.4, 0.3, 0.2, 0.03, 0.07])
    sex = rng.choice(["f", "m"], n)
    y = np.stack([rng.random(n) < p for p in (0.5, 0.2, 0.35, 0.1)], axis=1).astype(np.int64)
    y[:, 3] |= (sex == "m") & (rng.random(n) < 0.5)
    y[:, 2] = np.where(rng.random(n) < 0.8, y[:, 0], y[:, 2])
    sharp = np.where(side == "a", 1.0, 4.0)[:, None] * np.array([1.0, 2.0, 0.7, 1.5])
    z = sharp * (2 * y - 1) + 2 * rng.normal(size=y.shape)
    groups = tuple(
        GroupLabels.from_columns({name: [v or None for v in values]}) for name, values in (("side", side), ("sex", sex))
    )
    dense = ModelPredictions("dense", tuple(z + 0.3 * rng.normal(size=y.shape) for _ in range(runs)))
    pruned = ModelPredictions("small", tuple(z + 1.5 * rng.normal(size=y.shape) for _ in range(pruned_runs)))
    who = People(tuple(f"id {i}" for i in range(n)), y, groups, ("w", "x", "y", "z"), "multilabel")
    return AuditData(who, dense, (pruned,))


def sigmoid(z: ARRAY) -> ARRAY:
    return 1 / (1 + np.exp(-z))


def test_report_against_numpy_and_scikit_learn() -> None:
    data = multilabel()
    report = forecast.forecast(data, resamples=100, progress=False)
    p = [sigmoid(run) for run in data.dense.runs]
    y = data.people.labels
    for i, output in enumerate(report.outputs):
        assert output.uncertainty.value == pytest.approx(np.mean([np.abs(q[:, i] - 0.5) < 0.4 for q in p]))
        assert output.boundary.value == pytest.approx(np.mean([1 - q[:, i] ** 2 - (1 - q[:, i]) ** 2 for q in p]))
        assert output.boundary.interval is not None
        assert output.boundary.interval.low < output.boundary.value < output.boundary.interval.high
        assert output.accuracy.value == pytest.approx(np.mean([(q[:, i] > 0.5) == y[:, i] for q in p]))
        assert output.prevalence == pytest.approx(y[:, i].mean())
        assert output.rare == pytest.approx(min(y[:, i].mean(), 1 - y[:, i].mean()))
        others = [np.delete(q > 0.5, i, axis=1).astype(float) for q in p]
        fits = [
            LinearRegression().fit(x, q[:, i] > 0.5).score(x, q[:, i] > 0.5) for x, q in zip(others, p, strict=True)
        ]
        assert output.interdependence == pytest.approx(np.mean(fits))
    for attribute, groups in zip(report.attributes, data.people.groups, strict=True):
        for g, group in enumerate(attribute.groups):
            mine = groups.codes == g
            assert group.people == group.training_people == mine.sum()
            unsure = np.mean([np.abs(q[mine] - 0.5) < 0.4 for q in p])
            assert group.uncertainty.value == pytest.approx(unsure)
            assert group.boundary.value == pytest.approx(np.mean([2 * q[mine] * (1 - q[mine]) for q in p]))
            assert group.accuracy.value == pytest.approx(np.mean([(q[mine] > 0.5) == y[mine] for q in p]))
        known = groups.codes >= 0
        for pair in attribute.pairs:
            g, i = groups.names.index(pair.group), data.people.outputs.index(pair.output)
            mine, others_ = groups.codes == g, known & (groups.codes != g)
            assert pair.prevalence == pytest.approx(y[mine, i].mean())
            assert pair.elsewhere == pytest.approx(y[others_, i].mean())
            assert pair.ratio == pytest.approx(y[mine, i].mean() / y[others_, i].mean())
            assert pair.correlation == pytest.approx(np.corrcoef(mine[known], y[known, i])[0, 1])
            assert pair.uncertainty.value == pytest.approx(np.mean([np.abs(q[mine, i] - 0.5) < 0.4 for q in p]))
            assert pair.boundary.value == pytest.approx(np.mean([2 * q[mine, i] * (1 - q[mine, i]) for q in p]))


def test_order_of_groups_and_pairs() -> None:
    data = multilabel(1000)
    report = forecast.forecast(data, resamples=100, progress=False)
    side, sex = report.attributes
    assert [g.group for g in side.groups if g.too_small] == ["tiny"]
    assert [g.rank for g in side.groups if g.too_small] == [None]
    assert side.ranked[0].group == "a"  # made to be unsure and wrong
    assert side.ranked[0].reason.startswith(("Unsure of", "Near the", "Wrong in"))
    assert side.ranked[0].score == 1.0
    male = next(p for p in sex.pairs if (p.group, p.output) == ("m", "z"))
    assert male.correlation is not None
    assert male.correlation > 0.3
    assert "raining labels go with the group, correlation 0.5" in male.reason
    assert {pair.group for pair in side.pairs if pair.rank is None} == {"tiny"}
    assert len(sex.ranked_pairs) == 8
    assert forecasting.UNRANKED.format(attribute="side", minimum=30, names="tiny") in report.notes
    # Brute force: the mean of where each large group stands among the large ones.
    large = [g for g in side.groups if not g.too_small]
    columns = [
        [g.uncertainty.value for g in large],
        [g.boundary.value for g in large],
        [1 - (g.accuracy.value or 0) for g in large],
    ]
    expected = np.mean([(rankdata(c) - 1) / (len(large) - 1) for c in columns], axis=0)
    assert [g.score for g in large] == pytest.approx(expected.tolist())


def test_likely_flips_are_the_smallest_margins() -> None:
    data = multilabel()
    report = forecast.forecast(data, resamples=100, likely=25, progress=False)
    margin = np.abs(np.mean(data.dense.runs, axis=0))
    flat = sorted((margin[n, i], f"id {n}", name) for n in range(400) for i, name in enumerate("wxyz"))
    assert [(p.margin, p.id, p.output) for p in report.likely] == [
        pytest.approx(e, abs=1e-12) if isinstance(e, float) else e for e in flat[:25]
    ]
    assert forecast.forecast(data, resamples=100, likely=0, progress=False).likely == ()
    with pytest.raises(InputError, match="likely is how many"):
        forecast.forecast(data, likely=-1)


def test_multiclass_margins_boundary_and_uncertainty() -> None:
    rng = np.random.default_rng(0)
    z = 2 * rng.normal(size=(90, 3))
    groups = GroupLabels.from_columns({"g": ["a", "b", "c"] * 30})
    who = People(tuple(map(str, range(90))), rng.integers(0, 3, 90), (groups,), ("r", "g", "b"), "multiclass")
    report = forecast.forecast(AuditData(who, ModelPredictions("dense", (z,))), resamples=100, progress=False)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    ordered = np.sort(z, axis=1)
    first = int(np.argmin(ordered[:, 2] - ordered[:, 1]))
    assert report.likely[0].id == str(first)
    assert report.likely[0].output == "rgb"[int(z[first].argmax())]
    for g, group in enumerate(report.attributes[0].groups):
        mine = groups.codes == g
        assert group.boundary.value == pytest.approx((1 - (p[mine] ** 2).sum(axis=1)).mean())
        assert group.uncertainty.value == pytest.approx((p[mine].max(axis=1) < 0.9).mean())
        assert group.accuracy.value == pytest.approx((z[mine].argmax(axis=1) == who.labels[mine]).mean())


def test_training_people_give_prevalences() -> None:
    data = multilabel()
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 2, (50, 4))
    trained = tuple(GroupLabels(g.names, rng.integers(0, len(g.names), 50), g.attribute) for g in data.people.groups)
    report = forecast.forecast(
        AuditData(data.people, data.dense, (), TrainingPeople(labels, trained)), resamples=100, progress=False
    )
    assert report.training
    assert forecasting.NO_TRAINING not in report.notes
    assert [o.prevalence for o in report.outputs] == pytest.approx(labels.mean(axis=0).tolist())
    pair = report.attributes[1].pairs[1]
    member = trained[1].codes == 0
    assert pair.prevalence == pytest.approx(labels[member, 1].mean())
    assert pair.correlation == pytest.approx(np.corrcoef(member, labels[:, 1])[0, 1])
    assert report.attributes[1].groups[0].training_people == member.sum()


def test_given_measures_and_gradients() -> None:
    data = multilabel()
    measured = measures.measure(data, resamples=100, progress=False)
    assert (
        forecast.forecast(data, measures=measured).outputs
        == forecast.forecast(data, resamples=100, progress=False).outputs
    )
    with pytest.raises(InputError, match="measures are not of this data"):
        forecast.forecast(multilabel(300), measures=measured)
    entry = forecast.GroupGradient("f", 10, 0.5, 3.0, 1.0, 8.0, 10)
    by_sex = forecast.Gradients("sex", (entry, forecast.GroupGradient("m", 10, 0.4, 1.0, 1.0, 9.0, 10)), ("a note",))
    report = forecast.forecast(data, measures=measured, gradients=[by_sex])
    assert [g.gradient for g in report.attributes[1].groups] == list(by_sex.groups)
    assert [g.gradient for g in report.attributes[0].groups] == [None] * 4
    assert "a note" in report.notes
    plain = forecast.forecast(data, measures=measured).attributes[1].groups
    assert plain[0].score is not None
    # Two more signals that point in opposite directions: norm to f, eigenvalue to m.
    assert report.attributes[1].groups[0].score == pytest.approx((3 * plain[0].score + 1 + 0) / 5)
    with pytest.raises(InputError, match="there are group gradients by hair"):
        forecast.forecast(data, measures=measured, gradients=[forecast.Gradients("hair", (entry,), ())])


def test_decisions_alone() -> None:
    data = multilabel()
    runs = tuple(np.sign(run) for run in data.dense.runs)
    blind = AuditData(data.people, ModelPredictions("dense", runs, graded=False), data.pruned)
    report = forecast.forecast(blind, resamples=100, progress=False)
    assert report.likely == ()
    assert all(group.boundary.value is None for group in report.attributes[0].groups)
    assert report.attributes[0].ranked[0].reason.startswith("Wrong in")
    (quality,) = forecast.judge(report, blind)
    assert quality.everyone == quality.groups == ()
    assert judging.UNGRADED.format(model="dense") in quality.notes
    assert "error" in {order.signal for order in quality.orders}


# --- how good it was ---


def test_areas_against_scikit_learn() -> None:
    data = multilabel()
    report = forecast.forecast(data, resamples=100, progress=False)
    (quality,) = forecast.judge(report, data)
    changed = exemplars(data, data.pruned[0])
    score = -np.abs(np.mean(data.dense.runs, axis=0))
    everyone = {d.question: d for d in quality.everyone}
    assert list(everyone) == ["w", "x", "y", "z", forecast.MEAN]
    areas = [roc_auc_score(changed[:, i], score[:, i]) for i in range(4)]
    assert [everyone[name].auroc.value for name in "wxyz"] == pytest.approx(areas)
    assert everyone[forecast.MEAN].auroc.value == pytest.approx(np.mean(areas))
    for detection in quality.groups:
        groups = next(g for g in data.people.groups if g.attribute == detection.attribute)
        mine = groups.codes == groups.names.index(str(detection.group))
        if detection.question == forecast.MEAN:
            usable = [i for i in range(4) if 2 <= changed[mine, i].sum() <= mine.sum() - 2]
            assert detection.exemplars == sum(changed[mine, i].sum() for i in usable)
            expected = np.mean([roc_auc_score(changed[mine, i], score[mine, i]) for i in usable]) if usable else None
        else:
            i = data.people.outputs.index(detection.question)
            assert (detection.answers, detection.exemplars) == (mine.sum(), changed[mine, i].sum())
            defined = 0 < changed[mine, i].sum() < mine.sum()
            expected = roc_auc_score(changed[mine, i], score[mine, i]) if defined else None
        assert detection.auroc.value == (None if expected is None else pytest.approx(expected))


def area(positive: npt.NDArray[np.bool_], score: ARRAY) -> float:
    """Mann and Whitney's, as scikit-learn's and faster."""
    n = int(positive.sum())
    return float((rankdata(score)[positive].sum() - n * (n + 1) / 2) / n / (len(score) - n))


def test_interval_of_the_mean_area_is_that_of_resampled_people() -> None:
    data = multilabel(400)
    report = forecast.forecast(data, resamples=100, progress=False)
    (quality,) = forecast.judge(report, data)
    interval = quality.everyone[-1].auroc.interval
    assert interval is not None
    changed = exemplars(data, data.pruned[0])
    score = -np.abs(np.mean(data.dense.runs, axis=0))
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(600):
        rows = rng.integers(0, 400, 400)
        draws.append(np.mean([area(changed[rows, i], score[rows, i]) for i in range(4)]))
    low, high = np.quantile(draws, [0.025, 0.975])
    assert interval.high - interval.low == pytest.approx(high - low, rel=0.2)
    assert interval.low == pytest.approx(low, abs=0.2 * (high - low))


def test_rank_correlation_against_scipy_and_all_orders() -> None:
    rng = np.random.default_rng(1)
    foretold, came = rng.normal(size=6), rng.normal(size=6)
    came[1] = came[2]
    estimate, p = rank_correlation([(foretold, came)], 0.95, 0)
    expected = spearmanr(foretold, came).statistic
    assert estimate.value == pytest.approx(expected)
    reached = [
        abs(spearmanr(foretold, came[list(o)]).statistic) >= abs(expected) - 1e-9 for o in permutations(range(6))
    ]
    assert p == pytest.approx(np.mean(reached))
    # Bonett & Wright 2000, by hand.
    reach = 1.959964 * np.sqrt((1 + expected**2 / 2) / 3)
    assert estimate.interval is not None
    assert estimate.interval.low == pytest.approx(np.tanh(np.arctanh(expected) - reach), abs=1e-5)
    assert estimate.interval.high == pytest.approx(np.tanh(np.arctanh(expected) + reach), abs=1e-5)
    assert estimate.interval.method == "fisher"

    many, other = rng.normal(size=30), rng.normal(size=30)
    other += 0.5 * many
    estimate, p = rank_correlation([(many, other)], 0.95, 0)
    assert p == pytest.approx(spearmanr(many, other).pvalue, abs=0.01)
    both, _ = rank_correlation([(many, other), (other, -many)], 0.95, 0)
    assert both.value == pytest.approx(0.0, abs=1e-12)

    ordered = np.arange(5.0)
    perfect, p = rank_correlation([(ordered, ordered)], 0.95, 0)
    assert (perfect.value, perfect.interval, p) == (pytest.approx(1.0), None, pytest.approx(2 / 120))
    assert rank_correlation([(ordered, np.ones(5))], 0.95, 0) == (forecasting.UNDEFINED, None)
    assert rank_correlation([(ordered[:2], ordered[:2])], 0.95, 0) == (forecasting.UNDEFINED, None)


def test_a_forecast_of_other_people_is_judged_as_it_is() -> None:
    before, data = multilabel(600, seed=1), multilabel(800, seed=2)
    other = AuditData(
        People(
            tuple(f"other {i}" for i in range(600)),
            before.people.labels,
            before.people.groups,
            before.people.outputs,
            "multilabel",
        ),
        before.dense,
    )
    report = forecast.forecast(other, resamples=100, minimum=5, progress=False)
    (quality,) = forecast.judge(report, data)
    orders = {(o.of, o.signal, o.suffered): o for o in quality.orders}
    order = orders["side", "uncertainty", "share of exemplars"]
    assert not order.halves
    assert order.count == 4
    codes = data.people.groups[0].codes
    changed = exemplars(data, data.pruned[0]).mean(axis=1)
    came = [changed[codes == g].mean() for g in range(4)]
    foretold = [g.uncertainty.value for g in report.attributes[0].groups]
    assert order.correlation.value == pytest.approx(spearmanr(foretold, came).statistic)
    truth = data.people.labels
    right = [np.mean([(run > 0) == truth for run in m.runs], axis=0) for m in data.models]
    loss = (right[0] - right[1]).mean(axis=0)
    came = orders["outputs", "interdependence", "loss of accuracy"]
    assert came.correlation.value == pytest.approx(
        spearmanr([o.interdependence for o in report.outputs], loss).statistic
    )
    assert judging.HALVES not in quality.notes


def test_where_nothing_is_the_matter_nothing_is_foretold() -> None:
    """All groups are alike. On the same people the dense error would "foretell" the opposite of a loss."""
    naive, judged = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        n = 1200
        y = rng.integers(0, 2, n)
        z = 2.0 * y - 1 + rng.normal(size=n)
        groups = GroupLabels(tuple("abcdefghij"), rng.integers(0, 10, n), "letter")
        who = People(tuple(map(str, range(n))), y, (groups,), ("yes",), "binary")
        runs = [z + rng.normal(size=n) for _ in range(2)]
        data = AuditData(who, ModelPredictions("dense", (runs[0],)), (ModelPredictions("small", (runs[1],)),))
        report = forecast.forecast(data, resamples=50, progress=False)
        (quality,) = forecast.judge(report, data)
        order = next(o for o in quality.orders if (o.signal, o.suffered) == ("error", "loss of accuracy"))
        assert order.halves
        assert judging.HALVES in quality.notes
        judged.append(order.correlation.value)
        wrong = [np.array([((r > 0) != y)[groups.codes == g].mean() for g in range(10)]) for r in runs]
        naive.append(spearmanr(wrong[0], wrong[1] - wrong[0]).statistic)
    assert np.mean(naive) < -0.3
    assert abs(np.mean(judged)) < 0.15


def test_the_order_of_rows_does_not_matter() -> None:
    data = multilabel()
    rows = np.random.default_rng(0).permutation(400)
    turned = AuditData(
        People(
            tuple(data.people.ids[i] for i in rows),
            data.people.labels[rows],
            tuple(g.take(rows) for g in data.people.groups),
            data.people.outputs,
            "multilabel",
        ),
        *(ModelPredictions(m.name, tuple(r[rows] for r in m.runs)) for m in data.models[:1]),
        tuple(ModelPredictions(m.name, tuple(r[rows] for r in m.runs)) for m in data.pruned),
    )
    one, other = (forecast.judge(forecast.forecast(d, resamples=100, progress=False), d)[0] for d in (data, turned))
    for a, b in zip(one.orders, other.orders, strict=True):
        assert a.correlation.value == (None if b.correlation.value is None else pytest.approx(b.correlation.value))
    for x, y in zip(one.groups, other.groups, strict=True):
        assert x.auroc.value == (None if y.auroc.value is None else pytest.approx(y.auroc.value))


def test_judging_something_else() -> None:
    data = multilabel()
    report = forecast.forecast(data, resamples=100, progress=False)
    renamed = AuditData(data.people, ModelPredictions("other", data.dense.runs), data.pruned)
    with pytest.raises(InputError, match="a forecast of the same dense model"):
        forecast.judge(report, renamed)
    assert forecast.judge(report, AuditData(data.people, data.dense)) == ()
