"""The dense model as a teacher: a frozen copy, asked about the very inputs that the student is given, with a memory."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.gates.calling import ForwardFn, batch_size, call, copied, moved
from fair_prune_plugins.losses.labels import checked_logits
from fair_prune_plugins.picking import Source, pick
from fair_prune_plugins.statistics.batches import Leaves, rows
from fair_prune_plugins.statistics.checksum import model_checksum
from fair_prune_plugins.statistics.walking import NO_SUCH_OUTPUT

NOT_A_MODEL = "teacher= must be a torch module or a Teacher, got {got}"


class TeacherCache:
    """Logits that teachers gave before, one entry per teacher and person.

    An entry's key is the :class:`Teacher` itself and a hash of the bytes of the person's inputs. So a person is
    recognised in whatever subset, order or batch they come, another model's answers are never taken, and an augmented
    picture is another picture: it is asked about anew. Losses share what is known by sharing a teacher.

    Args:
        capacity: entries kept; once it is full, further people are asked about each time.
    """

    def __init__(self, capacity: int = 1_000_000) -> None:
        self.capacity = capacity
        self.hits = 0
        self.misses = 0
        self._logits: dict[tuple[Teacher, bytes], torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self._logits)

    def get(self, teacher: Teacher, person: bytes) -> torch.Tensor | None:
        """What the teacher said about the person, on the CPU, if it is known."""
        found = self._logits.get((teacher, person))
        self.hits += found is not None
        self.misses += found is None
        return found

    def put(self, teacher: Teacher, person: bytes, logits: torch.Tensor) -> None:
        """Remember it, while there is room."""
        if len(self._logits) < self.capacity:
            self._logits[teacher, person] = logits


class Teacher:
    """A frozen copy of the dense model, in evaluation mode, without gradients.

    It is no module: a loss that holds it does not save, move or train it.

    Args:
        model: copied, so that it may be pruned and trained afterwards. Two teachers never share answers, even if their
            weights are equal: what else a model computes with cannot be seen from outside.
        cache: remembers answers; ``None`` asks each time. Worth it where the same inputs return: random augmentation
            would fill it with entries that are never used again.
        output: takes the logits from what the model returns: a key, an index or a callable.
        forward_fn: ``forward_fn(model, inputs)`` if the model is not called plainly.

    Attributes:
        checksum: of the copy's parameters and buffers.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        cache: TeacherCache | None = None,
        output: Source | None = None,
        forward_fn: ForwardFn | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(NOT_A_MODEL.format(got=type(model).__name__))
        self._model = copied(model).eval().requires_grad_(False)
        self._output = output
        self._forward_fn = forward_fn
        self.cache = cache
        self.checksum = model_checksum(self._model)

    @torch.no_grad()
    def logits(self, inputs: Any) -> torch.Tensor:
        """``[N, K]``, ``[N, 1]`` for one logit per person, on the device of the inputs.

        Args:
            inputs: a tensor, or a tuple, list or dict of them: what the student was given.

        Raises:
            InputError: the answer is not a tensor of finite logits.
        """
        if self.cache is None:
            return self._ask(inputs)
        people = _fingerprints(inputs)
        known = [self.cache.get(self, p) for p in people]
        unknown = [i for i, logits in enumerate(known) if logits is None]
        if unknown:
            fresh = self._ask(rows(inputs, len(people), torch.tensor(unknown)))
            for i, logits in zip(unknown, fresh.cpu(), strict=True):
                known[i] = logits.clone()
                self.cache.put(self, people[i], logits.clone())
        device = next(leaf.device for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor))
        return torch.stack([logits for logits in known if logits is not None]).to(device)

    def _ask(self, inputs: Any) -> torch.Tensor:
        given = next((leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor)), None)
        own = next(self._model.parameters(), None)
        if given is not None and own is not None and own.device != given.device:
            self._model.to(given.device)  # follows the student
        outputs = call(self._model, moved(inputs, dtype=None if own is None else own.dtype), self._forward_fn)
        return checked_logits(
            outputs if self._output is None else pick(outputs, self._output, NO_SUCH_OUTPUT), "dense model's outputs"
        )


def _fingerprints(inputs: Any) -> list[bytes]:
    """One hash per person of everything in ``inputs`` that is theirs, and of everything that is shared."""
    people = batch_size(inputs)
    leaves = Leaves.of(inputs, people)
    shared = hashlib.blake2b(str(leaves.spec).encode(), digest_size=16)
    own = []
    for leaf, mine in zip(leaves.values, leaves.per_sample, strict=True):
        if not isinstance(leaf, torch.Tensor):
            shared.update(b"one each" if mine else repr(leaf).encode())
            data = [repr(entry).encode() for entry in leaf] if mine else None
        else:
            shared.update(f"{leaf.dtype} {tuple(leaf.shape[1:] if mine else leaf.shape)} {mine}".encode())
            values = leaf.detach().cpu().contiguous()
            data = [_bytes(row) for row in values] if mine else None
            if not mine:
                shared.update(_bytes(values))
        if data is not None:
            own.append(data)
    hashes = []
    for i in range(people):
        person = shared.copy()
        for data in own:
            person.update(f"{len(data[i])} ".encode())
            person.update(data[i])
        hashes.append(person.digest())
    return hashes


def _bytes(tensor: torch.Tensor) -> Any:
    flat = tensor.reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""
