"""Loss hooks in the training of NNI's compressors."""

from __future__ import annotations

from typing import Any, TypeVar

from nni.compression import TorchEvaluator
from torch import nn

from fair_prune_plugins import losses
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.groups import GroupReader
from fair_prune_plugins.losses import DenseAccuracy, LossHook, Teacher
from fair_prune_plugins.losses.group_terms import Groups as GroupNames
from fair_prune_plugins.nni.lightning import LightningEvaluator
from fair_prune_plugins.nni.training_loss import TrainingLoss
from fair_prune_plugins.nni.transformers_evaluator import TransformersEvaluator
from fair_prune_plugins.picking import Source
from fair_prune_plugins.statistics.batches import AUTO, BatchReader, BatchSource
from fair_prune_plugins.statistics.walking import Groups

AnyEvaluator = TypeVar("AnyEvaluator")

NO_EVALUATOR = (
    "evaluator= must be a TorchEvaluator, or a LightningEvaluator or TransformersEvaluator of fair_prune_plugins.nni "
    "(NNI's own do not work with current Lightning and Transformers), got {got}"
)
IN_USE = (
    "the evaluator is training a model at the moment (bind_model without unbind_model); call fair_evaluator before "
    "compress()"
)
NO_LOSS = "loss= must be a loss hook of fair_prune_plugins.losses, or the name of one ({names}), got {got}"
NOT_BY_NAME = "{arguments} are for a loss given by name; {loss} is made already, give them to its class"
NO_GROUP_NAMES = (
    "the loss {name!r} compares sensitive groups and must know them beforehand: pass group_names= their number (of "
    "codes), their names, or a mapping of name to number of training people; groups= says where a batch has them"
)


def fair_evaluator(
    evaluator: AnyEvaluator,
    loss: LossHook | str,
    groups: Groups | None = None,
    *,
    targets: BatchSource = AUTO,
    output: Source | None = None,
    weights: BatchSource | None = None,
    inputs: BatchSource = AUTO,
    module: str | None = None,
    origin_loss_lambda: float = 0.0,
    group_names: GroupNames | None = None,
    teacher: nn.Module | Teacher | None = None,
    dense: DenseAccuracy | None = None,
    **options: Any,
) -> AnyEvaluator:
    """Train with a loss hook in the place of the loss that the training step returns; the step stays as it is.

    ::

        evaluator = TorchEvaluator(training_func, optimizer, training_step)  # as before
        fair_evaluator(evaluator, "group_balanced", groups="gender", group_names={"f": 4000, "m": 9000})

    The step runs as before, and what the model returned in it goes into the hook, with the targets and the sensitive
    group out of the batch. Compressors that add to the loss (a distiller, ``MovementPruner``) add to the hook's.
    Where no gradient is computed (evaluations), the step's own loss is returned.

    *Which outputs*: those of the last call of a module with parameters that no other module made: in
    ``criterion(model(x), y)`` the model's, in ``head(body(x))`` the head's. If a step calls the model several times the
    last call counts. ``module=`` names another one.

    *What the dense model is asked*: what the model was called with, augmented or not. Where the step calls parts of the
    model one after the other, or ``inputs=`` is given, it is what the batch has.

    *State* of the loss (multipliers, buffers) moves on while the model is in training mode. It is in
    ``evaluator.loss.state_dict()``: save it beside the model's.

    Args:
        evaluator: changed in place, and returned. A hook that it had before is replaced.
        loss: a hook, or the name of a registered one, made with ``options``.
        groups: where a batch has the sensitive group: a key, index or callable, several for intersections, or a
            :class:`~fair_prune_plugins.groups.GroupReader`. With a ``TransformersEvaluator``, columns given by key are
            kept in the batch and not given to the model.
        targets: where a batch has the targets; by default its second item or a usual key.
        output: takes the logits out of what the model returns: key, index or callable; by default ``"logits"`` of a
            mapping.
        weights: where a batch has sample weights.
        inputs: where a batch has what the dense model is asked.
        module: name of the module whose outputs are the logits, as in ``model.named_modules()``.
        origin_loss_lambda: factor of the step's own loss, added to the hook's (the name is of NNI's distillers).
        group_names: of a loss by name: the groups, see :class:`~fair_prune_plugins.losses.GroupBalancedCrossEntropy`;
            by default those of a reader with names.
        teacher: of a loss by name: the dense model (copied).
        dense: of a loss by name: the dense model's accuracy per group.
        options: of a loss by name.

    Returns:
        The evaluator, of the same type, with the hook as attribute ``loss``.

    Raises:
        InputError: another evaluator, one in use, or something that the loss needs and is not given. While training:
            outputs, targets or groups that are not there or do not fit.
    """
    if not isinstance(evaluator, TorchEvaluator | LightningEvaluator | TransformersEvaluator):
        got = f"{type(evaluator).__module__}.{type(evaluator).__name__}"
        raise InputError(NO_EVALUATOR.format(got=got))
    if evaluator.model is not None:
        raise InputError(IN_USE)
    reader = BatchReader(inputs, targets, weights)
    given = {"group_names": group_names, "teacher": teacher, "dense": dense, **options}
    hook: Any = loss
    if isinstance(loss, str):
        names = _group_names(loss, groups, group_names)
        asked = _asked(teacher, output)
        hook = losses.get(loss).make(groups=names, teacher=asked, dense=dense, **options)
    elif isinstance(hook, LossHook):
        for_names = [f"{name}=" for name, value in given.items() if value is not None]
        if for_names:
            raise InputError(NOT_BY_NAME.format(arguments=", ".join(for_names), loss=type(hook).__name__))
    else:
        got = hook.__name__ if isinstance(hook, type) else type(hook).__name__
        raise InputError(NO_LOSS.format(names=", ".join(losses.names()), got=got))
    training_loss = TrainingLoss(
        hook, groups, reader, output=output, module=module, origin_loss_lambda=origin_loss_lambda
    )
    if isinstance(evaluator, TorchEvaluator):
        _replace_step(evaluator, training_loss)
    evaluator.training_loss, evaluator.loss = training_loss, hook
    return evaluator


def _group_names(loss: str, groups: Groups | None, names: GroupNames | None) -> GroupNames | None:
    if names is None and isinstance(groups, GroupReader) and groups.names is not None:
        names = tuple(map(str, groups.names))
    if names is None and "groups" in losses.get(loss).requirements:
        raise InputError(NO_GROUP_NAMES.format(name=loss))
    return names


def _asked(teacher: nn.Module | Teacher | None, output: Source | None) -> nn.Module | Teacher | None:
    """The dense model, whose logits are found as the model's."""
    if not isinstance(teacher, nn.Module):
        return teacher
    return Teacher(teacher, output=output if output is not None else _logits)


def _logits(returned: Any) -> Any:
    return returned["logits"] if isinstance(returned, dict) and "logits" in returned else returned


def _replace_step(evaluator: Any, training_loss: TrainingLoss) -> None:
    step = evaluator._ori_training_step
    if getattr(evaluator, "training_loss", None) is not None:
        step = step.__wrapped__
    evaluator._ori_training_step = training_loss.around(step, lambda: evaluator.model)
    evaluator._training_step = evaluator._ori_training_step
