"""The people of the study: who is trained on, who is chosen on, who is judged; the same for every seed.

The official test part is small, so people of the training part are held out beside it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.groups import GroupLabels
from fair_prune_plugins.workflow import image_tables
from fair_prune_plugins.workflow.config import path_of
from fair_prune_plugins.workflow.data import Part, Samples, draw_parts

HERE = Path(__file__).resolve().parent
TABLE = "labels.csv"
TRAIN, TEST = "train", "test"
SPLIT_SEED = 20260101
CLASSES = ("Female", "Male")

TOO_MANY = (
    "data.options: {wanted} people are to be held out for test and validation, but the training part has {people}; "
    "ask for fewer"
)
NO_COLUMN = "{table} in {images} needs the columns {needed}, it has {have}; is this fairface-bench-64.zip?"


def fairface(
    images: str = "${FAIR_PRUNE_DATA:-../../../shared/data}/fairface-bench-64.zip",
    held_out: int = 6000,
    validation: int = 3000,
) -> Samples:
    """Read the faces and part the people, race x gender by race x gender.

    Args:
        images: archive with the images and ``labels.csv``; environment variables are filled in, and a relative path
            starts at this file's folder.
        held_out: people of the training part who are test people, beside the official test part.
        validation: people of the training part on whom channels are ranked and everything is chosen.

    Raises:
        InputError: the archive or one of its images is missing or damaged, or too few people are left for training.
    """
    with image_tables.ImageStore(path_of(images, HERE, key="data.options.images")) as store:
        table = image_tables.read_table(TABLE, HERE, store)
        needed = ["file", "part", "gender", "race"]
        if not set(needed) <= set(table.columns):
            raise InputError(NO_COLUMN.format(table=TABLE, images=store.path, needed=needed, have=list(table.columns)))
        columns = {name: table[name].astype(str).tolist() for name in needed}
        inputs, _, _ = image_tables.read_images(columns["file"], store, channels=3, size=None, skip_corrupt=False)
    groups = GroupLabels.from_columns({"race": columns["race"], "gender": columns["gender"]})
    parts = np.array(columns["part"], dtype=object)
    free = np.flatnonzero(parts == TRAIN)
    if held_out + validation >= len(free):
        raise InputError(TOO_MANY.format(wanted=held_out + validation, people=len(free)))
    shares = {Part.TEST: held_out / len(free), Part.VALIDATION: validation / len(free)}
    official = int((parts == TEST).sum())
    parts[free] = draw_parts([groups.names[code] for code in groups.codes[free]], shares, seed=SPLIT_SEED)
    return Samples(
        inputs=inputs,
        labels=np.array([CLASSES.index(value) for value in columns["gender"]], dtype=np.int64),
        classes=CLASSES,
        groups=groups,
        parts=parts,
        notes=(f"Test people: the {official:,} of the official part and {held_out:,} held out of the training part.",),
    )
