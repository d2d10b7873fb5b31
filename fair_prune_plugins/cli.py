"""``fair-prune``: from data to a decision on the command line.

The commands are in :mod:`fair_prune_plugins.workflow.commands`, which needs the extra ``workflow``; this entry point
needs nothing, so that without the extra there is a message instead of a traceback.
"""

from __future__ import annotations

import sys

EXIT_INPUT = 2
"""Exit code where something handed in is not usable, or not installed."""

MISSING = "{name} is needed for fair-prune; install it with: pip install 'fair-prune-plugins[workflow]'"


def main() -> None:
    """Entry point of the command ``fair-prune``."""
    try:
        from fair_prune_plugins.workflow.commands import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("fair_prune_plugins"):
            raise
        print("Error: " + MISSING.format(name=error.name), file=sys.stderr)
        raise SystemExit(EXIT_INPUT) from None
    app()


if __name__ == "__main__":
    main()
