"""How unequal a batch's groups are treated, as a number with a gradient: the fairness term of BiFP.

The paper (arXiv:2312.10181) starts from the difference of two groups' accuracies and replaces the indicator of a right
decision by a function ``u`` of the margin. With ``s = +1`` and ``-1`` for the two groups and labels ``y`` of ``+1`` and
``-1``,

    F = 1/N sum_n u(s_n y_n f(x_n)) / P(s_n) - 1

estimates it without bias. (The paper's Eq. 8 has no ``s_n`` in ``u``; as printed it estimates the *sum* of the two
accuracies less one.) ``P`` are the groups' shares of the data, not of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.losses.labels import Task, checked_labels, checked_logits, require_hard

Surrogate = Literal["sigmoid", "hinge", "logistic"]
Penalty = Literal["absolute", "hinge"]

BAD_SURROGATE = "surrogate must be one of {known}, got {got!r}"
BAD_PENALTY = "penalty must be 'absolute' or 'hinge', got {got!r}"
BAD_PROPORTIONS = "the groups' shares of the data must sum to 1, with at least two of them above 0, got {got}"
STRAY = "the batch has people of group {code}, which has nobody in the data according to its shares {shares}"


def margins(outputs: torch.Tensor, targets: torch.Tensor, task: Task = "auto") -> torch.Tensor:
    """How clearly every decision is right, ``[N, 1]``, or ``[N, K]`` for multi-label tasks: the log odds of the truth.

    For one logit this is ``y f(x)``; for classes ``f_y - log sum_{k != y} exp f_k``, whose sigmoid is the probability
    of the true class.

    Args:
        outputs: logits, see :func:`~fair_prune_plugins.losses.labels.checked_logits`.
        targets: hard labels, see :func:`~fair_prune_plugins.losses.labels.checked_labels`.
        task: what kind of task it is.

    Raises:
        InputError: logits or labels of a wrong kind, or soft labels.
    """
    logits = checked_logits(outputs)
    labels, task = checked_labels(targets, logits, task)
    require_hard(labels, "the fairness term")
    if task != "multiclass":
        return (2 * labels - 1) * logits
    truth = labels.bool()
    others = logits.masked_fill(truth, -math.inf).logsumexp(1, keepdim=True)
    return logits[truth][:, None] - others


@dataclass(frozen=True)
class FairnessTerm:
    """The gap between groups, and the penalty on it.

    With two groups the gap is ``|F|``; with more it is ``max_g |F_g - F_everybody|``, ``F_g`` the mean of ``u`` over
    group g. The sigmoid has ``u(z) + u(-z) = 1``, so its gap is the same seen from either side. The convex functions
    are upper bounds of the indicator, so the gap seen from one side bounds the signed difference from above; theirs is
    the larger of the two sides (as in Wu, Zhang and Wu, 2019).

    Attributes:
        proportions: ``P``, the groups' shares of the data, by group code; a group that nobody is in does not count.
        surrogate: ``u``: ``"sigmoid"`` of ``sharpness`` times the margin, ``"hinge"`` ``max(0, 1 + z)``, or
            ``"logistic"`` ``log2(1 + e^z)``.
        sharpness: of the sigmoid, above 0. At 1 it is the probability of the true class.
        penalty: ``"absolute"``: the gap; ``"hinge"``: what it is above ``tau``.
        tau: the gap that is tolerated.
        task: what kind of task it is.

    Raises:
        InputError: a value out of range.
    """

    proportions: Sequence[float]
    surrogate: Surrogate = "sigmoid"
    sharpness: float = 1.0
    penalty: Penalty = "absolute"
    tau: float = 0.0
    task: Task = "auto"

    def __post_init__(self) -> None:
        check_surrogate(self.surrogate, self.sharpness, self.penalty, self.tau)
        shares = self.proportions
        proper = all(p >= 0 for p in shares) and math.isclose(sum(shares), 1, rel_tol=1e-6)
        if not proper or len(self.groups) < 2:
            raise InputError(BAD_PROPORTIONS.format(got=list(shares)))

    @property
    def groups(self) -> list[int]:
        """Codes of the groups that somebody is in."""
        return [code for code, share in enumerate(self.proportions) if share > 0]

    def gap(self, outputs: torch.Tensor, targets: torch.Tensor, codes: torch.Tensor) -> torch.Tensor | None:
        """How far apart the groups are, a scalar; ``None`` if the batch cannot tell.

        That is a batch without people of one of two groups, or with people of fewer than two of several.

        Args:
            outputs: the model's logits.
            targets: hard labels.
            codes: int64 ``[N]`` group codes, -1 for people of no known group, who do not count.

        Raises:
            InputError: see :func:`margins`; people of a group that has nobody in the data.
        """
        known = codes >= 0
        present = codes[known].unique().tolist()
        for code in present:
            if code not in self.groups:
                raise InputError(STRAY.format(code=code, shares=list(self.proportions)))
        if len(present) < 2:
            return None
        z = margins(outputs, targets, self.task)
        rows = known.nonzero().flatten().to(z.device)
        z, of = z[rows], codes[known].to(z.device)
        right, wrong = (self._u(side * z).mean(1) for side in (1.0, -1.0))
        shares = torch.tensor(self.proportions, dtype=z.dtype, device=z.device)
        people = len(z)

        def expected(values: torch.Tensor, group: int) -> torch.Tensor:
            return values[of == group].sum() / (people * shares[group])

        two = len(self.groups) == 2
        if two:
            one, other = self.groups
            pairs = [(expected(right, one), expected(wrong, other), expected(right, other), expected(wrong, one))]
        else:
            pairs = [(expected(right, g), wrong.mean(), right.mean(), expected(wrong, g)) for g in present]
        if self.surrogate == "sigmoid" and two:
            gaps = [(a + b - 1).abs() for a, b, _, _ in pairs]
        elif self.surrogate == "sigmoid":
            gaps = [(own - everybody).abs() for own, _, everybody, _ in pairs]
        else:
            gaps = [torch.maximum(a + b - 1, c + d - 1) for a, b, c, d in pairs]
        return torch.stack(gaps).max()

    def penalised(self, gap: torch.Tensor) -> torch.Tensor:
        """The penalty on a gap."""
        return gap if self.penalty == "absolute" else (gap - self.tau).clamp_min(0)

    def _u(self, z: torch.Tensor) -> torch.Tensor:
        if self.surrogate == "sigmoid":
            return (self.sharpness * z).sigmoid()
        if self.surrogate == "hinge":
            return (1 + z).clamp_min(0)
        return F.softplus(z) / math.log(2)


def check_surrogate(surrogate: str, sharpness: float, penalty: str, tau: float) -> None:
    """Refuse options that the fairness term does not have.

    Raises:
        InputError: naming the option.
    """
    if surrogate not in get_args(Surrogate):
        raise InputError(BAD_SURROGATE.format(known=", ".join(map(repr, get_args(Surrogate))), got=surrogate))
    if penalty not in get_args(Penalty):
        raise InputError(BAD_PENALTY.format(got=penalty))
    if not (sharpness > 0 and tau >= 0):
        raise InputError(f"sharpness must be above 0 and tau at least 0, got {sharpness!r} and {tau!r}")
