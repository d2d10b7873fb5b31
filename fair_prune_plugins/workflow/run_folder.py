"""A folder in which finished work stays finished.

Each stage writes into a temporary folder that is renamed when it is complete, together with a stamp: a hash of
everything the stage depends on. A stage whose stamp still fits is not repeated; a killed run leaves a temporary
folder that the next run removes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from fair_prune_plugins import __version__
from fair_prune_plugins.errors import InputError

STAMP = "stamp.json"
TEMPORARY = ".unfinished-"
_OLD = ".replaced-"

IN_USE = "another run is working in {path}; wait for it, or give this one another folder with --output"
NOT_A_RUN_FOLDER = "{path} is not empty and not a run folder (it has no {marker}); choose another folder with --output"

MARKER = "run.json"
"""Every run folder has this file: what the run was asked, for ``fair-prune report`` and ``export``."""


@dataclass(frozen=True)
class Finished:
    """A stage that is complete.

    Attributes:
        folder: its outputs.
        stamp: hash of its inputs, for the stages that depend on it.
        reused: whether it was complete already.
        seconds: what the work took, when it was done.
    """

    folder: Path
    stamp: str
    reused: bool
    seconds: float


class Watcher(Protocol):
    """Told what the stages do."""

    def started(self, stage: str) -> None:
        """A stage begins to work."""

    def finished(self, stage: str, outcome: Finished) -> None:
        """A stage is complete, or was."""


@contextmanager
def alone_in(path: Path, marker: str, foreign: str, in_use: str) -> Iterator[None]:
    """Make or re-open a folder and hold its lock.

    Args:
        path: made where it does not exist.
        marker: a file that every such folder has, which the caller writes.
        foreign: message for a folder that holds something else, with ``path`` and ``marker``.
        in_use: message for one that another process works in, with ``path``.

    Raises:
        InputError: either of these, or a file in its place.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; choose another folder with --output")
    if path.exists() and not (path / marker).exists() and any(p.name != ".lock" for p in path.iterdir()):
        raise InputError(foreign.format(path=path, marker=marker))
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(in_use.format(path=path)) from None
    try:
        yield
    finally:
        lock.release()


class RunFolder:
    """The stages of one run, under one folder that only one process works in.

    Use :meth:`open`; it takes the lock and tidies up after a killed run.

    Args:
        path: the folder.
        watcher: told about every stage.
    """

    def __init__(self, path: Path, watcher: Watcher) -> None:
        self.path = path
        self._watcher = watcher

    @classmethod
    @contextmanager
    def open(cls, path: Path, watcher: Watcher, description: Mapping[str, Any]) -> Iterator[RunFolder]:
        """Make or re-open a run folder and hold its lock.

        Args:
            path: made where it does not exist.
            watcher: told about every stage.
            description: written to :data:`MARKER`.

        Raises:
            InputError: another process works in it, or the folder holds something else.
        """
        with alone_in(path, MARKER, NOT_A_RUN_FOLDER, IN_USE):
            write_json(path / MARKER, description)
            for left in [*path.rglob(f"{TEMPORARY}*"), *path.rglob(f"{_OLD}*")]:
                shutil.rmtree(left)
            yield cls(path, watcher)

    def stage(self, name: str, depends_on: Mapping[str, Any], work: Callable[[Path], None]) -> Finished:
        """Do a stage's work unless it is complete.

        Args:
            name: also its folder, ``/`` makes sub-folders.
            depends_on: everything the outputs depend on, JSON-ready: configuration parts, stamps of earlier stages. The
                package's version is added.
            work: writes the outputs into the empty folder it is given; if it raises, nothing is kept.

        Returns:
            where the outputs are.
        """
        stamp = fingerprint({"stage": name, "version": __version__, **depends_on})
        target = self.path / name
        finished = _read_stamp(target, stamp)
        if finished is None:
            self._watcher.started(name)
            finished = self._work(target, stamp, work)
        self._watcher.finished(name, finished)
        return finished

    def _work(self, target: Path, stamp: str, work: Callable[[Path], None]) -> Finished:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f"{TEMPORARY}{target.name}"
        temporary.mkdir()
        start = time.perf_counter()
        try:
            work(temporary)
        except BaseException:
            shutil.rmtree(temporary)
            raise
        seconds = time.perf_counter() - start
        sizes = {str(p.relative_to(temporary)): p.stat().st_size for p in sorted(temporary.rglob("*")) if p.is_file()}
        write_json(temporary / STAMP, {"stamp": stamp, "seconds": seconds, "files": sizes})
        if target.exists():
            old = target.parent / f"{_OLD}{target.name}"
            os.replace(target, old)
            os.replace(temporary, target)
            shutil.rmtree(old)
        else:
            os.replace(temporary, target)
        return Finished(target, stamp, reused=False, seconds=seconds)


def _read_stamp(folder: Path, stamp: str) -> Finished | None:
    """The stage as it was completed, if its inputs are still the same and its files are all there."""
    try:
        written = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        if written["stamp"] != stamp or any((folder / f).stat().st_size != s for f, s in written["files"].items()):
            return None
    except (OSError, ValueError, KeyError):
        return None
    return Finished(folder, stamp, reused=True, seconds=written["seconds"])


def fingerprint(values: Mapping[str, Any]) -> str:
    """SHA-256 of JSON-ready values, the same for equal values whatever the order of keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def write_json(path: Path, values: Any) -> None:
    """Write values as indented JSON, through a temporary file so that a kill leaves the old or the new."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_json(path: Path) -> Any:
    """Read what :func:`write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))
