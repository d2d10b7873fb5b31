"""What one process of the comparison does: the face study's walks, for methods that rank, learn and differ in widths.

Budgets are equal in steps of the optimizer on the weights. A bi-level method (BiFP, BiP) trains the weights while it
learns its gates: at each stop that takes ``learned_share`` of the stop's epochs, and fine-tuning what is left of them.
What ranks channels (statistics, steps on gates) moves no weight; it is not part of the budget, and is reported as time.
"""

from __future__ import annotations

import copy
import functools
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from benchmarks.fairface.bench import COST, PEOPLE, Bench, level_name, widths
from benchmarks.fairface.design import DenseTask, Task, WalkTask
from benchmarks.methods.design import MethodsDesign
from fair_prune_plugins import latency, onnx
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.learned_gates import LearnedMethod
from fair_prune_plugins.torch_pruning.counting import macs_and_params
from fair_prune_plugins.workflow import methods, model_store, pruning
from fair_prune_plugins.workflow.config import RunConfig
from fair_prune_plugins.workflow.data import Part, Samples, draw_parts
from fair_prune_plugins.workflow.prune_config import MethodConfig
from fair_prune_plugins.workflow.run_folder import Finished, write_json

TUNING = "tuning"
SPLIT_SEED = 20260102

OTHER_BATCHES = (
    "prune.batch_size is {prune} and finetune.batch_size {finetune}: {method} trains with the first, so its steps "
    "would not be worth those of the others; make them equal"
)


