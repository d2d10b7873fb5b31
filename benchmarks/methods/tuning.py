"""Choose options on validation people, and hand out the comparison's tasks with what was chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.fairface.bench import LOGITS, PEOPLE, level_name
from benchmarks.fairface.design import DenseTask, Task, WalkTask
from benchmarks.fairface.running import Foreman, say
from benchmarks.methods.bench import TUNING
from benchmarks.methods.design import Choice, MethodsDesign, candidates, choices, loss_with, tasks, with_options
from fair_prune_plugins.workflow.run_folder import write_json

CHOSEN = "chosen.json"


@dataclass
class MethodsForeman(Foreman):
    """Who does what next, and with which options."""

    design: MethodsDesign
    chosen: dict[str, dict[str, Any]] = field(default_factory=dict)

    def planned(self) -> list[Task]:
        """All tasks, in the order to do them."""
        return tasks(self.config, self.design)

    def kind(self, task: Task) -> tuple[str, ...]:
        """Walks take as long as their method's; those of the tuning end early."""
        if isinstance(task, DenseTask):
            return ("dense",)
        stage = "tuning" if task.seed == self.design.tuning_seed else "walk"
        return (stage, task.method.name, str(task.method.options.get("statistic")))

    def choose(self) -> None:
        """After every task: choose what can be chosen by now."""
        for choice in choices(self.config, self.design):
            walks = candidates(self.config, self.design, choice)
            if choice.key not in self.chosen and self.done.issuperset(walk.name for walk in walks):
                found = best(choice, walks, self.path, self.design.tuning_macs)
                self.chosen[choice.key] = found
                write_json(self.path / CHOSEN, self.chosen)
                say(f"{choice.key}, chosen on validation people: {found['options'] or 'the defaults'}")

    def resolved(self, task: Task) -> Task:
        """A walk with the options that were chosen for its method and its loss."""
        if isinstance(task, DenseTask) or task.seed == self.design.tuning_seed:
            return task
        return with_chosen(task, choices(self.config, self.design), self.chosen)


def with_chosen(task: WalkTask, made: list[Choice], chosen: dict[str, dict[str, Any]]) -> WalkTask:
    """A walk with the options that were chosen for its method and its loss."""
    for choice in made:
        options = chosen[choice.key]["options"] if choice.key in chosen else {}
        if choice.of == "loss" and choice.title == task.loss.title:
            task = replace(task, loss=loss_with(task.loss, options))
        elif choice.of != "loss" and choice.title == task.method.title:
            task = replace(task, method=with_options(task.method, options, choice.of))
    return task


def best(choice: Choice, walks: list[WalkTask], path: Path, shares: tuple[float, ...]) -> dict[str, Any]:
    """The candidate with the highest mean accuracy over the third of the groups that the dense network serves worst.

    The groups are fixed by the dense network, so the highest of many noisy minima is not what is chosen; a third of
    them, for one group of validation people is too small to choose by. Of equals, the first, which is the default.

    Returns:
        ``options``, ``groups`` (numbers of those that count) and ``accuracy`` by candidate.
    """
    with np.load(path / TUNING / f"{PEOPLE}.npz") as people:
        labels, codes = people["labels"], people["groups"]
    present = np.unique(codes[codes >= 0])

    def accuracy(folder: Path) -> npt.NDArray[np.float64]:
        with np.load(folder / LOGITS) as logits:
            right = logits["test"].argmax(1) == labels
        return np.array([right[codes == g].mean() for g in present])

    dense = accuracy(path / DenseTask(walks[0].seed).name)
    worst = np.argsort(dense, kind="stable")[: math.ceil(len(present) / 3)]
    scores = [
        float(np.mean([accuracy(path / walk.name / level_name(share))[worst] for share in shares])) for walk in walks
    ]
    return {
        "options": dict(choice.values[int(np.argmax(scores))]),
        "groups": [int(present[g]) for g in worst],
        "accuracy": [
            {"options": dict(options), "accuracy": score} for options, score in zip(choice.values, scores, strict=True)
        ],
    }
