"""Hand the study's tasks to worker processes, in order, and tell how far it is."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.fairface.bench import LOGITS, PEOPLE, Bench, Silent, level_name
from benchmarks.fairface.design import (
    EXCESS_GAP,
    STEP_SIZE,
    DenseTask,
    Design,
    Task,
    WalkTask,
    is_untuned,
    tasks,
    tuning,
)
from fair_prune_plugins.evaluation.metrics import sample_deviation
from fair_prune_plugins.workflow.config import RunConfig
from fair_prune_plugins.workflow.run_folder import Finished, RunFolder, write_json

TUNING = "tuning.json"


class StudyFailed(Exception):
    """Tasks failed; the rest is done."""


@dataclass(frozen=True)
class Done:
    """What a worker reports of a task: that it is finished, or the traceback."""

    name: str
    seconds: float = 0.0
    reused: bool = False
    failure: str = ""


def run_study(
    config: RunConfig,
    design: Design,
    path: Path,
    *,
    base: Path,
    workers: int = 2,
    threads: int = 1,
    bench_type: type[Bench] = Bench,
    foreman_type: type[Foreman] | None = None,
) -> None:
    """Make what is not made yet.

    Args:
        config: of the study.
        design: how often what is repeated.
        path: the run folder; locked while this works.
        base: folder that ``module:function`` is looked up in.
        workers: processes.
        threads: of torch in each of them.
        bench_type: does the tasks.
        foreman_type: plans and hands them out; :class:`Foreman` if absent.

    Raises:
        StudyFailed: some tasks failed; all others are done.
        InputError: the folder is in use or something else, or the data are not there.
    """
    description = {"config": config.model_dump(mode="json"), "design": asdict(design), "base": str(base)}
    with RunFolder.open(path, Silent(), description):
        torch.set_num_threads(threads)
        bench = bench_type(config, design, path, base)
        bench.people()
        say(f"{', '.join(f'{size:,} {part}' for part, size in bench.samples.sizes.items())} people; timing ...")
        bench.cost()  # before the workers start, which would be in its way
        del bench
        foreman = (foreman_type or Foreman)(config, design, path)
        with _workers(workers, bench_type, config, design, path, base, threads) as connections:
            foreman.work(connections)


@contextmanager
def _workers(count: int, *arguments: Any) -> Iterator[list[Connection]]:
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    pairs = [context.Pipe() for _ in range(count)]
    processes = [context.Process(target=_serve, args=(theirs, *arguments), daemon=True) for _, theirs in pairs]
    for process in processes:
        process.start()
    for _, theirs in pairs:
        theirs.close()  # so that a worker that died is noticed
    try:
        yield [ours for ours, _ in pairs]
        for ours, _ in pairs:
            ours.close()
        for process in processes:
            process.join()
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
                process.join()


def _serve(
    connection: Connection,
    bench_type: type[Bench],
    config: RunConfig,
    design: Design,
    path: Path,
    base: Path,
    threads: int,
) -> None:
    """A worker: do what it is told until the parent is gone."""
    torch.set_num_threads(threads)
    bench: Bench | None = None
    while True:
        try:
            task: Task = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            bench = bench or bench_type(config, design, path, base)
            start = time.perf_counter()
            finished: Finished = bench.do(task)
            seconds = finished.seconds if finished.reused else time.perf_counter() - start
            report = Done(task.name, seconds, finished.reused)
        except KeyboardInterrupt:
            return
        except Exception:
            report = Done(task.name, failure=traceback.format_exc())
        try:
            connection.send(report)
        except OSError:  # the parent is gone; what was finished is kept
            return


@dataclass
class Foreman:
    """Who does what next.

    Args:
        config: of the study.
        design: likewise.
        path: the run folder.
    """

    config: RunConfig
    design: Design
    path: Path
    pending: list[Task] = field(init=False)
    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: dict[tuple[str, ...], list[float]] = field(default_factory=dict)
    step_size: float | None = None

    def __post_init__(self) -> None:
        self.pending = self.planned()

    def planned(self) -> list[Task]:
        """All tasks, in the order to do them."""
        return tasks(self.config, self.design)

    def kind(self, task: Task) -> tuple[str, ...]:
        """Tasks of one kind take about as long; of kinds not done yet, those that begin alike tell."""
        return ("dense",) if isinstance(task, DenseTask) else ("walk",)

    def choose(self) -> None:
        """After every task: choose what can be chosen by now."""
        candidates = tuning(self.config, self.design)
        if self.step_size is None and candidates and self.done.issuperset(c.name for c in candidates):
            self.step_size = choose_step_size(self.config, candidates, self.path)
            say(f"step size of {EXCESS_GAP}, chosen on validation people: {self.step_size:g}")

    def resolved(self, task: Task) -> Task:
        """A task with what was chosen for it."""
        if isinstance(task, WalkTask) and is_untuned(task.loss):
            options = {**task.loss.options, STEP_SIZE: self.step_size}
            return replace(task, loss=task.loss.model_copy(update={"options": options}))
        return task

    def work(self, connections: list[Connection]) -> None:
        total, busy = len(self.pending), dict[Connection, Task]()
        start = time.perf_counter()
        while self.pending or busy:
            for connection in connections:
                task = None if connection in busy else self._next()
                if task is not None:
                    connection.send(self.resolved(task))
                    busy[connection] = task
            if not busy:
                break  # what is left waits for what failed
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                task = busy.pop(ready)
                try:
                    report: Done = ready.recv()
                except (EOFError, OSError):
                    raise StudyFailed(f"a worker died in {task.name}; was there enough memory?") from None
                self._note(task, report)
                count = len(self.done) + len(self.failed)
                left = self._left([*self.pending, *busy.values()], len(connections))
                what = "FAILED" if report.failure else "kept" if report.reused else f"{report.seconds:.0f} s"
                elapsed = (time.perf_counter() - start) / 60
                say(f"[{count:>{len(str(total))}}/{total}] {task.name}: {what}; {elapsed:.0f} min so far, {left} left")
        if self.failed:
            first = next(iter(self.failed.values()))
            raise StudyFailed(f"{len(self.failed)} tasks failed ({', '.join(self.failed)}); the first:\n{first}")

    def _next(self) -> Task | None:
        for task in self.pending:
            if self.done.issuperset(task.needs()):
                self.pending.remove(task)
                return task
        return None

    def _note(self, task: Task, report: Done) -> None:
        if report.failure:
            self.failed[task.name] = report.failure
            return
        self.done.add(task.name)
        self.seconds.setdefault(self.kind(task), []).append(report.seconds)
        self.choose()

    def _left(self, left: Sequence[Task], workers: int) -> str:
        expected = [self._expected(self.kind(task)) for task in left]
        if not all(expected):
            return "time unknown"
        minutes = sum(seconds for seconds in expected if seconds) / workers / 60
        return f"about {minutes:.0f} min" if minutes < 120 else f"about {minutes / 60:.1f} h"

    def _expected(self, kind: tuple[str, ...]) -> float | None:
        """Seconds for a task of a kind, as long as those most like it took."""
        for length in range(len(kind), 0, -1):
            alike = [s for known, taken in self.seconds.items() if known[:length] == kind[:length] for s in taken]
            if alike:
                return float(np.mean(alike))
        return None


def choose_step_size(config: RunConfig, candidates: Sequence[WalkTask], path: Path) -> float:
    """The step size after which groups lost most alike: the smallest rho on validation people, mean over the MACs.

    Rho looks at all groups; a single group's validation accuracy would be too noisy to choose by.
    """
    with np.load(path / PEOPLE / "people.npz") as people:
        labels, codes = people["validation_labels"], people["validation_groups"]

    def accuracy(folder: Path) -> np.ndarray[Any, Any]:
        with np.load(folder / LOGITS) as logits:
            right = logits["validation"].argmax(1) == labels
        return np.array([right[codes == g].mean() for g in np.unique(codes)])

    dense = accuracy(path / DenseTask(candidates[0].seed).name)
    rho = {
        float(task.loss.options[STEP_SIZE]): float(
            np.mean([sample_deviation(accuracy(path / task.name / level_name(m)) - dense) for m in config.prune.macs])
        )
        for task in candidates
    }
    chosen = min(rho, key=lambda size: rho[size])
    write_json(path / TUNING, {"chosen": chosen, "rho": {f"{size:g}": value for size, value in rho.items()}})
    return chosen


def say(text: str) -> None:
    """A line of the progress log."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
