"""Out of torch and into one ONNX file that is proven to say the same.

:func:`export` writes a file only when :func:`prove` has shown that ONNX Runtime and torch agree on it.
"""

from fair_prune_plugins.errors import MissingDependencyError

try:
    import onnx as _onnx  # noqa: F401
    import onnxruntime as _onnxruntime  # noqa: F401
except ImportError as error:
    raise MissingDependencyError(
        f"{error.name} is needed to export models; install it with: pip install 'fair-prune-plugins[onnx]'"
    ) from error

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
