"""Logits from a torch module or an ONNX Runtime session, through one interface.

A predictor takes one batch of inputs as a numpy array and returns logits ``[n, K]`` as a numpy array, so that whatever
is evaluated, compared or exported is treated alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from fair_prune_plugins.errors import InputError, MissingDependencyError
from fair_prune_plugins.picking import contents, pick

if TYPE_CHECKING:
    import onnxruntime

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.floating]

NO_ONNXRUNTIME = "OnnxPredictor needs onnxruntime: pip install 'fair-prune-plugins[onnx]'"
NOT_A_TENSOR = (
    "the model's forward returned {got}, not a tensor of logits; "
    "pass output= a key, an index or a callable that takes the logits from it"
)
NO_SUCH_OUTPUT = "output={key!r} does not take logits from the model's forward, which returned {have}"
OUTPUT_SHAPE = "{what} must return logits [n, classes] for {n} inputs, got shape {shape}"
NO_MODEL_FILE = "there is no ONNX model at {path}"
NOT_LOADED = "ONNX Runtime cannot load {what}: {reason}"
ONE_INPUT = "an ONNX model with one input is expected, this one has {names}"
WHICH_OUTPUT = "the ONNX model has the outputs {names}; pass output= the name of the logits"
INPUT_SHAPE = (
    "the ONNX model takes inputs of shape {expected}, got {got}; images are channels first; a fixed first dimension "
    "means that it was exported without a dynamic batch"
)
WHOLE_ARRAY = (
    "batches is a single array of shape {shape}, whose items are samples; pass an iterable of batches, "
    "e.g. numpy.array_split(inputs, 10)"
)
NOT_AN_ARRAY = (
    "batch {index} is of type {got}; batches must be arrays of inputs, e.g. (batch['inputs'] for batch in loader)"
)
NO_BATCHES = "there was no input to predict: batches is empty, or an iterator that was already used up"
CLASSES_DIFFER = "batch {index} gave {got} logits per sample, those before it {expected}"

_ONNX_FLOATS = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}


class Predictor(Protocol):
    """Anything that maps one batch of inputs ``[n, ...]`` to real logits ``[n, K]``."""

    def __call__(self, inputs: Array, /) -> FloatArray:
        """Logits of one batch."""
        ...


class TorchPredictor:
    """Logits of a torch module, in evaluation mode and without gradients; the module is left exactly as it was.

    Args:
        model: takes one tensor ``[n, ...]``.
        device: where inputs are put; by default where the model's first parameter or buffer is. The model is not moved.
        output: where the logits are in what ``forward`` returns, if that is not a tensor: a key, an index or a
            callable.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        device: torch.device | str | None = None,
        output: str | int | Callable[[Any], torch.Tensor] | None = None,
    ) -> None:
        self.model = model
        self.device = None if device is None else torch.device(device)
        self.output = output

    def __call__(self, inputs: Array, /) -> FloatArray:
        """Logits of one batch.

        Args:
            inputs: ``[n, ...]``. Floating inputs are cast to the dtype of the model's parameters, others passed as they
                are.

        Returns:
            ``[n, K]``, float32, or float64 from a model of that dtype. A model that returns ``[n]`` gives ``[n, 1]``.

        Raises:
            InputError: ``forward`` returns something else than a tensor and ``output`` does not find the logits in it,
                or the logits' shape is not one row per input.
        """
        tensor = self._tensor(inputs)
        # Not inference_mode: a model that caches a tensor in forward could not train on it afterwards.
        with _evaluating(self.model), torch.no_grad():
            result = self._take(self.model(tensor))
        if not result.is_floating_point() or result.dtype.itemsize < 4:
            result = result.float()
        return _rows(result.cpu().numpy(), len(inputs), "the model")

    def _tensor(self, inputs: Array) -> torch.Tensor:
        array = np.require(
            inputs, requirements=["C", "W"]
        )  # torch takes no negative strides and warns at read-only arrays
        tensors = [*self.model.parameters(), *self.model.buffers()]
        device = self.device or (tensors[0].device if tensors else torch.device("cpu"))
        tensor = torch.from_numpy(array).to(device)
        if not tensor.is_floating_point():
            return tensor
        return tensor.to(next((t.dtype for t in tensors if t.is_floating_point()), torch.float32))

    def _take(self, outputs: Any) -> torch.Tensor:
        result = outputs if self.output is None else pick(outputs, self.output, NO_SUCH_OUTPUT)
        if isinstance(result, torch.Tensor):
            return result
        if self.output is None:
            raise InputError(NOT_A_TENSOR.format(got=contents(outputs)))
        raise InputError(NO_SUCH_OUTPUT.format(key=self.output, have=contents(outputs)))


