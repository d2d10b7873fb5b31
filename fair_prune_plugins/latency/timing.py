"""Timing that a noisy machine cannot turn around.

All models are loaded and warmed up first; then they take turns, in a new random order every round, so that a slow
minute of the machine falls on all of them. Each turn starts with one untimed call, because the model before it has used
the caches. Garbage collection waits, threads are fixed, and a model's idle threads do not spin into the next one's
turn.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.latency.extras import need
from fair_prune_plugins.latency.feeding import Array, feed
from fair_prune_plugins.latency.intervals import Estimate, FloatArray, draw_rounds, interval, resampled_quantiles
from fair_prune_plugins.latency.layout import ConvLayer, Layout, fast_layout
from fair_prune_plugins.latency.machine import Machine, describe_machine
from fair_prune_plugins.latency.report import NOISY, PERCENTILES, LatencyReport, ModelLatency

if TYPE_CHECKING:
    import onnxruntime

CPU = "CPUExecutionProvider"

ENOUGH_FOR_P99 = 100
RESAMPLES = 1000

NAMED = 8
"""Slow convolutions that a note names; the report holds all of them."""

NO_MODELS = "there is no model to time; pass a mapping of names to ONNX files, e.g. {'dense': 'dense.onnx'}"
NOT_POSITIVE = "{name} must be {what}, got {got!r}"
UNKNOWN_MODEL = "{what} names {stray}, which are not among the models {models}"
NO_PROVIDER = "ONNX Runtime has no {provider!r} here; it has {available}"
PROVIDER_UNUSED = (
    "ONNX Runtime took {got} instead of {provider!r} for {model!r}; the provider is installed but does not work"
)
NOT_LOADED = "ONNX Runtime cannot load {model!r} ({path}): {error}"
DOES_NOT_RUN = "{model!r} does not run on its inputs: {error}"


def benchmark(
    models: Mapping[str, str | Path],
    *,
    inputs: Array | Mapping[str, Array] | None = None,
    threads: int = 1,
    batch_size: int = 1,
    warmup: int = 10,
    min_iterations: int = 10,
    min_seconds: float = 1.0,
    rounds: int = 10,
    seed: int = 0,
    provider: str = CPU,
    macs: Mapping[str, float] | None = None,
    reference: str | None = None,
    confidence: float = 0.95,
    progress: bool = True,
) -> LatencyReport:
    """Time ONNX models against each other.

    A call hands numpy arrays over and takes numpy arrays back, so on a GPU the copies are part of it.

    Args:
        models: name to ONNX file. All are held in memory at once.
        inputs: samples ``[n, ...]`` for models with one input, or name to samples; the first ``batch_size`` are used,
            repeated where there are fewer. ``None`` draws normal numbers of the shape in each file.
        threads: that work on one operator; operators run one after the other.
        batch_size: samples per call.
        warmup: untimed calls of each model before the first round.
        min_iterations: timed calls of each model, over all rounds, at least.
        min_seconds: time spent on each model, over all rounds, at least.
        rounds: how often each model takes its turn; intervals rest on these, so fewer than ten make them wide.
        seed: of the order, the made-up inputs and the resampling.
        provider: execution provider of ONNX Runtime.
        macs: multiply-accumulates per sample by name, for the theoretical speed-up.
        reference: whom the others are compared with; by default the first.
        confidence: of the intervals.
        progress: show a progress bar.

    Returns:
        Percentiles with intervals, speed-ups from paired rounds, the fast layout's share, and the machine.

    Raises:
        InputError: an argument, file or input that is not usable; the message says which and what to do.
        MissingDependencyError: onnx, onnxruntime or scipy is not installed.
    """
    need("onnx", "onnxruntime", "scipy")
    import onnxruntime

    if not models:
        raise InputError(NO_MODELS)
    names = list(models)
    paths = {name: Path(path) for name, path in models.items()}
    for name, value in {"threads": threads, "batch_size": batch_size, "min_iterations": min_iterations}.items():
        _check_count(name, value, least=1)
    _check_count("rounds", rounds, least=1)
    _check_count("warmup", warmup, least=0)
    _check_real("min_seconds", min_seconds, "a number from 0", lambda v: v >= 0)
    _check_real("confidence", confidence, "between 0 and 1", lambda v: 0 < v < 1)
    reference = names[0] if reference is None else reference
    macs = dict(macs or {})
    _check_known("reference", [reference], names)
    _check_known("macs", macs, names)
    for name, count in macs.items():
        _check_real(f"macs of {name!r}", count, "a positive number", lambda v: v > 0)
    if provider not in onnxruntime.get_available_providers():
        raise InputError(NO_PROVIDER.format(provider=provider, available=onnxruntime.get_available_providers()))

    machine = describe_machine()
    order, made_up, resampling = np.random.default_rng(seed).spawn(3)
    calls: dict[str, Callable[[], object]] = {}
    for name, path in paths.items():
        session = _session(name, path, threads, provider)
        calls[name] = _call(session, feed(name, session, inputs, batch_size, made_up))
        try:
            calls[name]()
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise InputError(DOES_NOT_RUN.format(model=name, error=error)) from error
    times = measure(
        calls,
        rounds=rounds,
        warmup=warmup,
        min_iterations=min_iterations,
        min_seconds=min_seconds,
        rng=order,
        progress=progress,
    )
    layouts = {name: fast_layout(path) if provider == CPU else None for name, path in paths.items()}
    settings = {
        "threads": threads,
        "batch_size": batch_size,
        "warmup": warmup,
        "min_iterations": min_iterations,
        "min_seconds": min_seconds,
        "rounds": rounds,
        "seed": seed,
        "provider": provider,
        "confidence": confidence,
        "inputs": "made up" if inputs is None else "given",
    }
    return summarise(
        times,
        sizes={name: _size(path) for name, path in paths.items()},
        layouts=layouts,
        macs=macs,
        reference=reference,
        settings=settings,
        machine=machine,
        rng=resampling,
    )


def measure(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int,
    min_iterations: int,
    min_seconds: float,
    rng: np.random.Generator,
    clock: Callable[[], float] = time.perf_counter,
    progress: bool = False,
) -> dict[str, list[FloatArray]]:
    """Let calls take turns and time them.

    Args:
        calls: name to what is timed.
        rounds: turns of each call.
        warmup: untimed calls of each before the first round.
        min_iterations: timed calls of each in all, at least; spread over the rounds.
        min_seconds: timed seconds of each in all, at least; spread over the rounds.
        rng: draws the order of each round.
        clock: seconds, monotonic.
        progress: show a progress bar.

    Returns:
        For each name its rounds, and for each round the seconds of each timed call.
    """
    times: dict[str, list[FloatArray]] = {name: [] for name in calls}
    names = list(calls)
    per_turn, seconds = math.ceil(min_iterations / rounds), min_seconds / rounds
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for call in calls.values():
            for _ in range(warmup):
                call()
        with tqdm(total=rounds * len(names), desc="latency", unit="turn", leave=False, disable=not progress) as bar:
            for _ in range(rounds):
                for index in rng.permutation(len(names)):
                    name = names[index]
                    times[name].append(_turn(calls[name], per_turn, seconds, clock))
                    bar.update()
    finally:
        if collecting:
            gc.enable()
    return times


def summarise(
    times: Mapping[str, Sequence[FloatArray]],
    *,
    sizes: Mapping[str, int],
    layouts: Mapping[str, Layout | None],
    macs: Mapping[str, float],
    reference: str,
    settings: Mapping[str, Any],
    machine: Machine,
    rng: np.random.Generator,
) -> LatencyReport:
    """Turn the times of each round into percentiles, speed-ups and intervals.

    Args:
        times: seconds, as :func:`measure` returns them; every model has the same number of rounds.
        sizes: bytes of each file.
        layouts: convolutions by layout, or ``None``.
        macs: multiply-accumulates, of some or all models.
        reference: whom the others are compared with.
        settings: how it was measured, kept in the report; ``confidence`` is used here.
        machine: what it was measured on.
        rng: draws the resamples; the same rounds are drawn for all models.
    """
    confidence = float(settings["confidence"])
    rounds = len(times[reference])
    draws = draw_rounds(rounds, RESAMPLES, rng)
    quantiles = list(PERCENTILES.values())
    observed = {name: np.quantile(np.concatenate(turns), quantiles) for name, turns in times.items()}
    resampled = {name: resampled_quantiles(turns, quantiles, draws) for name, turns in times.items()}
    models = []
    for name, turns in times.items():
        everything = np.concatenate(turns)
        medians = np.array([np.median(turn) for turn in turns])
        percentiles = [
            Estimate(1e3 * float(value), *interval(1e3 * column, rounds, confidence))
            for value, column in zip(observed[name], resampled[name].T, strict=True)
        ]
        speedup = None
        if name != reference:
            ratios = resampled[reference][:, 0] / resampled[name][:, 0]
            speedup = Estimate(float(observed[reference][0] / observed[name][0]), *interval(ratios, rounds, confidence))
        comparable = speedup is not None and name in macs and reference in macs
        theoretical = macs[reference] / macs[name] if comparable else None
        models.append(
            ModelLatency(
                name=name,
                size=sizes[name],
                iterations=len(everything),
                seconds=float(everything.sum()),
                p50_ms=percentiles[0],
                p90_ms=percentiles[1],
                p99_ms=percentiles[2],
                min_ms=1e3 * float(everything.min()),
                mean_ms=1e3 * float(everything.mean()),
                rounds_p50_ms=tuple((1e3 * medians).tolist()),
                dispersion=float(medians.std(ddof=1) / medians.mean()) if rounds > 1 else None,
                layout=layouts[name],
                macs=macs.get(name),
                speedup=speedup,
                theoretical=theoretical,
                realised_share=None if theoretical is None or speedup is None else speedup.value / theoretical,
            )
        )
    return LatencyReport(
        tuple(models), reference, dict(settings), machine, _notes(models, reference, settings, machine)
    )


def _turn(call: Callable[[], object], iterations: int, seconds: float, clock: Callable[[], float]) -> FloatArray:
    call()
    times: list[float] = []
    spent = 0.0
    while len(times) < iterations or spent < seconds:
        start = clock()
        call()
        times.append(clock() - start)
        spent += times[-1]
    return np.array(times)


def _notes(
    models: Sequence[ModelLatency], reference: str, settings: Mapping[str, Any], machine: Machine
) -> tuple[str, ...]:
    notes = []
    noisy = {m.name: m.dispersion for m in models if m.dispersion is not None and m.dispersion > NOISY}
    if noisy:
        told = ", ".join(f"{name} {value:.0%}" for name, value in noisy.items())
        notes.append(
            f"the machine was noisy: the rounds' medians vary by more than {NOISY:.0%} ({told}); read "
            "intervals and ratios rather than single times, or repeat on a quiet machine"
        )
    if len(models[0].rounds_p50_ms) == 1:
        notes.append("one round gives no intervals; use ten or more")
    few = [m.name for m in models if m.iterations < ENOUGH_FOR_P99]
    if few:
        notes.append(f"under {ENOUGH_FOR_P99} calls of {', '.join(few)}: p99 is about the slowest call seen")
    if machine.usable_cores is not None and settings["threads"] > machine.usable_cores:
        notes.append(f"{settings['threads']} threads share {machine.usable_cores} cores")
    fast = {m.name: m.fast_share for m in models}
    dense = fast[reference]
    for model in models:
        share = fast[model.name]
        if dense is not None and share is not None and share < dense and model.layout is not None:
            notes.append(
                f"{len(model.layout.slow)} of {model.layout.total} convolutions of {model.name} run outside the fast "
                f"layout: {_listed(model.layout.slow)}; widths that ONNX Runtime rewards (round_to='auto') keep them "
                "in it"
            )
    return tuple(notes)


def _listed(layers: Sequence[ConvLayer]) -> str:
    told = ", ".join(str(layer) for layer in layers[:NAMED])
    return told if len(layers) <= NAMED else f"{told} and {len(layers) - NAMED} more"


def _session(name: str, path: Path, threads: int, provider: str) -> onnxruntime.InferenceSession:
    import onnxruntime

    if not path.is_file():
        raise InputError(f"there is no ONNX file {path} for {name!r}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # errors come back as exceptions
    # Idle threads keep spinning for a while after a call, on cores that the next model's turn needs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise InputError(NOT_LOADED.format(model=name, path=path, error=error)) from error
    if session.get_providers()[0] != provider:
        raise InputError(PROVIDER_UNUSED.format(got=session.get_providers(), provider=provider, model=name))
    return session


def _call(session: onnxruntime.InferenceSession, feed: dict[str, Array]) -> Callable[[], object]:
    return lambda: session.run(None, feed)


def _size(path: Path) -> int:
    import onnx

    from fair_prune_plugins.onnx.parity import external_files

    sidecars = external_files(onnx.load(str(path), load_external_data=False))
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in sidecars)


def _check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(NOT_POSITIVE.format(name=name, what=f"a whole number from {least}", got=value))


def _check_real(name: str, value: Any, what: str, valid: Callable[[float], bool]) -> None:
    real = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not (real and math.isfinite(value) and valid(float(value))):
        raise InputError(NOT_POSITIVE.format(name=name, what=what, got=value))


def _check_known(what: str, given: Sequence[str] | Mapping[str, Any], names: Sequence[str]) -> None:
    stray = [name for name in given if name not in names]
    if stray:
        raise InputError(UNKNOWN_MODEL.format(what=what, stray=stray, models=list(names)))
