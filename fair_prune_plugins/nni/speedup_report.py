"""What a speedup did: what went, what stayed and why, and how far the smaller model is from the masked one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fair_prune_plugins.nni.choosing import KeptUnits
from fair_prune_plugins.nni.shifts import Shift

NormShift = Literal["drop", "fold"]


@dataclass(frozen=True)
class Difference:
    """The smaller model's outputs beside the masked model's, in eval mode on the example inputs.

    Attributes:
        max_abs: largest absolute difference.
        relative: the same beside the masked model's largest absolute output.
        tolerance: relative difference that rounding explains.
        reasons: why they differ by more; empty if nothing speaks for a difference.
    """

    max_abs: float
    relative: float
    tolerance: float
    reasons: tuple[str, ...]

    @property
    def expected(self) -> bool:
        """Whether it is within rounding, or there is a reason for it."""
        return self.relative <= self.tolerance or bool(self.reasons)

    def __str__(self) -> str:
        size = f"{self.max_abs:.2e} at most, {self.relative:.1e} of the outputs' scale"
        if self.relative <= self.tolerance:
            return f"equal to the masked model ({size})"
        because = "; ".join(self.reasons) if self.reasons else "UNEXPECTED"
        return f"differs from the masked model by {size}: {because}"


@dataclass(frozen=True)
class SpeedupReport:
    """What :func:`~fair_prune_plugins.nni.speedup` did.

    Attributes:
        removed: units that went, by coupled group (the path of its first layer).
        units: units that there were, by coupled group.
        kept: units that are masked somewhere and stayed.
        widths: layers that became narrower, ``((inputs, outputs) before, (inputs, outputs) after)``.
        zeros: share of zeros that masks left in weights that stayed, by ``layer.parameter``.
        parameters: number of parameters before and after.
        norm_shift: as asked for.
        shifts: layers that heard anything from removed units.
        difference: from the masked model; ``None`` where nothing was removed.
    """

    removed: Mapping[str, int]
    units: Mapping[str, int]
    kept: tuple[KeptUnits, ...]
    widths: Mapping[str, tuple[tuple[int, int], tuple[int, int]]]
    zeros: Mapping[str, float]
    parameters: tuple[int, int]
    norm_shift: NormShift
    shifts: tuple[Shift, ...]
    difference: Difference | None

    def describe(self) -> str:
        """The report as text."""
        before, after = self.parameters
        lines = [
            f"{sum(self.removed.values())} units of {len(self.removed)} coupled groups removed; "
            f"{before} -> {after} parameters ({after / max(before, 1):.1%})"
        ]
        if self.difference is not None:
            lines.append(str(self.difference))
        if self.kept:
            lines.append(f"{sum(k.units for k in self.kept)} units are masked somewhere and stay:")
            lines += [f"  {kept}" for kept in self.kept]
        for shift in self.shifts:
            parts = [f"{n} {what}" for n, what in ((shift.folded, "folded"), (shift.dropped, "dropped")) if n]
            lines.append(f"constants of removed units at {shift.layer}: {', '.join(parts)}" + _because(shift.reason))
        if self.zeros:
            lines.append("masked values that stay as zeros:")
            lines += [f"  {name}: {share:.1%}" for name, share in self.zeros.items()]
        if self.widths:
            lines.append(f"{'layer':<40} {'inputs':>14} {'outputs':>14}")
            for name, ((i, o), (new_i, new_o)) in self.widths.items():
                lines.append(f"{name:<40} {_change(i, new_i):>14} {_change(o, new_o):>14}")
        return "\n".join(lines)

    __str__ = describe


def _because(reason: str) -> str:
    return f" ({reason})" if reason else ""


def _change(before: int, after: int) -> str:
    return f"{before}" if before == after else f"{before} -> {after}"
