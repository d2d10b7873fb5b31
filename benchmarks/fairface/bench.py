"""What one process of the study does: train a dense network, or walk from it down to the smallest share of MACs.

The parts are those of ``fair-prune run``; what is left out is what the design needs once and not hundreds of times
(ONNX files, proofs, latency). Per-person outputs are written into the run folder alone.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmarks.fairface.design import DenseTask, Design, Task, WalkTask
from fair_prune_plugins import latency, losses, onnx
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.evaluation import TorchPredictor, predict
from fair_prune_plugins.groups import GroupReader
from fair_prune_plugins.losses import CrossEntropy, DenseAccuracy, LossHook, Teacher, TeacherCache
from fair_prune_plugins.torch_pruning.counting import macs_and_params
from fair_prune_plugins.workflow import model_store, pruning, sources, training
from fair_prune_plugins.workflow.amounts import Amount
from fair_prune_plugins.workflow.config import RunConfig
from fair_prune_plugins.workflow.data import Batches, Normalisation, Part
from fair_prune_plugins.workflow.prune_config import MethodConfig
from fair_prune_plugins.workflow.run_folder import Finished, RunFolder, read_json, write_json
from fair_prune_plugins.workflow.stages import pick_device
from fair_prune_plugins.workflow.training_config import LossConfig

PEOPLE, COST = "people", "cost"
LOGITS = "logits.npz"
BATCH = 256

OTHER_WIDTHS = (
    "{walk} has the widths {got} at {share:.3g} of the MACs, the others {expected}: criteria would be compared at "
    "different costs; use prune.allocation: local"
)


class Silent:
    """A watcher that says nothing: the parent process speaks."""

    def started(self, stage: str) -> None:
        """Nothing."""

    def finished(self, stage: str, outcome: Finished) -> None:
        """Nothing."""


def level_name(share: float) -> str:
    """A share of the MACs as the folder of its outputs."""
    return f"macs-{100 * share:.6g}"


class Bench:
    """The people, and what is done with them.

    Args:
        config: of the study.
        design: likewise.
        path: the run folder; the caller sees to it that one study works in it.
        base: folder that ``module:function`` is looked up in.
    """

    def __init__(self, config: RunConfig, design: Design, path: Path, base: Path) -> None:
        self.config, self.design, self.base = config, design, base
        self.folder = RunFolder(path, Silent())
        self.device = pick_device(config.device)
        self.samples = sources.load(config.data, base=base, seed=config.seed)
        self.normalise = Normalisation.of_training(self.samples)
        self.stamp = self.samples.fingerprint()
        self._facts = functools.lru_cache(maxsize=2)(self._read_facts)

    def do(self, task: Task) -> Finished:
        """Do a task unless it is finished."""
        return self._dense(task.seed) if isinstance(task, DenseTask) else self._walk(task)

    # --- once ---

    def people(self) -> Finished:
        """Labels and groups of the people who are chosen and judged on."""

        def work(folder: Path) -> None:
            arrays = {}
            for part in (Part.VALIDATION, Part.TEST):
                rows = self.samples.rows(part)
                arrays[f"{part}_labels"] = self.samples.labels[rows]
                arrays[f"{part}_groups"] = self.samples.groups.codes[rows]
            np.savez(folder / "people.npz", **arrays)  # type: ignore[arg-type]
            write_json(
                folder / "people.json",
                {
                    "groups": list(self.samples.groups.names),
                    "attribute": self.samples.groups.attribute,
                    "sizes": self.samples.sizes,
                    "notes": list(self.samples.notes),
                },
            )

        return self.folder.stage(PEOPLE, {"data": self.stamp}, work)

    def cost(self) -> Finished:
        """Widths, MACs and latency at each judged share: they do not depend on weights, so fresh ones will do."""

        def work(folder: Path) -> None:
            torch.manual_seed(self.config.seed)
            model = self._recipe().build(self.base)
            networks = {"dense": self._measured(model, folder / "dense.onnx")}
            for share in self.design.stops(self.config):
                self._prune(model, MethodConfig(name="magnitude"), share, networks["dense"]["macs"])
                if share in self.config.prune.macs:
                    name = level_name(share)
                    networks[name] = self._measured(model, folder / f"{name}.onnx")
            timed = latency.benchmark(
                {name: folder / f"{name}.onnx" for name in networks},
                inputs=self._recipe().example(self.config.benchmark.batch_size).numpy(),
                macs={name: network["macs"] for name, network in networks.items()},
                reference="dense",
                seed=self.config.seed,
                progress=False,
                **self.config.benchmark.model_dump(),
            )
            write_json(folder / "cost.json", {"networks": networks, "latency": timed.as_dict()})

        depends = {**self._pruning(), "model": self._model(), "benchmark": self.config.benchmark.model_dump()}
        return self.folder.stage(COST, depends, work)

    def _measured(self, model: nn.Module, path: Path) -> dict[str, Any]:
        example = self._recipe().example(2)
        onnx.export(model.cpu().eval(), example, path)
        macs, params = macs_and_params(model, example[:1])
        return {"macs": macs, "params": params, "widths": widths(model)}

    # --- networks ---

    def _dense(self, seed: int) -> Finished:
        task = DenseTask(seed)
        depends = {
            "data": self.stamp,
            "model": self._model(),
            "training": self.config.training.model_dump(mode="json"),
            "seed": seed,
            "stored_as": model_store.SCHEMA_VERSION,
        }

        def work(folder: Path) -> None:
            start = time.perf_counter()
            torch.manual_seed(seed)  # of the fresh weights
            recipe = self._recipe()
            model = recipe.build(self.base)
            self._fit(model, "training", self.config.training.epochs, seed * 100, task.name, None)
            model_store.save(model, recipe, folder, beside=self.base)
            accuracy = DenseAccuracy.measure(
                model, self._batches(Part.TRAIN), groups=self._reader(), inputs="inputs", targets="targets"
            )
            self._predict(model, folder)
            write_json(folder / "accuracy.json", asdict(accuracy))
            write_json(folder / "task.json", {"seed": seed, "seconds": time.perf_counter() - start})

        return self.folder.stage(task.name, depends, work)

    def _walk(self, task: WalkTask) -> Finished:
        dense = self._dense(task.seed)
        stops = self.design.stops(self.config)
        finetune = self.config.finetune
        depends = {
            **self._pruning(),
            "dense": dense.stamp,
            "method": task.method.model_dump(mode="json", include={"name", "options"}),
            "loss": task.loss.model_dump(mode="json", include={"name", "options"}),
            "finetune": finetune.model_dump(mode="json", exclude={"losses"}),
        }

        def work(folder: Path) -> None:
            start = time.perf_counter()
            model, _ = model_store.load(dense.folder, beside=self.base)
            whole, _ = macs_and_params(model, self._recipe().example(1))
            hook = self._hook(task.loss, task.seed)
            spent: dict[str, float] = {}
            levels: dict[str, Any] = {}
            for number, share in enumerate(stops, start=1):
                pruned = self._prune(model, task.method, share, whole, hook=hook)
                judged = share in self.config.prune.macs
                epochs = finetune.epochs if judged else finetune.epochs_between
                fitted = time.perf_counter()
                # Another order of people at every stop and in every seed, and the same for all criteria and losses.
                self._fit(model, "finetune", epochs, task.seed * 100 + number, f"{task.name} at {share:g}", hook)
                seconds = {**pruned.seconds, "finetune": time.perf_counter() - fitted}
                spent = {key: spent.get(key, 0.0) + value for key, value in seconds.items()}
                if judged:
                    name = level_name(share)
                    self._check_widths(model, share, task)
                    (folder / name).mkdir()
                    self._predict(model, folder / name)
                    levels[name] = {"notes": [*pruned.notes, *pruning.notes(pruned.steps)], "widths": widths(model)}
            write_json(
                folder / "task.json",
                {
                    "seed": task.seed,
                    "method": task.method.title,
                    "loss": task.loss.model_dump(mode="json"),
                    "seconds": time.perf_counter() - start,
                    "spent": spent,
                    "levels": levels,
                    "state": {k: v.tolist() for k, v in hook.state_dict().items() if k == "multipliers"},
                },
            )

        return self.folder.stage(task.name, depends, work)

    def _prune(
        self,
        model: nn.Module,
        method: MethodConfig,
        share: float,
        whole: int,
        *,
        hook: LossHook | None = None,
        collect_loss: LossHook | None = None,
        seed: int | None = None,
    ) -> pruning.Pruned:
        """One step, from whatever the network costs now to ``share`` of the dense network's MACs."""
        now, _ = macs_and_params(model.cpu(), self._recipe().example(1))
        once = {"prune": self.config.prune.model_copy(update={"steps": 1})}
        one_step = self.config.model_copy(update=once if seed is None else {**once, "seed": seed})
        return pruning.prune(
            model,
            method,
            Amount("macs", share * whole / now),
            one_step,
            self.samples,
            self.normalise,
            device=self.device,
            loss=hook,
            collect_loss=collect_loss,
        )

    def _fit(self, model: nn.Module, key: str, epochs: int, seed: int, what: str, hook: LossHook | None) -> None:
        training.fit(
            model,
            self.samples,
            self.normalise,
            getattr(self.config, key),
            epochs=epochs,
            seed=seed,
            device=self.device,
            what=what,
            key=key,
            loss=hook,
        )

    def _hook(self, config: LossConfig, seed: int) -> LossHook:
        if config.name == "cross_entropy" and not config.options:
            return CrossEntropy()
        teacher, accuracy = self._facts(seed)
        groups = self.samples.groups.take(self.samples.rows(Part.TRAIN))
        return losses.get(config.name).make(groups=groups, teacher=teacher, dense=accuracy, **config.options)

    def _read_facts(self, seed: int) -> tuple[Teacher, DenseAccuracy]:
        """A seed's dense network as a teacher, whose answers are remembered from walk to walk, and its accuracy."""
        folder = self.folder.path / DenseTask(seed).name
        model, _ = model_store.load(folder, beside=self.base)
        table = read_json(folder / "accuracy.json")
        remembered = None if self.config.finetune.shift else TeacherCache()
        return (
            Teacher(model.to(self.device), cache=remembered),
            DenseAccuracy(tuple(table["names"]), tuple(table["accuracy"]), tuple(table["people"])),
        )

    def _check_widths(self, model: nn.Module, share: float, task: WalkTask) -> None:
        expected = read_json(self.folder.path / COST / "cost.json")["networks"][level_name(share)]["widths"]
        got = widths(model)
        if got != expected:
            raise InputError(OTHER_WIDTHS.format(walk=task.name, got=got, share=share, expected=expected))

    def _predict(self, model: nn.Module, folder: Path) -> None:
        logits: Mapping[str, npt.NDArray[Any]] = {
            str(part): predict(TorchPredictor(model), self._batches(part).arrays(), progress=False)
            for part in (Part.VALIDATION, Part.TEST)
        }
        np.savez(folder / LOGITS, **logits)  # type: ignore[arg-type]

    # --- common ---

    def _batches(self, part: Part) -> Batches:
        return Batches(self.samples, self.samples.rows(part), self.normalise, BATCH, self.device)

    def _reader(self) -> GroupReader:
        return GroupReader({self.samples.groups.attribute: "group"}, names=self.samples.groups.names)

    def _recipe(self) -> model_store.Recipe:
        model = self.config.model
        return model_store.Recipe(
            model.factory, model.options, len(self.samples.classes), self.samples.inputs.shape[1:]
        )

    def _model(self) -> dict[str, Any]:
        return self.config.model.model_dump(mode="json", include={"factory", "options"})

    def _pruning(self) -> dict[str, Any]:
        return {
            "prune": self.config.prune.model_dump(mode="json", exclude={"methods", "steps", "macs"}),
            "macs": sorted(self.config.prune.macs),
            "stops": self.design.stops(self.config),
        }


def widths(model: nn.Module) -> list[int]:
    """Output channels of all convolutions, in the order of the network; without any, outputs of all linear layers."""
    convolutions = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    return convolutions or [module.out_features for module in model.modules() if isinstance(module, nn.Linear)]
