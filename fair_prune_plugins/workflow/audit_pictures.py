"""Image files of single people, found by their ids."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fair_prune_plugins.errors import InputError

NO_FOLDER = "--thumbnails: {path} is no folder; it must hold an image file for each id, with or without an ending"


def pictures_of(ids: Iterable[str], folder: Path) -> dict[str, Path]:
    """The image file of every id that has one: named by the id, or by the id and an ending.

    Raises:
        InputError: there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(NO_FOLDER.format(path=folder))
    inside = folder.resolve()
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    stems = {str(Path(name).with_suffix("")): path for name, path in files.items()}
    found = {name: files.get(name, stems.get(name)) for name in ids}
    return {name: path for name, path in found.items() if path is not None and path.resolve().is_relative_to(inside)}
