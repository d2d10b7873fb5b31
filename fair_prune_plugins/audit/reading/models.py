"""Torch modules and ONNX files asked for their predictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from fair_prune_plugins.audit.data import ModelPredictions
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.evaluation import OnnxPredictor, Predictor, TorchPredictor, predict
from fair_prune_plugins.evaluation.predict import NO_MODEL_FILE
from fair_prune_plugins.postprocessing.scores import FloatArray

USED_UP = (
    "batches is an iterator, which {count} networks cannot all read; pass something that can be read again, such as a "
    "list or a loader"
)
CANNOT_PREDICT = "{what}: {reason}"

Network = torch.nn.Module | str | PathLike[str] | Predictor
"""A torch module, the path of an ONNX file, or anything that maps a batch to logits."""


def predictions_of(
    name: str,
    networks: Network | Sequence[Network] | Mapping[str, Network],
    batches: Iterable[npt.ArrayLike],
    *,
    output: str | None = None,
    progress: bool = True,
) -> ModelPredictions:
    """What a model says of people, from torch modules or ONNX files.

    Args:
        name: how reports call the model.
        networks: the model, or a network for each run (training seed); a mapping names the runs.
        batches: arrays or CPU tensors of inputs ``[n, ...]`` in the order of the people, prepared as the network wants
            them. Read once for each network.
        output: name of the output with the logits, for ONNX files with several.
        progress: show a progress bar.

    Raises:
        InputError: a network that cannot be read (external weights that are missing included) or does not take the
            inputs; batches that can be read only once for several networks.
        MissingDependencyError: an ONNX file without onnxruntime.
    """
    if isinstance(networks, Mapping):
        names, all_networks = tuple(networks), list(networks.values())
    elif isinstance(networks, Sequence) and not isinstance(networks, str | torch.nn.Module):
        names, all_networks = (), list(networks)
    else:
        names, all_networks = (), [networks]
    if len(all_networks) > 1 and iter(batches) is batches:
        raise InputError(USED_UP.format(count=len(all_networks)))
    runs = tuple(_logits(network, batches, output, progress) for network in all_networks)
    return ModelPredictions(name, runs, names)


def _logits(network: Any, batches: Iterable[npt.ArrayLike], output: str | None, progress: bool) -> FloatArray:
    if isinstance(network, torch.nn.Module):
        return predict(TorchPredictor(network), batches, progress=progress).astype("float64")
    if not isinstance(network, str | PathLike):
        return predict(network, batches, progress=progress).astype("float64")
    path = Path(network)
    check_weights(path)
    try:
        return predict(OnnxPredictor(path, output=output), batches, progress=progress).astype("float64")
    except InputError as error:
        if str(path) in str(error):
            raise
        raise InputError(CANNOT_PREDICT.format(what=path, reason=error)) from error


def check_weights(path: Path) -> None:
    """Refuse an ONNX file whose weights lie in another file that is not there.

    Raises:
        InputError: there is no such file, it is not ONNX, or it lacks its weights.
    """
    import onnx

    from fair_prune_plugins.onnx.parity import NOT_ONNX, SIDECAR_MISSING, external_files

    if not path.is_file():
        raise InputError(NO_MODEL_FILE.format(path=path))
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError has moved between its versions
        raise InputError(NOT_ONNX.format(path=path, error=error)) from error
    missing = sorted(name for name in external_files(proto) if not (path.parent / name).is_file())
    if missing:
        raise InputError(SIDECAR_MISSING.format(path=path, files=missing))
