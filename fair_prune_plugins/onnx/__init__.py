"""Out of torch and into one ONNX file that is proven to say the same.

:func:`export` writes a file only when :func:`prove` has shown that ONNX Runtime and torch agree on it.
"""

from fair_prune_plugins.errors import MissingDependencyError

try:
    import onnx as _onnx  # noqa: F401
    import onnxruntime as _onnxruntime  # noqa: F401
except ImportError as error:
    # An extension module that is there but cannot be loaded has no name to give, only a reason.
    what = f"{error.name} is needed to export models" if error.name else f"exporting models needs onnx ({error})"
    raise MissingDependencyError(f"{what}; install it with: pip install 'fair-prune-plugins[onnx]'") from error

from fair_prune_plugins.onnx.export import ExportReport, export
from fair_prune_plugins.onnx.metadata import read_metadata
from fair_prune_plugins.onnx.parity import ClassParity, GroupParity, OutputParity, ParityReport, prove

__all__ = [
    "ClassParity",
    "ExportReport",
    "GroupParity",
    "OutputParity",
    "ParityReport",
    "export",
    "prove",
    "read_metadata",
]