class OnnxPredictor:
    """Logits of an ONNX model, from ONNX Runtime on the CPU.

    Args:
        model: path of the model, its bytes, or a session that is already made (used as it is, ``threads`` is then not
            applied).
        threads: threads that work on one operator; operators run one after the other.
        output: name of the output with the logits, for models with several.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        InputError: no such file, not a loadable model (a missing file of external weights included), more than one
            input, or several outputs and no ``output`` among them.
    """

    def __init__(
        self,
        model: str | PathLike[str] | bytes | onnxruntime.InferenceSession,
        threads: int = 1,
        output: str | None = None,
    ) -> None:
        self.session = _session(model, threads)
        inputs = self.session.get_inputs()
        if len(inputs) != 1:
            raise InputError(ONE_INPUT.format(names=[i.name for i in inputs]))
        self._input = inputs[0]
        names = [o.name for o in self.session.get_outputs()]
        if (output is None and len(names) != 1) or (output is not None and output not in names):
            raise InputError(WHICH_OUTPUT.format(names=names))
        self._output = output or names[0]

    def __call__(self, inputs: Array, /) -> FloatArray:
        """Logits of one batch.

        Args:
            inputs: ``[n, ...]``. Floating inputs are cast to the type that the model takes, others passed as they are.

        Returns:
            ``[n, K]``, float32 (float64 from a model of that type). A model that returns ``[n]`` gives ``[n, 1]``.

        Raises:
            InputError: inputs of another shape than the model takes, or logits that are not one row per input.
        """
        array = np.asarray(inputs)
        expected = self._input.shape
        if len(expected) != array.ndim or any(
            isinstance(e, int) and e != got for e, got in zip(expected, array.shape, strict=True)
        ):
            raise InputError(INPUT_SHAPE.format(expected=expected, got=list(array.shape)))
        if np.issubdtype(array.dtype, np.floating):
            array = array.astype(_ONNX_FLOATS.get(self._input.type, array.dtype), copy=False)
        (result,) = self.session.run([self._output], {self._input.name: array})
        if result.dtype not in (np.float32, np.float64):
            result = result.astype(np.float32)
        return _rows(result, len(array), "the ONNX model")


def predict(predictor: Predictor, batches: Iterable[npt.ArrayLike], *, progress: bool = True) -> FloatArray:
    """Logits of a whole data set, batch by batch.

    Args:
        predictor: a :class:`TorchPredictor`, an :class:`OnnxPredictor`, or any callable from inputs to logits.
        batches: arrays ``[n, ...]`` (or CPU tensors), in the order in which logits are wanted. Batches without samples
            are skipped.
        progress: show a progress bar.

    Returns:
        ``[N, K]``; NaN and infinity are passed on, ``evaluate`` refuses them.

    Raises:
        InputError: no samples at all, a batch that is not an array, one array instead of batches, or batches that
            differ in the number of logits.
    """
    if isinstance(batches, np.ndarray | torch.Tensor):
        raise InputError(WHOLE_ARRAY.format(shape=tuple(batches.shape)))
    logits: list[FloatArray] = []
    for index, batch in enumerate(tqdm(batches, desc="predict", unit="batch", leave=False, disable=not progress)):
        if not isinstance(batch, np.ndarray | torch.Tensor):
            raise InputError(NOT_AN_ARRAY.format(index=index, got=type(batch).__name__))
        inputs = batch.detach().cpu().numpy() if isinstance(batch, torch.Tensor) else batch
        if not len(inputs):
            continue
        rows = predictor(inputs)
        if logits and rows.shape[1] != logits[0].shape[1]:
            raise InputError(CLASSES_DIFFER.format(index=index, got=rows.shape[1], expected=logits[0].shape[1]))
        logits.append(rows)
    if not logits:
        raise InputError(NO_BATCHES)
    return np.concatenate(logits)


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode, then every submodule's own mode again (frozen norms may differ from the whole)."""
    modes = [(module, module.training) for module in model.modules()]
    if not any(training for _, training in modes):
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train(modes[0][1])  # modules that do work on a change of mode (merged adapters) undo it here
        for module, training in modes:
            module.training = training


def _session(model: str | PathLike[str] | bytes | onnxruntime.InferenceSession, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(NO_ONNXRUNTIME) from error
    if isinstance(model, onnxruntime.InferenceSession):
        return model
    if not isinstance(model, bytes) and not Path(model).is_file():
        raise InputError(NO_MODEL_FILE.format(path=fspath(model)))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    source = model if isinstance(model, bytes) else fspath(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        what = "the given bytes" if isinstance(model, bytes) else fspath(model)
        raise InputError(NOT_LOADED.format(what=what, reason=error)) from error


def _rows(logits: Array, n: int, what: str) -> FloatArray:
    rows = logits[:, None] if logits.ndim == 1 else logits
    if rows.ndim != 2 or len(rows) != n or rows.shape[1] == 0:
        raise InputError(OUTPUT_SHAPE.format(what=what, n=n, shape=logits.shape))
    return rows
