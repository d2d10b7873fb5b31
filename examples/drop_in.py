"""An existing Torch-Pruning script made fair: the lines marked `was` are all that changes.

Handwritten digits; the sensitive group is how thick the writer's strokes are. Runs in about a minute:

    python examples/drop_in.py
"""

import torch
import torch.nn.functional as F
import torch_pruning as tp

import fair_prune_plugins.torch_pruning as fpt
from fair_prune_plugins.workflow import digits, nets
from fair_prune_plugins.workflow.data import Batches, Normalisation, Part


def accuracy(model: torch.nn.Module, loader: Batches) -> float:
    model.eval()
    with torch.no_grad():
        right = [(model(b["inputs"]).argmax(1) == b["targets"]).float() for b in loader]
    return float(torch.cat(right).mean())


def train(model: torch.nn.Module, loader: Batches, epochs: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    model.train()
    for _ in range(epochs):
        for b in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(b["inputs"]), b["targets"]).backward()
            optimizer.step()
    model.eval()


def main() -> None:
    torch.manual_seed(0)
    # Your data: batches are dictionaries here, and one key says which group a sample's person belongs to.
    samples = digits.load()
    normalise = Normalisation.of_training(samples)
    train_loader, held_out, test_loader = (
        Batches(samples, samples.rows(part), normalise, 128, torch.device("cpu"), shuffle_seed=seed)
        for part, seed in ((Part.TRAIN, 0), (Part.VALIDATION, None), (Part.TEST, None))
    )
    model = nets.digits_resnet()
    train(model, train_loader, 12)
    print(f"dense: test accuracy {accuracy(model, test_loader):.3f}")

    # Your pruning script.
    example_inputs = torch.randn(1, 1, 32, 32)
    importance = fpt.FairGRAPEImportance()  # was: tp.importance.GroupTaylorImportance()
    pruner = tp.pruner.BasePruner(
        model,
        example_inputs,
        importance=importance,
        pruning_ratio=0.5,
        ignored_layers=[model.classifier],
    )
    # was: a loop of F.cross_entropy(model(x), y).backward()
    importance.collect(pruner, held_out, torch.nn.CrossEntropyLoss(reduction="none"), groups="group")
    pruner.step()
    train(model, train_loader, 3)
    print(f"half the channels: test accuracy {accuracy(model, test_loader):.3f}")
    assert importance.statistics is not None
    print(importance.statistics.statement())


if __name__ == "__main__":
    main()
