"""Defects of Torch-Pruning in ranking and in its pruners, most of them whatever the model is."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from fair_prune_plugins.workflow.doctor import touched
from fair_prune_plugins.workflow.doctor.defects import HostDefect
from fair_prune_plugins.workflow.doctor.small_trials import SEEN, TORCH_PRUNING, host_pruner, pruned, raises

INPUTS = (2, 3, 5, 5)


def _net(first: int = 8, second: int = 8) -> Any:
    """Two hidden convolutions with BatchNorm; all gradients are there."""
    model = nn.Sequential(
        nn.Conv2d(3, first, 1),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.Conv2d(first, second, 1),
        nn.BatchNorm2d(second),
        nn.ReLU(),
        nn.Conv2d(second, 4, 1),
    ).eval()
    model(torch.randn(INPUTS)).square().sum().backward()
    return model


def _scores_of_first(model: nn.Module, importance: Any) -> torch.Tensor:
    graph: Any = tp.DependencyGraph().build_dependency(model, torch.randn(INPUTS))
    group = next(g for g in graph.get_all_groups() if graph._module2name[g[0].dep.target.module] == "0")
    scores: torch.Tensor = importance(group)
    return scores


def _last_sample_only() -> bool:
    model = nn.Linear(2, 1, bias=False)
    importance = tp.importance.GroupHessianImportance()
    for gradient in (3.0, 4.0):
        model.weight.grad = torch.full((1, 2), gradient)
        importance.accumulate_grad(model)
    return bool(torch.equal(importance._accu_grad[model.weight], torch.full((1, 2), 16.0)))


def _taylor_without_batch_norm() -> bool:
    model = _net()
    before = _scores_of_first(model, tp.importance.GroupTaylorImportance())
    with torch.no_grad():
        model[1].weight.mul_(torch.arange(1.0, 9.0))
    return bool(torch.equal(before, _scores_of_first(model, tp.importance.GroupTaylorImportance())))


def _hessian_without_batch_norm_bias() -> bool:
    model = _net()
    with torch.no_grad():
        model[1].bias.fill_(1.0)
    before = _scores_of_first(model, tp.importance.GroupHessianImportance(bias=True))
    with torch.no_grad():
        model[1].bias.copy_(torch.arange(1.0, 9.0))
    return bool(torch.equal(before, _scores_of_first(model, tp.importance.GroupHessianImportance(bias=True))))


def _no_gradient() -> bool:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    taylor = tp.importance.GroupTaylorImportance()
    return raises(AttributeError, lambda: pruned(model, torch.ones(INPUTS), keep=[model[2]], importance=taylor))


def _not_finite() -> bool:
    model = _net()
    scores = torch.full((8,), torch.nan)
    pruned(model, torch.ones(INPUTS), keep=[model[6]], importance=lambda group: scores, global_pruning=True)
    return bool(model[0].out_channels == 8 and model[3].out_channels == 8)


def _ties() -> bool:
    model = _net()
    scores = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0])
    pruned(model, torch.ones(INPUTS), keep=[model[6]], importance=lambda group: scores, global_pruning=True)
    return bool(model[0].out_channels + model[3].out_channels < 8)


def _maximum_ratio() -> bool:
    model = _net()
    low, high = torch.arange(8.0), 100 + torch.arange(8.0)

    def scores(group: Any) -> torch.Tensor:
        return low if group[0].dep.target.module is model[0] else high

    options: dict[str, Any] = {"importance": scores, "global_pruning": True, "max_pruning_ratio": 0.5, "ratio": 0.4}
    pruned(model, torch.ones(INPUTS), keep=[model[6]], **options)
    return bool(model[0].out_channels < 4)


def _signed_scores() -> bool:
    scores = torch.tensor([-3.0, -2.0, 1.0])
    normalised = tp.importance.GroupTaylorImportance()._normalize(scores, "mean")
    return bool((normalised.argsort() != scores.argsort()).any())


def _mode() -> bool:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)).train()
    host_pruner(model, torch.ones(INPUTS))
    return not model.training


def _dead_optimizer() -> bool:
    model = _net()
    held = {p for group in torch.optim.SGD(model.parameters(), lr=0.1).param_groups for p in group["params"]}
    pruned(model, torch.ones(INPUTS), keep=[model[6]])
    return any(p not in held for p in model.parameters())


def _version_text() -> bool:
    return bool(tp.__version__ != metadata.version(TORCH_PRUNING))


def _defect(id: str, summary: str, remedy: str, present: Any, applies: Any = None) -> HostDefect:
    return HostDefect(id, TORCH_PRUNING, SEEN, summary, remedy, present, applies)


RANKING_DEFECTS = (
    _defect(
        "Taylor leaves BatchNorm out",
        "GroupTaylorImportance looks for BatchNorm under the name of another layer, so BatchNorm never counts.",
        "The gate statistics here are measured where channels are used, whatever lies between.",
        _taylor_without_batch_norm,
        touched.batch_norms,
    ),
    _defect(
        "Hessian leaves BatchNorm biases out",
        "GroupHessianImportance counts a BatchNorm's bias only where it has no gradient.",
        "The gate statistics here are measured where channels are used, whatever lies between.",
        _hessian_without_batch_norm_bias,
        touched.batch_norms,
    ),
    _defect(
        "only the last sample counts",
        "GroupHessianImportance.accumulate_grad overwrites instead of adding.",
        "Statistics here are sums over all samples.",
        _last_sample_only,
    ),
    _defect(
        "missing gradients",
        "Importances from gradients end in an AttributeError that names no layer where one has no gradient.",
        "Statistics here are collected by the importance itself, and what is missing is named.",
        _no_gradient,
    ),
    _defect(
        "scores that are not finite",
        "With global pruning NaN scores mean that nothing is pruned, without a word.",
        "FairPruner raises an error that names the layer.",
        _not_finite,
    ),
    _defect(
        "ties are all pruned",
        "With global pruning everything that scores as low as the threshold goes, however many that are.",
        "FairPruner removes as many as asked.",
        _ties,
    ),
    _defect(
        "max_pruning_ratio between steps only",
        "Inside a step a coupled group may lose more than max_pruning_ratio.",
        "FairPruner holds it inside a step.",
        _maximum_ratio,
    ),
    _defect(
        "signed scores are reversed",
        "The default normaliser divides by the mean, which turns the order around where the mean is negative.",
        "Criteria here are not normalised by the host.",
        _signed_scores,
    ),
    _defect(
        "left in eval mode",
        "Making a pruner puts the model into eval mode and leaves it there.",
        "FairPruner gives the mode back.",
        _mode,
    ),
    _defect(
        "optimizers hold dead parameters",
        "A step replaces parameters, and an optimizer made before goes on with the old ones.",
        "fair_prune_plugins.torch_pruning.rebinding() ties it to the new ones, momentum included.",
        _dead_optimizer,
    ),
    _defect(
        "wrong version text",
        "torch_pruning.__version__ is not the version that is installed.",
        "Versions here are read from the packages' metadata.",
        _version_text,
    ),
)
