"""What a file says about itself: which versions made it, what its tensors are called, and what it must not say.

The exporter writes the source lines and absolute paths of the machine it ran on into every node. They are of no use to
who receives the file, and they are taken out.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import onnx

import fair_prune_plugins
from fair_prune_plugins.errors import InputError

PACKAGES = ("torch", "onnx", "onnxruntime", "onnxscript")
"""Packages whose version decides what an exported file looks like."""

PREFIX = "fair_prune."
"""Every key that this package writes starts with it; the rest is the user's."""

LOCAL_PATHS = frozenset({"pkg.torch.onnx.stack_trace"})
"""Node metadata that holds paths of the exporting machine."""

RESERVED_KEY = "metadata keys that start with {prefix!r} are written by the export itself; rename {keys}"
NOT_TEXT = "metadata must be a mapping of text to text, but {key!r} is {got}; convert it, e.g. with json.dumps"


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Refuse metadata that could not be written as it is.

    Raises:
        InputError: a value that is no text, or a key of ours.
    """
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InputError(NOT_TEXT.format(key=key, got=type(value if isinstance(key, str) else key).__name__))
    reserved = sorted(key for key in metadata if key.startswith(PREFIX))
    if reserved:
        raise InputError(RESERVED_KEY.format(prefix=PREFIX, keys=reserved))


def stamp(proto: onnx.ModelProto, *, model: str, exporter: str, metadata: Mapping[str, str]) -> None:
    """Write versions, names and the user's own entries into ``metadata_props``, and remove paths of this machine.

    Args:
        proto: changed in place.
        model: name of the model.
        exporter: which exporter made the graph.
        metadata: the user's entries, checked by :func:`check_metadata`.
    """
    for graph in graphs(proto):
        for node in graph.node:
            kept = [entry for entry in node.metadata_props if entry.key not in LOCAL_PATHS]
            if len(kept) < len(node.metadata_props):
                del node.metadata_props[:]
                node.metadata_props.extend(kept)
            node.doc_string = ""  # where the older exporter keeps the same paths
    own = {
        "model": model,
        "exporter": exporter,
        "version": fair_prune_plugins.__version__,
        "packages": json.dumps(package_versions(), sort_keys=True),
        "inputs": json.dumps([value.name for value in proto.graph.input]),
        "outputs": json.dumps([value.name for value in proto.graph.output]),
    }
    entries = read_entries(proto) | {PREFIX + key: value for key, value in own.items()} | dict(metadata)
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, dict(sorted(entries.items())))


def read_metadata(path: str | Path) -> dict[str, str]:
    """The ``metadata_props`` of an ONNX file.

    Raises:
        InputError: there is no such file, or it is not ONNX.
    """
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except FileNotFoundError:
        raise InputError(f"there is no ONNX file {path}") from None
    except Exception as error:  # protobuf's DecodeError has moved between its versions
        raise InputError(f"{path} is not an ONNX file: {error}") from error
    return read_entries(proto)


def read_entries(proto: onnx.ModelProto) -> dict[str, str]:
    """The ``metadata_props`` of a model in memory."""
    return {entry.key: entry.value for entry in proto.metadata_props}


def package_versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of the packages that are installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """Every graph of a model: the main one, functions, and the bodies of ``If``, ``Loop`` and ``Scan``."""
    pending: list[onnx.GraphProto | onnx.FunctionProto] = [proto.graph, *proto.functions]
    while pending:
        graph = pending.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                pending.extend([attribute.g] if attribute.HasField("g") else [])
                pending.extend(attribute.graphs)
