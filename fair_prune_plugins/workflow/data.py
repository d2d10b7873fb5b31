"""People, their labels and groups, held in memory; how they are parted, normalised and handed out in batches.

Images stay ``uint8`` and are normalised when a batch is made: a quarter of the memory of floats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.groups import GroupLabels


class Part(StrEnum):
    """What a person is used for."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


EMPTY_PART = "no person is left for the {part} part ({sizes}); there must be training, validation and test people"
LABEL_RANGE = "the labels must be 0 to {last} for {count} classes, got {low} to {high} (row {row})"
CLASS_NOT_TRAINED = (
    "the {part} part has the classes {classes}, of which the training part has no example; leave them out or part "
    "the data differently"
)
ONE_CLASS = "the training part has only the class {name!r}; a classifier needs two or more"
NOT_FINITE = "the inputs hold NaN or infinite values, first in row {row}; clean or impute them before pruning"
SAME_ID = "data: ids must be different for all rows; leave them out for row numbers"
WRONG_ROWS = "the data has {inputs} inputs but {got} {what}; one is needed for each input"
BAD_DTYPE = "inputs must be uint8 images or floating-point numbers, got {dtype}"
BAD_SHAPE = (
    "inputs must be [N, features] or [N, channels, height, width] (or other [N, channels, ...]), got shape {shape}"
)


@dataclass(frozen=True)
class Samples:
    """A data set in memory.

    Attributes:
        inputs: ``[N, C, ...]`` ``uint8`` (images, 0 to 255) or ``float32``.
        labels: int64 ``[N]``, index into ``classes``.
        classes: the classes' names.
        groups: the sensitive group of each row.
        parts: array of :class:`Part` values ``[N]``.
        attribution: lines that the data's licence asks to be shown.
        notes: what was changed or left out.
        ids: how single rows are called, each differently, or empty where :attr:`called` is their number. No result
            depends on them.

    Raises:
        InputError: lengths that differ, labels out of range, an empty part, a class without training example, inputs
            that are not finite.
    """

    inputs: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    groups: GroupLabels
    parts: npt.NDArray[Any]
    attribution: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_inputs()
        if len(set(self.ids)) != len(self.ids):
            raise InputError(SAME_ID)
        for what, values in (
            ("labels", self.labels),
            ("groups", self.groups.codes),
            ("parts", self.parts),
            ("ids", self.called),
        ):
            if len(values) != len(self.inputs):
                raise InputError(WRONG_ROWS.format(inputs=len(self.inputs), got=len(values), what=what))
        problem = outside(self.labels, len(self.classes))
        if problem:
            raise InputError(problem)
        for part in Part:
            if not (self.parts == part).any():
                raise InputError(EMPTY_PART.format(part=part, sizes=self.sizes))
        self._check_classes()

    @property
    def called(self) -> tuple[str, ...]:
        """What each row is called: its id, or its number."""
        return self.ids or tuple(map(str, range(len(self.inputs))))

    def _check_inputs(self) -> None:
        if self.inputs.ndim < 2:
            raise InputError(BAD_SHAPE.format(shape=self.inputs.shape))
        if self.inputs.dtype not in (np.uint8, np.float32):
            raise InputError(BAD_DTYPE.format(dtype=self.inputs.dtype))
        if self.inputs.dtype == np.float32:
            broken = np.flatnonzero(~np.isfinite(self.inputs.reshape(len(self.inputs), -1)).all(axis=1))
            if broken.size:
                raise InputError(NOT_FINITE.format(row=broken[0]))

    def _check_classes(self) -> None:
        trained = set(self.labels[self.rows(Part.TRAIN)].tolist())
        if len(trained) == 1:
            raise InputError(ONE_CLASS.format(name=self.classes[trained.pop()]))
        for part in (Part.VALIDATION, Part.TEST):
            stray = sorted(set(self.labels[self.rows(part)].tolist()) - trained)
            if stray:
                raise InputError(CLASS_NOT_TRAINED.format(part=part, classes=[self.classes[c] for c in stray]))

    def __len__(self) -> int:
        return len(self.inputs)

    def rows(self, part: Part) -> npt.NDArray[np.intp]:
        """Indices of the people of one part, ascending."""
        return np.flatnonzero(self.parts == part)

    @property
    def sizes(self) -> dict[str, int]:
        """People per part."""
        return {str(part): int((self.parts == part).sum()) for part in Part}

    def fingerprint(self) -> str:
        """SHA-256 over all that a result can depend on: inputs, labels, classes, groups and parts."""
        digest = hashlib.sha256()
        for array in (self.inputs, self.labels, self.groups.codes, self.parts.astype("U10")):
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        digest.update(repr((self.classes, self.groups.names, self.groups.attribute)).encode())
        return digest.hexdigest()


