"""One trial of a sweep, as NNI starts it: `python -m fair_prune_plugins.workflow.sweep.trial SWEEP_FOLDER`.

It asks NNI for parameters, does the run or runs that they stand for, and reports accuracies of the *worst group on
validation people* (the group that the dense network serves worst on them): after each network (dense, pruned,
fine-tuned) as intermediate results, after fine-tuning as the final one. Test people are in no number that NNI sees.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from fair_prune_plugins.errors import FairPruneError
from fair_prune_plugins.workflow.config import RunConfig
from fair_prune_plugins.workflow.run_folder import read_json
from fair_prune_plugins.workflow.sweep.outcome import RUN, Outcome, read_outcome
from fair_prune_plugins.workflow.sweep.processes import notes_folder
from fair_prune_plugins.workflow.sweep.space import Parameters, Point, Space
from fair_prune_plugins.workflow.sweep.turns import ask_in_turn

ASKED = "sweep.json"
"""What a sweep folder was asked: the configuration, and the folder that its paths are relative to."""


def read_sweep(folder: Path) -> tuple[Space, Path]:
    """The trials of a sweep folder, and the folder that paths are relative to."""
    asked = read_json(folder / ASKED)
    return Space(RunConfig.model_validate(asked["config"])), Path(asked["base"])


def run_trial(folder: Path, parameters: Parameters, report: Callable[[float], None]) -> dict[str, float]:
    """Do what the parameters of a trial stand for.

    Args:
        folder: of the sweep.
        parameters: from NNI.
        report: told the worst group's validation accuracy after each network.

    Returns:
        the final result. ``default``: the worst group's validation accuracy after fine-tuning; ``everyone``: that of
        all validation people; ``dense``: the worst group's before pruning. Means, where a trial runs several seeds.
    """
    space, base = read_sweep(folder)
    outcomes = [_outcome(space, point, folder, base, report) for point in space.points_of(parameters)]
    found = {
        "default": [o.value for o in outcomes],
        "everyone": [o.validation["finetuned"].everyone for o in outcomes],
        "dense": [o.validation["dense"].worst_group for o in outcomes],
    }
    return {name: sum(values) / len(values) for name, values in found.items()}


def _outcome(space: Space, point: Point, folder: Path, base: Path, report: Callable[[float], None]) -> Outcome:
    known = read_outcome(space, point, folder)
    if known is not None:
        return known
    # what a run needs takes seconds to import
    from fair_prune_plugins.workflow.sweep.point_run import run_point

    place = folder / point.folder
    config = space.config_of(point)
    if config.threads is None and space.sweep.is_local and space.sweep.concurrency > 1:
        share = max(1, (os.cpu_count() or 1) // space.sweep.concurrency)
        config = config.model_copy(update={"threads": share})
    shared = folder if space.sweep.is_local else None
    validation, worst = run_point(config, base, place / RUN, shared=shared, report=report)
    outcome = Outcome(
        stamp=space.stamp(point),
        parameters=space.parameters_of(point.setting, point.seed if space.sweep.is_grid else None),
        seed=point.seed,
        worst_group=worst,
        validation=validation,
    )
    outcome.write(place)
    return outcome


def main(arguments: list[str]) -> None:
    """Entry point of a trial."""
    import nni

    folder = Path(arguments[0])
    parameters = ask_in_turn(
        nni.get_next_parameter,
        notes_folder(folder, nni.get_experiment_id()),
        trial=nni.get_trial_id(),
        number=nni.get_sequence_id(),
    )
    try:
        result = run_trial(folder, parameters, nni.report_intermediate_result)
    except FairPruneError as error:  # its message says all; the sweep shows the last lines
        sys.exit(f"{type(error).__name__}: {error}")
    nni.report_final_result(result)


if __name__ == "__main__":
    main(sys.argv[1:])
