"""A table of files (CSV or Parquet) and the folder or zip archive that holds the images."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from fair_prune_plugins.errors import InputError

NO_IMAGES = "{key}: there is no folder or zip archive at {path}"
NOT_A_ZIP = "{key}: {path} is neither a folder nor a readable zip archive ({reason})"
NO_TABLE = "data.table: {table} is neither a file nor inside {images}"
NOT_A_TABLE = "data.table: {table} cannot be read as {kind}: {reason}"
UNKNOWN_KIND = "data.table: {table} must end in .csv or .parquet"
MISSING_FILE = (
    "the image {name!r} (row {row} of the table) is not in {images}; check data.images and the column data.file"
)
CORRUPT = (
    "the image {name!r} in {images} cannot be read ({reason}); replace or remove it, or set data.skip_corrupt: true "
    "to leave "
    "such images out and have them counted"
)
SIZES_DIFFER = (
    "the image {name!r} in {images} is {got} pixels (height x width), others are {expected}; set data.size to bring "
    "all to one size"
)

_BROKEN = (
    UnidentifiedImageError,
    OSError,
    SyntaxError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    Image.DecompressionBombError,
)
"""What Pillow and zipfile raise on damaged data."""


class ImageStore:
    """Reads files out of a folder or a zip archive.

    Args:
        path: the folder or archive.

    Raises:
        InputError: nothing is there, or it is neither.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        if path.is_dir():
            return
        if not path.exists():
            raise InputError(NO_IMAGES.format(key="data.images", path=path))
        try:
            self._archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise InputError(NOT_A_ZIP.format(key="data.images", path=path, reason=error)) from error

    def __enter__(self) -> ImageStore:
        return self

    def __exit__(self, *_: object) -> None:
        if self._archive is not None:
            self._archive.close()

    def __contains__(self, name: str) -> bool:
        if self._archive is None:
            return (self.path / name).is_file()
        return name in self._archive.NameToInfo

    def read(self, name: str) -> bytes:
        """The file's bytes; raises what the file system or zipfile raises."""
        return (self.path / name).read_bytes() if self._archive is None else self._archive.read(name)


def read_table(table: str, folder: Path, store: ImageStore) -> pd.DataFrame:
    """Read the table, from a file or, where there is none of that name, from among the images.

    Everything in a CSV file is text as it stands, so that a file ``00123`` or a group ``None`` keeps its name; only an
    empty cell is a missing value.

    Args:
        table: path of a ``.csv`` or ``.parquet`` file, relative to ``folder``, or a name inside ``store``.
        folder: the configuration's folder.
        store: the images.

    Raises:
        InputError: it is in neither place, or not readable as what its name says.
    """
    readers: dict[str, Callable[[io.BytesIO], pd.DataFrame]] = {".csv": _read_csv, ".parquet": pd.read_parquet}
    suffix = Path(table).suffix.lower()
    if suffix not in readers:
        raise InputError(UNKNOWN_KIND.format(table=table))
    file = folder / table
    if not file.is_file() and table not in store:
        raise InputError(NO_TABLE.format(table=table, images=store.path))
    try:
        return readers[suffix](io.BytesIO(file.read_bytes() if file.is_file() else store.read(table)))
    except (ValueError, OSError, zipfile.BadZipFile, zlib.error) as error:  # pandas and pyarrow errors are ValueErrors
        raise InputError(NOT_A_TABLE.format(table=table, kind=suffix[1:], reason=error)) from error


def _read_csv(file: io.BytesIO) -> pd.DataFrame:
    return pd.read_csv(file, dtype=str, keep_default_na=False, na_values=[""])


def read_images(
    names: Sequence[str], store: ImageStore, *, channels: int, size: int | None, skip_corrupt: bool
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.intp], list[str]]:
    """Decode images to one array.

    Args:
        names: file names inside ``store``.
        store: where they are.
        channels: 1 (grey) or 3 (RGB).
        size: height and width to bring all images to; ``None`` keeps theirs, which must then agree.
        skip_corrupt: leave damaged images out instead of stopping.

    Returns:
        uint8 ``[n, channels, H, W]``, the indices into ``names`` that were read, and the names that were left out.

    Raises:
        InputError: a file that is missing, damaged, or of another size; the message names it.
    """
    images: list[npt.NDArray[np.uint8]] = []
    read: list[int] = []
    skipped: list[str] = []
    for row, name in enumerate(tqdm(names, desc="reading images", unit="img", leave=False, disable=None)):
        if name not in store:
            raise InputError(MISSING_FILE.format(name=name, row=row, images=store.path))
        try:
            image = _decode(store.read(name), channels, size)
        except _BROKEN as error:
            if not skip_corrupt:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise InputError(CORRUPT.format(name=name, images=store.path, reason=reason)) from error
            skipped.append(name)
            continue
        if images and image.shape != images[0].shape:
            got, expected = (f"{i.shape[1]} x {i.shape[2]}" for i in (image, images[0]))
            raise InputError(SIZES_DIFFER.format(name=name, images=store.path, got=got, expected=expected))
        images.append(image)
        read.append(row)
    if not images:
        raise InputError(f"none of the {len(names)} images in {store.path} could be read")
    return np.stack(images), np.array(read, dtype=np.intp), skipped


def _decode(data: bytes, channels: int, size: int | None) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as opened:
        image: Any = opened.convert("L" if channels == 1 else "RGB")
        if size is not None and image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
