"""What a model is fed while it is timed: the samples given, or some made up in the shapes of its file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fair_prune_plugins.errors import InputError

if TYPE_CHECKING:
    import onnxruntime

Array = npt.NDArray[Any]

TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}
"""What ONNX Runtime calls the types of inputs."""

OPEN_SHAPE = (
    "{model!r} leaves more than the batch open in its input {name!r} {shape}; pass inputs= with the size to time"
)
NOT_DRAWN = "{model!r} takes {kind} as its input {name!r}, for which no values can be made up; pass inputs="
FIXED_BATCH = "{model!r} has a fixed batch of {got} in its input {name!r}, which is not batch_size={batch_size}"
SEVERAL_INPUTS = "{model!r} has the inputs {names}; pass inputs= as a mapping of names to arrays"
MISSING_INPUTS = "inputs= has no {missing} for {model!r}; it has {have}"
NO_ROWS = "the input {name!r} must have samples in dimension 0, got shape {shape}"


def feed(
    model: str,
    session: onnxruntime.InferenceSession,
    inputs: Array | Mapping[str, Array] | None,
    batch_size: int,
    rng: np.random.Generator,
) -> dict[str, Array]:
    """What a session is called with.

    Args:
        model: its name, for messages.
        session: of ONNX Runtime.
        inputs: samples of a model with one input, or name to samples; ``None`` draws normal numbers.
        batch_size: samples per call.
        rng: draws them.

    Raises:
        InputError: the inputs do not fit the model, or cannot be made up.
    """
    wanted = {value.name: value for value in session.get_inputs()}
    for name, value in wanted.items():
        if value.shape and isinstance(value.shape[0], int) and value.shape[0] != batch_size:
            if isinstance(inputs, Mapping) and name in inputs and list(np.shape(inputs[name])) == value.shape:
                continue  # an input without a batch, given whole
            raise InputError(FIXED_BATCH.format(model=model, got=value.shape[0], name=name, batch_size=batch_size))
    if inputs is None:
        return {name: _drawn(model, value, batch_size, rng) for name, value in wanted.items()}
    if not isinstance(inputs, Mapping):
        if len(wanted) != 1:
            raise InputError(SEVERAL_INPUTS.format(model=model, names=list(wanted)))
        inputs = dict.fromkeys(wanted, inputs)
    missing = sorted(set(wanted) - set(inputs))
    if missing:
        raise InputError(MISSING_INPUTS.format(missing=missing, model=model, have=sorted(inputs)))
    return {name: _taken(name, value, np.asarray(inputs[name]), batch_size) for name, value in wanted.items()}


def _drawn(model: str, value: Any, batch_size: int, rng: np.random.Generator) -> Array:
    if value.type not in ("tensor(float)", "tensor(double)", "tensor(float16)"):
        raise InputError(NOT_DRAWN.format(model=model, kind=value.type, name=value.name))
    if not all(isinstance(size, int) for size in value.shape[1:]):
        raise InputError(OPEN_SHAPE.format(model=model, name=value.name, shape=value.shape))
    shape = (batch_size, *value.shape[1:]) if value.shape else ()
    return rng.standard_normal(shape).astype(TYPES[value.type])


def _taken(name: str, value: Any, samples: Array, batch_size: int) -> Array:
    kind = TYPES.get(value.type, samples.dtype)
    if list(samples.shape) != value.shape:  # an input of exactly the file's shape has no open batch
        if samples.ndim == 0 or not len(samples):
            raise InputError(NO_ROWS.format(name=name, shape=samples.shape))
        samples = samples[np.arange(batch_size) % len(samples)]
    return np.ascontiguousarray(samples, dtype=kind)
