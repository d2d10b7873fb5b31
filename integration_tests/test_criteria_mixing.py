"""Criteria mixed by their ranks: against scipy's ranks, by name through importance and configuration, from as many
passes over the data as it takes.
"""

from __future__ import annotations

import copy
import io
import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_pruning as tp
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file
from scipy.stats import rankdata

from fair_prune_plugins import criteria
from fair_prune_plugins import torch_pruning as fpt
from fair_prune_plugins.criteria.mixing import BAD_OPTIONS, BAD_WEIGHTS, NO_COMMON_GROUPS, NOT_A_MEMBER, ranks
from fair_prune_plugins.errors import ConfigError, InputError, ScoreError
from fair_prune_plugins.gates import build_plan
from fair_prune_plugins.learned_gates import LEARNED
from fair_prune_plugins.losses import CrossEntropy, PerformanceWeightedLoss
from fair_prune_plugins.statistics import (
    Needs,
    collect,
    collect_elementwise,
    collect_fisher,
    collect_snnl,
    measure,
)
from fair_prune_plugins.statistics.measuring import NO_GROUPS, NO_LOSS, ONCE_ONLY
from fair_prune_plugins.statistics.units import TWO_TEMPERATURES
from fair_prune_plugins.workflow import config, job, methods, model_store, pruning, sources
from fair_prune_plugins.workflow.data import Batches, Normalisation, Part
from fair_prune_plugins.workflow.prune_config import MethodConfig
from integration_tests.networks import build
from integration_tests.pruning_oracles import faces, host_pruner, removed_roots, sample_loss, unit_statistics


def statistics(samples: int = 40, units: int = 9, groups: int = 3, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    s = torch.randn(samples, units, generator=generator, dtype=torch.float64)
    return unit_statistics(s, torch.arange(samples) % groups, groups, torch.rand(units, dtype=torch.float64))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([-3.0, -0.5, 0.0, 0.0, 1.0, 2.5, 1e9]), min_size=1, max_size=20))
def test_ranks_are_scipys(values: list[float]) -> None:
    expected = torch.from_numpy(rankdata(values)) / len(values)
    torch.testing.assert_close(ranks(torch.tensor(values, dtype=torch.float64)), expected)


@pytest.mark.parametrize("weights", [{"taylor": 0.5, "magnitude": 0.5}, {"fairprune": 3, "taylor": 1, "fairgrape": 2}])
def test_it_is_the_weighted_mean_of_ranks(weights: dict[str, float]) -> None:
    of = statistics()
    told = {"fairprune": {"beta": 0.9}} if "fairprune" in weights else None
    found = criteria.get("rank_mix")(of, weights=weights, options=told)
    expected = sum(
        w * rankdata(criteria.get(n)(of, **(told or {}).get(n, {})).numpy()) / 9 for n, w in weights.items()
    ) / sum(weights.values())
    torch.testing.assert_close(found, torch.as_tensor(expected))


def test_a_heavy_tail_takes_nothing_over() -> None:
    """Of scores divided by their largest, only the other criterion would be left."""
    of = statistics()
    others = [u for u in range(9) if u != 4]
    found = []
    for times in (1e2, 1e8):  # the unit is the largest with either
        tail = of.absolute.clone()
        tail[:, 4] *= times
        found.append(criteria.rank_mix(replace(of, absolute=tail), weights={"taylor": 0.5, "magnitude": 0.5}))
    assert torch.equal(*found)
    magnitude, taylor = criteria.magnitude(of), criteria.taylor(replace(of, absolute=tail))
    by_largest = 0.5 * taylor / taylor.max() + 0.5 * magnitude / magnitude.max()
    assert torch.equal(by_largest[others].argsort(), magnitude[others].argsort())
    assert not torch.equal(found[1][others].argsort(), magnitude[others].argsort())


