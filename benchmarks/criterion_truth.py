"""Do the statistics know what removal does? Their rank correlation with the true effect, on people the net never saw.

Networks are trained on handwritten digits. Then some random units of every coupled group are closed one by one
(closed gates equal removal) and the
change of the mean test loss is its true effect. Each statistic is collected on validation digits, and for contrast
on the training
digits; Spearman's correlation with the true effect is taken inside each coupled group (what local pruning needs;
mean over
coupled groups weighted by units) and over all units at once (what global pruning needs).

    python benchmarks/criterion_truth.py [--seeds 3] [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torch_pruning as tp
from scipy.stats import spearmanr
from torch import nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fair_prune_plugins import criteria
from fair_prune_plugins.gates import GatePlan, build_plan
from fair_prune_plugins.statistics import GateStatistics, collect
from fair_prune_plugins.workflow import digits, nets, training
from fair_prune_plugins.workflow.data import Batches, Normalisation, Part, Samples
from fair_prune_plugins.workflow.training_config import TrainingConfig

EPOCHS = 12


class PreActivationNet(nn.Module):
    """BatchNorm and ReLU before each convolution: one tensor feeds a norm and a sum, where gating the norm's output
    is wrong.
    """

    def __init__(self, classes: int = 10, widths: tuple[int, ...] = (24, 48, 64)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, widths[0], 3, padding=1, bias=False)
        inputs = (widths[0], *widths[:-1])
        self.norms1 = nn.ModuleList(nn.BatchNorm2d(i) for i in inputs)
        self.convs1 = nn.ModuleList(
            nn.Conv2d(i, o, 3, 1 + (n > 0), 1, bias=False) for n, (i, o) in enumerate(zip(inputs, widths, strict=True))
        )
        self.norms2 = nn.ModuleList(nn.BatchNorm2d(o) for o in widths)
        self.convs2 = nn.ModuleList(nn.Conv2d(o, o, 3, padding=1, bias=False) for o in widths)
        self.shortcuts = nn.ModuleList(
            nn.Conv2d(i, o, 1, 1 + (n > 0), bias=False) for n, (i, o) in enumerate(zip(inputs, widths, strict=True))
        )
        self.norm, self.fc = nn.BatchNorm2d(widths[-1]), nn.Linear(widths[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        blocks = zip(self.norms1, self.convs1, self.norms2, self.convs2, self.shortcuts, strict=True)
        for norm1, conv1, norm2, conv2, shortcut in blocks:
            x = shortcut(x) + conv2(F.relu(norm2(conv1(F.relu(norm1(x))))))
        return self.fc(F.relu(self.norm(x)).mean((2, 3)))  # type: ignore[no-any-return]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: nets.digits_resnet(),
    "MobileNetV2-like": lambda: nets.face_mobilenet(classes=10, channels=1),
    "pre-activation": PreActivationNet,
}


def per_sample(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


@torch.no_grad()
def mean_loss(model: nn.Module, batches: list[dict[str, torch.Tensor]]) -> float:
    losses = [per_sample(model(b["inputs"]), b["targets"]) for b in batches]
    return float(torch.cat(losses).double().mean())


def true_effects(
    plan: GatePlan, batches: list[dict[str, torch.Tensor]], most: int, seed: int, label: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Change of the mean loss when one unit is closed, for up to ``most`` random units of every coupled group.

    Returns:
        coupled group to (unit numbers, changes).
    """
    dense = mean_loss(plan.model, batches)
    generator = np.random.default_rng(seed)
    effects = {}
    for name, units in tqdm(plan.units.items(), desc=label, unit="coupled group", mininterval=5):
        chosen = np.sort(generator.permutation(units.size)[:most])
        values = np.empty(len(chosen))
        for i, unit in enumerate(chosen):
            with plan.closed({name: [int(unit)]}) as model:
                values[i] = mean_loss(model, batches) - dense
        effects[name] = chosen, values
    return effects


def scores(statistics: GateStatistics, which: str) -> dict[str, np.ndarray]:
    found = {}
    for name in statistics.columns:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the signed statistic warns that it is what this benchmark shows it to be
            if which == "magnitude":
                values = criteria.magnitude(statistics.of(name))
            else:
                values = criteria.taylor(statistics.of(name), statistic=which)
        found[name] = values.numpy()
    return found


