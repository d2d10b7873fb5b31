"""NNI's experiment engine, started for one sweep and stopped with it.

NNI keeps a list of experiments in the user's home, waits three seconds for its manager, and serves its portal on all
interfaces. Here the list lies in the sweep folder, the manager gets the time it needs, and with trials on this machine
the portal answers on the loopback interface alone.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import psutil  # type: ignore[import-untyped]

from fair_prune_plugins.errors import ConfigError, FairPruneError, InputError
from fair_prune_plugins.workflow.sweep.processes import (
    TRIAL_MODULE,
    descendants,
    end,
    manager_folder,
    notes_folder,
    stop_left_over,
)
from fair_prune_plugins.workflow.sweep.space import Space
from fair_prune_plugins.workflow.sweep.turns import received

NOT_STARTED = "NNI's manager could not be started ({reason}); its log is in {log}"
GONE = "NNI's manager ended before the sweep was finished ({reason}); its log is in {log}. The same command goes on"
BAD_EXPERIMENT = "sweep.training_service: NNI does not take it: {reason}"
PORT_TAKEN = "--port: something else listens on port {port}; choose another, or leave it out to have a free one found"

LOOPBACK = "127.0.0.1"
_START_TRIES = 60
"""Seconds for the manager to answer, and for its tuner; NNI's own three and ten are too few on a busy machine."""

_ENDED = ("SUCCEEDED", "FAILED", "USER_CANCELED", "SYS_CANCELED", "EARLY_STOPPED")

PRELOAD = """'use strict';
// Loaded before NNI's manager: see fair_prune_plugins/workflow/sweep/engine.py.
delete process.env.NODE_OPTIONS;  // nothing that the manager starts needs it
require('os').homedir = () => %(home)s;
// NNI gives its tuner ten seconds to start, which on a busy machine are too few to import its libraries.
const later = setTimeout;
globalThis.setTimeout = (told, delay, ...rest) =>
  later(told, String(told).includes('Tuner did not connect') ? %(patience)d : delay, ...rest);
const { custom } = require('util').promisify;
Object.defineProperty(globalThis.setTimeout, custom, Object.getOwnPropertyDescriptor(later, custom));
const bind = %(bind)s;
if (bind) {
  const server = require('net').Server.prototype;
  const listen = server.listen;
  server.listen = function (...told) {
    if (typeof told[0] === 'number' && typeof told[1] !== 'string') {
      told.splice(1, 0, bind);
    }
    return listen.apply(this, told);
  };
}
"""


@dataclass(frozen=True)
class TrialState:
    """A trial as NNI's manager sees it.

    Attributes:
        id: NNI's.
        parameters: what it got.
        status: NNI's word.
    """

    id: str
    parameters: dict[str, Any]
    status: str

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.status in _ENDED

    @property
    def succeeded(self) -> bool:
        """Whether it ended well."""
        return self.status == "SUCCEEDED"


def free_port(beside: int = 0) -> int:
    """A port that nobody listens on; with ``beside``, so many more after it."""
    while True:
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            port = int(probe.getsockname()[1])
        if not any(_is_taken(port + i) for i in range(beside + 1)):
            return port


def check_port(port: int) -> None:
    """Refuse a port that is taken.

    Raises:
        InputError: likewise.
    """
    if _is_taken(port):
        raise InputError(PORT_TAKEN.format(port=port))


