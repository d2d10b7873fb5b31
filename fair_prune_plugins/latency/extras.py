"""What timing needs beyond the core, asked for only when something is timed."""

from __future__ import annotations

import importlib

from fair_prune_plugins.errors import MissingDependencyError

MISSING = "{package} is needed to {purpose}; install it with: pip install 'fair-prune-plugins[onnx]'"


def need(*packages: str, purpose: str = "time models") -> None:
    """Make sure that optional packages are there.

    Raises:
        MissingDependencyError: one is not; the message names it and the extra that installs it.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingDependencyError(MISSING.format(package=error.name or package, purpose=purpose)) from error
