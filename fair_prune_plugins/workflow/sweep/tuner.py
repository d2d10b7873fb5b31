"""NNI's tuners, told at the start what earlier calls of the same sweep have finished.

NNI's own way to resume restarts its numbering of trials and never hears of results that came after its manager died.
Here each call is a new experiment, and its tuner gets the finished trials before it is asked for the first new one.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import nni
from nni.algorithms.hpo.gridsearch_tuner import GridSearchTuner
from nni.algorithms.hpo.random_tuner import RandomTuner
from nni.algorithms.hpo.tpe_tuner import TpeTuner
from nni.tuner import Tuner

# Those that are reproducible with a seed, need nothing but NNI, and can go on; NNI's Evolution forgets what it is told.
TUNERS: Mapping[str, type[Tuner]] = {
    "GridSearch": GridSearchTuner,
    "Random": RandomTuner,
    "TPE": TpeTuner,
}
MOST_REPETITIONS = 100
"""Proposals of what is finished that are passed over before one is run again, which takes no time."""

BAD_OPTIONS = "sweep.tuner.options: NNI's {name} does not take {options} ({reason})"


def make(name: str, options: Mapping[str, Any], seed: int) -> Tuner:
    """One of NNI's tuners, which maximises (TPE minimises if nobody says so), seeded where it can be.

    Args:
        name: of :data:`TUNERS`.
        options: its arguments.
        seed: for those that take one and are given none.

    Raises:
        TypeError: arguments that it does not take.
    """
    kind = TUNERS[name]
    takes = inspect.signature(kind).parameters
    defaults = {"optimize_mode": "maximize", "seed": seed}
    if name == "GridSearch":
        defaults = {}
    return kind(**{k: v for k, v in defaults.items() if k in takes}, **options)


class ContinuedTuner(Tuner):  # type: ignore[misc]  # NNI has no types
    """A tuner that goes on from finished trials.

    Args:
        name: of NNI's tuner.
        options: its arguments.
        seed: for those that take one.
        finished: ``{"parameter": ..., "value": ...}`` of each finished trial.
    """

    def __init__(self, name: str, options: dict[str, Any], seed: int, finished: Sequence[dict[str, Any]]) -> None:
        self._inner = make(name, options, seed)
        self._finished = list(finished)
        self._done = {nni.dump(f["parameter"], sort_keys=True) for f in finished}

    def update_search_space(self, search_space: dict[str, Any]) -> None:
        """Tell the tuner what may be tried, and what was."""
        self._inner.update_search_space(search_space)
        if self._finished and not isinstance(self._inner, RandomTuner):  # which learns nothing
            self._inner.import_data(self._finished)

    def generate_parameters(self, parameter_id: int, **kwargs: Any) -> dict[str, Any]:
        """The next trial, which is not one of the finished."""
        proposed: dict[str, Any] = {}
        for _ in range(MOST_REPETITIONS):
            proposed = self._inner.generate_parameters(parameter_id, **kwargs)
            if nni.dump(proposed, sort_keys=True) not in self._done:
                break
            self._inner.trial_end(parameter_id, False)
        return proposed

    def receive_trial_result(self, parameter_id: int, parameters: Any, value: Any, **kwargs: Any) -> None:
        """Pass a result on."""
        self._inner.receive_trial_result(parameter_id, parameters, value, **kwargs)

    def trial_end(self, parameter_id: int, success: bool, **kwargs: Any) -> None:
        """Pass the end of a trial on."""
        self._inner.trial_end(parameter_id, success, **kwargs)

    def import_data(self, data: Any) -> None:
        """Pass on what a person imports in the portal."""
        self._inner.import_data(data)
