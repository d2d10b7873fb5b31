"""Two ranks prune the same units as one process that has all the data, go on training, and fail together."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fair_prune_plugins.errors import FairPruneError, InputError
from fair_prune_plugins.statistics import GateStatistics
from fair_prune_plugins.statistics.ranks import together
from fair_prune_plugins.torch_pruning import (
    FairGRAPEImportance,
    FairPruner,
    TaylorImportance,
    reestimate_batch_norm,
    rewrapped,
)
from integration_tests.networks import build
from integration_tests.pruning_oracles import faces, sample_loss

WORLD = 2
LR, MOMENTUM = 0.1, 0.9


def shares() -> list[list[int]]:
    """Uneven, and nobody of group 2 on rank 1."""
    codes = faces(20, dtype=torch.float64)["group"].tolist()
    second = [i for i in range(20) if codes[i] != 2][-6:]
    return [[i for i in range(20) if i not in second], second]


def people(rows: list[int], size: int = 4) -> list[dict[str, torch.Tensor]]:
    data = faces(20, dtype=torch.float64)
    return [{k: v[rows[i : i + size]] for k, v in data.items()} for i in range(0, len(rows), size)]


def example() -> torch.Tensor:
    return torch.zeros(2, 3, 16, 16, dtype=torch.float64)


def pruner_of(model: nn.Module, importance: Any) -> FairPruner:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is left alone
        return FairPruner(model, example(), importance, pruning_ratio=0.5, round_to=None, global_pruning=True)


def collect(pruner: FairPruner, loader: Any, **options: Any) -> GateStatistics:
    found = pruner.importance.collect(pruner, loader, sample_loss, groups="group", progress=False, **options)
    assert isinstance(found, GateStatistics)
    return found


def loss_of(model: nn.Module, rank: int, step: int) -> torch.Tensor:
    data = faces(6, seed=10 * step + rank, dtype=torch.float64)
    return F.cross_entropy(model(data["inputs"]), data["targets"])


def failing() -> Iterator[Any]:
    yield people(shares()[1])[0]
    raise OSError("the disk is gone")


def message_of(work: Callable[[], Any]) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def trained_and_pruned(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    model = DistributedDataParallel(build("residual", seed=rank).double())  # takes rank 0's weights
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    for step in range(2):
        optimizer.zero_grad()
        loss_of(model.train(), rank, step).backward()
        optimizer.step()
    found["trained"] = {k: v.clone() for k, v in model.module.state_dict().items()}
    pruner = pruner_of(model, FairGRAPEImportance())
    found["inside"] = pruner.model is model.module
    statistics = collect(pruner, people(shares()[rank]))
    found["people"], found["names"] = statistics.people, statistics.names
    pruner.step(optimizer=optimizer)
    found["history"] = pruner.history().as_dict()
    found["pruned"] = {k: v.clone() for k, v in pruner.model.state_dict().items()}
    found["momentum"] = [optimizer.state[p]["momentum_buffer"].clone() for p in pruner.model.parameters()]
    model = rewrapped(model)
    optimizer.zero_grad()
    loss_of(model.train(), rank, 2).backward()
    found["gradients"] = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    optimizer.step()
    found["after"] = {k: v.clone() for k, v in model.module.named_parameters()}
    return found


def rewrapped_options(rank: int) -> dict[str, Any]:
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
    from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        first = DistributedDataParallel(
            build("plain"),
            bucket_cap_mb=3,
            find_unused_parameters=True,
            gradient_as_bucket_view=True,
            broadcast_buffers=False,
        )
    first.register_comm_hook(None, default_hooks.allreduce_hook)
    again = rewrapped(first.eval())
    names = ("find_unused_parameters", "gradient_as_bucket_view", "broadcast_buffers", "bucket_bytes_cap", "training")
    stateful = DistributedDataParallel(build("plain"))
    stateful.register_comm_hook(PowerSGDState(None), powerSGD_hook)
    return {
        "kept": [getattr(again, n) for n in names],
        "same group": again.process_group is first.process_group,
        "hooks": [hook.__name__ for hook, _ in again._comm_hooks],
        "stateful": message_of(lambda: rewrapped(stateful)),
    }


def work_of(rank: int, folder: str) -> None:
    from torch import distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    mine = people(shares()[rank])
    found = trained_and_pruned(rank)
    found["options"] = rewrapped_options(rank)

    lone = pruner_of(build("plain").double(), FairGRAPEImportance())
    collect(lone, people(list(range(20))) if rank == 0 else [])  # a rank without anybody
    lone.step()
    found["lone"] = lone.history().as_dict()

    alone = pruner_of(build("plain").double(), FairGRAPEImportance())
    found["alone"] = collect(alone, mine, distributed=False).people

    plain = pruner_of(build("plain").double(), FairGRAPEImportance())
    found["failed"] = message_of(lambda: collect(plain, failing() if rank else mine))
    found["empty"] = message_of(lambda: collect(plain, []))
    nobody = [{**batch, "group": torch.full_like(batch["group"], -1)} for batch in mine]
    found["unknown"] = message_of(lambda: collect(plain, nobody))
    taylor = TaylorImportance()
    found["no example"] = message_of(
        lambda: taylor.collect(build("plain").double(), mine if rank else [], sample_loss, progress=False)
    )
    elementwise = pruner_of(build("plain").double(), FairGRAPEImportance(statistic="elementwise"))
    found["elementwise"] = message_of(lambda: collect(elementwise, mine))

    norms = build("residual", seed=5).double()
    reestimate_batch_norm(norms, [b["inputs"] for b in mine], progress=False)
    found["norms"] = {k: v for k, v in norms.state_dict().items() if "running" in k or "tracked" in k}
    found["norms failed"] = message_of(
        lambda: reestimate_batch_norm(norms, failing() if rank else mine, progress=False)
    )

    with torch.no_grad():
        plain.model.fc.bias += rank
    found["other weights"] = message_of(lambda: collect(plain, mine))
    other = pruner_of(build("plain" if rank else "residual").double(), FairGRAPEImportance())
    found["other model"] = message_of(lambda: collect(other, mine))
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work_of, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(WORLD)]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def test_both_ranks_prune_what_one_process_prunes_that_has_all_the_data(ranks: list[dict[str, Any]]) -> None:
    first, second = ranks
    assert first["inside"]
    assert second["inside"]
    assert not same(first["trained"], second["trained"])  # each has the running statistics of its own batches
    assert same(first["pruned"], second["pruned"])
    model = build("residual").double()
    model.load_state_dict(first["trained"])
    pruner = pruner_of(model, FairGRAPEImportance())
    whole = collect(pruner, people(list(range(20)), 20))
    for found in ranks:
        assert torch.equal(found["people"], whole.people)
        assert found["names"] == whole.names
    pruner.step()
    history = pruner.history().as_dict()
    assert history["groups"]
    assert first["history"] == second["history"] == history
    assert same(model.state_dict(), first["pruned"])
    # The test means nothing if a rank's own share would have led to the same.
    own = build("residual").double()
    own.load_state_dict(first["trained"])
    lonely = pruner_of(own, FairGRAPEImportance())
    collect(lonely, people(shares()[1]))
    lonely.step()
    assert lonely.history().as_dict()["groups"] != history["groups"]


def test_training_goes_on_under_the_new_wrapper(ranks: list[dict[str, Any]]) -> None:
    first, second = ranks
    assert same(first["after"], second["after"])
    gradients = []
    for rank in range(WORLD):
        model = _of_shapes(first["pruned"])
        loss_of(model.train(), rank, 2).backward()
        gradients.append([p.grad for p in model.parameters()])
    average = [(a + b) / WORLD for a, b in zip(*gradients, strict=True) if a is not None and b is not None]
    for mine, yours, expected in zip(first["gradients"], second["gradients"], average, strict=True):
        assert torch.equal(mine, yours)
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-12)
    for (name, p), v, g in zip(first["after"].items(), first["momentum"], average, strict=True):
        torch.testing.assert_close(p, first["pruned"][name] - LR * (MOMENTUM * v + g), rtol=1e-9, atol=1e-12)
        assert v.abs().max() > 0


def _of_shapes(state: dict[str, torch.Tensor]) -> nn.Module:
    """The residual net with tensors of any widths, put in by hand."""
    model = build("residual").double()
    for path, m in model.named_modules():
        for name in (*m._parameters, *m._buffers):
            value = state.get(f"{path}.{name}")
            if value is None:
                continue
            if name in m._parameters:
                setattr(m, name, nn.Parameter(value.clone()))
            else:
                m._buffers[name] = value.clone()
    return model


def test_a_rank_without_anybody(ranks: list[dict[str, Any]]) -> None:
    pruner = pruner_of(build("plain").double(), FairGRAPEImportance())
    collect(pruner, people(list(range(20)), 20))
    pruner.step()
    assert ranks[0]["lone"] == ranks[1]["lone"] == pruner.history().as_dict()


def test_a_rank_by_itself(ranks: list[dict[str, Any]]) -> None:
    assert [int(found["alone"].sum()) for found in ranks] == [len(share) for share in shares()]


def test_ranks_fail_together(ranks: list[dict[str, Any]]) -> None:
    first, second = ranks
    for key in ("failed", "norms failed"):
        assert second[key] == "OSError: the disk is gone"
        assert first[key] == "FairPruneError: rank 1 failed, so all ranks stop here. It said: OSError: the disk is gone"
    assert "rank 0 failed" in second["no example"]
    assert "InputError: the loader yielded no batch" in first["no example"]
    for found in ranks:
        assert "InputError: the loader yielded no sample" in found["empty"]
        assert "InputError: every group is unknown: none of the 20 rows" in found["unknown"]
        assert "different states of the model" in found["other weights"]
        assert "element-wise statistics do not add up over ranks" in found["elementwise"]
    assert "InputError: this rank's model has other buffers than rank 0's" in second["other model"]
    assert "rank 1 failed" in first["other model"]


def test_batch_norm_over_ranks(ranks: list[dict[str, Any]]) -> None:
    model = build("residual", seed=5).double()
    batches = [b["inputs"] for share in shares() for b in people(share)]
    reestimate_batch_norm(model, batches, progress=False)
    expected = model.state_dict()
    assert same(ranks[0]["norms"], ranks[1]["norms"])
    for name, value in ranks[0]["norms"].items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12)


def test_wrapping_again_keeps_the_options(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        options = found["options"]
        assert options["kept"] == [True, True, False, 3 * 2**20, False]
        assert options["same group"]
        assert options["hooks"] == ["allreduce_hook"]
        assert "the state of its communication hook powerSGD_hook may be of the old" in options["stateful"]


def test_without_any_ranks() -> None:
    assert not together("auto")
    assert not together(False)
    with pytest.raises(InputError, match="distributed=True needs"):
        together(True)
    with pytest.raises(InputError, match="distributed must be 'auto', True or False, got 'yes'"):
        together("yes")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="takes the DistributedDataParallel that the model was in, got Plain"):
        rewrapped(build("plain"))
    assert issubclass(InputError, FairPruneError)
    pruner = pruner_of(build("plain").double(), FairGRAPEImportance())
    assert int(collect(pruner, people(list(range(20)))).people.sum()) == 20
