"""A run's data set as the people of an audit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from fair_prune_plugins.audit.data import People, TrainingPeople
from fair_prune_plugins.audit.reading import output_name, taken_apart
from fair_prune_plugins.workflow import sources
from fair_prune_plugins.workflow.config import RunConfig
from fair_prune_plugins.workflow.data import Part, Samples

PARTLY_UNKNOWN = (
    "People of whom one of {attribute} is unknown count as unknown in each of these attributes ({count} people)."
)

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True)
class AuditedSet:
    """A data set, and how its people are called.

    Attributes:
        samples: everybody.
        target: what is predicted.
    """

    samples: Samples
    target: str

    @classmethod
    def load(cls, config: RunConfig, base: Path) -> AuditedSet:
        """The data set of a configuration.

        Raises:
            InputError: see :func:`fair_prune_plugins.workflow.sources.load`.
        """
        return cls(sources.load(config.data, base=base, seed=config.seed), config.data.target)

    def rows(self, part: Part | None) -> Rows:
        """Rows of a part; of everybody without."""
        return np.arange(len(self.samples)) if part is None else self.samples.rows(part)

    def ids(self, rows: Rows) -> pd.Index[str]:
        """Ids of the data set: file names, or row numbers, which stay the same whatever parts are drawn."""
        called = self.samples.called
        named: pd.Index[str] = pd.Index([called[row] for row in rows.tolist()], dtype=object)
        return named

    def people(self, rows: Rows) -> People:
        """Some of the people, each sensitive attribute by itself and all of them crossed."""
        classes = self.samples.classes
        binary = len(classes) == 2
        return People(
            ids=tuple(self.ids(rows).tolist()),
            labels=self.samples.labels[rows],
            groups=taken_apart(self.samples.groups.take(rows)),
            outputs=(output_name(self.target, classes),) if binary else classes,
            task="binary" if binary else "multiclass",
        )

    def training(self) -> TrainingPeople:
        """Labels and groups of the training people."""
        rows = self.samples.rows(Part.TRAIN)
        return TrainingPeople(self.samples.labels[rows], taken_apart(self.samples.groups.take(rows)))

    def notes(self) -> tuple[str, ...]:
        """What a reader must know of the data."""
        groups = self.samples.groups
        crossed = len(taken_apart(groups)) > 1
        partly = (PARTLY_UNKNOWN.format(attribute=groups.attribute, count=groups.unknown),)
        return (*self.samples.notes, *(partly if crossed and groups.unknown else ()))