def test_it_asks_for_groups_data_and_losses_only_where_a_member_does() -> None:
    rank_mix = criteria.get("rank_mix")
    mixtures: dict[tuple[str, ...], Needs] = {
        ("magnitude",): Needs(frozenset(), False),
        ("magnitude", "taylor"): Needs(frozenset({"gates"}), False),
        ("taylor", "fairprune"): Needs(frozenset({"gates"}), True),
        ("snnl", "magnitude"): Needs(frozenset({"snnl"}), True),
        ("snnl", "group_balanced_taylor"): Needs(frozenset({"snnl", "gates"}), True),
    }
    for members, needs in mixtures.items():
        assert rank_mix.needs({"weights": dict.fromkeys(members, 1.0)}) == needs
    assert not mixtures["snnl", "magnitude"].loss
    model, batch = build("plain"), faces()
    importance = fpt.RankMixImportance({"magnitude": 1.0, "taylor": 1.0})
    pruner = host_pruner(model, importance, ignored_layers=[model.fc])
    importance.collect(pruner, [batch], sample_loss, progress=False)
    pruner.step()
    alone = fpt.RankMixImportance({"magnitude": 1.0, "snnl": 1.0}, {"snnl": {"temperature": 0.5}})
    pruner = host_pruner(build("plain"), alone, ignored_layers=[])
    with pytest.raises(InputError, match="pass groups="):
        alone.collect(pruner, [batch], progress=False)


def test_all_that_members_need_is_collected_together() -> None:
    """Four passes in one set of statistics: each the same as alone."""
    model, batch = build("plain").double(), faces(16, dtype=torch.float64)
    members = {"taylor": 1.0, "fairgrape": 1.0, "fairprune": 1.0, "snnl": 1.0}
    told = {
        "fairgrape": {"statistic": "elementwise"},
        "fairprune": {"statistic": "elementwise"},
        "snnl": {"temperature": 0.3},
    }
    importance = fpt.importance("rank_mix", weights=members, options=told)
    assert isinstance(importance, fpt.RankMixImportance)
    pruner = host_pruner(model, importance, pruning_ratio=0.5, ignored_layers=[model.fc])
    found = importance.collect(pruner, [batch], sample_loss, groups="group", progress=False)
    assert found is not None
    plan = importance.plan
    assert plan is not None
    options: dict[str, Any] = {"groups": "group", "progress": False}
    alone = {
        "gates": collect(plan, [batch], sample_loss, **options),
        "elementwise": collect_elementwise(plan, [batch], sample_loss, **options),
        "fisher": collect_fisher(plan, [batch], sample_loss, **options),
        "snnl": collect_snnl(plan, [batch], temperature=0.3, **options),
    }
    assert torch.equal(found.absolute, alone["gates"].absolute)
    for name in ("elementwise", "fisher", "snnl"):
        assert torch.equal(getattr(found, name), getattr(alone[name], name))
    assert not alone["snnl"].gates
    scores = {
        g.name: [
            criteria.get(n)(alone[p].of(g.name), **told.get(n, {}))
            for n, p in (("taylor", "gates"), ("fairgrape", "elementwise"), ("fairprune", "fisher"), ("snnl", "snnl"))
        ]
        for g in plan.prunable
    }
    expected = {
        name: set(torch.tensor(sum(rankdata(v.numpy()) for v in values)).argsort(stable=True)[: len(values[0]) // 2])
        for name, values in scores.items()
    }
    pruner.step()
    assert removed_roots(pruner) == {name: {int(u) for u in units} for name, units in expected.items()}


def test_a_loader_for_one_pass_is_refused_where_it_takes_several() -> None:
    model, batch = build("plain"), faces()
    importance = fpt.RankMixImportance({"taylor": 1.0, "snnl": 1.0})
    pruner = host_pruner(model, importance, ignored_layers=[model.fc])
    with pytest.raises(InputError) as raised:
        importance.collect(pruner, iter([batch]), sample_loss, groups="group", progress=False)
    assert str(raised.value) == ONCE_ONLY.format(passes=2)
    one = fpt.RankMixImportance({"taylor": 1.0, "fairprune": 1.0})
    assert one.collect(pruner, iter([batch]), sample_loss, groups="group", progress=False) is not None

    class Other:
        """People leave between passes."""

        def __init__(self) -> None:
            self.passes = 0

        def __iter__(self) -> Any:
            self.passes += 1
            yield {k: v[: 14 - self.passes] for k, v in faces(14).items()}

    with pytest.raises(InputError, match="yielded other people on another pass"):
        importance.collect(pruner, Other(), sample_loss, groups="group", progress=False)


def test_statistics_are_not_measured_without_what_they_take() -> None:
    model, batch = build("plain"), faces()
    plan = build_plan(model, batch["inputs"])
    with pytest.raises(InputError) as raised:
        measure(plan, [batch], None, Needs(frozenset({"gates"}), False))
    assert str(raised.value) == NO_LOSS
    with pytest.raises(InputError) as raised:
        measure(plan, [batch], None, Needs(frozenset({"snnl"}), True))
    assert str(raised.value) == NO_GROUPS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {}}, BAD_WEIGHTS.format(got={})),
        ({"weights": ["taylor"]}, BAD_WEIGHTS.format(got=["taylor"])),
        ({"weights": {"taylor": 0}}, BAD_WEIGHTS.format(got={"taylor": 0})),
        ({"weights": {"taylor": math.nan}}, BAD_WEIGHTS.format(got={"taylor": math.nan})),
        ({"options": {"fairprune": 3}}, BAD_OPTIONS.format(got={"fairprune": 3})),
        (
            {"options": {"snnl": {}}},
            NOT_A_MEMBER.format(names=["snnl"], members=["fairprune", "group_balanced_taylor"]),
        ),
        (
            {"weights": {"taylor": 1, "fairprune": 1}, "options": {"taylor": {"statistic": "elementwise"}}},
            NO_COMMON_GROUPS.format(names="taylor"),
        ),
        (
            {
                "weights": {"snnl": 1, "rank_mix": 1},
                "options": {"rank_mix": {"weights": {"snnl": 1}, "options": {"snnl": {"temperature": 2}}}},
            },
            TWO_TEMPERATURES.format(temperatures=[1.0, 2.0]),
        ),
    ],
)
def test_mixtures_that_make_no_sense_are_refused_before_any_data(options: dict[str, Any], message: str) -> None:
    for make in (lambda: fpt.RankMixImportance(**options), lambda: fpt.importance("rank_mix", **options)):
        with pytest.raises(InputError) as raised:
            make()
        assert str(raised.value) == message