def outside(labels: npt.NDArray[np.int64], classes: int) -> str:
    """What is wrong with labels that are not 0 to ``classes - 1``; empty where nothing is."""
    rows = np.flatnonzero((labels < 0) | (labels >= classes))
    if not rows.size:
        return ""
    return LABEL_RANGE.format(last=classes - 1, count=classes, low=labels.min(), high=labels.max(), row=rows[0])


def draw_parts(cells: Sequence[str], shares: Mapping[Part, float], *, seed: int) -> npt.NDArray[Any]:
    """Part people at random, each cell (for example class x group) in the same shares as far as whole people allow.

    People are shuffled, ordered by cell, and dealt out along that order so that each part takes its share of every
    stretch.

    Args:
        cells: one value per person.
        shares: share of the parts other than training; the rest is for training.
        seed: of the shuffle.

    Returns:
        array of :class:`Part` values ``[N]``.

    Raises:
        InputError: shares that are negative or leave nothing for training.
    """
    if any(share < 0 for share in shares.values()) or sum(shares.values()) >= 1:
        raise InputError(
            f"the shares of {', '.join(shares)} must be 0 or more and leave people for training, got {dict(shares)}"
        )
    shuffled = np.random.default_rng(seed).permutation(len(cells))
    order = shuffled[np.argsort(np.asarray(cells, dtype=object)[shuffled].astype(str), kind="stable")]
    free = np.arange(len(order))
    parts = np.full(len(order), str(Part.TRAIN), dtype=object)
    left = 1.0
    for part, share in shares.items():
        # Every (left / share)-th of those still free, so that later parts are spread as evenly as earlier ones.
        steps = np.floor((np.arange(len(free) + 1) + 0.5) * (share / left))
        taken = np.diff(steps) > 0
        parts[order[free[taken]]] = str(part)
        free, left = free[~taken], left - share
    return parts


@dataclass(frozen=True)
class Normalisation:
    """Per-channel mean and standard deviation of the training inputs; ``uint8`` is taken as 0 to 1.

    Attributes:
        mean: one number per channel (or per feature of tabular inputs).
        std: likewise; 1 where a channel is constant.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of_training(cls, samples: Samples) -> Normalisation:
        """Measured on the training part alone."""
        inputs = samples.inputs[samples.rows(Part.TRAIN)]
        channels = [inputs[:, c] for c in range(inputs.shape[1])]
        moments = [_uint8_moments(c) if c.dtype == np.uint8 else _float_moments(c) for c in channels]
        return cls(tuple(m for m, _ in moments), tuple(s if s > 0 else 1.0 for _, s in moments))

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Normalised ``float32`` of ``uint8`` or float inputs ``[n, C, ...]``."""
        shape = (1, -1, *([1] * (inputs.ndim - 2)))
        values = inputs.to(torch.float32)
        if inputs.dtype == torch.uint8:
            values = values / 255
        return (values - self._tensor(self.mean, values, shape)) / self._tensor(self.std, values, shape)

    @staticmethod
    def _tensor(numbers: tuple[float, ...], like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.float32, device=like.device).reshape(shape)

    def metadata(self, scale: str) -> dict[str, str]:
        """What a user of the ONNX file needs to prepare inputs; ``scale`` says what the numbers are before it."""
        return {
            "normalisation_mean": " ".join(f"{m:.9g}" for m in self.mean),
            "normalisation_std": " ".join(f"{s:.9g}" for s in self.std),
            "normalisation": f"input = (x - mean) / std per channel, x {scale}",
        }


