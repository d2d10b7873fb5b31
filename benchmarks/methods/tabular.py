"""The people of the 1994 census (UCI Adult), parted for the comparison, and a network for tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.groups import GroupLabels
from fair_prune_plugins.workflow.config import path_of
from fair_prune_plugins.workflow.data import Part, Samples, draw_parts

HERE = Path(__file__).resolve().parent
SPLIT_SEED = 20260101
TARGET, CLASSES = "income-per-year", ("<=50K", ">50K")
NUMBERS = ("age", "education-num", "hours-per-week")
SKEWED = ("capital-gain", "capital-loss")
NAMES = ("workclass", "marital-status", "occupation", "relationship")
SMALL_RACES = ("Amer-Indian-Eskimo", "Other")

NO_FILE = "there is no {path}; FAIR_PRUNE_DATA must name the folder that holds adult.parquet"
NO_COLUMN = "{path} lacks the columns {missing}, it has {have}; is this adult.parquet?"


def adult(
    table: str = "${FAIR_PRUNE_DATA:-../../../shared/data}/adult.parquet", test: float = 0.3, validation: float = 0.3
) -> Samples:
    """Read the census and part the people, sex x race by sex x race; the same for every seed.

    Sex and race are no inputs, though what is left tells of them. The survey's weights and the name of the education
    (its number stays) are left out. Two races with some 300 people each are taken together.

    Args:
        table: Parquet file; environment variables are filled in, and a relative path starts at this file's folder.
        test: share of the people who are judged on.
        validation: share on whom channels are ranked and everything is chosen.

    Raises:
        InputError: no such file, or another one.
    """
    path = path_of(table, HERE, key="data.options.table")
    if not path.is_file():
        raise InputError(NO_FILE.format(path=path))
    people = pd.read_parquet(path)
    missing = {*NUMBERS, *SKEWED, *NAMES, TARGET, "native-country", "sex", "race"} - set(people.columns)
    if missing:
        raise InputError(NO_COLUMN.format(path=path, missing=sorted(missing), have=list(people.columns)))
    features = [
        people[list(NUMBERS)].to_numpy(dtype=np.float32),
        np.log1p(people[list(SKEWED)].to_numpy(dtype=np.float32)),
        pd.get_dummies(people[list(NAMES)]).to_numpy(dtype=np.float32),
        (people[["native-country"]] == "United-States").to_numpy(dtype=np.float32),
    ]
    race = people["race"].where(~people["race"].isin(SMALL_RACES), "Other").tolist()
    groups = GroupLabels.from_columns({"sex": people["sex"].tolist(), "race": race})
    shares = {Part.TEST: test, Part.VALIDATION: validation}
    return Samples(
        inputs=np.concatenate(features, axis=1),
        labels=np.array([CLASSES.index(value) for value in people[TARGET]], dtype=np.int64),
        classes=CLASSES,
        groups=groups,
        parts=draw_parts([groups.names[code] for code in groups.codes], shares, seed=SPLIT_SEED),
        notes=(f"{' and '.join(SMALL_RACES)}, as the census has them, are one race here; sex and race are no inputs.",),
    )


def mlp(inputs: int, classes: int = 2, widths: Sequence[int] = (256, 256, 128)) -> nn.Module:
    """Linear layers, each with batch norm and ReLU, and a linear classifier."""
    layers: list[nn.Module] = []
    before = inputs
    for width in widths:
        layers += [nn.Linear(before, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.Linear(before, classes))