def test_members_and_their_options_are_checked_by_their_own_rules() -> None:
    with pytest.raises(InputError, match="Did you mean 'fairprune'"):
        fpt.RankMixImportance({"fairprunes": 1.0})
    with pytest.raises(InputError, match="'taylor' has no option 'beta'"):
        fpt.RankMixImportance({"taylor": 1.0}, {"taylor": {"beta": 1}})
    with pytest.raises(InputError, match="beta must be"):
        fpt.RankMixImportance({"fairprune": 1.0}, {"fairprune": {"beta": -1}})
    of = statistics()
    of.absolute[1, 3] = math.nan
    with pytest.raises(ScoreError, match="not finite"):
        criteria.rank_mix(of, weights={"taylor": 1.0})


def test_a_configuration_reaches_it_by_name() -> None:
    method = MethodConfig.model_validate(
        {
            "name": "rank_mix",
            "options": {"weights": {"taylor": 0.5, "fairprune": 0.5}, "options": {"fairprune": {"beta": 0.2}}},
        }
    )
    made = pruning.importance(method)
    assert isinstance(made, fpt.RankMixImportance)
    assert made.options == method.options


# --- beside the host's own, and under losses of one's own ------------------------------------------------------------

HOST = {
    "fpgm": tp.importance.FPGMImportance,
    "bn_scale": tp.importance.BNScaleImportance,
    "random": tp.importance.RandomImportance,
}


@pytest.mark.parametrize("network", ["plain", "residual", "mobilenet-v2"])
@pytest.mark.parametrize("name", HOST)
def test_the_hosts_criteria_choose_in_our_pruner_what_they_choose_in_the_hosts(name: str, network: str) -> None:
    pruned = []
    for own in (False, True):
        model = build(network)
        options: dict[str, Any] = {"pruning_ratio": 0.5, "ignored_layers": [model.fc]}
        if own:
            score = pruning.importance(MethodConfig(name=name))
            pruner: Any = fpt.FairPruner(model, torch.zeros(1, 3, 16, 16), score, round_to=None, **options)
        else:
            pruner = host_pruner(model, HOST[name](), **options)
        torch.manual_seed(3)
        pruner.step()
        pruned.append((removed_roots(pruner), model.state_dict()))
    assert pruned[0][0] == pruned[1][0]
    assert len(pruned[0][0]) > 2
    assert all(torch.equal(a, b) for a, b in zip(pruned[0][1].values(), pruned[1][1].values(), strict=True))


