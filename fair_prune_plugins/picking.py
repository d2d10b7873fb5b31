"""Taking one thing out of a batch, or out of what a model returns: by key, by index or by a callable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fair_prune_plugins.errors import InputError

Source = str | int | Callable[[Any], Any]
"""A key, an index, or a callable on the whole."""


def pick(whole: Any, source: Source, missing: str) -> Any:
    """``source(whole)`` or ``whole[source]``.

    Args:
        whole: a batch, or a model's outputs.
        source: where in it.
        missing: message where it is not there; ``{key!r}`` and ``{have}`` are filled in.

    Raises:
        InputError: no such key or index.
    """
    if callable(source):
        return source(whole)
    try:
        return whole[source]
    except (KeyError, IndexError, TypeError):
        raise InputError(missing.format(key=source, have=contents(whole))) from None


def contents(whole: Any) -> str:
    """What a batch or a model's outputs hold, for messages: keys, number of items, or type."""
    kind = type(whole).__name__
    if isinstance(whole, Mapping):
        return f"a {kind} with the keys {sorted(map(str, whole))}"
    if isinstance(whole, tuple | list):
        return f"a {kind} of {len(whole)} items"
    return f"a {kind}"
