"""NNI, imported when a sweep is asked for and not before."""

from __future__ import annotations

import importlib

from fair_prune_plugins.errors import MissingDependencyError

MISSING = "{name} is needed for `fair-prune sweep`; install it with: pip install 'fair-prune-plugins[nni]'"


def require_nni() -> None:
    """Import NNI's experiments, which is silent from then on.

    Raises:
        MissingDependencyError: NNI is not installed, or something that it needs.
    """
    try:
        nni = importlib.import_module("nni")
        for needed in ("nni.experiment", "nni_node", "psutil"):
            importlib.import_module(needed)
    except ImportError as error:
        raise MissingDependencyError(MISSING.format(name=error.name or f"NNI ({error})")) from error
    nni.silence_stdout()
