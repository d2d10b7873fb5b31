"""Examine a model without changing it: gate plan, widths, cost, and where the hosts' defects touch it."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fair_prune_plugins.errors import FairPruneError, InputError, UnsupportedModelError
from fair_prune_plugins.gates import CoupledGroup, GatePlan, build_plan
from fair_prune_plugins.gates.calling import call, copied, moved, output_tensors, preserved, resized
from fair_prune_plugins.gates.plan import UNREACHED
from fair_prune_plugins.gates.structure import OUTPUT
from fair_prune_plugins.latency.alignment import Alignment, alignment_for
from fair_prune_plugins.torch_pruning.counting import macs_and_params
from fair_prune_plugins.torch_pruning.heads import find_heads
from fair_prune_plugins.torch_pruning.selection import kept_count
from fair_prune_plugins.workflow.doctor.defects import Subject, findings, known_defects
from fair_prune_plugins.workflow.doctor.diagnosis import (
    AlignmentReport,
    Diagnosis,
    ExportCheck,
    GroupRow,
    ModelReport,
    Verdict,
    WidthRow,
)
from fair_prune_plugins.workflow.doctor.versions import versions

BAD_RATIO = "ratio must lie in [0, 1), got {got}"
FORWARD_FAILED = (
    "the network fails on inputs of shape {shapes}: {error}. Pass inputs that it takes (on the command line with "
    "--input-shape, or return them beside the network)"
)
NOTHING_LEFT = "no coupled group can be pruned; the reasons are listed with the layers"
IGNORED = "ignored as asked"
SINGLE_UNIT = "it has a single unit"


def examine_host() -> Diagnosis:
    """Versions and the defects of the installed hosts, without a model."""
    return Diagnosis(versions(), findings(known_defects()))


def examine(
    model: nn.Module,
    example_inputs: Any,
    *,
    ratio: float = 0.5,
    ignored_layers: Sequence[nn.Module] = (),
    alignment: Alignment | None = None,
    export: bool = False,
    seed: int = 0,
) -> Diagnosis:
    """Find out what of a model can be pruned, what cannot and why.

    Args:
        model: any module; it is left exactly as it was.
        example_inputs: what it is called with: a tensor ``[n, ...]``, a tuple or list (positional), or a dict.
        ratio: the pruning ratio that widths are told for, in [0, 1).
        ignored_layers: modules whose outputs are to keep their width.
        alignment: widths that the target rewards; by default those of ONNX Runtime on this machine's CPU.
        export: also export the model to ONNX, as it is, and prove the file equal on random inputs.
        seed: of the proof's random units.

    Returns:
        What was found. A model that cannot be pruned is no error: :attr:`ModelReport.problem` says why.

    Raises:
        InputError: the ratio is out of range, or the model fails on its inputs.
    """
    if not 0 <= ratio < 1:
        raise InputError(BAD_RATIO.format(got=ratio))
    inputs = _fitted(model, example_inputs)
    shapes = _shapes(inputs)
    outputs = _outputs(model, inputs, shapes)
    heads = find_heads(model)
    plan, problem = _planned(model, inputs, ignored_layers, heads, seed)
    if alignment is None:
        alignment = alignment_for()
    macs, parameters = _cost(model, inputs)
    names = {m: path for path, m in model.named_modules()}
    report = ModelReport(
        name=type(model).__name__,
        inputs=shapes,
        outputs=outputs,
        macs=macs,
        parameters=parameters,
        problem=problem,
        groups=() if plan is None else tuple(_row(g) for g in plan.groups),
        left_alone={} if plan is None else left_alone(plan, ignored_layers),
        frozen=() if plan is None else plan.frozen,
        heads={names[m]: count for m, count in heads.items()},
        alignment=None if plan is None else aligned(plan, alignment, ratio),
        export=_exported(model, inputs) if export else None,
    )
    subject = Subject(model, inputs, plan, ratio, alignment.block)
    return Diagnosis(versions(), findings(known_defects(), subject), report)


def left_alone(plan: GatePlan, ignored_layers: Sequence[nn.Module] = ()) -> dict[str, str]:
    """Layers that keep their width, and why: ignored, outputs, unsupported, of a single unit, not reached."""
    reasons = {g.name: reason for g in plan.groups if (reason := _verdict(g)[1]) and not g.prunable}
    ignored = {m for layer in ignored_layers for m in layer.modules()}
    for path in plan.unreached:
        reasons[path] = IGNORED if plan.model.get_submodule(path) in ignored else UNREACHED
    return reasons


def aligned(plan: GatePlan, alignment: Alignment, ratio: float) -> AlignmentReport:
    """What the target makes of the widths of the coupled groups that can be pruned."""
    rows = []
    for group in plan.prunable:
        units = group.units
        repeat = group.channels // units.size
        asked = kept_count(units.size, ratio)
        kept = alignment.fit(asked, units.size, 1, repeat)
        rows.append(
            WidthRow(
                name=group.name,
                width=group.channels,
                asked=asked * repeat,
                kept=kept * repeat,
                fits=group.channels % alignment.grain == 0,
                narrow=group.channels < alignment.block,
                reason=alignment.why(asked, kept, units.size, repeat),
            )
        )
    return AlignmentReport(alignment.block, alignment.grain, alignment.target, alignment.source, ratio, tuple(rows))


def _planned(
    model: nn.Module, inputs: Any, ignored: Sequence[nn.Module], heads: Mapping[nn.Module, int], seed: int
) -> tuple[GatePlan | None, str]:
    """The gate plan, if there is one, and why nothing can be pruned, if so."""
    try:
        with warnings.catch_warnings():
            # The host's, while it guesses widths across reshapes; whether it guessed right is proved.
            warnings.filterwarnings("ignore", "Maximum recursive depth")
            plan = build_plan(model, inputs, ignored_layers=ignored, num_heads=heads, seed=seed)
    except UnsupportedModelError as error:
        return None, str(error)
    return plan, "" if plan.prunable else NOTHING_LEFT


def _verdict(group: CoupledGroup) -> tuple[Verdict, str]:
    if group.ignored:
        return "ignored", IGNORED
    if group.reaches_output:
        return "output", OUTPUT
    if group.status == "unsupported":
        return "unsupported", group.reason
    if group.units.size == 1:
        return "single unit", SINGLE_UNIT
    return ("approximate", group.reason) if group.status == "approximate" else ("exact", "")


def _row(group: CoupledGroup) -> GroupRow:
    verdict, reason = _verdict(group)
    sites = (*group.producers, *group.norms, *group.attentions, *group.parameters, *group.consumers)
    return GroupRow(
        name=group.name,
        units={units.kind: units.size for units in group.unit_sets},
        channels=group.channels,
        verdict=verdict,
        error=None if group.error is None or not math.isfinite(group.error) else group.error,
        reason=reason,
        members=tuple(dict.fromkeys(site.path for site in sites)),
        frozen=group.frozen,
    )


def _fitted(model: nn.Module, example_inputs: Any) -> Any:
    """Two samples on the model's device and in its precision."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    inputs = resized(example_inputs, 2)
    return inputs if parameter is None else moved(inputs, device=parameter.device, dtype=parameter.dtype)


def _shapes(values: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(leaf.shape) for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor))


def _outputs(model: nn.Module, inputs: Any, shapes: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    with preserved(model), torch.no_grad():
        model.eval()
        try:
            return tuple(tuple(t.shape) for t in output_tensors(call(model, inputs)))
        except Exception as error:  # a forward fails in any way there is
            text = f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no message')}"
            listed = ", ".join(str(shape) for shape in shapes)
            raise InputError(FORWARD_FAILED.format(shapes=listed, error=text)) from error


def _cost(model: nn.Module, inputs: Any) -> tuple[int | None, int]:
    """MACs and parameters; the host's counter does not know every layer, parameters can always be counted."""
    parameters = sum(p.numel() for p in model.parameters())
    try:
        return macs_and_params(model, resized(inputs, 1))[0], parameters
    except Exception:
        return None, parameters


def _exported(model: nn.Module, inputs: Any) -> ExportCheck:
    try:
        from fair_prune_plugins.onnx import export

        with tempfile.TemporaryDirectory() as folder:
            report = export(copied(model), inputs, Path(folder) / "model.onnx")
    except FairPruneError as error:  # no exporter proved it, or onnx is not installed
        return ExportCheck(False, str(error))
    return ExportCheck(True, report.statement())
