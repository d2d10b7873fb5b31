"""The examples run as they stand, and the README shows what they do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _output_of(example: str) -> str:
    """What an example prints, run as a user runs it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / example)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_drop_in_runs() -> None:
    output = _output_of("drop_in.py")
    dense, pruned = (float(line.rsplit(" ", 1)[1]) for line in output.splitlines() if "test accuracy" in line)
    assert dense > 0.85
    assert pruned > 0.85
    assert "3 groups by group over" in output


def test_the_nni_pipeline_runs() -> None:
    output = _output_of("nni_pipeline.py")
    lines = [line for line in output.splitlines() if "test accuracy" in line]
    parameters = [int(line.split(": ")[1].split(" ")[0]) for line in lines]
    dense, pruned, tuned = (float(line.rsplit(" ", 1)[1]) for line in lines)
    assert parameters[1] == parameters[2] < 0.3 * parameters[0]
    assert min(dense, pruned, tuned) > 0.85


def test_the_readme_shows_the_nni_pipeline() -> None:
    example, readme = ((ROOT / p).read_text() for p in ("examples/nni_pipeline.py", "README.md"))
    for line in (
        "auto_set_denpendency_group_ids(model, config_list, dummy_input)",
        "fair_evaluator(evaluator, ",
        "FairGRAPEPruner(model, config_list, evaluator, training_steps=",
        "ModelSpeedup(model, dummy_input, masks)",
    ):
        assert line in example
        assert line in readme


def test_the_readme_shows_the_two_lines_of_the_example() -> None:
    example, readme = ((ROOT / p).read_text() for p in ("examples/drop_in.py", "README.md"))
    for line in ("fpt.FairGRAPEImportance()", "importance.collect(pruner, ", "tp.pruner.BasePruner("):
        assert line in example
        assert line in readme
