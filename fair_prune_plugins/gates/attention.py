"""Attention seen through gates: ``nn.MultiheadAttention`` step by step, and where hand-written attention contracts
q with k.

``q . k`` contracts over a head's dimensions without a parameter, so one operand (q) carries its gate. When head
dimensions are closed, the scale that ``scaled_dot_product_attention`` derives from the size, and the one that a module
remembers, must be the kept size's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from fair_prune_plugins.errors import UnsupportedModelError
from fair_prune_plugins.gates.calling import ForwardFn, call

MHA_UNSUPPORTED = "{path}: nn.MultiheadAttention with {what} cannot be gated; replace it or add it to ignored_layers"

Gate = Callable[[str, torch.Tensor], torch.Tensor]
"""``gate(point, x)``: what happens to a tensor at ``"input"``, ``"query"``, ``"context"`` or ``"output"``; channels
are last."""

Call = tuple[str, int]
"""One ``scaled_dot_product_attention``: path of the innermost module around it, and how many that module ran before."""

SCALE_NAMES = ("scale", "scaling", "scale_factor", "attn_scale", "softmax_scale", "norm_factor", "inv_norm_factor")

MATMULS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.Tensor.bmm)


def check_multihead(path: str, module: nn.MultiheadAttention) -> None:
    """Refuse the options of ``nn.MultiheadAttention`` that have no gated form.

    Raises:
        UnsupportedModelError: extra key/value rows (``add_bias_kv``, ``add_zero_attn``) or key/value widths of
        their own.
    """
    if module.bias_k is not None or module.add_zero_attn:
        raise UnsupportedModelError(MHA_UNSUPPORTED.format(path=path, what="add_bias_kv or add_zero_attn"))
    if module.in_proj_weight is None:
        raise UnsupportedModelError(MHA_UNSUPPORTED.format(path=path, what="kdim or vdim"))


def multihead_attention(
    module: nn.MultiheadAttention,
    gate: Gate,
    head_dim: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_padding_mask: torch.Tensor | None = None,
    need_weights: bool = True,
    attn_mask: torch.Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``nn.MultiheadAttention.forward`` in plain steps, with gates in it.

    Args:
        module: the attention; its parameters are used as they are.
        gate: called at the input, on the projected queries, on the heads' output, and on the result.
        head_dim: the kept head size, for the scale.
        query: as for the module's own forward, and so are all further arguments.
        key: see there.
        value: see there.
        key_padding_mask: see there.
        need_weights: see there.
        attn_mask: see there.
        average_attn_weights: see there.
        is_causal: a hint in the module's own forward: the mask that must come with it is what counts.
    """
    same = query is key and key is value
    if not module.batch_first and query.ndim == 3:
        query, key, value = (t.transpose(0, 1) for t in (query, key, value))
    query = gate("input", query)
    key, value = (query, query) if same else (gate("input", key), gate("input", value))
    width, heads = module.embed_dim, module.num_heads
    weights = module.in_proj_weight.split(width)
    biases = (None, None, None) if module.in_proj_bias is None else module.in_proj_bias.split(width)
    q = gate("query", F.linear(query, weights[0], biases[0]))
    k, v = F.linear(key, weights[1], biases[1]), F.linear(value, weights[2], biases[2])
    n, targets, sources = q.shape[0], q.shape[1], k.shape[1]
    q, k, v = (t.reshape(n, t.shape[1], heads, -1).transpose(1, 2) for t in (q, k, v))
    scores = q @ k.transpose(-2, -1) / math.sqrt(head_dim)
    if attn_mask is not None:
        mask = _additive(attn_mask, scores.dtype)
        scores = scores + (mask.reshape(n, heads, targets, sources) if mask.ndim == 3 else mask)
    if key_padding_mask is not None:
        scores = scores + _additive(key_padding_mask, scores.dtype).reshape(n, 1, 1, sources)
    attention = F.dropout(scores.softmax(-1), module.dropout, module.training)
    context = (attention @ v).transpose(1, 2).reshape(n, targets, width)
    out = gate("output", F.linear(gate("context", context), module.out_proj.weight, module.out_proj.bias))
    if not module.batch_first:
        out = out.transpose(0, 1)
    if not need_weights:
        return out, None
    return out, attention.mean(1) if average_attn_weights else attention


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)
    return mask.to(dtype)


def kept_scales(owner: nn.Module, old_size: int, size: int) -> dict[str, float]:
    """An attention module's scale attributes for another head size.

    A scale of ``size ** -0.5`` or ``size ** 0.5`` is derived from the head size, as the one that
    ``scaled_dot_product_attention`` takes by itself, and follows it; any other is a constant of the model.

    Args:
        owner: the module that owns the projections.
        old_size: head size that its scale attributes were made for.
        size: the new head size.
    """
    found: dict[str, float] = {}
    for name in SCALE_NAMES:
        value = owner.__dict__.get(name)
        if isinstance(value, float):
            for power in (-0.5, 0.5):
                if old_size > 1 and math.isclose(value, old_size**power, rel_tol=1e-9):
                    found[name] = size**power
    return found


@dataclass(frozen=True)
class Contraction:
    """Where a projection's output is contracted with another activation, over head dimensions.

    Attributes:
        producer: path of the projection whose output holds the queries, or of the norm over head dimensions that they
            pass through.
        channels: int64, the output channels that are queries.
        call: which ``scaled_dot_product_attention`` this is, or ``None`` for a matrix product.
    """

    producer: str
    channels: torch.Tensor
    call: Call | None


