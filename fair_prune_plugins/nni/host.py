"""NNI's compression part, imported so that it neither complains nor fails for what has nothing to do with it."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from fair_prune_plugins.errors import MissingDependencyError

logger = logging.getLogger(__name__)

MISSING = "{what}; install it with: pip install 'fair-prune-plugins[nni]'"
NOT_IMPORTABLE = "{package} is installed but cannot be imported (%s: %s); NNI goes on as if it were not there"
OPTIONAL = "pytorch_lightning", "deepspeed", "transformers.trainer"
"""What NNI imports where it is there. It expects an ``ImportError`` where it is not, and fails at any other."""


def load() -> None:
    """Import ``nni.compression``.

    Its own import warns of torch functions that torch renamed; nobody who prunes can do anything about that.

    Raises:
        MissingDependencyError: NNI, or something it needs, is not installed.
    """
    if "nni.compression" in sys.modules:
        return
    with warnings.catch_warnings(), _without_what_fails():
        warnings.simplefilter("ignore")
        try:
            importlib.import_module("nni.compression")
        except ImportError as error:
            what = f"{error.name} is needed for NNI pipelines" if error.name else f"NNI cannot be imported ({error})"
            raise MissingDependencyError(MISSING.format(what=what)) from error


@contextmanager
def _without_what_fails() -> Iterator[None]:
    """Hide the optional packages that are installed and broken: a torchvision of another torch build is enough."""
    hidden = []
    for name in OPTIONAL:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
        except Exception as error:
            logger.warning(NOT_IMPORTABLE.format(package=name), type(error).__name__, error)
            sys.modules[name] = None  # type: ignore[assignment]
            hidden.append(name)
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
