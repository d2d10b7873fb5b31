"""A diagnosis for people: what can be pruned first, then what stays and why, then what to know about the hosts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fair_prune_plugins.reporting.wording import as_sentence, counted, listed, percent, quantity
from fair_prune_plugins.workflow.doctor.defects import Finding
from fair_prune_plugins.workflow.doctor.diagnosis import AlignmentReport, Diagnosis, GroupRow, ModelReport
from fair_prune_plugins.workflow.doctor.versions import PackageVersion

NAMED = 4
"""How many layers a sentence names before it counts the rest."""

NONE_INSTALLED = "not installed"

COUPLED = (
    "Layers of a coupled group lose channels together; it is named after its first layer. Exact: what the statistics "
    "measure is what will be removed, by a proof on a copy (in brackets its largest relative error)."
)
EVERYWHERE = "Also there, whatever the model is (`fair-prune doctor` without a model explains them): {defects}."


def print_diagnosis(diagnosis: Diagnosis, console: Console) -> None:
    """Print a diagnosis.

    Args:
        diagnosis: what was found.
        console: where to print.
    """
    if diagnosis.model is not None:
        _model(diagnosis.model, console)
    troubles = [version for version in diagnosis.versions if version.trouble]
    if troubles:
        _title(console, "What is wrong with the installation")
        for version in troubles:
            _say(console, f"[red]{escape(_trouble(version))}[/]", indent=2)
    _defects(diagnosis, console)
    _versions(diagnosis.versions, console)


def _model(model: ModelReport, console: Console) -> None:
    _say(console, f"[bold]{escape(headline(model))}[/]")
    macs = "MACs unknown" if model.macs is None else f"{quantity(model.macs)} MACs per sample"
    shapes = f"inputs {_shapes(model.inputs)}, outputs {_shapes(model.outputs)}"
    _say(console, f"{escape(model.name)}: {quantity(model.parameters)} parameters, {macs}; {shapes}")
    if model.problem:
        _say(console, escape(as_sentence(model.problem)), indent=2)
    if model.export is not None:
        lead = "Export to ONNX as it is:" if model.export.proven else "Cannot be exported to ONNX as it is:"
        _say(console, f"{lead} {escape(as_sentence(model.export.statement))}")
    if model.prunable:
        _title(console, "Coupled groups that can be pruned")
        _say(console, f"[dim]{COUPLED}[/]")
        console.print(_plan(model.prunable))
    if model.left_alone:
        _title(console, "What keeps its width, and why")
        for reason, layers in _by_reason(model.left_alone).items():
            _say(console, f"{escape(named(layers))}: {escape(reason)}", indent=2)
    if model.frozen:
        _title(console, "Frozen layers")
        _say(
            console, f"Pruned with their coupled groups, and still frozen then: {escape(named(model.frozen))}", indent=2
        )
    if model.heads:
        _title(console, "Attention heads found")
        heads = [f"{path} ({count})" for path, count in model.heads.items()]
        _say(console, escape(named(heads)), indent=2)
    if model.alignment is not None and model.alignment.widths:
        _alignment(model.alignment, console)


def headline(model: ModelReport) -> str:
    """Whether the model can be pruned, in one sentence."""
    if not model.prunable:
        return "Nothing of this model can be pruned."
    candidates = [g for g in model.groups if g.verdict in ("exact", "approximate", "unsupported")]
    units = sum(next(iter(g.units.values())) for g in model.prunable)
    proof = "all proven exact" if all(g.verdict == "exact" for g in model.prunable) else "some only approximately"
    return (
        f"This model can be pruned: {len(model.prunable)} of {counted(len(candidates), 'coupled group')}, "
        f"{units:,} units, {proof}."
    )


def named(layers: Sequence[str]) -> str:
    """The first few by name, the rest as a number."""
    if len(layers) <= NAMED + 1:
        return listed(layers)
    return f"{', '.join(layers[:NAMED])} and {len(layers) - NAMED} more"


def _plan(rows: Iterable[GroupRow]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("Coupled group", overflow="fold", ratio=None)
    table.add_column("Units", justify="right", overflow="fold")
    table.add_column("Layers", justify="right")
    table.add_column("Proof", overflow="fold")
    for row in rows:
        units = "\n".join(f"{size} {kind}" if kind != "channels" else f"{size}" for kind, size in row.units.items())
        if row.verdict == "exact":
            verdict = "exact" if row.error is None else f"exact ({row.error:.0e})"
        else:
            verdict = f"approximate ({row.error:.0e}): {row.reason}"
        table.add_row(escape(row.name), units, str(len(row.members)), escape(verdict))
    return table


def _alignment(report: AlignmentReport, console: Console) -> None:
    _title(console, f"Widths for {report.target}")
    _say(
        console,
        f"Multiples of {report.block} channels pay best, other widths than multiples of {report.grain} leave the fast "
        f"layout. [dim]Known from {escape(report.source)}[/]",
        indent=2,
    )
    outside = [f"{w.name} ({w.width})" for w in report.widths if not w.fits]
    narrow = [f"{w.name} ({w.width})" for w in report.widths if w.narrow]
    moved = [f"{w.name} ({w.asked}→{w.kept})" for w in report.widths if w.kept != w.asked]
    if outside:
        _say(console, f"Outside the fast layout now: {escape(named(outside))}.", indent=2)
    if narrow:
        _say(console, f"Narrower than {report.block}: {escape(named(narrow))}.", indent=2)
    at = f"At a pruning ratio of {percent(report.ratio, 0)}"
    if moved:
        _say(console, f"{at} kept for the target's sake instead of what is asked: {escape(named(moved))}.", indent=2)
    else:
        _say(console, f"{at} every width that is asked for fits.", indent=2)


def _defects(diagnosis: Diagnosis, console: Console) -> None:
    present = [f for f in diagnosis.findings if f.condition != "mended"]
    touching = [f for f in present if f.touches]
    if diagnosis.model is not None:
        _title(console, "Known defects of the hosts that touch this model")
        for finding in touching:
            _finding(finding, console)
        if not touching:
            _say(console, "None of those that depend on the model.", indent=2)
        everywhere = [f.id for f in present if f.every_model]
        if everywhere:
            _say(console, escape(EVERYWHERE.format(defects=listed(everywhere))), indent=2)
    else:
        _title(console, "Known defects of the hosts, as tried on what is installed")
        for finding in present:
            _finding(finding, console)
    mended = [f for f in diagnosis.findings if f.condition == "mended"]
    if mended:
        _title(console, "Mended in what is installed here")
        _say(console, escape(listed([f"{f.id} ({f.host} {', '.join(f.seen_in)})" for f in mended])), indent=2)


def _finding(finding: Finding, console: Console) -> None:
    unclear = "" if finding.condition == "present" else f" [yellow](unclear: {escape(finding.detail)})[/]"
    _say(console, f"[bold]{escape(finding.id)}[/] [dim]({finding.host})[/]{unclear}", indent=2)
    _say(console, escape(finding.summary), indent=4)
    if finding.touches:
        _say(console, f"Here: {escape(named(finding.layers))}.", indent=4)
    _say(console, f"[green]→[/] {escape(finding.remedy)}", indent=4)


def _versions(versions: Sequence[PackageVersion], console: Console) -> None:
    _title(console, "Versions")
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for version in versions:
        supported = f"supported: {version.supported}" if version.supported else ""
        if version.trouble:
            supported += " [red](see above)[/]"
        table.add_row(version.name, escape(version.installed or NONE_INSTALLED), supported.strip())
    console.print(Padding(table, (0, 0, 0, 2), expand=False))


def _trouble(version: PackageVersion) -> str:
    problem = version.note or f"not supported, which is {version.supported}"
    return f"{version.name} {version.installed}: {problem}."


def _by_reason(left_alone: dict[str, str]) -> dict[str, list[str]]:
    layers: dict[str, list[str]] = {}
    for layer, reason in left_alone.items():
        layers.setdefault(reason, []).append(layer)
    return layers


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    """Without the batch, which the doctor chose."""
    return listed(["x".join(str(n) for n in shape[1:]) or "a number" for shape in shapes])


def _title(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold"))


def _say(console: Console, markup: str, indent: int = 0) -> None:
    console.print(Padding(markup, (0, 0, 0, indent), expand=False), highlight=False)
