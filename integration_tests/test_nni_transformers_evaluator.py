"""NNI's evaluator of Transformers pipelines, on the Transformers of today."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset

from fair_prune_plugins import nni as ours  # first: the host's import warns
from fair_prune_plugins.errors import InputError

# isort: split
import nni
import nni.compression
from nni.compression.pruning import AGPPruner, L1NormPruner, MovementPruner, TaylorPruner
from torch.optim.lr_scheduler import StepLR
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from fair_prune_plugins.nni.transformers_evaluator import TransformersEvaluator

assert ours

BATCH, LENGTH, WORDS, CLASSES = 4, 5, 24, 3
CONFIG = [{"op_names": ["bert.encoder.layer.0.intermediate.dense"], "sparse_ratio": 0.5}]


class Sentences(IterableDataset[Any]):
    """In one order, so that a loop by hand sees the same batches."""

    def __init__(self, count: int = 6 * BATCH) -> None:
        generator = torch.Generator().manual_seed(5)
        self.words = torch.randint(0, WORDS, (count, LENGTH), generator=generator)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for words in self.words:
            yield {"input_ids": words, "labels": int(words[0] + words[1]) % CLASSES, "gender": int(words[2]) % 2}

    def batches(self) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            people = list(self)
            for start in range(0, len(people), BATCH):
                rows = people[start : start + BATCH]
                yield {
                    "input_ids": torch.stack([row["input_ids"] for row in rows]),
                    "labels": torch.tensor([row["labels"] for row in rows]),
                    "gender": torch.tensor([row["gender"] for row in rows]),
                }


def bert() -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=LENGTH,
        num_labels=CLASSES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


def accuracy(prediction: Any) -> dict[str, float]:
    return {"default": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


def arguments(folder: Any, **changes: Any) -> TrainingArguments:
    quiet = {
        "output_dir": str(folder),
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": BATCH,
        "max_steps": 6,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "learning_rate": 0.05,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(**quiet | changes)


def traced(model: nn.Module, folder: Any, *, sgd: bool = True, **changes: Any) -> Any:
    optimizer = nni.trace(torch.optim.SGD)(model.parameters(), lr=0.05) if sgd else None
    return nni.trace(Trainer)(
        model=model,
        args=arguments(folder, **changes),
        train_dataset=Sentences(),
        eval_dataset=Sentences(),
        compute_metrics=accuracy,
        optimizers=(optimizer, None),
    )


def bound(model: nn.Module, trainer: Any) -> TransformersEvaluator:
    evaluator = TransformersEvaluator(trainer)
    evaluator._init_optimizer_helpers(model)
    evaluator.bind_model(model)
    return evaluator


def assert_same(a: nn.Module, b: nn.Module) -> None:
    theirs = b.state_dict()
    for name, value in a.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-6, msg=name)


def torch_evaluator(model: nn.Module) -> Any:
    def train(model: nn.Module, optimizer: Any, step: Any, _: Any, max_steps: int | None, __: Any) -> None:
        batches = Sentences().batches()
        model.train()
        for _ in range(max_steps or 0):
            optimizer.zero_grad()
            step(next(batches), model).backward()
            optimizer.step()

    def step(batch: Any, model: nn.Module) -> torch.Tensor:
        return model(input_ids=batch["input_ids"], labels=batch["labels"]).loss

    optimizer = nni.trace(torch.optim.SGD)(model.parameters(), lr=0.05)
    return nni.compression.TorchEvaluator(train, optimizer, step)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("sgd", [True, False])
def test_training_is_that_of_the_trainer_alone(tmp_path: Any, sgd: bool, accumulate: int) -> None:
    model = bert()
    alone = copy.deepcopy(model)
    evaluator = bound(model, traced(model, tmp_path, sgd=sgd, gradient_accumulation_steps=accumulate))
    tasks: list[str] = []
    evaluator.patch_optimizer_step([lambda: tasks.append("a")], [lambda: tasks.append("b")])
    evaluator.patch_optimizer_step([lambda: tasks.append("A")], [lambda: tasks.append("B")])
    evaluator.train(max_steps=3)
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.05) if sgd else None
    args = arguments(tmp_path, max_steps=3, gradient_accumulation_steps=accumulate)
    Trainer(alone, args, train_dataset=Sentences(), optimizers=(optimizer, None)).train()
    assert_same(model, alone)
    assert tasks == ["A", "a", "b", "B"] * 3
    evaluator.revert_optimizer_step()
    evaluator.train(max_steps=1)
    assert len(tasks) == 12


def test_a_scheduler_is_made_anew(tmp_path: Any) -> None:
    model = bert()
    optimizer = nni.trace(torch.optim.SGD)(model.parameters(), lr=0.05)
    scheduler = nni.trace(StepLR)(optimizer, 1, 0.5)
    trainer = nni.trace(Trainer)(
        model=model, args=arguments(tmp_path), train_dataset=Sentences(), optimizers=(optimizer, scheduler)
    )
    evaluator = bound(model, trainer)
    rates: list[float] = []
    evaluator.patch_optimizer_step([lambda: rates.append(evaluator._optimizer.param_groups[0]["lr"])], [])
    evaluator.train(max_steps=3)
    assert rates == [0.05, 0.025, 0.0125]


@pytest.mark.parametrize(
    ("asked", "updates"),
    [({"max_steps": 8}, 8), ({"max_epochs": 2}, 12), ({}, 3), ({"max_steps": 1, "max_epochs": 2}, 1)],
)
def test_a_compressor_gets_the_length_that_it_asks_for(tmp_path: Any, asked: dict[str, int], updates: int) -> None:
    class Sized(torch.utils.data.Dataset[Any]):
        def __init__(self) -> None:
            self.rows = list(Sentences())

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, i: int) -> Any:
            return self.rows[i]

    model = bert()
    trainer = nni.trace(Trainer)(model=model, args=arguments(tmp_path, max_steps=3), train_dataset=Sized())
    evaluator = bound(model, trainer)
    tasks: list[int] = []
    evaluator.patch_optimizer_step([], [lambda: tasks.append(1)])
    evaluator.train(**asked)
    assert len(tasks) == updates
    assert evaluator.trainer.args.max_steps == 3


def _taylor(model: nn.Module, evaluator: Any) -> Any:
    return TaylorPruner(model, CONFIG, evaluator, 3), ()


def _movement(model: nn.Module, evaluator: Any) -> Any:
    return MovementPruner(model, CONFIG, evaluator, 1, 4), (6, None)


def _agp(model: nn.Module, evaluator: Any) -> Any:
    return AGPPruner(L1NormPruner(model, CONFIG, evaluator), 2, 3), (6, None)


@pytest.mark.parametrize("make", [_taylor, _movement, _agp])
def test_compressors_on_a_trainer_do_what_they_do_on_plain_torch(tmp_path: Any, make: Any) -> None:
    model = bert()
    plain = copy.deepcopy(model)
    results = []
    for m, evaluator in ((model, TransformersEvaluator(traced(model, tmp_path))), (plain, torch_evaluator(plain))):
        pruner, duration = make(m, evaluator)
        _, masks = pruner.compress(*duration)
        pruner.unwrap_model()
        results.append({f"{n}.{t}": mask for n, ts in masks.items() for t, mask in ts.items() if mask is not None})
    ours, expected = results
    assert any(0 < mask.mean() < 1 for mask in ours.values())
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    assert_same(model, plain)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("items", [True, False], ids=["loss by items", "mean loss"])
def test_what_is_added_to_the_loss_counts_once_per_update(tmp_path: Any, accumulate: int, items: bool) -> None:
    class Model(nn.Module):
        """Takes ``num_items_in_batch`` or not: the trainer divides by the number of batches, or leaves it to it."""

        accepts_loss_kwargs = items

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(WORDS, CLASSES)

        def forward(self, input_ids: Any, labels: Any = None, num_items_in_batch: Any = None) -> Any:
            logits = self.table(input_ids).mean(1)
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
            return {
                "loss": loss / (len(labels) if num_items_in_batch is None else num_items_in_batch),
                "logits": logits,
            }

    model = Model()
    by_hand = copy.deepcopy(model)
    evaluator = bound(model, traced(model, tmp_path, gradient_accumulation_steps=accumulate))
    evaluator.patch_loss(lambda loss, batch: loss + 3 * model.table.weight.square().sum())
    evaluator.train(max_steps=2)

    optimizer, batches = torch.optim.SGD(by_hand.parameters(), lr=0.05), Sentences().batches()
    for _ in range(2):
        optimizer.zero_grad()
        losses = []
        for _ in range(accumulate):
            batch = next(batches)
            losses.append(by_hand(batch["input_ids"], batch["labels"])["loss"])
        (torch.stack(losses).mean() + 3 * by_hand.table.weight.square().sum()).backward()
        optimizer.step()
    assert_same(model, by_hand)


def test_a_trainer_that_makes_its_model_trains_the_one_that_is_pruned(tmp_path: Any) -> None:
    model = bert()
    before = copy.deepcopy(model.state_dict())
    trainer = nni.trace(Trainer)(model_init=bert, args=arguments(tmp_path), train_dataset=Sentences())
    evaluator = bound(model, trainer)
    evaluator.train(max_steps=1)
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_evaluate_finds_the_metric(tmp_path: Any) -> None:
    model = bert()
    metric, everything = bound(model, traced(model, tmp_path)).evaluate()
    rows = list(Sentences())
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.stack([row["input_ids"] for row in rows])).logits
    expected = float((logits.argmax(1) == torch.tensor([row["labels"] for row in rows])).float().mean())
    assert metric == pytest.approx(expected)
    assert everything["eval_default"] == metric


def test_the_trainer_class_is_left_alone(tmp_path: Any) -> None:
    before = vars(Trainer)["get_optimizer_cls_and_kwargs"]
    model = bert()
    evaluator = bound(model, traced(model, tmp_path, sgd=False))
    assert vars(Trainer)["get_optimizer_cls_and_kwargs"] is before
    evaluator.unbind_model()
    assert evaluator.model is None
    evaluator.bind_model(model)
    evaluator.train(max_steps=1)


def test_a_vision_transformer_is_pruned(tmp_path: Any) -> None:
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        num_labels=CLASSES,
    )
    model = ViTForImageClassification(config)
    images = torch.randn(12, 3, 8, 8)
    data = [{"pixel_values": image, "labels": i % CLASSES} for i, image in enumerate(images)]
    trainer = nni.trace(Trainer)(model=model, args=arguments(tmp_path), train_dataset=data)
    layer = next(name for name, module in model.named_modules() if getattr(module, "out_features", 0) == 12)
    pruner = TaylorPruner(
        model, [{"op_names": [layer], "sparse_ratio": 0.5}], TransformersEvaluator(trainer), training_steps=2
    )
    _, masks = pruner.compress()
    assert masks[layer]["weight"].flatten(1).any(1).sum() == 6


def test_it_is_an_evaluator_of_the_host(tmp_path: Any) -> None:
    model = bert()
    evaluator = TransformersEvaluator(traced(model, tmp_path), {"input_ids": torch.zeros(1, LENGTH).long()})
    assert isinstance(evaluator, nni.compression.TransformersEvaluator)
    assert evaluator.get_dummy_input()["input_ids"].shape == (1, LENGTH)
    with pytest.raises(InputError, match=r"nni\.trace\(Trainer\)"):
        TransformersEvaluator("trainer")