def test_the_hosts_criteria_are_known_by_name_with_their_options() -> None:
    assert set(methods.names()) == {*criteria.names(), *HOST, *LEARNED}
    assert pruning.importance(MethodConfig(name="fpgm", options={"p": 1})).p == 1
    with pytest.raises(ConfigError, match=r"fpgm does not take the options .*unexpected keyword argument 'power'"):
        pruning.importance(MethodConfig(name="fpgm", options={"power": 1}))
    with pytest.raises(ValueError, match="did you mean 'fpgm'"):
        MethodConfig(name="fpgn")
    with pytest.raises(ValueError, match="'fpgm' looks at no loss: leave out collect_loss"):
        MethodConfig.model_validate({"name": "fpgm", "collect_loss": "cross_entropy"})


CONFIG = """
name: A small run
threads: 1
data:
  kind: function
  function: fair_prune_plugins.workflow.digits:load
  options: {validation: 0.5, test: 0.3}
  target: digit
model: {factory: digits_resnet, options: {widths: [8, 16]}}
training: {epochs: 1, batch_size: 32}
prune:
  methods:
    - taylor
    - {name: taylor, label: pw, collect_loss: {name: performance_weighted, options: {theta: 0.1, gamma: 4}}}
    - fpgm
    - random
    - {name: rank_mix, options: {weights: {taylor: 1, snnl: 1}}}
  ratios: [0.5]
  round_to: 2
  batch_size: 300
finetune: {epochs: 0}
evaluation: {resamples: 200}
export: {samples: 16}
benchmark: {rounds: 2, min_seconds: 0.01, warmup: 1}
"""


def test_one_run_compares_them_all(tmp_path: Path) -> None:
    """Taylor under the performance-weighted loss is what Torch-Pruning code of one's own gets."""
    before = torch.get_num_threads()
    settings = config.parse(CONFIG, origin="test")
    results = job.run(settings, base=Path(), output=tmp_path / "run", console=Console(file=io.StringIO()))
    torch.set_num_threads(before)
    titles = ["taylor", "pw", "fpgm", "random", "rank_mix"]
    assert [m.method for m in results.models[1:]] == titles
    assert len({m.macs for m in results.models[1:]}) == 1
    by_title = {m.method: m for m in results.models[1:]}
    assert "Ranked under: People whom the dense model classifies badly" in str(by_title["pw"].summary)
    assert str(by_title["fpgm"].source) == "He et al., CVPR 2019, arXiv:1811.00250"
    states = {t: load_file(tmp_path / f"run/models/{t}-50/pruned/model.safetensors") for t in titles}
    for a, b in itertools.combinations(states.values(), 2):
        assert not all(torch.equal(a[k], b[k]) for k in a)

    dense, _ = model_store.load(tmp_path / "run/models/dense/trained", beside=Path())
    samples = sources.load(settings.data, base=Path(), seed=settings.seed)
    rows = samples.rows(Part.VALIDATION)
    normalise = Normalisation.of_training(samples)
    people = Batches(samples, rows, normalise, 300, torch.device("cpu"))
    for title, loss in (("taylor", None), ("pw", PerformanceWeightedLoss(dense, theta=0.1, gamma=4))):
        model = copy.deepcopy(dense)
        hook = (CrossEntropy() if loss is None else loss).for_statistics(inputs="inputs", targets="targets")
        importance = fpt.TaylorImportance()
        pruner = fpt.FairPruner(model, next(iter(people))["inputs"][:2], importance, pruning_ratio=0.5, round_to=2)
        importance.collect(pruner, people, hook, inputs="inputs", targets=None, progress=False)
        pruner.step()
        assert all(torch.equal(model.state_dict()[k], v) for k, v in states[title].items()), title