class MethodsBench(Bench):
    """The people, and what is done with them; see :class:`~benchmarks.fairface.bench.Bench`.

    Choices are made on half of the validation people, in a world without test people: channels are ranked on the other
    half, so that no candidate is judged by whom it was ranked on.
    """

    design: MethodsDesign

    def __init__(self, config: RunConfig, design: MethodsDesign, path: Path, base: Path) -> None:
        super().__init__(config, design, path, base)
        for method in config.prune.methods:
            if is_bilevel(method) and config.prune.batch_size != config.finetune.batch_size:
                raise InputError(
                    OTHER_BATCHES.format(
                        prune=config.prune.batch_size, finetune=config.finetune.batch_size, method=method.title
                    )
                )

    @functools.cached_property
    def tuning(self) -> MethodsBench:
        """The same, for the tuning seed: what is called test there are validation people who rank no channel."""
        other = copy.copy(self)
        other.samples = without_test(self.samples)
        other.stamp = other.samples.fingerprint()
        other._facts = functools.lru_cache(maxsize=1)(other._read_facts)
        return other

    def do(self, task: Task) -> Finished:
        """Do a task unless it is finished."""
        here = self.tuning if task.seed == self.design.tuning_seed else self
        return here._dense(task.seed) if isinstance(task, DenseTask) else here._walk(task)

    def people(self) -> Finished:
        """Labels and groups of the people who are judged on, and of those who are chosen on."""
        if self.design.tune:
            samples = self.tuning.samples

            def work(folder: Path) -> None:
                rows = samples.rows(Part.TEST)
                np.savez(folder / f"{PEOPLE}.npz", labels=samples.labels[rows], groups=samples.groups.codes[rows])

            self.folder.stage(TUNING, {"data": self.tuning.stamp}, work)
        return super().people()

    # --- walks ---

    def _walk(self, task: WalkTask) -> Finished:
        dense = self._dense(task.seed)
        finetune, method = self.config.finetune, task.method
        judged = self.design.judged(self.config, task.seed)
        named = {"name", "options"}
        own = method.collect_loss
        depends = {
            **self._pruning(),
            "judged": list(judged),
            "learned_share": self.design.learned_share,
            "dense": dense.stamp,
            "method": method.model_dump(mode="json", include=named),
            "allocation": self.config.prune.allocation_of(method),
            "collect_loss": None if own is None else own.model_dump(mode="json", include=named),
            "loss": task.loss.model_dump(mode="json", include=named),
            "finetune": finetune.model_dump(mode="json", exclude={"losses"}),
            "benchmark": self.config.benchmark.model_dump(),
        }

        def work(folder: Path) -> None:
            start = time.perf_counter()
            model, _ = model_store.load(dense.folder, beside=self.base)
            whole, _ = macs_and_params(model, self._recipe().example(1))
            hook = self._hook(task.loss, task.seed)
            # Of the method's own, else bi-level training takes what fine-tuning does, and ranking plain cross-entropy.
            ranking = self._hook(own, task.seed) if own is not None else hook if is_bilevel(method) else None
            spent, trained = dict.fromkeys(("collect", "prune", "finetune"), 0.0), 0
            levels: dict[str, Any] = {}
            for number, share in enumerate(self.design.stops_of(self.config, task.seed), start=1):
                seed = task.seed * 100 + number
                epochs = finetune.epochs if share in judged else finetune.epochs_between
                learned = learned_epochs(method, epochs, self.design.learned_share)
                taught = self._with_steps(method, learned)
                pruned = self._prune(model, taught, share, whole, collect_loss=ranking, seed=seed)
                fitted = time.perf_counter()
                self._fit(model, "finetune", epochs - learned, seed, f"{task.name} at {share:g}", hook)
                seconds = {**pruned.seconds, "finetune": time.perf_counter() - fitted}
                spent = {key: spent[key] + value for key, value in seconds.items()}
                trained += epochs * self._steps_per_epoch()
                if share in judged:
                    name = level_name(share)
                    (folder / name).mkdir()
                    self._predict(model, folder / name)
                    levels[name] = {
                        **self._looked_at(model, task, share, folder / name),
                        "notes": [*pruned.notes, *pruning.notes(pruned.steps)],
                        "spent": spent,
                        "weight_steps": trained,
                    }
            speed = self._timed(folder, list(levels)) if self._has_own_widths(task) else {}
            for name, found in speed.items():
                levels[name]["speedup"] = found
            write_json(
                folder / "task.json",
                {
                    "seed": task.seed,
                    "method": method.model_dump(mode="json"),
                    "loss": task.loss.model_dump(mode="json"),
                    "seconds": time.perf_counter() - start,
                    "levels": levels,
                },
            )

        return self.folder.stage(task.name, depends, work)

    def _with_steps(self, method: MethodConfig, learned: int) -> MethodConfig:
        """A bi-level method with as many steps on its gates as take the weights through ``learned`` epochs."""
        if not is_bilevel(method):
            return method
        lower = learned * self._steps_per_epoch() // method.options.get("weight_steps", 1)
        return method.model_copy(update={"options": {**method.options, "steps": lower}})

    def _steps_per_epoch(self) -> int:
        people = len(self.samples.rows(Part.TRAIN))
        return max(1, people // self.config.finetune.batch_size)

    def _looked_at(self, model: nn.Module, task: WalkTask, share: float, folder: Path) -> dict[str, Any]:
        """Widths and cost of a network; the file of one with widths of its own, to be timed."""
        if self._has_own_widths(task):
            onnx.export(model.cpu().eval(), self._recipe().example(2), folder / "model.onnx")
        else:
            self._check_widths(model, share, task)
        macs, params = macs_and_params(model.cpu(), self._recipe().example(1))
        return {"macs": macs, "params": params, "widths": widths(model)}

    def _has_own_widths(self, task: WalkTask) -> bool:
        """Whether a walk's widths are not those of the others, and it is looked at for more than tuning."""
        return task.seed != self.design.tuning_seed and has_own_widths(self.config, task.method)

    def _check_widths(self, model: nn.Module, share: float, task: WalkTask) -> None:
        if task.seed != self.design.tuning_seed:
            super()._check_widths(model, share, task)

    def _timed(self, folder: Path, names: list[str]) -> dict[str, Any]:
        """How many times as fast as the dense network, timed side by side: what else runs here slows both."""
        timed = latency.benchmark(
            {"dense": self.folder.path / COST / "dense.onnx", **{n: folder / n / "model.onnx" for n in names}},
            inputs=self._recipe().example(self.config.benchmark.batch_size).numpy(),
            reference="dense",
            seed=self.config.seed,
            progress=False,
            **self.config.benchmark.model_dump(),
        )
        return {m["name"]: m["speedup"] for m in timed.as_dict()["models"] if m["name"] != "dense"}


def is_bilevel(method: MethodConfig) -> bool:
    """Whether a method trains the weights while it learns gates."""
    found = methods.get(method.name)
    return isinstance(found, LearnedMethod) and "weight_steps" in found.options


def has_own_widths(config: RunConfig, method: MethodConfig) -> bool:
    """Whether a method decides how wide each layer stays: MACs are then equal, and widths are not."""
    return config.prune.allocation_of(method) != "local" or method.name == "autobot"


def learned_epochs(method: MethodConfig, epochs: int, share: float) -> int:
    """Epochs of a stop's training that are done while gates are learned: at least one, in whole ones."""
    return min(epochs, max(1, round(share * epochs))) if is_bilevel(method) else 0


def without_test(samples: Samples) -> Samples:
    """Training and validation people alone; half of the latter, group by group, take the part of test people."""
    kept = np.flatnonzero(samples.parts != str(Part.TEST))
    parts = samples.parts[kept].copy()
    groups = samples.groups.take(kept)
    validation = np.flatnonzero(parts == str(Part.VALIDATION))
    names = [groups.names[code] for code in groups.codes[validation]]
    drawn = draw_parts(names, {Part.TEST: 0.5}, seed=SPLIT_SEED)
    parts[validation] = np.where(drawn == str(Part.TEST), str(Part.TEST), str(Part.VALIDATION))
    return replace(samples, inputs=samples.inputs[kept], labels=samples.labels[kept], groups=groups, parts=parts)
