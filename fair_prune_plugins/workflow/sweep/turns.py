"""Who got which parameters.

NNI 3.0 hands parameters out in the order in which trials ask, and writes them down in the order in which it started
them: of two trials that start together each may run what the portal says of the other. So trials ask in the order of
their numbers, and each leaves a note of what it got.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fair_prune_plugins.workflow.run_folder import read_json, write_json

LONGEST_WAIT = 60.0
"""Seconds for the trial before to ask: it may have died before it did."""


def ask_in_turn(
    ask: Callable[[], Mapping[str, Any]], notes: Path, *, trial: str, number: int, longest: float = LONGEST_WAIT
) -> dict[str, Any]:
    """Ask for parameters when the trial before has got its own.

    Args:
        ask: asks NNI.
        notes: folder that the trials of one experiment share.
        trial: this one's id.
        number: this one's number, from 0.
        longest: seconds to wait for the one before.

    Returns:
        the parameters.
    """
    notes.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + longest
    while number > 0 and not (notes / f"turn-{number - 1}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    parameters = dict(ask())
    write_json(notes / f"{trial}.json", parameters)
    (notes / f"turn-{number}").touch()
    return parameters


def received(notes: Path, trial: str) -> dict[str, Any] | None:
    """What a trial got; ``None`` where it ended before."""
    try:
        found: dict[str, Any] = read_json(notes / f"{trial}.json")
    except OSError:
        return None
    return found
