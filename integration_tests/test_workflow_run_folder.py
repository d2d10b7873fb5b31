"""Finished stages stay finished: what is repeated, what is kept, and what a kill leaves behind."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.workflow.run_folder import Finished, RunFolder, fingerprint


class Log:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.worked: list[str] = []
        self.kept: list[str] = []

    def started(self, stage: str) -> None:
        self.worked.append(stage)

    def finished(self, stage: str, outcome: Finished) -> None:
        if outcome.reused:
            self.kept.append(stage)


def two_stages(folder: Path, first: int = 1, second: int = 1) -> Log:
    """A stage and one that depends on it."""
    log = Log()
    with RunFolder.open(folder, log, {"asked": [first, second]}) as run:
        one = run.stage("one", {"x": first}, lambda f: (f / "out").write_text(str(first)) and None)
        run.stage("sub/two", {"one": one.stamp, "x": second}, lambda f: (f / "out").write_text(str(second)) and None)
    return log


def test_a_second_run_repeats_nothing(tmp_path: Path) -> None:
    assert two_stages(tmp_path / "r").worked == ["one", "sub/two"]
    again = two_stages(tmp_path / "r")
    assert again.worked == []
    assert again.kept == ["one", "sub/two"]


def test_a_change_repeats_what_depends_on_it(tmp_path: Path) -> None:
    two_stages(tmp_path / "r")
    assert two_stages(tmp_path / "r", second=2).worked == ["sub/two"]
    assert two_stages(tmp_path / "r", first=2, second=2).worked == ["one", "sub/two"]
    assert (tmp_path / "r/one/out").read_text() == "2"
    assert json.loads((tmp_path / "r/run.json").read_text()) == {"asked": [2, 2]}


def test_a_new_version_of_the_package_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_stages(tmp_path / "r")
    monkeypatch.setattr("fair_prune_plugins.workflow.run_folder.__version__", "99")
    assert two_stages(tmp_path / "r").worked == ["one", "sub/two"]


@pytest.mark.parametrize("damage", [Path.unlink, lambda p: p.write_text("cut off here")])
def test_a_stage_with_a_missing_or_cut_file_is_repeated(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    two_stages(tmp_path / "r")
    damage(tmp_path / "r/one/out")
    assert two_stages(tmp_path / "r").worked == ["one"]


def test_a_damaged_stamp_is_repeated(tmp_path: Path) -> None:
    two_stages(tmp_path / "r")
    (tmp_path / "r/one/stamp.json").write_text("{")
    assert two_stages(tmp_path / "r").worked == ["one"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_stage_that_fails_leaves_nothing_and_the_old_outputs_stay(tmp_path: Path, error: type[BaseException]) -> None:
    two_stages(tmp_path / "r")

    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise error

    with RunFolder.open(tmp_path / "r", Log(), {}) as run, pytest.raises(error):
        run.stage("one", {"x": 5}, fail)
    assert sorted(p.name for p in (tmp_path / "r/one").iterdir()) == ["out", "stamp.json"]
    assert two_stages(tmp_path / "r").worked == []


def test_stamps_do_not_depend_on_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": [1.5, None]}) == fingerprint({"b": [1.5, None], "a": 1}) != fingerprint({"a": 1})


def test_only_one_run_works_in_a_folder(tmp_path: Path) -> None:
    with (
        RunFolder.open(tmp_path / "r", Log(), {}),
        pytest.raises(InputError, match="another run is working"),
        RunFolder.open(tmp_path / "r", Log(), {}),
    ):
        pass
    two_stages(tmp_path / "r")


def test_a_folder_with_other_things_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="is not empty and not a run folder"):
        two_stages(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        two_stages(tmp_path / "thesis.txt")


KILLED = """
    import sys, time
    from pathlib import Path
    from integration_tests.test_workflow_run_folder import Log
    from fair_prune_plugins.workflow.run_folder import RunFolder

    def hang(folder):
        (folder / "half").write_text("x")
        print("hanging", flush=True)
        time.sleep(60)

    with RunFolder.open(Path(sys.argv[1]), Log(), {}) as run:
        run.stage("one", {"x": 1}, lambda f: (f / "out").write_text("1") and None)
        run.stage("sub/two", {"one": "?", "x": 1}, hang)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGKILL")
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "r")],
        cwd=root,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == b"hanging"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert (tmp_path / "r/sub/.unfinished-two/half").exists()
    written = (tmp_path / "r/one/out").stat().st_mtime_ns
    time.sleep(0.01)
    assert two_stages(tmp_path / "r").worked == ["sub/two"]
    assert (tmp_path / "r/one/out").stat().st_mtime_ns == written
    assert not (tmp_path / "r/sub/.unfinished-two").exists()
