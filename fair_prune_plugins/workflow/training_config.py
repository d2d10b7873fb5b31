"""What a run is told about training: of the dense network, and of pruned ones again."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from fair_prune_plugins import losses
from fair_prune_plugins.workflow.sections import Count, NamedSection, Section, named, near

NEEDS_DENSE = (
    "the loss {name!r} compares with the dense network, which is what is being trained here; name it in finetune.losses"
)


class LossConfig(NamedSection):
    """One loss; a bare name will do."""

    @model_validator(mode="after")
    def _is_registered(self) -> LossConfig:
        known = losses.names()
        if self.name not in known:
            raise ValueError(f"no loss {self.name!r}; {near(self.name, known)}there are {known}")
        losses.get(self.name).check_options(self.options)
        return self


PLAIN = LossConfig(name="cross_entropy")


class _FitConfig(Section):
    epochs: Count = Field(default=20, description="passes over the training people")
    batch_size: Annotated[int, Field(ge=2)] = Field(default=64, description="people per step")
    learning_rate: Annotated[float, Field(gt=0)] = Field(
        default=3e-3, description="the highest learning rate of the schedule"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=5e-4, description="decoupled weight decay")
    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", description="sgd has Nesterov momentum 0.9")
    schedule: Literal["one_cycle", "cosine", "constant"] = Field(
        default="one_cycle", description="how the learning rate goes over the steps"
    )
    flip: bool = Field(default=False, description="mirror training images left and right at random")
    shift: Annotated[int, Field(ge=0, le=16)] = Field(
        default=0, description="move training images by up to this many pixels at random"
    )


class TrainingConfig(_FitConfig):
    """How the dense network is trained."""

    loss: Annotated[LossConfig, BeforeValidator(named)] = Field(
        default=PLAIN, description="what training optimises: a registered loss that asks no dense network"
    )

    @model_validator(mode="after")
    def _without_a_dense_network(self) -> TrainingConfig:
        needed = [r for r in losses.get(self.loss.name).requirements if r != "groups"]
        if needed:
            raise ValueError(NEEDS_DENSE.format(name=self.loss.name))
        return self


class FinetuneConfig(_FitConfig):
    """How a pruned network is trained on; epochs 0 leaves it as it was pruned."""

    losses: Annotated[list[Annotated[LossConfig, BeforeValidator(named)]], Field(min_length=1)] = Field(
        default=[PLAIN],
        description="what fine-tuning optimises, by registered name, or {name, label, options}; every criterion is "
        "combined with every loss, and the first is the plain one to compare with",
    )

    epochs: Annotated[int, Field(ge=0)] = Field(
        default=8, description="passes over the training people after the last pruning step"
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(
        default=1e-3, description="the highest learning rate of the schedule"
    )
    epochs_between: Annotated[int, Field(ge=0)] = Field(
        default=1,
        description="passes over the training people after each pruning step but the last; not to be set with one step",
    )

    @model_validator(mode="after")
    def _different_losses(self) -> FinetuneConfig:
        titles = [loss.slug for loss in self.losses]
        if len(set(titles)) != len(titles):
            raise ValueError(f"losses must be different, got {titles}; give losses of one name different labels")
        return self
