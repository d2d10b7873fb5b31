"""``fair-prune audit`` and ``fair-prune check``: what compression did, to whom, and whether that is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.workflow import audit_options as options
from fair_prune_plugins.workflow.command_line import Debug, clear_errors, standard_output

if TYPE_CHECKING:
    from rich.console import Console

EXIT_REFUSED = 3
"""Exit code of ``check`` where a pruned model breaks the policy."""

NOT_WRITTEN = "{path} cannot be written: {reason}"

LIMITS = "Limits, as shares: 0.02 is two points"
VERDICTS = "Verdicts"
SINGLE = "Single people"

Limit = float | None


def _limit(name: str, text: str) -> typer.models.OptionInfo:
    """An option that sets a rule of the policy."""
    option: typer.models.OptionInfo = typer.Option(
        f"--{name}", min=0, max=1, metavar="SHARE", help=text, rich_help_panel=LIMITS, show_default=False
    )
    return option


def audit(
    dense: options.Dense,
    pruned: options.Pruned = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the report.")] = Path("runs/audit"),
    people: options.People = None,
    id: options.Id = "id",
    label: options.Labels = None,
    group: options.Groups = None,
    intersection: options.Intersections = None,
    classes: options.Classes = None,
    parts: options.Parts = None,
    predictions: options.Kind = None,
    prediction_column: options.Columns = None,
    data: options.Data = None,
    everybody: options.Everybody = False,
    model: options.Models = None,
    only_common: options.OnlyCommon = False,
    minimum: Annotated[int, typer.Option(min=1, help="Groups with fewer people are called too small to judge.")] = 30,
    confidence: Annotated[
        float, typer.Option(min=0.5, max=0.9999, help="Of the intervals.", rich_help_panel=options.INTERVALS)
    ] = 0.95,
    resamples: options.Resamples = 1000,
    seed: options.Seed = 0,
    ids: Annotated[
        bool,
        typer.Option(
            "--ids/--no-ids",
            help="Name the people most likely to flip by their ids; without, nobody can be told apart.",
            rich_help_panel=SINGLE,
        ),
    ] = True,
    thumbnails: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Show pictures of them: image files named by id. The report then holds people's faces.",
            rich_help_panel=SINGLE,
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Say what compression did, to whom, how sure that is, and what the dense model alone already told.

    Writes a self-contained HTML report, a model-card section and all numbers as JSON. With --dense alone it is the risk
    report: who will suffer if the model is pruned.

    Predictions:  fair-prune audit --people people.csv --label smiling --group gender --dense big.csv --pruned small.csv

    ONNX files:   fair-prune audit --data config.yaml --dense dense.onnx --pruned small.onnx

    Run folders:  fair-prune audit --dense runs/quickstart --pruned runs/quickstart
    """
    with clear_errors(debug):
        from fair_prune_plugins.workflow.audit_pictures import pictures_of
        from fair_prune_plugins.workflow.audit_request import Request

        request = Request(
            dense, pruned or (), people, id, label or (), group or (), intersection or (), classes, parts, predictions,
            prediction_column or (), only_common, data, everybody, model or (),
        )  # fmt: skip
        from dataclasses import replace

        from fair_prune_plugins.audit.auditing import audit as audit_everything
        from fair_prune_plugins.audit.report import write_report
        from fair_prune_plugins.workflow.audit_summary import print_summary
        from fair_prune_plugins.workflow.progress import show_bars

        inputs, console = request.read(), standard_output()
        _say(inputs.notes, console)
        found = audit_everything(
            inputs.data,
            validation=inputs.validation,
            resamples=resamples,
            confidence=confidence,
            seed=seed,
            minimum=minimum,
            progress=show_bars(),
        )
        found = replace(found, notes=(*inputs.notes, *found.notes))
        likely = {person.id for person in found.risk.likely}
        write_report(
            found,
            output,
            people=ids,
            thumbnails=None if thumbnails is None else pictures_of(likely, thumbnails),
        )
        print_summary(found, console)
        console.print(f"\nReport: {output / 'audit.html'}", highlight=False, soft_wrap=True, markup=False)


