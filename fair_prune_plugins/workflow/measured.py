"""How the numbers were measured, in words, so that a sceptical reader can judge them."""

from __future__ import annotations

from fair_prune_plugins.reporting.estimates import Remark
from fair_prune_plugins.reporting.wording import as_sentence, counted, percent, scientific
from fair_prune_plugins.workflow.readings import RunReading

_SETTINGS = {
    "provider": "execution provider",
    "threads": "threads",
    "batch_size": "batch size",
    "rounds": "rounds",
    "warmup": "warm-up calls",
    "min_iterations": "least calls per model",
    "min_seconds": "least seconds per model",
}
"""Settings of the timing to name in the sentence, in this order; all of them are in ``results.json``."""


def measured(run: RunReading) -> list[Remark]:
    """One remark per kind of measurement that the run holds."""
    remarks = [*_accuracy(run), *_worst_group(run), *_latency(run), *_proof(run)]
    remarks.append(
        Remark(
            "Size.",
            "MACs (multiply-accumulates for one input) and parameters are counted on the networks after the channels "
            "were removed from the structure; nothing is masked.",
        )
    )
    return remarks


def _accuracy(run: RunReading) -> list[Remark]:
    evaluation = run.dense.evaluation
    text = f"Share of right predictions over {counted(evaluation.n, 'test person', 'test people')}"
    if evaluation.unknown:
        text += f", {evaluation.unknown} of them of unknown group, who count in pooled numbers only"
    text += (
        f". Intervals are {percent(evaluation.confidence, 0)} percentile intervals from {evaluation.resamples} "
        "bootstrap resamples of the test people (exact binomial where everyone concerned had the same outcome). "
        "Changes are paired: each resample holds the same people for both models. The gap, rho and the excess gap "
        "are over all groups, those too small to judge included."
    )
    remarks = [Remark("Accuracy.", text)]
    if evaluation.gap_by_chance is not None:
        remarks.append(
            Remark(
                "Gap by chance.",
                "A largest minus a smallest accuracy is never below zero: groups of these sizes that the dense model "
                f"serves equally well would show up to {100 * evaluation.gap_by_chance:.1f} points "
                f"({percent(evaluation.confidence, 0)}).",
            )
        )
    notes = dict.fromkeys(note for m in run.models for note in m.evaluation.notes if note != run.results.task.statement)
    if notes:
        remarks.append(Remark("Notes.", " ".join(as_sentence(note) for note in notes)))
    return remarks


def _worst_group(run: RunReading) -> list[Remark]:
    if not run.worst_groups or any(m.evaluation.worst_on_this_data for m in run.models):
        return []
    return [
        Remark(
            "Worst group.",
            f"It was named on validation data before the test people were looked at, among groups of at least "
            f"{run.dense.evaluation.minimum} people. It need not be the worst one on the test people.",
        )
    ]


def _latency(run: RunReading) -> list[Remark]:
    if run.dense.latency.p50.value is None:
        return []
    timing = run.results.timing
    settings = timing.get("settings", {})
    known = [f"{name} {settings[key]}" for key, name in _SETTINGS.items() if settings.get(key) is not None]
    text = (
        "ONNX Runtime, models interleaved in rounds of random order, so that whatever else the machine does "
        "meets all of them. Intervals resample whole rounds; a speed-up compares rounds in which both models ran"
    )
    text += f". Settings: {', '.join(known)}." if known else "."
    notes = [as_sentence(note) for note in timing.get("notes", [])]
    return [Remark("Latency.", " ".join([text, *notes]))]


def _proof(run: RunReading) -> list[Remark]:
    checked = [m.parity for m in run.models if m.parity.error is not None]
    if not checked:
        return []
    worst = max(p.error for p in checked if p.error is not None)
    sizes = ", ".join(map(str, checked[0].batch_sizes))
    return [
        Remark(
            "ONNX proof.",
            f"Each file was run in ONNX Runtime against its torch model on {checked[0].samples} real samples at batch "
            f"sizes {sizes}. The largest difference is {scientific(worst)} of the outputs' scale; above "
            f"{scientific(checked[0].tolerance)} the file would have been refused.",
        )
    ]
