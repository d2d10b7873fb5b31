"""Every method on real faces: pruned through Torch-Pruning to the asked MACs, exported, and the file compared by hand.

The methods come from the registries and from the list of the benchmark, which has their variants (element-wise
statistics, the performance-weighted loss, one ranking over all layers): a new one is tested without another line here.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fair_prune_plugins import losses, onnx
from fair_prune_plugins.groups import GroupLabels
from fair_prune_plugins.workflow import loss_hooks, methods, nets, pruning, sources, training
from fair_prune_plugins.workflow.amounts import Amount
from fair_prune_plugins.workflow.config import RunConfig, read
from fair_prune_plugins.workflow.data import Batches, Normalisation, Part, Samples
from fair_prune_plugins.workflow.data_config import Parts, TableData
from fair_prune_plugins.workflow.prune_config import MethodConfig

pytestmark = pytest.mark.real_data

CPU = torch.device("cpu")
IMAGE = torch.zeros(1, 3, 48, 48)
SHARE, TOLERANCE = 0.3, 0.01
"""Of the MACs, and how far below it a network may end: what ``CostTarget`` and AutoBot promise where widths allow."""

PEOPLE = {Part.TRAIN: 32, Part.VALIDATION: 12, Part.TEST: 8}
"""Per race, on average."""

NETS: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: nets.ResidualNet(2, 3, widths=(16, 24, 48), blocks=1),
    "depthwise": lambda: nets.MobileNet(2, 3, stages=((4, 24, 2, 2),), stem=16, head=64),
}
SHORT = {"steps": 5, "iterations": 10, "mask_lr": 1.0}
"""Gates are learned for a moment, in large steps that show: of those the options that a method has."""


def configured() -> RunConfig:
    faces = Path(__file__).parents[1] / "benchmarks/methods/faces.yaml"
    small = ["training.batch_size=32", "training.flip=false", "training.shift=0", "prune.batch_size=42"]
    return read(faces, [*small, f"prune.macs=[{SHARE}]", "prune.round_to=null"])


CONFIG = configured()
NAMED = {m.name for m in CONFIG.prune.methods}
METHODS = [*CONFIG.prune.methods, *(MethodConfig(name=n) for n in methods.names() if n not in NAMED)]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.slug)


@dataclass
class Trained:
    """A network that knows the training faces, and what was pruned of it so far: each test asks for the same."""

    dense: nn.Module
    samples: Samples
    normalise: Normalisation
    done: dict[str, tuple[nn.Module, pruning.Pruned]] = field(default_factory=dict)

    def pruned(self, method: MethodConfig) -> tuple[nn.Module, pruning.Pruned]:
        if method.title not in self.done:
            self.done[method.title] = self.pruned_on(method, self.samples)
        return self.done[method.title]

    def pruned_on(self, method: MethodConfig, samples: Samples) -> tuple[nn.Module, pruning.Pruned]:
        known = getattr(methods.get(method.name), "options", {})
        short = {option: value for option, value in SHORT.items() if option in known}
        loss = None
        if method.collect_loss is not None:
            loss = loss_hooks.make(
                method.collect_loss, samples, self.normalise, dense=copy.deepcopy(self.dense), augmented=False,
                batch_size=64, device=CPU, key="collect_loss",
            )  # fmt: skip
        model = copy.deepcopy(self.dense)
        asked = method.model_copy(update={"options": {**short, **method.options}})
        done = pruning.prune(
            model, asked, Amount("macs", SHARE), CONFIG, samples, self.normalise, device=CPU, collect_loss=loss
        )
        return model, done

    def of(self, part: Part) -> dict[str, Any]:
        rows = self.samples.rows(part)
        return next(iter(Batches(self.samples, rows, self.normalise, len(rows))))


@pytest.fixture(scope="session")
def faces() -> Samples:
    """Some hundred faces of seven groups of different sizes (with equal ones the mean of groups is that of people)."""
    place = Path(os.environ.get("FAIR_PRUNE_DATA", Path(__file__).parents[2] / "shared/data"))
    if not (place / "fairface-tiny-48.zip").is_file():
        pytest.skip(f"fairface-tiny-48.zip is not in {place}; FAIR_PRUNE_DATA names the folder of the real data")
    settings = TableData(
        kind="table",
        images="fairface-tiny-48.zip",
        table="labels.csv",
        target="gender",
        groups=["race"],
        parts=Parts(column="part"),
        validation=0.2,
    )
    everybody = sources.load(settings, base=place, seed=0)
    chosen = []
    for part, people in PEOPLE.items():
        rows = everybody.rows(part)
        race = everybody.groups.codes[rows]
        chosen += [rows[race == g][: round(people * size)] for g, size in enumerate(np.linspace(0.4, 1.6, 7))]
    rows = np.sort(np.concatenate(chosen))
    return Samples(
        inputs=everybody.inputs[rows],
        labels=everybody.labels[rows],
        classes=everybody.classes,
        groups=everybody.groups.take(rows),
        parts=everybody.parts[rows],
    )


@pytest.fixture(scope="session", params=sorted(NETS))
def trained(request: pytest.FixtureRequest, faces: Samples) -> Trained:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dense = NETS[request.param]()
    net = Trained(dense, faces, Normalisation.of_training(faces))
    training.fit(dense, faces, net.normalise, CONFIG.training, epochs=12, seed=0, device=CPU, what="", key="training")
    seen = net.of(Part.TRAIN)
    with torch.no_grad():
        right = (dense(seen["inputs"]).argmax(1) == seen["targets"]).double().mean()
    assert right > 0.8, "too little learned for statistics to mean something"
    return net


def macs(model: nn.Module) -> tuple[float, float]:
    """Multiply-accumulates of one face: of convolutions and matrices by torch's own counter; then with all that
    Torch-Pruning counts: 2 per number that a norm reads, 1 per number that an activation module or a bias gives."""
    besides = 0

    def count(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal besides
        if isinstance(module, nn.BatchNorm2d):
            besides += 2 * args[0].numel()
        elif isinstance(module, nn.ReLU6) or getattr(module, "bias", None) is not None:
            besides += output.numel()

    leaves = [m for m in model.modules() if not list(m.children())]
    handles = [m.register_forward_hook(count) for m in leaves]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(IMAGE)
    for handle in handles:
        handle.remove()
    multiplied = counter.get_total_flops() / 2
    return multiplied, multiplied + besides


def kept_units(done: pruning.Pruned) -> dict[str, tuple[int, ...]]:
    return {name: group.kept for name, group in done.history.groups.items()}


def on_onnx_runtime(session: onnxruntime.InferenceSession, inputs: torch.Tensor, batch: int) -> npt.NDArray[np.float32]:
    (name,) = (given.name for given in session.get_inputs())
    return np.concatenate([session.run(None, {name: part.numpy()})[0] for part in inputs.split(batch)])


@every_method
def test_it_ends_at_the_asked_macs_and_its_file_says_what_the_network_says(
    trained: Trained, method: MethodConfig, tmp_path: Path
) -> None:
    model, _ = trained.pruned(method)

    multiplied, whole = (now / before for now, before in zip(macs(model), macs(trained.dense), strict=True))
    assert (1 - TOLERANCE) * SHARE <= whole <= SHARE
    assert multiplied <= SHARE

    for small, large in zip(model.parameters(), trained.dense.parameters(), strict=True):
        assert all(0 < now <= before for now, before in zip(small.shape, large.shape, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

    people = trained.of(Part.TEST)
    with torch.no_grad():
        logits, before = model(people["inputs"]).numpy(), trained.dense(people["inputs"]).numpy()
    assert logits.shape == before.shape == (len(people["targets"]), 2)
    scale = float(np.abs(logits).max())
    assert float(np.ptp(logits, axis=0).min()) > 0.01 * scale  # a file that ignores its input would not pass

    groups = trained.samples.groups.take(trained.samples.rows(Part.TEST))
    labels = people["targets"].numpy()
    report = onnx.export(
        model, people["inputs"][:2], tmp_path / "pruned.onnx", samples=people["inputs"], labels=labels, groups=groups
    )
    session = onnxruntime.InferenceSession(str(report.path), providers=["CPUExecutionProvider"])
    for batch in (1, 5, len(labels)):
        said = on_onnx_runtime(session, people["inputs"], batch)
        assert float(np.abs(said - logits).max()) < 1e-4 * scale
    assert float(np.abs(said - before).max()) > 0.01 * scale  # nor would the dense network's
    assert report.parity.classes is not None
    right = logits.argmax(1) == labels
    assert [g.correct_torch for g in report.parity.classes.groups] == [
        right[groups.codes == code].sum() for code in range(len(groups.names))
    ]

    probe = copy.deepcopy(model).train()
    F.cross_entropy(probe(people["inputs"]), people["targets"]).backward()
    for name, parameter in probe.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("trained", ["residual"], indirect=True)
@every_method
def test_who_is_in_which_group_matters_to_methods_that_compare_groups_and_to_no_other(
    trained: Trained, method: MethodConfig
) -> None:
    samples, generator = trained.samples, np.random.default_rng(0)
    codes = samples.groups.codes.copy()
    for part in Part:
        rows = samples.rows(part)
        codes[rows] = generator.permutation(codes[rows])
    groups = GroupLabels(samples.groups.names, codes, samples.groups.attribute)
    _, done = trained.pruned_on(method, replace(samples, groups=groups))
    same = kept_units(done) == kept_units(trained.pruned(method)[1])
    loss = method.collect_loss and losses.get(method.collect_loss.name)
    assert same is not (methods.get(method.name).needs_groups or bool(loss and loss.needs_groups))
