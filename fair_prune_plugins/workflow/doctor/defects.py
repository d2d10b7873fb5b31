"""Known defects of the hosts, each tried on the installed version instead of believed from a list."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn

from fair_prune_plugins.gates import GatePlan

Condition = Literal["present", "mended", "unclear"]

UNTESTED = "the trial itself failed ({error})"


@dataclass(frozen=True)
class Subject:
    """The model that defects are looked for in.

    Attributes:
        model: the model.
        example_inputs: what it is called with.
        plan: its gate plan, ``None`` where there is none to be had.
        ratio: pruning ratio that is meant to be used.
        block: channels that ``round_to`` would be set to for the target, ``None`` where that is unknown.
    """

    model: nn.Module
    example_inputs: Any
    plan: GatePlan | None
    ratio: float
    block: int | None


@dataclass(frozen=True)
class HostDefect:
    """A defect of a host.

    Attributes:
        id: short name.
        host: package name of the host.
        seen_in: versions of the host in which it was seen.
        summary: what goes wrong, in one sentence.
        remedy: what this package does about it, in one sentence.
        present: reproduces it on the installed host: ``True`` where it is there, ``False`` where it is mended.
        applies: the layers of a model that it touches; ``None`` for what goes wrong whatever the model is.
    """

    id: str
    host: str
    seen_in: tuple[str, ...]
    summary: str
    remedy: str
    present: Callable[[], bool]
    applies: Callable[[Subject], list[str]] | None = None


@dataclass(frozen=True)
class Finding:
    """A defect on this installation, and where it touches the model.

    Attributes:
        id: see :class:`HostDefect`, and so are the next four.
        host: see there.
        seen_in: see there.
        summary: see there.
        remedy: see there.
        condition: whether the installed host has it.
        every_model: whether it goes wrong whatever the model is.
        layers: the layers of the model that it touches; empty without a model.
        detail: why the condition is unclear, or empty.
    """

    id: str
    host: str
    seen_in: tuple[str, ...]
    summary: str
    remedy: str
    condition: Condition
    every_model: bool
    layers: tuple[str, ...] = ()
    detail: str = ""

    @property
    def touches(self) -> bool:
        """Whether it touches layers of the model that was examined."""
        return bool(self.layers) and self.condition != "mended"

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        return asdict(self)


def known_defects() -> tuple[HostDefect, ...]:
    """The defects of the hosts that are installed."""
    from fair_prune_plugins.workflow.doctor.nni_defects import NNI_DEFECTS, nni_is_installed
    from fair_prune_plugins.workflow.doctor.ranking_defects import RANKING_DEFECTS
    from fair_prune_plugins.workflow.doctor.structure_defects import STRUCTURE_DEFECTS

    return (*STRUCTURE_DEFECTS, *RANKING_DEFECTS, *(NNI_DEFECTS if nni_is_installed() else ()))


def findings(defects: Iterable[HostDefect], subject: Subject | None = None) -> tuple[Finding, ...]:
    """Try each defect on the installed host, and look for the layers of the model that it touches.

    Nothing global is left changed: neither the random state nor warning filters nor the host's own defaults.
    """
    return tuple(_finding(defect, subject) for defect in defects)


def _finding(defect: HostDefect, subject: Subject | None) -> Finding:
    condition: Condition
    detail = ""
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the hosts' own, about what is provoked or looked at here
        torch.manual_seed(0)
        try:
            condition = "present" if defect.present() else "mended"
        except Exception as error:  # another version of the host may fail in ways of its own
            condition, detail = "unclear", UNTESTED.format(error=f"{type(error).__name__}: {error}")
        layers = () if subject is None or defect.applies is None else tuple(defect.applies(subject))
    return Finding(
        id=defect.id,
        host=defect.host,
        seen_in=defect.seen_in,
        summary=defect.summary,
        remedy=defect.remedy,
        condition=condition,
        every_model=defect.applies is None,
        layers=layers,
        detail=detail,
    )
