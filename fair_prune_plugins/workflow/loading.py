"""Python objects named in a configuration as ``module:function``."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fair_prune_plugins.errors import InputError

NOT_A_REFERENCE = "{key} must look like module:function, e.g. my_models:build, got {reference!r}"
NO_MODULE = (
    "{key}: no module {module!r} can be imported ({reason}); it is looked for beside the configuration file and on "
    "PYTHONPATH"
)
NO_FUNCTION = "{key}: module {module!r} has no function {name!r}; it has {have}"
NOT_CALLABLE = "{key}: {reference!r} is a {type}, not a function"
CALL_FAILED = "{key}: {reference} was called with {options} and failed: {type}: {reason}"


def load_function(reference: str, *, key: str, beside: Path | None = None) -> Callable[..., Any]:
    """Import what ``module:function`` names.

    Args:
        reference: dotted module and attribute, separated by a colon.
        key: the configuration key it comes from, for messages.
        beside: a folder whose modules can be imported too (the configuration's own).

    Raises:
        InputError: the reference is malformed, the module cannot be imported, or it has no such function.
    """
    module_name, colon, name = reference.partition(":")
    if not (colon and module_name and name):
        raise InputError(NOT_A_REFERENCE.format(key=key, reference=reference))
    with _importable(beside):
        try:
            module = importlib.import_module(module_name)
        except Exception as error:  # importing someone else's module may raise anything
            raise InputError(NO_MODULE.format(key=key, module=module_name, reason=error)) from error
    try:
        function = getattr(module, name)
    except AttributeError:
        have = sorted(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
        raise InputError(NO_FUNCTION.format(key=key, module=module_name, name=name, have=have[:12])) from None
    if not callable(function):
        raise InputError(NOT_CALLABLE.format(key=key, reference=reference, type=type(function).__name__))
    found: Callable[..., Any] = function
    return found


def call(reference: str, options: dict[str, Any], *, key: str, beside: Path | None = None) -> Any:
    """Import ``module:function`` and call it with keyword options.

    Raises:
        InputError: see :func:`load_function`; or the call raised (its own error is kept as the cause).
    """
    function = load_function(reference, key=key, beside=beside)
    try:
        with _importable(beside):
            return function(**options)
    except Exception as error:
        raise InputError(
            CALL_FAILED.format(
                key=key, reference=reference, options=options or "no options", type=type(error).__name__, reason=error
            )
        ) from error


@contextmanager
def _importable(folder: Path | None) -> Iterator[None]:
    if folder is None or str(folder) in sys.path:
        yield
        return
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def source_hash(reference: str, *, key: str, beside: Path | None = None) -> str:
    """SHA-256 of the source file that defines ``module:function``, so that work is repeated when the code changes.

    Code without a source file (a built-in, a compiled module) is known by its name alone.

    Raises:
        InputError: see :func:`load_function`.
    """
    function = load_function(reference, key=key, beside=beside)
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        file = None
    source = Path(file).read_bytes() if file and Path(file).is_file() else b""
    return hashlib.sha256(reference.encode() + source).hexdigest()