class Engine:
    """A running experiment.

    Use :meth:`started`.
    """

    def __init__(self, experiment: Any, port: int, folder: Path) -> None:
        self._experiment = experiment
        self._folder = folder
        self.port = port

    @classmethod
    @contextlib.contextmanager
    def started(
        cls, space: Space, folder: Path, *, trials: int, finished: Sequence[dict[str, Any]], port: int
    ) -> Iterator[Engine]:
        """Start NNI's manager, and stop it with its trials at the end, whatever the end is.

        Args:
            space: of the sweep.
            folder: of the sweep.
            trials: that are left to do.
            finished: trials of earlier calls, for the tuner.
            port: of the portal.

        Raises:
            ConfigError: a training service that NNI does not take.
            FairPruneError: the manager does not start.
        """
        from nni.experiment import Experiment, RunMode

        with _kept_in(manager_folder(folder), bind=LOOPBACK if space.sweep.is_local else None):
            experiment = Experiment(experiment_configuration(space, folder, trials=trials, finished=finished))
            engine = cls(experiment, port, folder)
            try:
                try:
                    experiment.start(port, run_mode=RunMode.Detach)  # its output goes to its log; stopped below
                except Exception as error:
                    raise FairPruneError(NOT_STARTED.format(reason=error, log=engine.log)) from error
                yield engine
            finally:
                engine._stop()

    def states(self) -> list[TrialState]:
        """All trials that were started.

        Raises:
            FairPruneError: the manager is gone.
        """
        try:
            jobs = self._experiment.list_trial_jobs()
        except Exception as error:
            raise FairPruneError(GONE.format(reason=type(error).__name__, log=self.log)) from error
        notes = notes_folder(self._folder, self._experiment.id)
        return [
            TrialState(j.trialJobId, received(notes, j.trialJobId) or j.hyperParameters[0].parameters, j.status)
            for j in jobs
            if j.hyperParameters
        ]

    def is_done(self) -> bool:
        """Whether there is nothing more to do.

        Raises:
            FairPruneError: the manager is gone, or gave up.
        """
        from nni.experiment import rest

        try:
            status = rest.get(self.port, "/check-status")
        except Exception as error:
            raise FairPruneError(GONE.format(reason=type(error).__name__, log=self.log)) from error
        if status["status"] == "ERROR":
            raise FairPruneError(GONE.format(reason="; ".join(status["errors"]), log=self.log))
        return status["status"] in ("DONE", "STOPPED")

    def is_loopback(self) -> bool:
        """Whether the portal was seen to answer on the loopback interface alone."""
        try:
            listening = [
                c.laddr.ip
                for c in psutil.Process(self._experiment._proc.pid).net_connections("inet")
                if c.status == psutil.CONN_LISTEN
            ]
        except psutil.Error:
            return False
        return bool(listening) and all(ip == LOOPBACK for ip in listening)

    def complaint(self, trial: TrialState, lines: int = 4) -> list[str]:
        """The last lines of what a trial wrote to its standard error; none where it is not on this machine."""
        for path in self._root.glob(f"environments/*/trials/{trial.id}/trial.stderr"):
            written = [line.rstrip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
            return [line for line in written if line][-lines:]
        return []

    @property
    def log(self) -> Path:
        """Where NNI's manager writes."""
        return self._root / "log"

    @property
    def _root(self) -> Path:
        return manager_folder(self._folder) / str(self._experiment.id)

    def _stop(self) -> None:
        manager = self._experiment._proc
        started = descendants(manager.pid) if manager is not None else []
        try:
            if manager is not None and manager.poll() is None:
                self._experiment.stop()
        finally:
            stop_left_over(self._folder)
            end(started)  # a manager that is stopped while it starts forgets its tuner


def experiment_configuration(space: Space, folder: Path, *, trials: int, finished: Sequence[dict[str, Any]]) -> Any:
    """A sweep as NNI's ``ExperimentConfig``.

    Args:
        space: of the sweep.
        folder: of the sweep.
        trials: that are left to do.
        finished: trials of earlier calls, for the tuner.

    Raises:
        ConfigError: a training service that NNI does not take.
    """
    from nni.experiment import CustomAlgorithmConfig, ExperimentConfig

    sweep = space.sweep
    code = manager_folder(folder) / "code"
    code.mkdir(parents=True, exist_ok=True)
    python = f"exec {shlex.quote(sys.executable)}" if sweep.is_local and os.name == "posix" else "python3"
    told = {
        "experiment_name": space.config.name,
        "trial_command": f"{python} -m {TRIAL_MODULE} {shlex.quote(str(folder.resolve()))}",
        "trial_code_directory": code,  # NNI starts trials in it, and uploads it to other machines: it is empty
        "trial_concurrency": sweep.concurrency,
        "max_trial_number": trials,  # NNI's grid has no end without
        "search_space": space.search_space(),
        "tuner": CustomAlgorithmConfig(
            class_name="fair_prune_plugins.workflow.sweep.tuner.ContinuedTuner",
            code_directory=code,
            class_args={
                "name": sweep.tuner.name,
                "options": sweep.tuner.options,
                "seed": space.config.seed,
                "finished": list(finished),
            },
        ),
        "experiment_working_directory": manager_folder(folder),
        "training_service": dict(sweep.training_service),
    }
    try:
        read = ExperimentConfig(**told)
        read.canonical_copy()
    except Exception as error:  # NNI raises what it likes
        raise ConfigError(BAD_EXPERIMENT.format(reason=error)) from error
    return read


def preload_script(home: Path, bind: str | None) -> str:
    """What NNI's manager runs before its own code: where its home is, and which interface its portal listens on."""
    settings = {"home": json.dumps(str(home)), "bind": json.dumps(bind), "patience": 1000 * _START_TRIES}
    return PRELOAD % settings


@contextlib.contextmanager
def _kept_in(place: Path, *, bind: str | None) -> Iterator[None]:
    """Let NNI keep its files in ``place`` instead of the user's home, and bind its portal to one interface."""
    from nni.experiment import launcher
    from nni.tools.nnictl.config_utils import Experiments

    home = place / "home"
    home.mkdir(parents=True, exist_ok=True)
    preload = place / "preload.cjs"
    preload.write_text(preload_script(home, bind), encoding="utf-8")
    quoted = str(preload).replace("\\", "\\\\").replace('"', '\\"')
    options = f'{os.environ.get("NODE_OPTIONS", "")} --require "{quoted}"'.strip()
    experiments = functools.partial(Experiments, home_dir=str(home / "nni-experiments"))
    patient = functools.partial(launcher._check_rest_server, retry=_START_TRIES)
    with (
        mock.patch.dict(os.environ, {"NODE_OPTIONS": options, "NNI_CONFIG_DIR": str(place / "config")}),
        mock.patch.object(launcher, "Experiments", experiments),
        mock.patch.object(launcher, "_check_rest_server", patient),
    ):
        yield


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0
