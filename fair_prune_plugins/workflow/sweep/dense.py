"""The dense network of a seed, made by the first trial that needs it and handed to the others."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from filelock import FileLock

from fair_prune_plugins import __version__
from fair_prune_plugins.workflow.config import RunConfig
from fair_prune_plugins.workflow.run_folder import STAMP, TEMPORARY, Finished, fingerprint
from fair_prune_plugins.workflow.stages import DENSE

STAGES = ("trained", "worst_group", "onnx", "test_logits", "evaluation")
_PREFIX = f"models/{DENSE}/"


class SharedDense:
    """The stages of the dense network in a place that all trials of a sweep see.

    Only stages are copied, with their stamps: a run that finds one whose stamp does not fit does it again itself.

    Args:
        sweep: the sweep folder.
        config: of the run; what the dense network is made from names its place.
        run: the run folder.
    """

    def __init__(self, sweep: Path, config: RunConfig, run: Path) -> None:
        made_from = config.model_dump(
            mode="json", include={"seed", "data", "model", "training", "evaluation", "export"}
        )
        key = fingerprint({"version": __version__, **made_from})[:12]
        self._place = sweep / "dense" / f"seed-{config.seed}-{key}"
        self._run = run
        self._place.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._place / ".lock")

    def take(self) -> None:
        """Copy what is there into the run folder. Where something is missing, the others wait until it is given."""
        self._lock.acquire()
        for stage in STAGES:
            target = self._run / _PREFIX / stage
            if (self._place / stage / STAMP).exists() and not target.exists():
                _copy(self._place / stage, target)
        if all((self._place / stage / STAMP).exists() for stage in STAGES):
            self._lock.release()

    def give(self, stage: str, outcome: Finished) -> None:
        """Copy a finished stage of the dense network for the others; any other stage is none of its business."""
        name = stage.removeprefix(_PREFIX)
        if not stage.startswith(_PREFIX) or name not in STAGES:
            return
        target = self._place / name
        if not outcome.reused or not target.exists():
            with self._lock:
                _copy(outcome.folder, target)
        if name == STAGES[-1] and self._lock.is_locked:
            self.release()

    def release(self) -> None:
        """Let the others go on."""
        self._lock.release(force=True)


def _copy(source: Path, target: Path) -> None:
    """Copy a stage so that nobody sees half of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.parent / f"{TEMPORARY}{target.name}"
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part)
    if target.exists():
        shutil.rmtree(target)
    os.replace(part, target)