def _uint8_moments(values: npt.NDArray[Any]) -> tuple[float, float]:
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    levels = np.arange(256) / 255
    mean = float((counts * levels).sum() / counts.sum())
    return mean, float(np.sqrt((counts * (levels - mean) ** 2).sum() / counts.sum()))


def _float_moments(values: npt.NDArray[Any]) -> tuple[float, float]:
    return float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images, drawn anew for each person and epoch.

    Attributes:
        flip: mirror left and right with probability one half.
        shift: move by up to this many pixels in each direction; the border is repeated.
    """

    flip: bool = False
    shift: int = 0

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Changed copies of images ``[n, C, H, W]``."""
        n, channels, height, width = images.shape
        if self.flip:
            mirrored = torch.rand(n, generator=generator) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        if self.shift:
            offset = torch.randint(-self.shift, self.shift + 1, (2, n, 1), generator=generator)
            rows = (torch.arange(height) + offset[0]).clamp(0, height - 1)
            columns = (torch.arange(width) + offset[1]).clamp(0, width - 1)
            person, channel = torch.arange(n)[:, None, None, None], torch.arange(channels)[None, :, None, None]
            images = images[person, channel, rows[:, None, :, None], columns[:, None, None, :]]
        return images


@dataclass
class Batches:
    """Batches of some people, as the collection of statistics, training and prediction read them.

    Yields dicts: ``inputs`` (normalised float32 on ``device``), ``targets`` (int64 on ``device``), ``group`` (a list
    of names, ``None`` where unknown), ``codes`` (int64 on the CPU, their numbers, -1 where unknown).

    Args:
        samples: the data set.
        rows: which people, in order.
        normalise: applied to every batch.
        batch_size: people per batch.
        device: where batches are put.
        shuffle_seed: ``None`` keeps the order and all people; a number draws a new order in each pass and leaves out
            the last, incomplete batch (a batch norm cannot train on a batch of one), unless it is the only one.
        augment: changes of training images, drawn from the same seed.
    """

    samples: Samples
    rows: npt.NDArray[np.intp]
    normalise: Normalisation
    batch_size: int = 64
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    shuffle_seed: int | None = None
    augment: Augmentation | None = None

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.shuffle_seed or 0)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.rows), self.batch_size)
        keep_rest = self.shuffle_seed is None or whole == 0
        return whole + int(rest > 0 and keep_rest)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rows = torch.as_tensor(self.rows)
        if self.shuffle_seed is not None:
            rows = rows[torch.randperm(len(rows), generator=self._generator)]
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield self._batch(rows[start : start + self.batch_size].numpy())

    def _batch(self, rows: npt.NDArray[np.intp]) -> dict[str, Any]:
        inputs = torch.from_numpy(self.samples.inputs[rows])
        if self.augment is not None:
            inputs = self.augment(inputs, self._generator)
        codes, names = self.samples.groups.codes[rows], self.samples.groups.names
        return {
            "inputs": self.normalise(inputs.to(self.device)),
            "targets": torch.from_numpy(self.samples.labels[rows]).to(self.device),
            "group": [names[c] if c >= 0 else None for c in codes],
            "codes": torch.from_numpy(codes),
        }

    def arrays(self) -> Iterator[npt.NDArray[np.float32]]:
        """The inputs alone, as arrays on the CPU: what predictors read."""
        for batch in self:
            yield batch["inputs"].cpu().numpy()
