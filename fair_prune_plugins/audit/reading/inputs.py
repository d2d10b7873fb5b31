"""What reading ends in: the people and predictions to audit, and what a reader must know of how they were read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fair_prune_plugins.audit.data import NO_RUNS, AuditData
from fair_prune_plugins.errors import InputError


@dataclass(frozen=True)
class Inputs:
    """What is audited.

    Attributes:
        data: the audited people and what the models said of them.
        validation: other people, on whom countermeasures are chosen; ``None`` where there are none.
        notes: how the inputs were understood and what was left out, in sentences.
    """

    data: AuditData
    validation: AuditData | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model.

    Attributes:
        name: how reports call it.
        paths: one file for each run (training seed).
    """

    name: str
    paths: tuple[Path, ...]

    def __post_init__(self) -> None:
        if not self.paths:
            raise InputError(NO_RUNS.format(name=self.name))

    @property
    def run_names(self) -> tuple[str, ...]:
        """How reports call the runs: by file name, or by path where file names repeat; numbered if paths do too."""
        for names in ([p.stem for p in self.paths], [str(p) for p in self.paths]):
            if len(set(names)) == len(names):
                return tuple(names)
        return ()
