"""Made-up people to audit: what is known of them, and what a dense and two pruned models say, run by run."""

from __future__ import annotations

from typing import Any

import numpy as np

from fair_prune_plugins.audit.data import AuditData, ModelPredictions, People, TrainingPeople
from fair_prune_plugins.groups import GroupLabels
from fair_prune_plugins.postprocessing.scores import Task

RACES = ("Black", "East Asian", "Indian", "Latino", "Middle Eastern", "Southeast Asian", "White")
LABELS = ("Smiling", "Eyeglasses", "Wearing hat", "Young")


def make_audit(
    n: int = 900,
    *,
    task: Task = "multilabel",
    outputs: tuple[str, ...] = LABELS,
    races: tuple[str, ...] = RACES[:3],
    runs: int = 1,
    pruned: int = 2,
    unknown: int = 0,
    seed: int = 0,
    who: str = "person",
    trained: bool = True,
) -> AuditData:
    """People whom pruned models serve worse the later their group stands in the alphabet, and rare labels worst."""
    rng = np.random.default_rng(seed)
    race = np.sort(rng.choice(len(races), n, p=np.linspace(1.6, 0.4, len(races)) / len(races)))
    gender = rng.integers(0, 2, n)
    race[:unknown] = -1
    groups = (
        GroupLabels(races, race, "race"),
        GroupLabels(("Female", "Male"), gender, "gender"),
    )
    k = len(outputs)
    if task == "multiclass":
        labels: Any = rng.integers(0, k, n)
        truth = labels[:, None] == np.arange(k)
    else:
        shares = np.linspace(0.5, 0.12, k)
        truth = rng.random((n, k)) < shares + 0.05 * gender[:, None]
        labels = truth.astype(np.int64) if task == "multilabel" else truth[:, 0].astype(np.int64)
    base = np.where(truth, 2.0, -2.0) + rng.normal(0, 1.4, truth.shape)
    harm = (np.maximum(race, 0) / max(len(races) - 1, 1))[:, None]

    def says(strength: float, model: int) -> tuple[Any, ...]:
        found = []
        for run in range(runs):
            noise = np.random.default_rng([seed, model, run]).normal(0, 0.3 + strength * (0.4 + harm), truth.shape)
            logits = base + noise - strength * 0.9 * (truth.mean(axis=0) < 0.3)
            found.append(logits[:, 0] if task == "binary" else logits)
        return tuple(found)

    training = TrainingPeople(labels, groups) if trained else None
    people = People(tuple(f"{who} {i}" for i in range(n)), labels, groups, outputs, task)
    return AuditData(
        people,
        ModelPredictions("dense", says(0.0, 0)),
        tuple(ModelPredictions(f"pruned {50 + 30 * m} %", says(0.8 + 0.9 * m, m + 1)) for m in range(pruned)),
        training,
    )
