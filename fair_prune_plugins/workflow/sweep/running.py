"""Carry out a sweep: tidy up after a killed one, start NNI's experiment over what is left, follow it to its end."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from fair_prune_plugins.errors import ConfigError, FairPruneError
from fair_prune_plugins.reporting.wording import counted, percent
from fair_prune_plugins.workflow.config import RunConfig
from fair_prune_plugins.workflow.run_folder import IN_USE, TEMPORARY, alone_in, write_json
from fair_prune_plugins.workflow.sweep.engine import Engine, TrialState, check_port, free_port
from fair_prune_plugins.workflow.sweep.outcome import finished_points, finished_trials
from fair_prune_plugins.workflow.sweep.processes import stop_left_over
from fair_prune_plugins.workflow.sweep.space import Point, Space
from fair_prune_plugins.workflow.sweep.trial import ASKED

NOT_A_SWEEP = "{path} is not empty and not a sweep folder (it has no {marker}); choose another folder with --output"
NOTHING_FINISHED = "no trial has finished: {crashed}. Their folders are under {path}"
UNTESTED = "trials on {platform} are NNI's own doing: passed through, not tested with this package"
POLL_SECONDS = 1.0


@dataclass
class Crash:
    """A trial that ended without a result.

    Attributes:
        name: of its point, or points.
        status: NNI's word for how it ended.
        lines: the last ones it wrote to its standard error.
    """

    name: str
    status: str
    lines: list[str]


@dataclass
class Course:
    """How a call of `fair-prune sweep` went.

    Attributes:
        kept: trials that an earlier call had finished.
        done: trials that this call finished.
        crashed: those that ended without a result.
    """

    kept: int = 0
    done: int = 0
    crashed: list[Crash] = field(default_factory=list)


def run_sweep(
    config: RunConfig, *, base: Path, output: Path, console: Console, port: int | None
) -> tuple[Space, Course]:
    """Run the trials that are not yet finished.

    Args:
        config: of a run, with its section ``sweep``.
        base: folder that relative paths and ``module:function`` are looked up in.
        output: the sweep folder.
        console: where progress is printed.
        port: of NNI's portal; ``None`` finds a free one.

    Returns:
        the trials there are, and how it went.

    Raises:
        ConfigError: a varied key or value that is not allowed.
        InputError: another sweep works in the folder, or it holds something else; the port is taken.
        FairPruneError: NNI's manager ends early, or no trial finishes.
    """
    space = Space(config)
    _check_options(space)
    if port is not None:
        check_port(port)
    with _opened(output, console):
        asked = config.model_dump(mode="json", exclude_unset=True)
        write_json(output / ASKED, {"config": asked, "base": str(base.resolve())})
        course = _trials(space, output, console, port)
    if not finished_points(space, output):
        raise FairPruneError(
            NOTHING_FINISHED.format(crashed=counted(len(course.crashed), "crash", "crashes"), path=output / "trials")
        )
    return space, course


@contextlib.contextmanager
def _opened(folder: Path, console: Console) -> Iterator[None]:
    """Make or re-open a sweep folder, alone, with nothing of a killed sweep running in it."""
    with alone_in(folder, ASKED, NOT_A_SWEEP, IN_USE):
        managers, trials = stop_left_over(folder)
        if managers or trials:
            left = f"{counted(managers, 'manager')} of NNI and {counted(trials, 'trial')}"
            console.print(f"[yellow]Note:[/] a killed sweep had left {left} running; stopped.", highlight=False)
        for left_behind in folder.rglob(f"{TEMPORARY}*"):
            shutil.rmtree(left_behind, ignore_errors=True)
        yield


def _trials(space: Space, folder: Path, console: Console, port: int | None) -> Course:
    finished = finished_trials(space, folder)
    course = Course(kept=len(finished))
    left = space.trials() - len(finished)
    if finished:
        console.print(f"{counted(len(finished), 'trial')} of {space.trials()} kept from before", highlight=False)
    if left <= 0:
        return course
    service = space.sweep.training_service
    if not space.sweep.is_local:
        console.print(f"[yellow]Note:[/] {UNTESTED.format(platform=service['platform'])}.", highlight=False)
    port = port or free_port(beside=0 if space.sweep.is_local else 1)
    with (
        _terminated_as_interrupted(),
        Engine.started(space, folder, trials=left, finished=finished, port=port) as engine,
    ):
        console.print(f"{_portal(engine)}", highlight=False, soft_wrap=True)
        _follow(engine, space, folder, course, console)
    return course


def _portal(engine: Engine) -> str:
    if engine.is_loopback():
        return f"NNI's portal: http://localhost:{engine.port} (this machine only)"
    return (
        f"NNI's portal: http://localhost:{engine.port} [yellow](open on ALL network interfaces, without a password: "
        "whoever reaches this port can start and stop trials)[/]"
    )


def _follow(engine: Engine, space: Space, folder: Path, course: Course, console: Console) -> None:
    told: set[str] = set()
    while True:
        done = engine.is_done()  # asked first, so that nothing ends between the two questions
        for trial in engine.states():
            if trial.ended and trial.id not in told:
                told.add(trial.id)
                _tell(engine, trial, space, folder, course, console)
        if done:
            return
        time.sleep(POLL_SECONDS)


def _tell(engine: Engine, trial: TrialState, space: Space, folder: Path, course: Course, console: Console) -> None:
    try:
        points = space.points_of(trial.parameters)
    except ConfigError:  # somebody has added a trial in the portal
        points = []
    name = _name(points) or str(trial.parameters)
    values = [f.outcome.value for f in finished_points(space, folder) if f.point in points] if trial.succeeded else []
    if values:
        course.done += 1
        said = f"worst group {percent(sum(values) / len(values))} on validation"
    else:
        crash = Crash(name, trial.status, engine.complaint(trial))
        course.crashed.append(crash)
        said = "[red]crashed[/]" if trial.status == "FAILED" else f"[red]{escape(trial.status.lower())}[/]"
    number = course.kept + course.done + len(course.crashed)
    counts = f"[dim]\\[{number}/{space.trials()}][/]"
    console.print(f"{counts} {escape(name)}: {said}", highlight=False, soft_wrap=True)
    if not values:
        for line in course.crashed[-1].lines:
            console.print(f"      [dim]{escape(line)}[/]", highlight=False, soft_wrap=True)


def _name(points: list[Point]) -> str:
    if len(points) == 1:
        return points[0].name
    return f"{points[0].setting.name}, {counted(len(points), 'seed')}" if points else ""


def _check_options(space: Space) -> None:
    from fair_prune_plugins.workflow.sweep.tuner import BAD_OPTIONS, make

    told = space.sweep.tuner
    try:
        make(told.name, told.options, space.config.seed)
    except Exception as error:  # NNI's tuners check their options as they like
        raise ConfigError(BAD_OPTIONS.format(name=told.name, options=told.options, reason=error)) from error


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let a request to terminate end the sweep as Ctrl-C does: NNI's manager would outlive it."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
