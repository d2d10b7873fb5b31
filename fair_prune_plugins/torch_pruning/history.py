"""Which of a model's original channels are left after any number of pruning steps.

The host records a list of removals, each in the numbering that the removals before it left behind. Here they are told
in the numbering of the model as it was when recording began, per coupled group and per layer: to look up, to store as
JSON, and to replay on a fresh model in one go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fair_prune_plugins.errors import InputError

Side = Literal["outputs", "inputs"]

SCHEMA_VERSION = 1

NOT_A_HISTORY = "this is no pruning history that can be read: {why}"


@dataclass(frozen=True)
class GroupHistory:
    """What is left of one coupled group.

    Attributes:
        root: path of the layer that its units are counted at.
        side: which side of that layer.
        channels: how many channels it had there.
        kept: those that are left, as numbered originally, ascending.
    """

    root: str
    side: Side
    channels: int
    kept: tuple[int, ...]


@dataclass(frozen=True)
class LayerHistory:
    """What is left of one side of one layer.

    Attributes:
        channels: how many channels it had.
        kept: those that are left, as numbered originally, ascending.
        parts: coupled groups and how many channels each has here, where the layer's channels are all of theirs, one
            group after the other (``None`` for those that lost nothing); otherwise empty. JSON has these or ``kept``.
    """

    channels: int
    kept: tuple[int, ...]
    parts: tuple[tuple[str | None, int], ...] = ()


@dataclass(frozen=True)
class PruningHistory:
    """The original channels that pruning left, wherever it took some.

    Attributes:
        groups: coupled groups that lost channels, by name.
        layers: layers and bare parameters that lost channels: path to side to what is left. A layer that keeps its
            channels apart from its consumers' (BatchNorm, depthwise convolutions) has ``"outputs"`` only.
        numbers: plain numbers that pruning changed on modules beside the layers (head counts, remembered widths).
        versions: of the packages that pruned.
    """

    groups: Mapping[str, GroupHistory]
    layers: Mapping[str, Mapping[Side, LayerHistory]]
    numbers: Mapping[str, Mapping[str, int | float]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def kept(self, layer: str, side: Side = "outputs") -> tuple[int, ...] | None:
        """Original numbers of the channels that a layer has now, in order; ``None`` if it lost none on that side."""
        entry = self.layers.get(layer, {}).get(side)
        return None if entry is None else entry.kept

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        layers = {
            path: {
                side: {"parts": [list(p) for p in e.parts]}
                if e.parts
                else {"channels": e.channels, "kept": list(e.kept)}
                for side, e in sides.items()
            }
            for path, sides in self.layers.items()
        }
        groups = {
            name: {"root": g.root, "side": g.side, "channels": g.channels, "kept": list(g.kept)}
            for name, g in self.groups.items()
        }
        return {
            "schema_version": SCHEMA_VERSION,
            "versions": dict(self.versions),
            "groups": groups,
            "layers": layers,
            "numbers": {path: dict(values) for path, values in self.numbers.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PruningHistory:
        """Read what :meth:`as_dict` gave, also after JSON.

        Raises:
            InputError: another schema, or something is missing or of the wrong kind.
        """
        try:
            schema = values["schema_version"]
            if schema != SCHEMA_VERSION:
                raise InputError(NOT_A_HISTORY.format(why=f"schema {schema}, this version reads {SCHEMA_VERSION}"))
            groups = {
                name: GroupHistory(g["root"], _side(g["side"]), *_channels(g["channels"], g["kept"]))
                for name, g in values["groups"].items()
            }
            layers: dict[str, dict[Side, LayerHistory]] = {}
            for path, sides in values["layers"].items():
                for side, e in sides.items():
                    entry = _layer(groups, e["parts"]) if "parts" in e else LayerHistory(*_channels(**e))
                    layers.setdefault(path, {})[_side(side)] = entry
            numbers = {path: dict(found) for path, found in values["numbers"].items()}
            return cls(groups, layers, numbers, dict(values["versions"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(NOT_A_HISTORY.format(why=f"{type(error).__name__}: {error}")) from error


def _layer(groups: Mapping[str, GroupHistory], parts: Iterable[Any]) -> LayerHistory:
    kept: list[int] = []
    read: list[tuple[str | None, int]] = []
    first = 0
    for name, count in parts:
        if name is not None and groups[name].channels != count:
            raise ValueError(f"{name!r} has {groups[name].channels} channels, not {count}")
        kept += [first + k for k in (range(count) if name is None else groups[name].kept)]
        first += count
        read.append((name, count))
    return LayerHistory(first, tuple(kept), tuple(read))


def _side(value: Any) -> Side:
    if value == "outputs":
        return "outputs"
    if value == "inputs":
        return "inputs"
    raise ValueError(f"side {value!r}")


def _channels(channels: Any, kept: Any) -> tuple[int, tuple[int, ...]]:
    numbers = tuple(kept)
    if (
        type(channels) is not int
        or not all(type(k) is int for k in numbers)
        or list(numbers) != sorted({k for k in numbers if 0 <= k < channels})
    ):
        raise ValueError("kept channels must be ascending whole numbers below the number of channels")
    return channels, numbers
