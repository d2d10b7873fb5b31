"""Defects of Torch-Pruning that depend on what the model is made of."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

from fair_prune_plugins.gates.enumeration import endless_roots
from fair_prune_plugins.gates.structure import PruningSettings
from fair_prune_plugins.workflow.doctor import touched
from fair_prune_plugins.workflow.doctor.defects import HostDefect
from fair_prune_plugins.workflow.doctor.small_trials import SEEN, TORCH_PRUNING, host_pruner, pruned, raises

IMAGE = (1, 3, 6, 6)


def _layernorm_order() -> bool:
    norm, kept = nn.LayerNorm(192), range(0, 192, 7)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(192.0))
    tp.prune_layernorm_out_channels(norm, sorted(set(range(192)) - set(kept)))
    stayed: list[float] = norm.weight.tolist()
    return stayed != list(kept)


def _rmsnorm() -> bool:
    model = nn.Sequential(nn.Linear(4, 8), nn.RMSNorm(8), nn.Linear(8, 3))
    inputs = torch.ones(1, 4)
    pruned(model, inputs, keep=[model[2]])
    return raises(RuntimeError, lambda: model(inputs))


def _frozen() -> bool:
    model: Any = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    model[0].requires_grad_(False)
    pruned(model, torch.ones(IMAGE), keep=[model[2]])
    return bool(model[0].out_channels == 8)


def _outputs() -> bool:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6))
    inputs = torch.ones(1, 4)
    return bool(pruned(model, inputs)(inputs).shape[1] != 6)


def _round_to_above_width() -> bool:
    model: Any = nn.Sequential(nn.Conv2d(3, 12, 1), nn.ReLU(), nn.Conv2d(12, 4, 1))
    pruned(model, torch.ones(IMAGE), keep=[model[2]], round_to=16, ratio=0.25)
    wide: Any = nn.Sequential(nn.Conv2d(3, 20, 1), nn.ReLU(), nn.Conv2d(20, 4, 1))
    pruned(wide, torch.ones(IMAGE), keep=[wide[2]], round_to=16)
    return [model[0].out_channels, wide[0].out_channels] == [12, 20]


def _round_to_conv_groups() -> bool:
    model = nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 1, groups=4), nn.Conv2d(64, 4, 1))
    pruned(model, torch.ones(IMAGE), keep=[model[2]], round_to=16)
    return bool(model[0].out_channels != 32)


def _conv_groups_averaged() -> bool:
    """Units (0, 2) and (1, 3) with scores (0, 6) and (4, 4): by their maximum the second would go."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 1))
    scores = torch.tensor([0.0, 4.0, 6.0, 4.0])
    pruner = host_pruner(model, torch.ones(IMAGE), keep=[model[2]], importance=lambda group: scores)
    return all(set(group[0].idxs) == {0, 2} for group in pruner.step(interactive=True))


def _channel_multiplier() -> bool:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(16, 4, 1))
    return raises(IndexError, lambda: pruned(model, torch.ones(IMAGE), keep=[model[2]]))


def _taken_for_depthwise() -> bool:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3, groups=4), nn.Conv2d(4, 4, 1))
    inputs = torch.ones(IMAGE)
    return raises(RuntimeError, lambda: pruned(model, inputs, keep=[model[2]])(inputs))


class _SpatialGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features, self.gate, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 1, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.features(x) * torch.sigmoid(self.gate(x)))
        return out


def _single_channel_partner() -> bool:
    model = _SpatialGate()
    pruned(model, torch.ones(IMAGE), keep=[model.head])
    return model.features.out_channels == 8


class _SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(3, 16), nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        out: torch.Tensor = self.head(self.attention(x, x, x, need_weights=False)[0])
        return out


