"""How good the forecast was, once a pruned model exists."""

from __future__ import annotations

from fair_prune_plugins.audit.changes import exemplars
from fair_prune_plugins.audit.data import AuditData, ModelPredictions
from fair_prune_plugins.audit.forecast.detecting import Detector
from fair_prune_plugins.audit.forecast.judging_orders import judge_orders
from fair_prune_plugins.audit.forecast.nearness import dense_margins
from fair_prune_plugins.audit.forecast.result import Detection, ForecastQuality, RiskReport
from fair_prune_plugins.audit.measures.estimates import Estimates
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.postprocessing.scores import FloatArray

OTHER_REPORT = (
    "the report is of {model!r} with the outputs {outputs} and the groups {groups}, the data of {dense!r} with "
    "{expected_outputs} and {expected}; pass a forecast of the same dense model"
)
PLAIN = "With one run per model, exemplars are plain disagreement of two networks."
UNGRADED = "Of {model!r} only decisions are known: whether its uncertainty tells who changes cannot be judged."
FEW = "Rank correlations over few groups say little: their intervals are for other groups like these."
HALVES = (
    "The forecast is of the same people: orders are judged with signals of one half of them and what came to the other "
    "half. On the same people chance alone would decide: a group that a dense model happens to serve badly there seems "
    "to lose less. Group gradients are taken as given and should come from other people."
)
MEAN_OF = (
    "A mean over outputs takes those with at least two exemplars and two others; its interval allows for a person's "
    "answers going together."
)


def judge(report: RiskReport, data: AuditData) -> tuple[ForecastQuality, ...]:
    """How well the dense model's uncertainty and the report's order foretold what came; one result per pruned model.

    AUROC is that of the dense margin as a detector of modal exemplars, with DeLong's interval. What came is the loss of
    accuracy (mean over runs and outputs) and the share of exemplars; with a report of the same people, half of them
    judge the signals of the other half.

    Args:
        report: of the dense model, best on other people, e.g. validation people.
        data: the dense model and pruned ones, on test people.

    Returns:
        in the order of ``data.pruned``; empty without a pruned model.

    Raises:
        InputError: the report is of something else.
        MissingDependencyError: scipy is not installed.
    """
    _check(report, data)
    estimates = Estimates(report.confidence, report.resamples)
    sure = dense_margins(data) if data.dense.graded else None
    return tuple(_judge(report, data, model, sure, estimates) for model in data.pruned)


def _judge(
    report: RiskReport, data: AuditData, model: ModelPredictions, sure: FloatArray | None, estimates: Estimates
) -> ForecastQuality:
    changed = exemplars(data, model)
    everyone: tuple[Detection, ...] = ()
    by_group: tuple[Detection, ...] = ()
    if sure is not None:
        detector = Detector(data, changed, sure, report.confidence, estimates)
        everyone = detector.detect(None)
        by_group = tuple(found for groups in data.people.groups for found in detector.detect(groups))
    plain = len(data.dense.runs) == len(model.runs) == 1
    orders = judge_orders(report, data, model, changed)
    notes = [FEW] if orders else []
    if any(order.halves for order in orders):
        notes.append(HALVES)
    if plain:
        notes.append(PLAIN)
    if sure is None:
        notes.append(UNGRADED.format(model=data.dense.name))
    elif changed.shape[1] > 1:
        notes.append(MEAN_OF)
    return ForecastQuality(model.name, plain, everyone, by_group, tuple(orders), tuple(notes))


def _check(report: RiskReport, data: AuditData) -> None:
    described = {attribute.attribute: [group.group for group in attribute.groups] for attribute in report.attributes}
    expected = {groups.attribute: list(groups.names) for groups in data.people.groups}
    outputs = tuple(output.output for output in report.outputs)
    if (report.model, described, outputs) != (data.dense.name, expected, data.people.outputs):
        raise InputError(
            OTHER_REPORT.format(
                model=report.model,
                outputs=outputs,
                groups=described,
                dense=data.dense.name,
                expected_outputs=data.people.outputs,
                expected=expected,
            )
        )
