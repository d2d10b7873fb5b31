"""An existing NNI pipeline made fair, and made to end in a smaller model: the lines marked `was` are all that changes.

Handwritten digits; the sensitive group is how thick the writer's strokes are. Runs in about a minute:

    python examples/nni_pipeline.py
"""

from typing import Any

import nni
import torch
import torch.nn.functional as F

from fair_prune_plugins.nni import (  # was: nni.compression and its .pruning, .utils, .speedup
    AGPPruner,
    FairGRAPEPruner,
    ModelSpeedup,
    TorchEvaluator,
    auto_set_denpendency_group_ids,
    fair_evaluator,
)
from fair_prune_plugins.workflow import digits, nets
from fair_prune_plugins.workflow.data import Batches, Normalisation, Part

SAMPLES = digits.load()
NORMALISE = Normalisation.of_training(SAMPLES)


def batches(part: Part, shuffle_seed: int | None = None) -> Batches:
    # Your data: batches are dictionaries here, and one key says which group a sample's person belongs to.
    return Batches(SAMPLES, SAMPLES.rows(part), NORMALISE, 128, torch.device("cpu"), shuffle_seed=shuffle_seed)


def training_step(batch: Any, model: torch.nn.Module) -> torch.Tensor:
    return F.cross_entropy(model(batch["inputs"]), batch["targets"])


def train(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    training_step: Any,
    lr_scheduler: Any = None,
    max_steps: int | None = None,
    max_epochs: int | None = None,
) -> None:
    loader, steps = batches(Part.TRAIN, shuffle_seed=0), 0
    model.train()
    for _ in range(max_epochs or 1000):
        for batch in loader:
            optimizer.zero_grad()
            training_step(batch, model).backward()
            optimizer.step()
            steps += 1
            if steps == max_steps:
                return


def prepare_optimizer(model: torch.nn.Module) -> Any:
    return nni.trace(torch.optim.AdamW)(model.parameters(), lr=2e-3)


def report(what: str, model: torch.nn.Module) -> None:
    model.eval()
    right = []
    with torch.no_grad():
        for batch in batches(Part.TEST):
            right.append((model(batch["inputs"]).argmax(1) == batch["targets"]).float())
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{what}: {parameters} parameters, test accuracy {float(torch.cat(right).mean()):.3f}")


def main() -> None:
    torch.manual_seed(0)
    model = nets.digits_resnet()
    train(model, prepare_optimizer(model), training_step, max_epochs=12)
    report("dense", model)

    # Your pruning script.
    dummy_input = torch.rand(8, 1, 32, 32)
    config_list: list[dict[str, Any]] = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]
    config_list = auto_set_denpendency_group_ids(model, config_list, dummy_input)
    evaluator = TorchEvaluator(train, prepare_optimizer(model), training_step)
    # New: the training between the masks weighs every group the same; training_step and train stay as they are.
    people = SAMPLES.groups.take(SAMPLES.rows(Part.TRAIN))
    counts = dict(zip(people.names, people.counts.tolist(), strict=True))
    fair_evaluator(evaluator, "group_balanced", "group", group_names=counts)
    # was: TaylorPruner(model, config_list, evaluator, training_steps=5)
    pruner = FairGRAPEPruner(model, config_list, evaluator, training_steps=5, groups="group")
    scheduled = AGPPruner(pruner, interval_steps=10, total_times=5)
    _, masks = scheduled.compress(max_steps=60, max_epochs=None)
    scheduled.unwrap_model()

    speedup = ModelSpeedup(model, dummy_input, masks)
    model = speedup.speedup_model()
    print(speedup.report)
    report("half the channels", model)
    train(model, prepare_optimizer(model), training_step, max_epochs=4)
    report("fine-tuned", model)


if __name__ == "__main__":
    main()