def _multihead_mixed() -> bool:
    """Rows of the query projection are marked with their head, and the first head's dimensions go."""
    model = _SelfAttention()
    inputs = torch.ones(1, 2, 3)
    graph = tp.DependencyGraph().build_dependency(model, inputs)
    with torch.no_grad():
        model.attention.in_proj_weight.copy_((torch.arange(48) % 16 // 4).float()[:, None].expand(48, 16))
    graph.get_pruning_group(model.embed, tp.prune_linear_out_channels, [0, 1, 2, 3]).prune()
    heads = model.attention.in_proj_weight[:12, 0].reshape(4, 3)
    return bool((heads != heads[:, :1]).any())


def _multihead_indivisible() -> bool:
    model, inputs = _SelfAttention(), torch.ones(1, 2, 3)
    return raises(AssertionError, lambda: pruned(model, inputs, keep=[model.head], ratio=0.4)(inputs))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 2, 4
        self.qkv, self.proj, self.head = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        context = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1)
        out: torch.Tensor = self.head(self.proj(context))
        return out


def _attention_sizes() -> bool:
    model, inputs = _Attention(), torch.ones(1, 5, 8)
    pruned(model, inputs, keep=[model.head], num_heads={model.qkv: 2})
    return raises(RuntimeError, lambda: model(inputs))


def _instance_norm() -> bool:
    norm = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), norm, nn.Conv2d(8, 4, 1)).eval()
    inputs = torch.ones(IMAGE)
    pruned(model, inputs, keep=[model[2]])
    return raises(RuntimeError, lambda: model(inputs))


def _batch_norm_without_statistics() -> bool:
    norm = nn.BatchNorm2d(8)
    norm.running_mean = norm.running_var = None
    model = nn.Sequential(nn.Conv2d(3, 8, 1), norm, nn.Conv2d(8, 4, 1))
    return raises(AttributeError, lambda: pruned(model, torch.ones(2, 3, 6, 6), keep=[model[2]]))


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.lstm(x)[0][:, -1])
        return out


def _lstm() -> bool:
    model = _Recurrent()
    return raises(IndexError, lambda: pruned(model, torch.ones(1, 5, 6), keep=[model.head]))


def _tied() -> bool:
    model: Any = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    model[2].weight = model[0].weight
    pruned(model, torch.ones(1, 8), keep=[model[4]])
    return model[0].weight is not model[2].weight


def _indices_multiply() -> bool:
    """On the smallest Swin that torchvision builds; without torchvision there is nothing to try it on."""
    from torchvision.models.swin_transformer import SwinTransformer

    model = SwinTransformer([4, 4], 8, [2], [2], [2, 2], num_classes=5).eval()
    graph = tp.DependencyGraph().build_dependency(model, torch.ones(1, 3, 32, 32))
    return bool(endless_roots(graph, PruningSettings().root_module_types))


def _integer_cut() -> bool:
    model = nn.Sequential(nn.Conv2d(3, 10, 1), nn.ReLU(), nn.Conv2d(10, 4, 1))
    return bool(pruned(model, torch.ones(IMAGE), keep=[model[2]], ratio=0.9)[0].out_channels != 1)


def _shared_defaults() -> bool:
    defaults = [d for d in tp.pruner.BasePruner.__init__.__defaults__ if isinstance(d, dict)]
    before = [dict(d) for d in defaults]
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 4, 1))
    try:
        tp.pruner.BasePruner(model, torch.ones(IMAGE), importance=tp.importance.MagnitudeImportance())
        return [dict(d) for d in defaults] != before
    finally:
        for default, contents in zip(defaults, before, strict=True):
            default.clear()
            default.update(contents)


def _defect(id: str, summary: str, remedy: str, present: Any, applies: Any) -> HostDefect:
    return HostDefect(id, TORCH_PRUNING, SEEN, summary, remedy, present, applies)


