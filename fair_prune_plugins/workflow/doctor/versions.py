"""Which versions are installed, and which of them this package supports."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

THIS_PACKAGE = "fair-prune-plugins"

PACKAGES = ("torch", "torch-pruning", "onnx", "onnxruntime", "nni", "torchvision", "timm", "transformers", "numpy")
"""What a pruning pipeline is made of, this package aside."""

UNDECLARED = {"nni": SpecifierSet("~=3.0")}
"""Ranges of hosts that this package does not install."""

IMPORTED = ("torchvision",)
"""Packages with compiled parts of their own, which are of no use with another build of torch than theirs."""

BROKEN = "installed, but cannot be imported: {error}"


@dataclass(frozen=True)
class PackageVersion:
    """One package (or Python itself).

    Attributes:
        name: as it is called on the package index.
        installed: its version by its own metadata, ``None`` where it is not installed.
        supported: the range that this package was made for, empty where any will do.
        in_range: whether the installed version lies in it; ``None`` where it is not installed.
        note: what is wrong with it, or empty.
    """

    name: str
    installed: str | None
    supported: str
    in_range: bool | None
    note: str = ""

    @property
    def trouble(self) -> bool:
        """Whether it is installed and outside of what is supported, or broken."""
        return self.in_range is False or bool(self.note)


def versions() -> tuple[PackageVersion, ...]:
    """Python, this package, the hosts and what comes with them.

    Versions are those of the packages' metadata: a ``__version__`` can be forgotten in a release, and was.
    """
    ranges = _ranges()
    found = [
        _judged("python", platform.python_version(), ranges["python"]),
        _judged(THIS_PACKAGE, _version(THIS_PACKAGE)),
    ]
    for name in PACKAGES:
        installed = _version(name)
        broken = _import_error(name) if installed is not None and name in IMPORTED else ""
        found.append(_judged(name, installed, ranges.get(name, SpecifierSet()), broken))
    return tuple(found)


def _judged(name: str, installed: str | None, supported: SpecifierSet | None = None, note: str = "") -> PackageVersion:
    supported = SpecifierSet() if supported is None else supported
    in_range = None if installed is None else supported.contains(installed, prereleases=True)
    return PackageVersion(name, installed, ", ".join(sorted(map(str, supported), reverse=True)), in_range, note)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _ranges() -> dict[str, SpecifierSet]:
    """What this package's own metadata asks for, extras included."""
    requirements: Iterable[str] = metadata.requires(THIS_PACKAGE) or ()
    parsed = [Requirement(text) for text in requirements]
    python = metadata.metadata(THIS_PACKAGE)["Requires-Python"]
    return {**UNDECLARED, **{r.name: r.specifier for r in parsed}, "python": SpecifierSet(python or "")}


def _import_error(name: str) -> str:
    try:
        importlib.import_module(name)
    except Exception as error:  # a compiled part of another build fails in any way
        return BROKEN.format(error=f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")
    return ""