class Frames:
    """Which of some modules is running, and how many attentions it has run so far: a name for each that every forward
    gives alike, also where the model is entered by another way than its own ``forward``.
    """

    def __init__(self) -> None:
        self._running: list[Call] = []

    def watch(self, model: nn.Module, paths: Iterable[str]) -> list[Any]:
        """Hook the modules; returns the hooks' handles, for the caller to remove."""
        handles: list[Any] = []
        for path in paths:
            module = model.get_submodule(path)
            handles.append(module.register_forward_pre_hook(partial(self._enter, path), prepend=True))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        return handles

    def _enter(self, path: str, _module: nn.Module, _args: Any) -> None:
        self._running.append((path, 0))

    def _leave(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        if self._running:
            self._running.pop()

    def next(self) -> Call | None:
        """Count an attention; its name, or ``None`` outside of all watched modules."""
        here = self._running[-1] if self._running else None
        self._running = [(path, count + 1) for path, count in self._running]
        return here


class _Finder(TorchFunctionMode):
    """Recognises projections' output channels in the operands of contractions.

    Every projection puts out its own channel numbers instead of values (``base + channel``, the same at each position),
    so an operand that is a reshaped (and perhaps scaled) piece of it tells where it comes from.
    """

    def __init__(self, bases: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        self.bases = bases
        self.found: list[Contraction] = []
        self.frames = Frames()

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            query = args[0] if args else kwargs["query"]
            self._note(query, self.frames.next())
        elif func in MATMULS and len(args) == 2 and all(isinstance(a, torch.Tensor) and a.ndim >= 3 for a in args):
            # Only q @ k^T contracts over channels: both operands vary along the contracted dimension and along no
            # position.
            self._note(args[0], None, also=args[1].transpose(-2, -1))
        elif func is torch.einsum and _contracts_last(args):
            self._note(args[1], None, also=args[2])
        return func(*args, **kwargs)

    def _note(self, operand: torch.Tensor, call: Call | None, also: torch.Tensor | None = None) -> None:
        pattern = self._pattern(operand)
        if pattern is None or (also is not None and self._pattern(also) is None):
            return
        step = _step(pattern)
        codes = (pattern / step).round()
        if not torch.allclose(codes * step, pattern, rtol=1e-9, atol=0):
            return
        for path, (base, width) in self.bases.items():
            channels = codes - base
            if (channels >= 0).all() and (channels < width).all():
                self.found.append(Contraction(path, channels.flatten().long(), call))
                return

    def _pattern(self, operand: torch.Tensor) -> torch.Tensor | None:
        """``[..., head size]`` of one position if all positions hold the same, positive values; else ``None``."""
        first = operand[:1, ..., :1, :]
        if not torch.equal(operand, first.expand_as(operand)) or (first <= 0).any():
            return None
        heads = first.flatten(0, -2)
        # Numbers that a norm put there are the same in all heads.
        values = heads[0] if (heads == heads[:1]).all() else heads.flatten()
        return values if values.unique().numel() == values.numel() and values.numel() > 1 else None


def _contracts_last(args: Sequence[Any]) -> bool:
    """Whether an einsum's arguments are two operands that it contracts along the last dimension of both."""
    if len(args) != 3 or not isinstance(args[0], str):
        return False
    operands, _, result = args[0].replace(" ", "").partition("->")
    first, _, second = operands.partition(",")
    return bool(first and second) and first[-1] == second[-1] != "." and first[-1] not in result


def _step(values: torch.Tensor) -> float:
    return float(values.sort().values.diff().min())


def find_contractions(
    model: nn.Module,
    projections: Sequence[str],
    inputs: Any,
    forward_fn: ForwardFn | None = None,
    *,
    norms: Sequence[str] = (),
) -> list[Contraction]:
    """Find where the outputs of attention projections are contracted with each other.

    Args:
        model: a float64 copy in eval mode that may be run freely.
        projections: paths of the ``nn.Linear`` (or convolution) modules that produce queries, keys and values.
        inputs: example inputs in float64.
        forward_fn: how the model is called, if not plainly.
        norms: paths of norms over the last dimension that queries may pass through; they then are the producers.

    Returns:
        One entry per contraction found. Queries that pass through a rotation first are not recognised.
    """
    if not projections:
        return []
    bases: dict[str, tuple[int, int]] = {}
    handles: list[Any] = []
    start = 1
    for path in (*projections, *norms):
        module: Any = model.get_submodule(path)
        last = path in norms or isinstance(module, nn.Linear)
        if path in norms:
            width = int(module.normalized_shape[-1])
        else:
            width = int(module.out_features if last else module.out_channels)
        bases[path] = (start, width)
        handles.append(module.register_forward_hook(_numbering(start, width, channels_last=last)))
        start += 2 * width
    finder = _Finder(bases)
    handles.extend(finder.frames.watch(model, [path for path, _ in model.named_modules()]))
    try:
        with torch.no_grad(), finder:
            call(model, inputs, forward_fn)
    finally:
        for handle in handles:
            handle.remove()
    return finder.found


def _numbering(base: int, width: int, *, channels_last: bool) -> Callable[..., torch.Tensor]:
    def hook(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        numbers = torch.arange(base, base + width, dtype=output.dtype, device=output.device)
        if not channels_last:
            numbers = numbers.reshape(-1, *([1] * (output.ndim - 2)))
        return numbers.expand_as(output).clone()

    return hook