def check(
    dense: options.Dense,
    pruned: options.RequiredPruned,
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy",
            metavar="FILE.yaml",
            help="The limits as keys, e.g. max_group_drop: 0.02; options given beside it replace its keys.",
        ),
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML to this file, for a CI system.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write Markdown to this file, for a pull request.")] = None,
    max_group_drop: Annotated[Limit, _limit("max-group-drop", "Most accuracy that any group may lose.")] = None,
    max_pooled_drop: Annotated[Limit, _limit("max-pooled-drop", "Most that everybody together may lose.")] = None,
    min_group_accuracy: Annotated[
        Limit, _limit("min-group-accuracy", "Least accuracy that any group must have.")
    ] = None,
    max_gap_increase: Annotated[
        Limit, _limit("max-gap-increase", "Most that the accuracy gap between groups may grow.")
    ] = None,
    max_excess_gap: Annotated[
        Limit, _limit("max-excess-gap", "Most that any group may lose beyond what everybody lost.")
    ] = None,
    max_flip_rate: Annotated[
        Limit, _limit("max-flip-rate", "Most people, of all and of any group, whose decision may change.")
    ] = None,
    max_true_positive_drop: Annotated[
        Limit, _limit("max-true-positive-drop", "Most true positive rate that any group may lose.")
    ] = None,
    max_demographic_parity_increase: Annotated[
        Limit, _limit("max-demographic-parity-increase", "Most that the gap in positive decisions may grow.")
    ] = None,
    max_equal_opportunity_increase: Annotated[
        Limit, _limit("max-equal-opportunity-increase", "Most that the gap in true positive rates may grow.")
    ] = None,
    max_equalized_odds_increase: Annotated[
        Limit, _limit("max-equalized-odds-increase", "Most that the equalised odds gap may grow.")
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option(min=0.5, max=0.9999, help="Of the verdicts; 0.95 by default.", rich_help_panel=VERDICTS),
    ] = None,
    correction: Annotated[
        options.Correction | None,
        typer.Option(
            help="simultaneous (default): the confidence is for all comparisons of a model together; none: for each.",
            rich_help_panel=VERDICTS,
        ),
    ] = None,
    strict: Annotated[
        bool | None,
        typer.Option("--strict/--lenient", help="Also refuse what cannot be told.", rich_help_panel=VERDICTS),
    ] = None,
    minimum: Annotated[
        int | None,
        typer.Option(min=1, help="Groups with fewer people are not judged; 30 by default.", rich_help_panel=VERDICTS),
    ] = None,
    only_attribute: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Judge only this sensitive attribute. Repeatable.", rich_help_panel=VERDICTS),
    ] = None,
    only_output: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Judge only this label or class. Repeatable.", rich_help_panel=VERDICTS),
    ] = None,
    people: options.People = None,
    id: options.Id = "id",
    label: options.Labels = None,
    group: options.Groups = None,
    intersection: options.Intersections = None,
    classes: options.Classes = None,
    parts: options.Parts = None,
    predictions: options.Kind = None,
    prediction_column: options.Columns = None,
    data: options.Data = None,
    everybody: options.Everybody = False,
    model: options.Models = None,
    only_common: options.OnlyCommon = False,
    resamples: options.Resamples = 1000,
    seed: options.Seed = 0,
    debug: Debug = False,
) -> None:
    """Refuse a pruned model that breaks a fairness policy; made for CI.

    A rule is broken where the whole confidence interval lies beyond the limit, so that no model is refused for the luck
    of the draw; --strict also refuses what cannot be told on these people.

    Exit code 0: no model is refused; 3: a model is refused; 2: bad input.

    Example:  fair-prune check --max-group-drop 0.02 --max-gap-increase 0.01 --junit check.xml
    --data config.yaml --dense dense.onnx --pruned small.onnx
    """
    with clear_errors(debug):
        from fair_prune_plugins.audit.policy import as_junit, as_markdown, print_check, read_policy
        from fair_prune_plugins.audit.policy import check as check_policy
        from fair_prune_plugins.workflow.audit_request import Request
        from fair_prune_plugins.workflow.progress import show_bars

        asked = read_policy(
            policy,
            {
                "max_group_drop": max_group_drop,
                "max_pooled_drop": max_pooled_drop,
                "min_group_accuracy": min_group_accuracy,
                "max_gap_increase": max_gap_increase,
                "max_excess_gap": max_excess_gap,
                "max_flip_rate": max_flip_rate,
                "max_true_positive_drop": max_true_positive_drop,
                "max_demographic_parity_increase": max_demographic_parity_increase,
                "max_equal_opportunity_increase": max_equal_opportunity_increase,
                "max_equalized_odds_increase": max_equalized_odds_increase,
                "confidence": confidence,
                "correction": correction,
                "strict": strict,
                "minimum_group": minimum,
                "attributes": only_attribute or None,
                "outputs": only_output or None,
            },
        )
        request = Request(
            dense, pruned, people, id, label or (), group or (), intersection or (), classes, parts, predictions,
            prediction_column or (), only_common, data, everybody, model or (),
        )  # fmt: skip
        inputs, console = request.read(), standard_output()
        _say(inputs.notes, console)
        judged = check_policy(inputs.data, asked, resamples=resamples, seed=seed, progress=show_bars())
        print_check(judged, console)
        for path, text in ((junit, as_junit(judged)), (markdown, as_markdown(judged))):
            if path is not None:
                _write(path, text)
        if not judged.passed:
            raise typer.Exit(EXIT_REFUSED)


def _say(notes: Iterable[str], console: Console) -> None:
    for note in notes:
        console.print(Text(f"Note: {note}", style="dim"), soft_wrap=True)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(NOT_WRITTEN.format(path=path, reason=error.strerror or error)) from None
