"""Find and stop what a killed sweep left behind: NNI's manager, which would go on starting trials, and trials.

They are known by their command lines, which name the sweep's own folder. So nobody else's process is ever touched, and
there is no moment at which a manager runs and is not yet written down.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable
from pathlib import Path

import psutil  # type: ignore[import-untyped]

TRIAL_MODULE = "fair_prune_plugins.workflow.sweep.trial"
_PATIENCE = 5.0
"""Seconds between asking a process to end and ending it."""


def manager_folder(folder: Path) -> Path:
    """Where NNI works for the sweep in ``folder``: experiments, database, logs and its list of experiments."""
    return folder.resolve() / "nni"


def notes_folder(folder: Path, experiment: str) -> Path:
    """Where the trials of one experiment note which parameters they got."""
    return manager_folder(folder) / experiment / "received"


def left_over(folder: Path) -> tuple[list[psutil.Process], list[psutil.Process]]:
    """Running managers and running trials of the sweep in ``folder``."""
    managers, trials = [], []
    experiments, own = str(manager_folder(folder)), str(folder.resolve())
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if _follows(command, "--experiments-directory", experiments):
                managers.append(process)
            elif _follows(command, TRIAL_MODULE, own):
                trials.append(process)
    return managers, trials


def descendants(pid: int) -> list[psutil.Process]:
    """All that a process started, and what those started; none if it is gone."""
    try:
        found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []
    return found


def stop_left_over(folder: Path) -> tuple[int, int]:
    """Stop managers and trials of the sweep in ``folder``, with all that they started.

    Returns:
        how many managers and how many trials there were.
    """
    managers, trials = left_over(folder)
    for manager in managers:  # first of all nothing new is started, and nobody takes over its children
        with contextlib.suppress(psutil.Error):
            manager.suspend()
    if managers:
        _, trials = left_over(folder)  # what was started in the meantime
    family = {p.pid: p for p in [*trials, *managers]}
    for process in [*trials, *managers]:
        family |= {child.pid: child for child in descendants(process.pid)}
    for manager in managers:
        with contextlib.suppress(psutil.Error):
            manager.kill()
    end(family.values())
    return len(managers), len(trials)


def end(processes: Iterable[psutil.Process]) -> None:
    """Ask processes to end, and end those that do not."""
    waiting = list(processes)
    for process in waiting:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(waiting, timeout=_PATIENCE)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=_PATIENCE)


def _follows(command: list[str], before: str, after: str) -> bool:
    return any(a == before and b == after for a, b in itertools.pairwise(command))
