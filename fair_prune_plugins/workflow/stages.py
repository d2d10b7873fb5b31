"""The stages of a run, from data to report, each finished once and kept.

The dense network is trained (or loaded); its worst group is picked on validation people and stays fixed. Each criterion
then prunes the dense network to each amount, and the result is fine-tuned. Every network is exported and proven, and
what is judged on the test people, and timed, is the exported file: the thing that would be shipped.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fair_prune_plugins import __version__, losses
from fair_prune_plugins.errors import ConfigError, InputError
from fair_prune_plugins.evaluation import OnnxPredictor, TorchPredictor, evaluate, pick_worst_group, predict
from fair_prune_plugins.groups import GroupLabels
from fair_prune_plugins.latency import benchmark
from fair_prune_plugins.learned_gates import LEARNED
from fair_prune_plugins.losses import LossHook
from fair_prune_plugins.onnx import export
from fair_prune_plugins.torch_pruning.counting import macs_and_params
from fair_prune_plugins.workflow import (
    loading,
    loss_hooks,
    methods,
    model_store,
    models,
    postprocessing,
    pruning,
    report,
    sources,
    training,
)
from fair_prune_plugins.workflow.amounts import Amount
from fair_prune_plugins.workflow.config import RunConfig, path_of
from fair_prune_plugins.workflow.data import Batches, Normalisation, Part, Samples
from fair_prune_plugins.workflow.data_config import TableData
from fair_prune_plugins.workflow.postprocess_config import Step
from fair_prune_plugins.workflow.progress import show_bars
from fair_prune_plugins.workflow.prune_config import QUANTITIES, MethodConfig
from fair_prune_plugins.workflow.results import Data, ModelResult, Postprocessed, RunResults, Task, Width
from fair_prune_plugins.workflow.run_folder import Finished, RunFolder, read_json, write_json
from fair_prune_plugins.workflow.training_config import PLAIN, LossConfig

NO_CUDA = "device: {device} is not available here; use device: cpu, or auto to take a GPU where there is one"
NOBODY_TO_RANK = (
    "prune.collect_on: the groups {groups} by {attribute} have nobody among the {part} people, and {methods} compare "
    "groups on them; draw a larger share, collect on the other part, or leave such groups out of the data"
)
NO_GROUP_LARGE_ENOUGH = (
    "evaluation.minimum_group: no group by {attribute} has {minimum} validation people (the largest has {largest}), so "
    "none can be picked as the worst; enlarge the validation part or lower the minimum"
)

DENSE = "dense"
PREDICTION_BATCH = 256
"""People per call when logits are taken; no result depends on it."""

_REPORTED_PACKAGES = ("torch", "torch-pruning", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Variant:
    """A network of the run: a criterion, what it prunes down to, and the loss it is fine-tuned with.

    Attributes:
        method: the criterion.
        amount: share of units to remove, or of the cost to keep.
        loss: of fine-tuning.
    """

    method: MethodConfig
    amount: Amount
    loss: LossConfig

    @property
    def title(self) -> str:
        """Criterion and loss as the report calls them: ``fairgrape``, ``fairgrape + group_dro``."""
        return self.method.title if self.loss == PLAIN else f"{self.method.title} + {self.loss.title}"

    @property
    def name(self) -> str:
        """As the report calls it: ``fairgrape 50 %``, ``fairgrape + group_dro 30 % of MACs``."""
        return f"{self.title} {self.amount.title}"

    @property
    def folder(self) -> str:
        """As its folder is called: ``models/fairgrape-50``, ``models/fairgrape-group_dro-macs-30``."""
        loss = [] if self.loss == PLAIN else [self.loss.slug]
        return "models/" + "-".join([self.method.slug, *loss, self.amount.slug])


@dataclass
class _Track:
    """What is known of one network while the run goes on."""

    name: str
    folder: str
    store: Finished
    variant: Variant | None = None
    pruned: Finished | None = None
    onnx: Finished = field(init=False)
    logits: Finished = field(init=False)
    validation: Finished = field(init=False)
    evaluation: Finished = field(init=False)
    postprocessed: list[tuple[Step, Finished]] = field(default_factory=list)


def variants(config: RunConfig) -> list[Variant]:
    """The pruned networks of a run, amount by amount, in the order of the configuration."""
    return [
        Variant(method, amount, loss)
        for amount in config.prune.amounts
        for loss in config.finetune.losses
        for method in config.prune.methods
    ]


def stage_count(config: RunConfig) -> int:
    """How many stages a run has: five of their own, two for each pruned network, three for each ONNX file.

    With post-processing, one more for each ONNX file and one for each step that concerns it.
    """
    pruned, steps = len(variants(config)), config.postprocess.steps
    afterwards = 1 + pruned + pruned * len(steps) + sum(s.concerns_dense for s in steps) if steps else 0
    return 5 + 2 * pruned + 3 * (1 + pruned) + afterwards


@dataclass
class Run:
    """A run: the configuration, where it lives, and the people.

    Args:
        config: validated.
        base: folder that relative paths and ``module:function`` are looked up in.
        folder: opened run folder.
    """

    config: RunConfig
    base: Path
    folder: RunFolder

    def __post_init__(self) -> None:
        self.device = pick_device(self.config.device)
        for method in self.config.prune.methods:
            pruning.importance(method)  # a wrong option is better known before training than after
        self.samples = sources.load(self.config.data, base=self.base, seed=self.config.seed)
        self.normalise = Normalisation.of_training(self.samples)
        self._data_stamp = self.samples.fingerprint()
        self._check_groups()

    def execute(self) -> RunResults:
        """Do all stages that are not finished.

        Returns:
            the results, which are also in ``report/``.
        """
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        self.folder.stage("data", {"data": self._data_stamp}, self._describe_data)
        dense = _Track(DENSE, f"models/{DENSE}", self._dense())
        worst = self._worst_group(dense)
        tracks = [dense]
        self._file_and_judge(dense, dense, dense, worst)
        self._postprocess(dense, dense, worst)
        baselines: dict[Amount, _Track] = {}
        for variant in variants(self.config):
            pruned = self._pruned(variant, dense)
            track = _Track(variant.name, variant.folder, self._finetuned(variant, pruned, dense), variant, pruned)
            baseline = baselines.setdefault(variant.amount, track)
            self._file_and_judge(track, dense, baseline, worst)
            self._postprocess(track, dense, worst)
            tracks.append(track)
        latency = self._latency(tracks)
        written = self._report(tracks, latency, worst)
        return RunResults.read_json(written.folder / report.JSON_NAME)

    def _check_groups(self) -> None:
        """What would stop the run after the training stops it before."""
        part = Part(self.config.prune.collect_on)
        groups = self._groups(part)
        comparing = [m.title for m in self.config.prune.methods if methods.get(m.name).needs_groups]
        empty = groups.too_small(1)
        if comparing and empty:
            raise InputError(
                NOBODY_TO_RANK.format(
                    groups=list(empty), attribute=groups.attribute, part=part, methods=", ".join(comparing)
                )
            )
        validation, minimum = self._groups(Part.VALIDATION), self.config.evaluation.minimum_group
        largest = int(validation.counts.max(initial=0))
        if largest < minimum:
            raise InputError(
                NO_GROUP_LARGE_ENOUGH.format(attribute=validation.attribute, minimum=minimum, largest=largest)
            )
        postprocessing.check(self.config, self._labels(Part.VALIDATION), validation, len(self.samples.classes))

    def _describe_data(self, folder: Path) -> None:
        summary = {
            "sizes": self.samples.sizes,
            "classes": list(self.samples.classes),
            "groups": {str(part): self._groups(part).statement() for part in Part},
            "input_shape": list(self.samples.inputs.shape[1:]),
            "mean": list(self.normalise.mean),
            "std": list(self.normalise.std),
            "notes": list(self.samples.notes),
        }
        write_json(folder / "data.json", summary)

    # --- networks ---

    def _dense(self) -> Finished:
        config = self.config.model
        depends: dict[str, Any] = {
            "data": self._data_stamp,
            "model": config.model_dump(mode="json", include={"factory", "options"}),
            "seed": self.config.seed,
            "stored_as": model_store.SCHEMA_VERSION,
        }
        if ":" in config.factory:
            depends["source"] = loading.source_hash(config.factory, key="model.factory", beside=self.base)
        if config.checkpoint is None:
            depends["training"] = self.config.training.model_dump(mode="json")
        else:
            checkpoint = path_of(config.checkpoint, self.base, key="model.checkpoint")
            if not checkpoint.is_file():
                raise ConfigError(models.NO_CHECKPOINT.format(path=checkpoint))
            depends["checkpoint"] = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        return self.folder.stage(f"models/{DENSE}/trained", depends, self._make_dense)

    def _make_dense(self, folder: Path) -> None:
        config = self.config
        recipe = model_store.Recipe(
            config.model.factory,
            config.model.options,
            len(self.samples.classes),
            self.samples.inputs.shape[1:],
        )
        torch.manual_seed(config.seed)  # of the fresh weights
        model = recipe.build(self.base)
        pruning.ignored_layers(model, config.model)
        pruning.num_heads(model, config.model.num_heads)
        example = next(iter(self._people(Part.TRAIN, batch_size=2)))["inputs"].cpu()
        models.check_outputs(model, example, len(self.samples.classes))
        if config.model.checkpoint is not None:
            models.load_checkpoint(model, path_of(config.model.checkpoint, self.base, key="model.checkpoint"))
            model.eval()
        else:
            hook = self._hook(config.training.loss, dense=None, key="training.loss")
            self._fit(model, config.training.epochs, "training", "training the dense network", hook)
        model_store.save(model, recipe, folder, beside=self.base)

    def _pruned(self, variant: Variant, dense: _Track) -> Finished:
        prune = self.config.prune
        depends: dict[str, Any] = {
            "dense": dense.store.stamp,
            "method": variant.method.model_dump(mode="json", include={"name", "options"}),
            "amount": asdict(variant.amount),
            "allocation": prune.allocation_of(variant.method),
            "prune": prune.model_dump(mode="json", exclude={"methods", "allocation", *QUANTITIES}),
            "ignored_layers": self.config.model.ignored_layers,
            "num_heads": self.config.model.num_heads,
            "finetune": None,
            "loss": None,
        }
        if prune.steps != 1:
            depends["finetune"] = self.config.finetune.model_dump(mode="json", exclude={"epochs", "losses"})
        if variant.method.name in LEARNED:
            depends["seed"] = self.config.seed
        own = variant.method.collect_loss
        if own is not None:
            depends["collect_loss"] = own.model_dump(mode="json")
        if prune.steps != 1 or (own is None and prune.collect_loss == "finetune"):
            depends["loss"] = variant.loss.model_dump(mode="json")

        def work(folder: Path) -> None:
            model, recipe = model_store.load(dense.store.folder, beside=self.base)
            hook = self._hook(variant.loss, dense=model, key="finetune.losses")
            outcome = pruning.prune(
                model,
                variant.method,
                variant.amount,
                self.config,
                self.samples,
                self.normalise,
                device=self.device,
                loss=hook,
                collect_loss=None if own is None else self._hook(own, dense=model, key="prune.methods.collect_loss"),
            )
            loss_hooks.save_state(hook, folder)
            model_store.save(model, replace(recipe, history=outcome.history), folder, beside=self.base)
            write_json(
                folder / "pruning.json", {"steps": outcome.steps, "seconds": outcome.seconds, "notes": outcome.notes}
            )

        return self.folder.stage(f"{variant.folder}/pruned", depends, work)

    def _finetuned(self, variant: Variant, pruned: Finished, dense: _Track) -> Finished:
        recipe = self.config.finetune.model_dump(mode="json", exclude={"epochs_between", "losses"})

        steps = self.config.prune.steps

        def work(folder: Path) -> None:
            if not self.config.finetune.epochs:
                for file in (model_store.WEIGHTS, model_store.RECIPE):
                    shutil.copy(pruned.folder / file, folder / file)
                return
            model, rebuild = model_store.load(pruned.folder, beside=self.base)
            before, _ = model_store.load(dense.store.folder, beside=self.base)
            hook = self._hook(variant.loss, dense=before, key="finetune.losses")
            if steps != 1:  # it goes on where it was after the last of them
                loss_hooks.load_state(hook, pruned.folder)
            self._fit(model, self.config.finetune.epochs, "finetune", f"fine-tuning {variant.name}", hook)
            model_store.save(model, rebuild, folder, beside=self.base)

        depends = {
            "pruned": pruned.stamp,
            "finetune": recipe,
            "loss": variant.loss.model_dump(mode="json"),
            "seed": self.config.seed,
        }
        return self.folder.stage(f"{variant.folder}/finetuned", depends, work)

    def _hook(self, loss: LossConfig, *, dense: nn.Module | None, key: str) -> LossHook:
        recipe = self.config.training if dense is None else self.config.finetune
        return loss_hooks.make(
            loss,
            self.samples,
            self.normalise,
            dense=dense,
            augmented=recipe.flip or recipe.shift > 0,
            batch_size=PREDICTION_BATCH,
            device=self.device,
            key=key,
        )

    def _fit(self, model: nn.Module, epochs: int, key: str, what: str, loss: LossHook) -> None:
        training.fit(
            model,
            self.samples,
            self.normalise,
            getattr(self.config, key),
            epochs=epochs,
            seed=self.config.seed,
            device=self.device,
            what=what,
            key=key,
            loss=loss,
        )

    # --- judgement ---

    def _worst_group(self, dense: _Track) -> Finished:
        minimum = self.config.evaluation.minimum_group

        def work(folder: Path) -> None:
            model, _ = model_store.load(dense.store.folder, beside=self.base)
            people = self._people(Part.VALIDATION)
            logits = predict(TorchPredictor(model.to(self.device)), people.arrays(), progress=show_bars())
            labels, groups = self._labels(Part.VALIDATION), self._groups(Part.VALIDATION)
            name = pick_worst_group(labels, logits, groups, minimum)
            write_json(folder / "worst_group.json", {"worst_group": name, "picked_on": groups.statement(minimum)})

        return self.folder.stage(f"models/{DENSE}/worst_group", {"dense": dense.store.stamp, "minimum": minimum}, work)

    def _file_and_judge(self, track: _Track, dense: _Track, baseline: _Track, worst: Finished) -> None:
        """Export, prove, predict the test people with the exported file, and evaluate; filled into ``track``."""
        track.onnx = self._onnx(track)
        track.logits = self._logits(track)
        track.evaluation = self._evaluation(track, dense, baseline, worst)

    def _onnx(self, track: _Track) -> Finished:
        entries = onnx_metadata(self.config, self.samples, self.normalise, track.name)
        depends = {
            "model": track.store.stamp,
            "export": self.config.export.model_dump(mode="json"),
            "metadata": entries,
        }

        def work(folder: Path) -> None:
            written = export_stored(
                track.store.folder,
                folder / "model.onnx",
                config=self.config,
                base=self.base,
                samples=self.samples,
                name=track.name,
            )
            write_json(folder / "export.json", written)

        return self.folder.stage(f"{track.folder}/onnx", depends, work)

    def _logits(self, track: _Track, part: Part = Part.TEST) -> Finished:
        def work(folder: Path) -> None:
            predictor = OnnxPredictor(track.onnx.folder / "model.onnx", threads=torch.get_num_threads())
            people = self._people(part, on_cpu=True)
            np.save(folder / "logits.npy", predict(predictor, people.arrays(), progress=show_bars()))

        return self.folder.stage(f"{track.folder}/{part}_logits", {"onnx": track.onnx.stamp}, work)

    def _evaluation(self, track: _Track, dense: _Track, baseline: _Track, worst: Finished) -> Finished:
        config = self.config.evaluation
        other = None if baseline is track or baseline is dense else baseline
        depends = {
            "logits": track.logits.stamp,
            "dense": dense.logits.stamp,
            "against": None if other is None else {other.name: other.logits.stamp},
            "worst": worst.stamp,
            "evaluation": config.model_dump(mode="json"),
            "seed": self.config.seed,
        }

        def judge(reference: _Track | None) -> dict[str, Any]:
            return evaluate(
                self._labels(Part.TEST),
                _read_logits(track.logits),
                self._groups(Part.TEST),
                dense_logits=None if reference is None else _read_logits(reference.logits),
                worst_group=read_json(worst.folder / "worst_group.json")["worst_group"],
                resamples=config.resamples,
                confidence=config.confidence,
                seed=self.config.seed,
                minimum=config.minimum_group,
            ).as_dict()

        def work(folder: Path) -> None:
            against = {} if other is None else {other.name: judge(other)}
            found = {"evaluation": judge(None if track is dense else dense), "against": against}
            write_json(folder / "evaluation.json", found)

        return self.folder.stage(f"{track.folder}/evaluation", depends, work)

    def _postprocess(self, track: _Track, dense: _Track, worst: Finished) -> None:
        """Thresholds and overrides on the answers of the exported file; filled into ``track``."""
        steps = [s for s in self.config.postprocess.steps if track is not dense or s.concerns_dense]
        if not self.config.postprocess.steps:
            return
        track.validation = self._logits(track, Part.VALIDATION)
        for step in steps:
            track.postprocessed.append((step, self._postprocessed(step, track, dense, worst)))

    def _postprocessed(self, step: Step, track: _Track, dense: _Track, worst: Finished) -> Finished:
        config = self.config.evaluation
        depends = {
            "step": step.as_json(),
            "chosen_on": [track.validation.stamp, dense.validation.stamp],
            "judged_on": [track.logits.stamp, dense.logits.stamp],
            "worst": worst.stamp,
            "evaluation": config.model_dump(mode="json"),
            "seed": self.config.seed,
        }

        def answers(part: Part) -> postprocessing.Answers:
            own, other = (t.logits if part == Part.TEST else t.validation for t in (track, dense))
            return postprocessing.Answers(
                self._labels(part), self._groups(part), _read_logits(own), _read_logits(other)
            )

        def work(folder: Path) -> None:
            found = postprocessing.carry_out(
                step,
                answers(Part.VALIDATION),
                answers(Part.TEST),
                worst_group=read_json(worst.folder / "worst_group.json")["worst_group"],
                evaluation=config,
                seed=self.config.seed,
                is_dense=track is dense,
                output=self.config.data.target,
            )
            write_json(folder / "rule.json", found.pop("rule"))
            write_json(folder / "judged.json", found)

        return self.folder.stage(f"{track.folder}/postprocessed/{step.slug}", depends, work)

    def _latency(self, tracks: list[_Track]) -> Finished:
        config = self.config.benchmark
        depends = {
            "models": {t.name: t.onnx.stamp for t in tracks},
            "benchmark": config.model_dump(mode="json"),
            "seed": self.config.seed,
            "machine": platform.node(),
        }

        def work(folder: Path) -> None:
            inputs = next(iter(self._people(Part.TEST, batch_size=config.batch_size, on_cpu=True).arrays()))
            timed = benchmark(
                {t.name: t.onnx.folder / "model.onnx" for t in tracks},
                inputs=inputs,
                macs={t.name: read_json(t.onnx.folder / "export.json")["macs"] for t in tracks},
                reference=tracks[0].name,
                seed=self.config.seed,
                confidence=self.config.evaluation.confidence,
                progress=show_bars(),
                **config.model_dump(),
            )
            write_json(folder / "latency.json", timed.as_dict())
            timed.write_csv(folder / "latency.csv")

        return self.folder.stage("latency", depends, work)

    # --- report ---

    def _report(self, tracks: list[_Track], latency: Finished, worst: Finished) -> Finished:
        depends = {
            "evaluations": {t.name: t.evaluation.stamp for t in tracks},
            "latency": latency.stamp,
            "name": self.config.name,
            "data": self.config.data.model_dump(mode="json"),
            "notes": [*self.samples.notes, *self.samples.attribution],
            "methods": [m.model_dump(mode="json") for m in self.config.prune.methods],
            "losses": [loss.model_dump(mode="json") for loss in self.config.finetune.losses],
        }
        if self.config.postprocess.steps:
            depends["postprocessed"] = {t.name: [done.stamp for _, done in t.postprocessed] for t in tracks}

        def work(folder: Path) -> None:
            report.write(self._results(tracks, latency, worst), folder)

        return self.folder.stage("report", depends, work)

    def _results(self, tracks: list[_Track], latency: Finished, worst: Finished) -> RunResults:
        timed = read_json(latency.folder / "latency.json")
        machine, timings = timed.pop("machine"), {m["name"]: m for m in timed.pop("models")}
        data = self.config.data
        groups = self._groups(Part.TEST)
        picked = read_json(worst.folder / "worst_group.json")
        return RunResults(
            name=self.config.name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seed=self.config.seed,
            task=Task(
                target=data.target,
                classes=list(self.samples.classes),
                attribute=groups.attribute,
                groups=list(groups.names),
                statement=groups.statement(self.config.evaluation.minimum_group),
                description=data.description,
            ),
            data=Data(
                name=data.name,
                attribution=[*self.samples.attribution],
                sizes=self.samples.sizes,
                notes=[
                    *self.samples.notes,
                    f"The worst group, {picked['worst_group']}, was picked by the dense network's validation accuracy.",
                ],
            ),
            machine=machine,
            timing=timed,
            models=[self._model_result(t, timings[t.name]) for t in tracks],
            postprocessed=[self._after(t, tracks[0], *done) for t in tracks for done in t.postprocessed],
            versions={
                "fair-prune-plugins": __version__,
                "python": platform.python_version(),
                **{p: metadata.version(p) for p in _REPORTED_PACKAGES},
            },
        )

    def _model_result(self, track: _Track, timing: Mapping[str, Any]) -> ModelResult:
        exported = read_json(track.onnx.folder / "export.json")
        judged = read_json(track.evaluation.folder / "evaluation.json")
        common: dict[str, Any] = {
            "name": track.name,
            "macs": exported["macs"],
            "params": exported["params"],
            "file_bytes": exported["report"]["size"],
            "evaluation": judged["evaluation"],
            "against": judged["against"],
            "latency": dict(timing),
            "parity": exported["report"]["parity"],
        }
        notes = [*exported["report"]["notes"]]
        if track.variant is None or track.pruned is None:
            return ModelResult(**common, notes=notes)
        done = read_json(track.pruned.folder / "pruning.json")
        method, loss = methods.get(track.variant.method.name), losses.get(track.variant.loss.name)
        plain, ranked = track.variant.loss == PLAIN, track.variant.method.collect_loss
        summary, source = method.summary, method.source
        if ranked is not None:
            summary += f" Ranked under: {losses.get(ranked.name).summary}"
            source += f"; {losses.get(ranked.name).source}"
        seconds = dict(done["seconds"])
        seconds["finetune"] += track.store.seconds
        return ModelResult(
            **common,
            method=track.variant.title,
            summary=summary if plain else f"{summary} Fine-tuned with: {loss.summary}",
            source=source if plain else f"{source}; {loss.source}",
            pruning_ratio=done["steps"][-1]["pruning_ratio"],
            asked=track.variant.amount.title,
            widths=_widths(done["steps"]),
            seconds=seconds,
            notes=[*notes, *pruning.notes(done["steps"]), *done["notes"]],
        )

    def _after(self, track: _Track, dense: _Track, step: Step, done: Finished) -> Postprocessed:
        judged = read_json(done.folder / "judged.json")
        own, most = (read_json(t.onnx.folder / "export.json")["macs"] for t in (track, dense))
        return Postprocessed(
            model=track.name,
            name=step.title,
            kind=step.kind,
            rule=read_json(done.folder / "rule.json"),
            macs=postprocessing.expected_macs(step, own, most, judged["overridden"].get("share")),
            **judged,
        )

    # --- people ---

    def _people(self, part: Part, *, batch_size: int = PREDICTION_BATCH, on_cpu: bool = False) -> Batches:
        device = torch.device("cpu") if on_cpu else self.device
        return Batches(self.samples, self.samples.rows(part), self.normalise, batch_size, device)

    def _labels(self, part: Part) -> npt.NDArray[np.int64]:
        return self.samples.labels[self.samples.rows(part)]

    def _groups(self, part: Part) -> GroupLabels:
        return self.samples.groups.take(self.samples.rows(part))


def export_stored(
    stored: Path, path: Path, *, config: RunConfig, base: Path, samples: Samples, name: str
) -> dict[str, Any]:
    """Export a stored network of a run and prove it on test people.

    Args:
        stored: folder of the network.
        path: of the ONNX file.
        config: of the run.
        base: folder that ``module:function`` is looked up in.
        samples: the run's data set.
        name: of the network, written into the file.

    Returns:
        JSON-ready: ``report`` (:meth:`~fair_prune_plugins.onnx.ExportReport.as_dict`), ``macs``, ``params``.
    """
    model, recipe = model_store.load(stored, beside=base)
    macs, params = macs_and_params(model, recipe.example(1))
    normalise = Normalisation.of_training(samples)
    rows = samples.rows(Part.TEST)
    count = min(config.export.samples, len(rows))
    chosen = rows[np.linspace(0, len(rows) - 1, count).round().astype(np.intp)]
    written = export(
        model,
        recipe.example(2),
        path,
        samples=normalise(torch.from_numpy(samples.inputs[chosen])),
        labels=samples.labels[chosen],
        groups=samples.groups.take(chosen),
        opset=config.export.opset,
        tolerance=config.export.tolerance,
        metadata=onnx_metadata(config, samples, normalise, name),
    )
    return {"report": written.as_dict(), "macs": int(macs), "params": int(params)}


def onnx_metadata(config: RunConfig, samples: Samples, normalise: Normalisation, name: str) -> dict[str, str]:
    """What a user of the ONNX file needs to know, for its ``metadata_props``."""
    scale = "in 0 to 1 (bytes divided by 255)" if samples.inputs.dtype == np.uint8 else "as in the training data"
    entries = {"name": name, "target": config.data.target, "classes": json.dumps(samples.classes, ensure_ascii=False)}
    if isinstance(config.data, TableData):
        entries["channels"] = "RGB" if config.data.channels == 3 else "grey"
    return {**entries, **normalise.metadata(scale)}


def pick_device(name: str) -> torch.device:
    """The torch device that a configuration names; CUDA is set to deterministic convolutions.

    Raises:
        ConfigError: it is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(NO_CUDA.format(device=name))
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
    return device


def _read_logits(stage: Finished) -> npt.NDArray[np.float32]:
    logits: npt.NDArray[np.float32] = np.load(stage.folder / "logits.npy", allow_pickle=False)
    return logits


def _widths(steps: list[dict[str, Any]]) -> list[Width]:
    """Widths before the first and after the last step."""
    return [
        Width(layer=row["name"], asked=row["asked"], kept=row["kept"], total=row["initial"], note=row["reason"])
        for row in steps[-1]["widths"]
    ]