STRUCTURE_DEFECTS = (
    _defect(
        "output layers are pruned",
        "Layers whose width is a width of the model's outputs lose channels like all others, unless they are listed "
        "in ignored_layers.",
        "FairPruner finds them, leaves them alone and says so.",
        _outputs,
        touched.outputs,
    ),
    _defect(
        "LayerNorm weights are permuted",
        "When few channels of a LayerNorm are kept, its weights and biases are kept in the wrong order, without a "
        "word: the pruned model runs and is wrong.",
        "FairPruner prunes LayerNorm with a pruner of its own; its proof would find the difference.",
        _layernorm_order,
        touched.layer_norms,
    ),
    _defect(
        "RMSNorm has no pruner",
        "The channels around an RMSNorm are removed and its own stay, so the pruned model fails in its forward.",
        "FairPruner brings a pruner for it.",
        _rmsnorm,
        touched.rms_norms,
    ),
    _defect(
        "frozen first layers stay as they are",
        "Layers without gradients at the beginning of a model are not seen, and keep their width without a word.",
        "FairPruner prunes them with their coupled group, keeps them frozen and names them.",
        _frozen,
        touched.frozen_beginnings,
    ),
    _defect(
        "round_to skips narrow layers",
        "Where round_to is more than the channels that would be kept, the layer keeps its full width without a word.",
        "FairPruner decides such layers one by one and reports what it kept and why.",
        _round_to_above_width,
        touched.narrower_than_block,
    ),
    _defect(
        "round_to miscounts conv groups",
        "With conv groups, norm groups or heads round_to sets the number per group off against the number of all "
        "channels, so that such layers keep their full width or another than asked.",
        "FairPruner rounds the channels of all repetitions together.",
        _round_to_conv_groups,
        touched.repeated,
    ),
    _defect(
        "scores are averaged over conv groups",
        "Scores of conv groups, norm groups and heads are averaged after the criterion has spoken, so a criterion "
        "that is no sum ranks something else than what is removed.",
        "The criteria here rank units, which are what is removed.",
        _conv_groups_averaged,
        touched.repeated,
    ),
    _defect(
        "default dictionaries are shared",
        "Pruners write conv groups, norm groups and heads into default arguments that all pruners share.",
        "FairPruner passes dictionaries of its own.",
        _shared_defaults,
        touched.repeated,
    ),
    _defect(
        "depthwise with a channel multiplier crashes",
        "Convolutions with one conv group per input channel and several outputs each crash the host's importances.",
        "The criteria here are measured on gates and do not read such weights channel by channel; the gate plan "
        "says which units are left.",
        _channel_multiplier,
        touched.channel_multipliers,
    ),
    _defect(
        "grouped convolutions taken for depthwise ones",
        "Convolutions with one conv group per output channel and several inputs each are pruned as if they were "
        "depthwise, and the pruned model fails in its forward.",
        "The proof of the gate plan finds that, and the coupled group is left alone.",
        _taken_for_depthwise,
        touched.taken_for_depthwise,
    ),
    _defect(
        "a single channel holds its coupled group back",
        "Layers that are multiplied or added with a single channel (spatial attention) keep their width without a "
        "word.",
        "The gate plan names them as unsupported.",
        _single_channel_partner,
        touched.single_channel_partners,
    ),
    _defect(
        "nn.MultiheadAttention mixes heads",
        "Its inner dimensions are removed at the positions of the outer ones, so what is left is cut into heads that "
        "were never trained together.",
        "FairPruner removes the same dimensions from every head, and proves it.",
        _multihead_mixed,
        touched.multihead,
    ),
    _defect(
        "nn.MultiheadAttention needs divisible widths",
        "Without num_heads a pruning ratio whose kept width the heads do not divide ends in an assertion in the middle "
        "of the pruning.",
        "FairPruner knows its heads.",
        _multihead_indivisible,
        touched.multihead,
    ),
    _defect(
        "attention keeps its old sizes",
        "Modules that reshape by a head count or size of their own are not told that it has changed, and fail in "
        "their forward.",
        "FairPruner finds usual names of projections and sizes, updates them, and puts everything back where the "
        "model does not run.",
        _attention_sizes,
        touched.attention_owners,
    ),
    _defect(
        "InstanceNorm keeps its running statistics",
        "Running statistics of InstanceNorm are not pruned with its weights, and the pruned model fails in its "
        "forward.",
        "The proof of the gate plan finds that, and the coupled group is left alone.",
        _instance_norm,
        touched.instance_norms,
    ),
    _defect(
        "BatchNorm without running statistics crashes",
        "A BatchNorm whose running statistics were set to None crashes the pruning half-way.",
        "Refused before anything is pruned: without running statistics samples have no gradients of their own.",
        _batch_norm_without_statistics,
        touched.batch_norms_without_statistics,
    ),
    _defect(
        "LSTM crashes",
        "Pruning an nn.LSTM ends in an index error half-way.",
        "The proof of the gate plan finds that, and the coupled group is left alone.",
        _lstm,
        touched.lstms,
    ),
    _defect(
        "tied layers are untied",
        "Layers that share a parameter each get one of their own when one of them is pruned.",
        "Their coupled groups are refused, naming both.",
        _tied,
        touched.tied,
    ),
    _defect(
        "index lists multiply",
        "In windowed attention as torchvision's Swin has it, the host follows ever longer lists of channels, more than "
        "there are, until memory ends.",
        "The enumeration is tried with a bound first, and the layers are named.",
        _indices_multiply,
        touched.endless,
    ),
    _defect(
        "kept counts are cut one short",
        "The number to keep is int(width * (1 - ratio)) in floating point: 10 channels at 0.9 keep none, and then all.",
        "FairPruner keeps floor(width * (1 - ratio)), safe against the last bit.",
        _integer_cut,
        touched.cut_short,
    ),
)
"""In the order of what is met most."""
