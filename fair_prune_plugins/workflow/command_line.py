"""What all commands share: where they print, and errors as one clear message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from fair_prune_plugins.cli import EXIT_INPUT, MISSING
from fair_prune_plugins.errors import FairPruneError

EXIT_STOPPED = 130
"""Exit code after Ctrl-C, as shells use it."""

Debug = Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")]


def standard_output() -> Console:
    """Made anew for each command, so that it writes to what standard output is then."""
    return Console()


@contextmanager
def clear_errors(debug: bool) -> Iterator[None]:
    """Errors that this package raises as one message with exit code 2; whole tracebacks with ``debug``."""
    try:
        yield
    except KeyboardInterrupt:
        Console(stderr=True).print("\nStopped. What is finished is kept: the same command goes on from here.")
        raise typer.Exit(EXIT_STOPPED) from None
    except (FairPruneError, ModuleNotFoundError) as error:
        missing = None if isinstance(error, FairPruneError) else error.name or ""
        if debug or (missing or "").startswith("fair_prune_plugins"):
            raise
        message = str(error) if missing is None else MISSING.format(name=missing)
        Console(stderr=True).print(f"[bold red]Error:[/] {escape(message)}", highlight=False, soft_wrap=True)
        raise typer.Exit(EXIT_INPUT) from None
