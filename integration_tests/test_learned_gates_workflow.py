"""The methods that learn gates, by name in a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml

from fair_prune_plugins.errors import ConfigError, InputError
from fair_prune_plugins.learned_gates import LEARNED
from fair_prune_plugins.losses import CrossEntropy
from fair_prune_plugins.torch_pruning.counting import macs_and_params
from fair_prune_plugins.workflow import config, pruning
from fair_prune_plugins.workflow.amounts import Amount
from fair_prune_plugins.workflow.data import Normalisation
from fair_prune_plugins.workflow.digits import load
from fair_prune_plugins.workflow.nets import digits_resnet

BASE: dict[str, Any] = {
    "name": "Learned",
    "data": {"kind": "function", "function": "fair_prune_plugins.workflow.digits:load", "target": "digit"},
    "model": {"factory": "digits_resnet", "options": {"widths": [16, 24]}},
    "prune": {"methods": ["bip"], "macs": [0.5], "round_to": None, "batch_size": 16},
}


def configured(**prune: Any) -> config.RunConfig:
    return config.parse(yaml.safe_dump({**BASE, "prune": {**BASE["prune"], **prune}}), origin="test")


@pytest.mark.parametrize("allocation", ["local", "global"])
@pytest.mark.parametrize("name", sorted(LEARNED))
def test_each_prunes_down_to_the_asked_macs(name: str, allocation: str) -> None:
    options = {"iterations": 4} if name == "autobot" else {"steps": 2}
    run = configured(methods=[{"name": name, "options": options}], allocation=allocation)
    samples = load()
    normalise = Normalisation.of_training(samples)
    torch.manual_seed(0)
    model = digits_resnet(widths=[16, 24])
    example = torch.zeros(1, 1, 32, 32)
    dense = macs_and_params(model, example)[0]
    done = pruning.prune(
        model, run.prune.methods[0], Amount("macs", 0.5), run, samples, normalise, device=torch.device("cpu"),
        loss=CrossEntropy(),
    )  # fmt: skip
    assert 0.95 * 0.5 <= macs_and_params(model, example)[0] / dense <= 0.5
    assert not model.training
    assert done.seconds["collect"] > 0
    assert done.steps[0]["macs_before"] == dense


def test_what_cannot_be_learned_is_refused_when_the_configuration_is_read() -> None:
    bad: list[dict[str, Any]] = [
        {"steps": 2}, {"allocation": "isomorphic"}, {"allocation": "global", "macs": [], "params": [0.5]},
        {"methods": ["autobot"], "macs": [], "ratios": [0.5]},
    ]  # fmt: skip
    for prune in bad:
        with pytest.raises(ConfigError, match="learns its gates for one step"):
            configured(**prune)
    with pytest.raises(InputError, match="no option 'lr'"):
        pruning.importance(configured(methods=[{"name": "bip", "options": {"lr": 1}}]).prune.methods[0])
    with pytest.raises(InputError, match="steps must be a whole number"):
        pruning.importance(configured(methods=[{"name": "bifp", "options": {"steps": 0}}]).prune.methods[0])