def host_taylor(model: nn.Module, batches: list[dict[str, torch.Tensor]], plan: GatePlan) -> dict[str, np.ndarray]:
    """Torch-Pruning's own Taylor importance with its defaults, on the same people."""
    graph = tp.DependencyGraph().build_dependency(model, (batches[0]["inputs"][:2],))
    model.zero_grad()
    for batch in batches:
        F.cross_entropy(model(batch["inputs"]), batch["targets"]).backward()
    importance = tp.importance.GroupTaylorImportance()
    found = {}
    for name in plan.units:
        module = model.get_submodule(name)
        pruner = graph.get_pruner_of_module(module)
        width = graph.get_out_channels(module)
        group = graph.get_pruning_group(module, pruner.prune_out_channels, list(range(width)))
        found[name] = importance(group).double().numpy()
    model.zero_grad(set_to_none=True)
    return found


def correlations(score: dict[str, np.ndarray], truth: dict[str, tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    inside, weights = [], []
    for name, (units, effect) in truth.items():
        if len(effect) > 2 and np.ptp(effect) > 0 and np.ptp(score[name][units]) > 0:
            inside.append(float(spearmanr(score[name][units], effect).statistic))
            weights.append(len(effect))
    scores_everywhere = np.concatenate([score[name][units] for name, (units, _) in truth.items()])
    everywhere = spearmanr(scores_everywhere, np.concatenate([effect for _, effect in truth.values()])).statistic
    return float(np.average(inside, weights=weights)), float(everywhere)


def one_network(
    kind: str, seed: int, samples: Samples, normalise: Normalisation, most: int
) -> dict[str, tuple[float, float]]:
    torch.manual_seed(seed)
    model = NETWORKS[kind]()
    recipe = TrainingConfig(epochs=EPOCHS, learning_rate=3e-3)
    cpu = torch.device("cpu")
    training.fit(
        model,
        samples,
        normalise,
        recipe,
        epochs=EPOCHS,
        seed=seed,
        device=cpu,
        what=f"{kind}, seed {seed}",
        key="training",
    )

    def people(part: Part) -> list[dict[str, torch.Tensor]]:
        return list(Batches(samples, samples.rows(part), normalise, 256, cpu))

    validation, test, train = people(Part.VALIDATION), people(Part.TEST), people(Part.TRAIN)
    plan = build_plan(model, validation[0]["inputs"])
    truth = true_effects(plan, test, most, seed, f"{kind}, seed {seed}: true effects")
    on_validation = collect(plan, validation, per_sample, progress=False)
    on_training = collect(plan, train, per_sample, progress=False)
    candidates = {
        "magnitude": scores(on_validation, "magnitude"),
        "Torch-Pruning's Taylor (defaults)": host_taylor(model, validation, plan),
        "signed sum, unseen people": scores(on_validation, "signed"),
        "sum of |s|, unseen people": scores(on_validation, "absolute"),
        "sum of s squared, unseen people": scores(on_validation, "square"),
        "signed sum, training people": scores(on_training, "signed"),
        "sum of |s|, training people": scores(on_training, "absolute"),
        "sum of s squared, training people": scores(on_training, "square"),
    }
    return {name: correlations(score, truth) for name, score in candidates.items()}


def table(results: dict[str, list[dict[str, tuple[float, float]]]]) -> str:
    seeds = len(next(iter(results.values())))
    lines = [
        "Spearman's rank correlation of scores with the true effect of closing each unit (change of the mean test "
        "loss); mean over "
        f"{seeds} seeds (standard deviation over seeds). Inside coupled groups / over all units.",
        "",
        "| | " + " | ".join(results) + " |",
        "|---|" + "---|" * len(results),
    ]
    for method in next(iter(results.values()))[0]:
        cells = []
        for runs in results.values():
            parts = []
            for which in (0, 1):
                values = [r[method][which] for r in runs]
                spread = f" ({np.std(values, ddof=1):.2f})" if len(values) > 1 else ""
                parts.append(f"{np.mean(values):.2f}{spread}")
            cells.append(" / ".join(parts))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    lines += ["", digits.ATTRIBUTION]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="trained networks per kind")
    parser.add_argument("--units", type=int, default=32, help="random units closed per coupled group")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="folder for the table and the JSON"
    )
    arguments = parser.parse_args()
    samples = digits.load()
    normalise = Normalisation.of_training(samples)
    results = {
        kind: [one_network(kind, s, samples, normalise, arguments.units) for s in range(arguments.seeds)]
        for kind in NETWORKS
    }
    text = table(results)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "criterion_truth.md").write_text(text + "\n")
    (arguments.out / "criterion_truth.json").write_text(json.dumps(results, indent=1) + "\n")
    print("\n" + text)


if __name__ == "__main__":
    main()
