"""The package's own exceptions: one root to catch, one class per kind of trouble.

Messages name the input, what was expected and what to do. Those that tests rely on are module constants beside the code
that raises them.
"""


class FairPruneError(Exception):
    """Root of every error that this package raises on purpose."""


class InputError(FairPruneError, ValueError):
    """Something handed in (data, batch, argument, file) is not usable as it is."""


class ConfigError(InputError):
    """A configuration key or value is not allowed; the message names the key and what is allowed."""


class UnsupportedModelError(FairPruneError):
    """The model does something that cannot be gated, pruned or exported faithfully."""


class ScoreError(FairPruneError):
    """An importance score is missing or not finite; the message names the layer."""


class StaleStatisticsError(FairPruneError):
    """Statistics were collected on another state of the model than the one being pruned."""


class ExportError(FairPruneError):
    """An ONNX export failed or could not be proven equal to the torch model."""


class MissingDependencyError(FairPruneError, ImportError):
    """An optional package is needed; the message says which extra installs it."""
