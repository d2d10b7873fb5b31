"""What the doctor found out, as plain records."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from fair_prune_plugins.workflow.doctor.defects import Finding
from fair_prune_plugins.workflow.doctor.versions import PackageVersion

SCHEMA_VERSION = 1

Verdict = Literal["exact", "approximate", "unsupported", "ignored", "output", "single unit"]


@dataclass(frozen=True)
class GroupRow:
    """A coupled group of the gate plan.

    Attributes:
        name: the coupled group, by its root layer.
        units: how many units it has, by kind (``channels``, ``head dimensions``, ``heads``).
        channels: its root channels; more than the units where those repeat over conv groups or heads.
        verdict: ``exact`` and ``approximate`` groups can be pruned.
        error: largest relative difference that the proof found, ``None`` without a proof.
        reason: what makes it approximate or keeps it as it is, or empty.
        members: layers and parameters that lose channels together.
        frozen: those of them that do not require a gradient.
    """

    name: str
    units: dict[str, int]
    channels: int
    verdict: Verdict
    error: float | None
    reason: str
    members: tuple[str, ...]
    frozen: tuple[str, ...] = ()

    @property
    def prunable(self) -> bool:
        """Whether units of it may be removed."""
        return self.verdict in ("exact", "approximate")


@dataclass(frozen=True)
class WidthRow:
    """A coupled group seen by the runtime.

    Attributes:
        name: the coupled group.
        width: channels now.
        asked: channels that the pruning ratio alone would keep.
        kept: channels that are kept for the target's sake.
        fits: whether the width now is one that the target rewards.
        narrow: whether it has fewer channels than a block, so that no width of it fits.
        reason: why ``kept`` is not ``asked``, or empty.
    """

    name: str
    width: int
    asked: int
    kept: int
    fits: bool
    narrow: bool
    reason: str = ""


@dataclass(frozen=True)
class AlignmentReport:
    """Which widths the target rewards, and what that means for the model.

    Attributes:
        block: multiples of this many channels cost what their MACs say.
        grain: other widths than multiples of this leave the runtime's fast layout.
        target: what the model is to run on.
        source: how that is known.
        ratio: the pruning ratio that the widths are told for.
        widths: a row per coupled group that can be pruned, heads aside.
    """

    block: int
    grain: int
    target: str
    source: str
    ratio: float
    widths: tuple[WidthRow, ...]


@dataclass(frozen=True)
class ExportCheck:
    """Whether the model as it is can be exported to ONNX and proven equal.

    Attributes:
        proven: whether it was.
        statement: the proof, or what stopped it.
    """

    proven: bool
    statement: str


@dataclass(frozen=True)
class ModelReport:
    """One model.

    Attributes:
        name: class of the model.
        inputs: shapes of its example inputs.
        outputs: shapes of its outputs on them.
        macs: multiply-accumulates of one sample as Torch-Pruning counts them, ``None`` where it cannot.
        parameters: number of parameters.
        problem: why nothing of it can be pruned, or empty.
        groups: the gate plan; empty where there is none to be had.
        left_alone: layers that keep their width, and why.
        frozen: layers without gradients that would be pruned with their coupled groups and stay frozen.
        heads: attention projections that were recognised, and their head counts.
        alignment: what the target makes of the widths; ``None`` where that cannot be known here.
        export: whether an export was proven; ``None`` where none was asked for.
    """

    name: str
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    macs: int | None
    parameters: int
    problem: str = ""
    groups: tuple[GroupRow, ...] = ()
    left_alone: dict[str, str] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    heads: dict[str, int] = field(default_factory=dict)
    alignment: AlignmentReport | None = None
    export: ExportCheck | None = None

    @property
    def prunable(self) -> tuple[GroupRow, ...]:
        """Coupled groups that units may be removed from."""
        return tuple(g for g in self.groups if g.prunable)


@dataclass(frozen=True)
class Diagnosis:
    """The installation, and a model if one was given.

    Attributes:
        versions: of Python and the packages that take part.
        findings: known defects of the installed hosts.
        model: the model, if any.
    """

    versions: tuple[PackageVersion, ...]
    findings: tuple[Finding, ...]
    model: ModelReport | None = None

    @property
    def can_be_pruned(self) -> bool:
        """Whether there is a model and something of it can be pruned."""
        return self.model is not None and bool(self.model.prunable)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        return {"schema_version": SCHEMA_VERSION, "can_be_pruned": self.can_be_pruned, **asdict(self)}
