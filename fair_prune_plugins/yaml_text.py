"""YAML in which ``1e-3`` is a number, as YAML 1.2 and people have it; PyYAML follows 1.1, where it is a text."""

from __future__ import annotations

import re
from typing import Any

import yaml

_POWER_OF_TEN = re.compile(r"[-+]?(?:[0-9]+|[0-9]*\.[0-9]+|[0-9]+\.)[eE][-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):
    """A loader of its own, so that nobody else's is changed."""


class _Dumper(yaml.SafeDumper):
    """Puts a text in quotes that would be read as a number."""


for _either in (_Loader, _Dumper):
    _either.add_implicit_resolver("tag:yaml.org,2002:float", _POWER_OF_TEN, list("-+.0123456789"))


def load(text: str) -> Any:
    """What a YAML text says.

    Raises:
        yaml.YAMLError: it is none.
    """
    return yaml.load(text, _Loader)


def dump(values: Any) -> str:
    """A YAML text that :func:`load` reads as ``values``."""
    return yaml.dump(values, Dumper=_Dumper, allow_unicode=True)
