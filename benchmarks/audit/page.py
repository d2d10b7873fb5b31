"""What was found, as a page and as JSON: aggregated over people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from benchmarks.audit.judged import Judged
from fair_prune_plugins.audit.forecast import Detection, ForecastQuality, OrderQuality
from fair_prune_plugins.evaluation.intervals import Estimate
from fair_prune_plugins.workflow.run_folder import write_json


def write(found: Judged, folder: Path, name: str) -> str:
    """Write ``name.md`` and ``name.json``; returns the page."""
    text = "\n".join(_lines(found)) + "\n"
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    write_json(
        folder / f"{name}.json",
        {
            "name": found.name,
            "seeds": found.seeds,
            "sizes": found.sizes,
            "accuracies": found.accuracies,
            "retrained_disagreement": found.retrained,
            "gradient_seeds": found.gradient_seeds,
            "groups": [asdict(attribute)["groups"] for attribute in found.report.attributes],
            "changes": [
                {"model": c.model, "everyone": asdict(c.questions[0].everyone), "notes": c.notes} for c in found.changes
            ],
            "qualities": [asdict(quality) for quality in found.qualities],
            "attribution": found.attribution,
        },
    )
    return text


def _lines(found: Judged) -> Iterator[str]:
    yield f"# {found.name}"
    yield ""
    yield (
        f"{len(found.seeds)} seeds; {found.sizes['train']:,} training, {found.sizes['validation']:,} validation and "
        f"{found.sizes['test']:,} test people. The forecast is made from the dense networks on validation people alone "
        "and judged on test people. A person is an exemplar (CIE) where the pruned networks' majority answer differs "
        "from the dense networks'. Intervals are 95 %."
    )
    yield ""
    yield "## Who changes"
    yield ""
    heads = ("accuracy", "exemplars", "unsure of them", "unsure of everybody", "dense error on them", "on everybody")
    yield "| | " + " | ".join(heads) + " |"
    yield "|---|" + "---|" * len(heads)
    yield f"| dense | {100 * found.accuracies['dense']:.1f} % | | | | | |"
    for change in found.changes:
        everyone = change.questions[0].everyone
        cells = [
            f"{100 * found.accuracies[change.model]:.1f} %",
            *(
                _percent(e)
                for e in (
                    everyone.share,
                    everyone.unsure_exemplars,
                    everyone.unsure,
                    everyone.dense_error_of_exemplars,
                    everyone.dense_error,
                )
            ),
        ]
        yield f"| {change.model} | " + " | ".join(cells) + " |"
    if found.retrained is not None:
        yield ""
        yield (
            f"For scale: two dense networks that differ in nothing but the seed disagree on "
            f"{100 * found.retrained:.1f} % of the test people."
        )
    yield ""
    yield "## Does the dense network's uncertainty tell who changes?"
    yield ""
    yield "Area under the ROC curve of the dense margin as a detector of exemplars; 0.5 is guessing."
    yield ""
    yield "| | " + " | ".join(q.model for q in found.qualities) + " |"
    yield "|---|" + "---|" * len(found.qualities)
    yield "| everyone | " + " | ".join(_area(q.everyone[-1]) for q in found.qualities) + " |"
    for i, entry in enumerate(found.qualities[0].groups):
        yield f"| {entry.group} | " + " | ".join(_area(q.groups[i]) for q in found.qualities) + " |"
    yield ""
    yield "## Does the forecast put groups in the order in which they lose?"
    yield ""
    yield (
        "Spearman's rank correlation between a signal of the dense networks (validation people) and what came (test "
        "people); 1 is the foretold order. p by permutation, not corrected for the number of tests."
    )
    for quality in found.qualities:
        yield from _orders(quality)
    yield ""
    if found.gradient_seeds:
        yield (
            f"Group gradients and Hessian eigenvalues: mean over {found.gradient_seeds} dense networks, of validation "
            "people."
        )
    else:
        yield "Group gradients were not measured."
    yield ""
    yield from found.attribution
    yield (
        "Faces of real people; perceived binary gender is a test bed here and no product to recommend; not for "
        "identification."
    )


def _orders(quality: ForecastQuality) -> Iterator[str]:
    came = list(dict.fromkeys(order.suffered for order in quality.orders))
    yield ""
    yield f"### {quality.model}"
    yield ""
    yield "| groups | signal | " + " | ".join(came) + " |"
    yield "|---|---|" + "---|" * len(came)
    rows = dict.fromkeys((order.of, order.signal) for order in quality.orders if order.count > 3)
    for of, signal in rows:
        cells = [
            _order(order)
            for what in came
            for order in quality.orders
            if (order.of, order.signal, order.suffered) == (of, signal, what)
        ]
        yield f"| {of} | {signal} | " + " | ".join(cells) + " |"


def _order(order: OrderQuality) -> str:
    if order.correlation.value is None:
        return "undefined"
    return f"{order.correlation.value:.2f}{_range(order.correlation, 2)}, p {order.p:.2g}"


def _area(found: Detection) -> str:
    if found.auroc.value is None:
        return f"undefined ({found.exemplars} exemplars)"
    return f"{found.auroc.value:.2f}{_range(found.auroc, 2)}, {found.exemplars} of {found.answers:,}"


def _percent(estimate: Estimate) -> str:
    if estimate.value is None:
        return "undefined"
    return f"{100 * estimate.value:.1f} %{_range(estimate, 1, 100)}"


def _range(estimate: Estimate, digits: int, scale: float = 1.0) -> str:
    interval = estimate.interval
    if interval is None:
        return ""
    return f" ({scale * interval.low:.{digits}f} to {scale * interval.high:.{digits}f})"
