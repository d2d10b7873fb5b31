"""Options that ``fair-prune audit`` and ``fair-prune check`` share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

TABLES = "Tables of predictions"
FILES = "ONNX files"
RUNS = "Run folders"
INTERVALS = "Intervals"


class PredictionKind(StrEnum):
    """What a table of predictions holds."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    DECISIONS = "decisions"


class Correction(StrEnum):
    """What the confidence of verdicts is for."""

    SIMULTANEOUS = "simultaneous"
    NONE = "none"


Dense = Annotated[
    list[str],
    typer.Option(
        "--dense",
        metavar="[NAME=]PATH",
        help="The model before compression: a .csv or .parquet table of predictions, an .onnx file, or a run folder. "
        "Repeat it for several runs (training seeds).",
    ),
]
Pruned = Annotated[
    list[str] | None,
    typer.Option(
        "--pruned",
        metavar="[NAME=]PATH",
        help="A compressed model, likewise. Repeatable; the same NAME again is a further run of that model.",
    ),
]
RequiredPruned = Annotated[
    list[str],
    typer.Option(
        "--pruned",
        metavar="[NAME=]PATH",
        help="A compressed model, likewise. Repeatable; the same NAME again is a further run of that model.",
    ),
]
People = Annotated[
    Path | None,
    typer.Option(
        "--people",
        help="Table of people (.csv or .parquet): an id, what is true, the groups. Predictions are matched by id.",
        rich_help_panel=TABLES,
    ),
]
Id = Annotated[str, typer.Option("--id", metavar="COLUMN", help="Column of ids.", rich_help_panel=TABLES)]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        metavar="COLUMN",
        help="Column of what is true. Two values are a yes/no task, more are classes; repeat it for several labels "
        "of yes and no.",
        rich_help_panel=TABLES,
    ),
]
Groups = Annotated[
    list[str] | None,
    typer.Option(
        "--group",
        metavar="COLUMN[=A,B]",
        help="Column of a sensitive attribute; after = the groups that there are, in order. Repeatable.",
        rich_help_panel=TABLES,
    ),
]
Intersections = Annotated[
    list[str] | None,
    typer.Option(
        "--intersection",
        metavar="A,B",
        help="Group columns to cross in addition, e.g. race,gender. Repeatable.",
        rich_help_panel=TABLES,
    ),
]
Classes = Annotated[
    str | None,
    typer.Option(
        "--classes",
        metavar="A,B",
        help="All classes in order, where some may be absent here; of two the second is the positive one.",
        rich_help_panel=TABLES,
    ),
]
Parts = Annotated[
    str | None,
    typer.Option(
        "--parts",
        metavar="COLUMN[=TEST,VALIDATION,TRAIN]",
        help="Column that tells test, validation and training people apart, and its values if they are others than "
        "test,validation,train.",
        rich_help_panel=TABLES,
    ),
]
Kind = Annotated[
    PredictionKind | None,
    typer.Option(
        "--predictions",
        help="What the tables of predictions hold; told from column names or values without.",
        rich_help_panel=TABLES,
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--prediction-column",
        metavar="COLUMN",
        help="Column of predictions; repeat it in the order of labels or classes. Found by name without: smiling, "
        "logit_smiling, probability_smiling or decision_smiling.",
        rich_help_panel=TABLES,
    ),
]
OnlyCommon = Annotated[
    bool,
    typer.Option("--only-common", help="Audit only the people whom all models were asked about, instead of stopping."),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="CONFIG.yaml",
        help="Whom to ask the files about: a file with the section data of a `fair-prune run` configuration (see "
        "`fair-prune explain data`), or a run folder.",
        rich_help_panel=FILES,
    ),
]
Everybody = Annotated[
    bool,
    typer.Option("--everybody", help="Audit everybody in the data, not the test part alone.", rich_help_panel=FILES),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help='Pruned model to audit, as the run\'s report calls it, e.g. "fairgrape 50 %". Repeatable; all without.',
        rich_help_panel=RUNS,
    ),
]
Resamples = Annotated[int, typer.Option(min=100, help="Bootstrap resamples.", rich_help_panel=INTERVALS)]
Seed = Annotated[int, typer.Option(min=0, help="Of the bootstrap.", rich_help_panel=INTERVALS)]
