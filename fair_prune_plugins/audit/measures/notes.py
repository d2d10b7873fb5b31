"""What a reader must know before reading the numbers, in sentences."""

from __future__ import annotations

from fair_prune_plugins.audit.data import AuditData
from fair_prune_plugins.audit.measures.change_tests import Family
from fair_prune_plugins.audit.measures.interdependence import MOST_OUTPUTS
from fair_prune_plugins.audit.measures.result import OutputTruth

RUNS = (
    "Numbers are means over a model's runs ({runs}); intervals say how far other people would change them, not how far "
    "other training runs would."
)
ONE_RUN = "Each model has one run: how far another training run would change a number is not known."
TESTS = (
    "Changes of accuracy by {attribute} are tested group by group (sign-flip test). Holm's correction is over the "
    "{size} tests of one pruned model: each group with at least {minimum} people, on each output{overall}."
)
NO_TESTS = "No group by {attribute} has the {minimum} people needed to test a change of its accuracy."
NO_TRAINING = (
    "The training people are not known: which value is rare, and what bias amplification starts from, is taken from "
    "the audited people."
)
ONE_CLASS = "Everybody is truly {value} on {names}: AUROC and a rate are undefined there."
NO_INTERVALS = "With more than {most} outputs, interdependence comes without intervals."


def notes(
    data: AuditData,
    truths: tuple[OutputTruth, ...],
    families: tuple[tuple[Family | None, ...], ...],
    minimum: int,
) -> tuple[str, ...]:
    """All notes.

    Args:
        data: what was measured.
        truths: what is true of each output.
        families: per attribute and model the tests of changes.
        minimum: people a group needs to be judged.
    """
    people = data.people
    said = [groups.statement(minimum) for groups in people.groups]
    runs = {model.name: len(model.runs) for model in data.models}
    if max(runs.values()) == 1:
        said.append(ONE_RUN)
    else:
        said.append(RUNS.format(runs=", ".join(f"{name}: {count}" for name, count in runs.items())))
    overall = "" if people.task == "binary" else " and overall"
    for groups, of_models in zip(people.groups, families, strict=True):
        family = next((family for family in of_models if family is not None), None)
        if family is None:
            continue
        template = TESTS if family.size else NO_TESTS
        said.append(template.format(attribute=groups.attribute, size=family.size, minimum=minimum, overall=overall))
    if data.training is None:
        said.append(NO_TRAINING)
    for value, count in ((0, 0), (1, len(people))):
        names = [truth.name for truth in truths if truth.positives == count]
        if names:
            said.append(ONE_CLASS.format(value=value, names=", ".join(names)))
    if people.task == "multilabel" and len(truths) > MOST_OUTPUTS:
        said.append(NO_INTERVALS.format(most=MOST_OUTPUTS))
    return tuple(said)
