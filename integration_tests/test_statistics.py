"""Gate statistics against gates written out as tensors, one sample and one backward pass at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.gates import build_plan
from fair_prune_plugins.gates.plan import GatePlan
from fair_prune_plugins.groups import GroupReader
from fair_prune_plugins.statistics import GateStatistics, collect, model_checksum
from fair_prune_plugins.statistics.store import STATES
from integration_tests.gate_oracles import Gates, Net
from integration_tests.networks import CLASSES, NETWORKS, build, heads_of

NAMES = ("female", "male", "other")
Batch = dict[str, Any]


def people(samples: int, dtype: torch.dtype = torch.float64, seed: int = 3) -> Batch:
    """Images, targets and the group of each person; every seventh person's is unknown."""
    generator = torch.Generator().manual_seed(seed)
    names = [None if n % 7 == 6 else NAMES[n % 5 % 3] for n in range(samples)]
    return {
        "x": torch.randn(samples, 3, 16, 16, generator=generator, dtype=dtype),
        "y": torch.randint(0, CLASSES, (samples,), generator=generator),
        "group": names,
    }


def batches(data: Batch, size: int, order: list[int] | None = None) -> list[Batch]:
    order = list(range(len(data["y"]))) if order is None else order
    parts = [order[i : i + size] for i in range(0, len(order), size)]
    return [{"x": data["x"][p], "y": data["y"][p], "group": [data["group"][i] for i in p]} for p in parts]


def per_sample(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if outputs.ndim == 4:
        return outputs.square().mean((1, 2, 3)) + outputs[:, 0, 3, 4]
    return F.cross_entropy(outputs, targets, reduction="none")


def measured(plan: GatePlan, loader: Any, **options: Any) -> GateStatistics:
    return collect(plan, loader, per_sample, **{"groups": "group", "progress": False, **options})


def planned(name: str, dtype: torch.dtype = torch.float64) -> GatePlan:
    model = build(name).to(dtype)
    return build_plan(model, torch.zeros(1, 3, 16, 16), num_heads=heads_of(model), prune_num_heads=True)


def expected_states(s: torch.Tensor, names: list[str | None]) -> dict[str, torch.Tensor]:
    rows = []
    for group in (*NAMES, None):
        mine = s[[i for i, n in enumerate(names) if n == group]]
        rows.append({"sum": mine.sum(0), "absolute": mine.abs().sum(0), "square": mine.square().sum(0)})
    return {state: torch.stack([row[state] for row in rows]) for state in rows[0]}


def assert_same(a: GateStatistics, b: GateStatistics, tolerance: float) -> None:
    assert a.names == b.names
    assert a.columns == b.columns
    assert torch.equal(a.people, b.people)
    assert torch.equal(a.weight, b.weight)
    for state in ("sum", "absolute", "square"):
        x, y = getattr(a, state), getattr(b, state)
        for first, size in a.columns.values():
            part = slice(first, first + size)
            assert float((x - y)[:, part].abs().max()) <= tolerance * float(a.absolute[:, part].max()), state


@pytest.mark.parametrize("name", NETWORKS)
def test_statistics_are_those_of_explicit_gates(name: str) -> None:
    plan, data = planned(name), people(8)
    found = measured(plan, batches(data, 3))
    gates = Gates(plan.model, data["x"][:1], plan)
    for parameter in plan.model.parameters():
        parameter.requires_grad_(False)
    truth = gates.per_sample(data["x"], lambda out, n: per_sample(out, data["y"][n : n + 1]).sum())
    assert found.names == NAMES
    assert found.counts == {n: data["group"].count(n) for n in NAMES}
    assert (found.unknown, found.attribute) == (1, "group")
    assert set(found.columns) == set(truth) == set(plan.units)
    for unit_set, s in truth.items():
        assert float(s.abs().max()) > 1e-6, unit_set
        of, states = found.of(unit_set), expected_states(s, data["group"])
        for state, values in states.items():
            torch.testing.assert_close(getattr(of, state), values[:-1], rtol=1e-9, atol=1e-13)
            torch.testing.assert_close(getattr(of, f"unknown_{state}"), values[-1], rtol=1e-9, atol=1e-13)
        assert of.weight.tolist() == [float(data["group"].count(n)) for n in NAMES]
        assert of.unknown_weight == 1.0


@pytest.mark.parametrize("name", ["plain", "flatten", "attention, separate"])
def test_the_signed_sum_is_that_of_weights_and_gradients(name: str) -> None:
    """A consumer alone: the sum of s is <W, dL/dW> over the columns of its unit."""
    plan, data = planned(name), people(6)
    found = measured(plan, batches(data, 4), groups=None)
    model = plan.model
    per_sample(model(data["x"]), data["y"]).sum().backward()
    alone = [g for g in plan.prunable if len(g.consumers) == 1 and len(g.consumers[0].channels) == g.units.size]
    assert alone
    for group in alone:
        weight = model.get_parameter(f"{group.consumers[0].path}.weight")
        assert weight.grad is not None
        product = (weight * weight.grad).detach().transpose(0, 1).flatten(1).sum(1)
        torch.testing.assert_close(found.of(group.name).sum[0], product, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", ["residual", "squeeze-excite", "attention, fused", "nn.MultiheadAttention"])
def test_batch_size_and_order_do_not_matter(name: str, dtype: torch.dtype, tolerance: float) -> None:
    plan, data = planned(name, dtype), people(24, dtype)
    whole = measured(plan, batches(data, 24))
    shuffled = torch.randperm(24, generator=torch.Generator().manual_seed(1)).tolist()
    for loader in (batches(data, 1), batches(data, 7), batches(data, 5, shuffled), batches(data, 24, shuffled[::-1])):
        assert_same(measured(plan, loader), whole, tolerance)


def test_the_same_again_is_the_same_to_the_last_bit() -> None:
    for name in ("densenet", "attention, separate"):
        plan, data = planned(name, torch.float32), people(12, torch.float32)
        first, second = (measured(plan, batches(data, 5)) for _ in range(2))
        for state in STATES:
            assert torch.equal(getattr(first, state), getattr(second, state))
        assert first.checksum == second.checksum == model_checksum(plan.model)


def test_groups_met_in_another_order_are_the_same_groups() -> None:
    plan, data = planned("plain"), people(14)
    backwards = list(range(14))[::-1]
    a, b = measured(plan, batches(data, 2)), measured(plan, batches(data, 2, backwards))
    assert a.names == b.names == NAMES
    assert_same(a, b, 1e-12)
    fixed = measured(
        plan, batches(data, 4), groups=GroupReader({"group": "group"}, names=("other", "nobody", *NAMES[:2]))
    )
    assert fixed.names == ("other", "nobody", "female", "male")
    assert fixed.counts["nobody"] == 0
    assert torch.equal(fixed.sum[1], torch.zeros_like(fixed.sum[1]))
    assert_same(a.rearranged(fixed.names), fixed, 1e-12)
    assert "nobody (0)" in fixed.statement()


def test_a_reader_carries_nothing_from_one_data_set_to_the_next() -> None:
    plan, data = planned("plain"), people(10)
    reader = GroupReader({"group": "group"})
    first = measured(plan, [{**data, "group": ["elsewhere"] * 10}], groups=reader)
    second = measured(plan, [data], groups=reader)
    assert first.names == ("elsewhere",)
    assert second.names == NAMES
    assert reader.known_names == ()


def test_merged_parts_are_the_whole() -> None:
    plan, data = planned("residual"), people(20)
    whole = measured(plan, batches(data, 6))
    only_male = [i for i in range(20) if data["group"][i] == "male"]
    rest = [i for i in range(20) if i not in only_male]
    a, b = measured(plan, batches(data, 3, only_male)), measured(plan, batches(data, 8, rest))
    assert (a.names, b.names) == (("male",), ("female", "other"))
    for merged in (a.merged(b), b.merged(a)):
        assert_same(merged, whole, 1e-12)
        assert merged.checksum == whole.checksum
        assert torch.equal(merged.weight_square, whole.weight_square)


def test_what_cannot_be_merged() -> None:
    plan, data = planned("plain"), people(6)
    here = measured(plan, [data])
    with pytest.raises(InputError, match="of other units"):
        here.merged(measured(planned("residual"), [data]))
    with pytest.raises(InputError, match="by 'group' and by 'sex'"):
        here.merged(measured(plan, [data], groups={"sex": "group"}))
    with pytest.raises(InputError, match=r"have the groups \['other'\]"):
        here.rearranged(("female", "male"))
    other = replace(here, checksum="another state")
    with pytest.raises(InputError, match="different states of the model"):
        here.merged(other)


def test_saved_and_loaded(tmp_path: Path) -> None:
    plan, data = planned("attention, fused"), people(9)
    plan.model.get_submodule("patches").requires_grad_(False)
    plan = build_plan(plan.model, data["x"], num_heads=heads_of(plan.model))
    found = measured(plan, batches(data, 4))
    assert found.notes == ["frozen layers are among what can be pruned: patches"]
    path = tmp_path / "statistics.npz"
    found.save(path)
    loaded = GateStatistics.load(path)
    for name in (*STATES, "weight_square"):
        assert torch.equal(getattr(loaded, name), getattr(found, name))
    for name in ("attribute", "names", "columns", "checksum", "notes"):
        assert getattr(loaded, name) == getattr(found, name)
    assert [p.name for p in tmp_path.iterdir()] == ["statistics.npz"]


def test_files_that_hold_no_statistics(tmp_path: Path) -> None:
    path = tmp_path / "statistics.npz"
    with pytest.raises(InputError, match=r"statistics.npz holds no gate statistics: there is no such file"):
        GateStatistics.load(path)
    plan, data = planned("plain"), people(4)
    found = measured(plan, [data])
    found.save(path)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content[:10], b"", b"not a file of arrays"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="holds no gate statistics"):
            GateStatistics.load(path)


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    from torch import distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    plan, data = planned("plain"), people(12)
    mine = [i for i in range(12) if (data["group"][i] == "other") == (rank == 1)]
    found = measured(plan, batches(data, 4, mine))
    found.all_reduced().save(f"{folder}/sum{rank}.npz")
    # One rank saw everybody, the other nobody.
    alone = measured(plan, batches(data, 4, list(range(12)) if rank else []), allow_empty=True)
    alone.all_reduced().save(f"{folder}/alone{rank}.npz")
    try:
        replace(found, checksum=f"rank {rank}").all_reduced()
    except InputError as error:
        Path(f"{folder}/refused{rank}").write_text(str(error))
    dist.destroy_process_group()


def test_ranks_add_up_where_one_lacks_a_group(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    whole = measured(planned("plain"), batches(people(12), 12))
    sums = [GateStatistics.load(tmp_path / f"sum{rank}.npz") for rank in range(2)]
    for found in sums:
        assert_same(found, whole, 1e-12)
        assert found.checksum == whole.checksum
    for state in STATES:
        assert torch.equal(getattr(sums[0], state), getattr(sums[1], state))
    for rank in range(2):
        assert_same(GateStatistics.load(tmp_path / f"alone{rank}.npz"), whole, 1e-12)
        assert "different states of the model" in (tmp_path / f"refused{rank}").read_text()


# In-place networks: what a gate remembers must be what its consumer saw.


def overwritten(s: Any, x: torch.Tensor) -> torch.Tensor:
    h = s.a(x)
    y = s.b(h)
    return s.fc(F.relu(y + s.c(torch.relu_(h))).mean((2, 3)))


def queries_scaled(s: Any, x: torch.Tensor) -> torch.Tensor:
    tokens = s.a(x).flatten(2).transpose(1, 2)
    q, k, v = s.q(tokens), s.k(tokens), s.v(tokens)
    q *= 0.3
    q, k, v = (t.unflatten(-1, (3, -1)).transpose(1, 2) for t in (q, k, v))
    return s.fc(s.out(((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).flatten(2)).mean(1))


IN_PLACE = {
    "ReLU after the consumer": (
        overwritten,
        lambda: {
            "a": nn.Conv2d(3, 8, 3),
            "b": nn.Conv2d(8, 6, 1),
            "c": nn.Conv2d(8, 6, 1),
            "fc": nn.Linear(6, CLASSES),
        },
    ),
    "queries scaled": (
        queries_scaled,
        lambda: {
            "a": nn.Conv2d(3, 12, 4, 4),
            **{name: nn.Linear(12, 12) for name in "qkv"},
            "out": nn.Linear(12, 10),
            "fc": nn.Linear(10, CLASSES),
        },
    ),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_networks_that_overwrite_what_a_gate_saw(name: str) -> None:
    torch.manual_seed(0)
    forward, layers = IN_PLACE[name]
    model = Net(forward, **layers()).double().eval()
    heads: Mapping[nn.Module, int] = {m: 3 for p, m in model.named_children() if p in "qkv"}
    data = people(6)
    plan = build_plan(model, data["x"], num_heads=heads)
    assert all(g.status == "exact" for g in plan.prunable), plan.describe()
    found = measured(plan, batches(data, 4), groups=None)
    truth = per_gate_by_difference(plan, data)
    for unit_set, signed in truth.items():
        torch.testing.assert_close(found.of(unit_set).sum[0], signed, rtol=1e-6, atol=1e-9)


def per_gate_by_difference(plan: GatePlan, data: Batch) -> dict[str, torch.Tensor]:
    """d(sum of losses)/d(gate) by finite differences: scale each consumer's slice of its input by 1 +- h."""
    step, model = 1e-5, plan.model
    result = {}
    for group in plan.prunable:
        values = []
        for unit in range(group.units.size):
            losses = []
            for factor in (1 + step, 1 - step):
                handles = []
                for site in group.consumers:
                    module = model.get_submodule(site.path)
                    channels = site.channels[group.units.of_root[site.roots] == unit]
                    handles.append(module.register_forward_pre_hook(_scaling(channels, factor)))
                for path in group.heads:
                    if path == "q":
                        gone = torch.arange(group.channels)[group.units.of_root == unit]
                        handles.append(model.get_submodule(path).register_forward_hook(_scaling_output(gone, factor)))
                with torch.no_grad():
                    losses.append(per_sample(model(data["x"]), data["y"]).sum())
                for handle in handles:
                    handle.remove()
            values.append((losses[0] - losses[1]) / (2 * step))
        result[group.units.name] = torch.stack(values)
    return result


def _scaled(x: torch.Tensor, channels: torch.Tensor, factor: float, dim: int) -> torch.Tensor:
    x = x.clone()
    x.movedim(dim, 0)[channels] *= factor
    return x


def _scaling(channels: torch.Tensor, factor: float) -> Any:
    return lambda m, a: (_scaled(a[0], channels, factor, 1 if isinstance(m, nn.Conv2d) else -1),)


def _scaling_output(channels: torch.Tensor, factor: float) -> Any:
    return lambda _m, _a, out: _scaled(out, channels, factor, -1)


# The model stays as it was.


class Restless(nn.Module):
    """Writes buffers, attributes and a new buffer while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = build("squeeze-excite")
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("last", torch.zeros(1))
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        self.last = x.detach().mean((0, 2, 3))
        self.calls += 1
        self.kept = self.net(x)
        return self.kept


def state_of(model: nn.Module) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for path, module in model.named_modules():
        state[f"{path} mode"] = module.training
        state[f"{path} hooks"] = {k: len(v) for k, v in module.__dict__.items() if k.endswith("hooks")}
        state[f"{path} attributes"] = sorted(module.__dict__)
        for name, buffer in module._buffers.items():
            state[f"{path}.{name}"] = (id(buffer), None if buffer is None else buffer.tolist())
        state[f"{path} counter"] = module.__dict__.get("calls")
        state[f"{path} forward"] = module.__dict__.get("forward")
    for name, p in model.named_parameters():
        grad = None if p.grad is None else (id(p.grad), p.grad.tolist())
        state[name] = (id(p), p.requires_grad, grad, p.tolist(), p.data_ptr())
    return state


@pytest.fixture
def restless() -> nn.Module:
    model = Restless().train()
    model.get_submodule("net.head").eval()
    model(torch.randn(4, 3, 16, 16)).sum().backward()
    del model.kept
    model.get_submodule("net.stem").requires_grad_(False)
    return model


def test_a_plan_leaves_the_model_as_it_was(restless: nn.Module) -> None:
    before = state_of(restless)
    plan = build_plan(restless, torch.randn(2, 3, 16, 16))
    assert state_of(restless) == before
    restless.eval()
    before = state_of(restless.net)
    with plan.closed({name: [0] for name in plan.units}), torch.no_grad():
        restless(torch.randn(2, 3, 16, 16))
        assert state_of(restless.net) != before
    assert state_of(restless.net) == before
    with pytest.raises(ZeroDivisionError), plan.closed({name: [0] for name in plan.units}):
        raise ZeroDivisionError
    assert state_of(restless.net) == before


def test_closed_attention_and_norms_leave_the_model_as_it_was() -> None:
    for name in ("nn.MultiheadAttention", "layernorm (convnext)", "attention, fused"):
        plan = planned(name)
        before = state_of(plan.model)
        with pytest.raises(RuntimeError), torch.no_grad(), plan.closed({n: [0] for n in plan.units}):
            plan.model(torch.zeros(1, 4, 16, 16, dtype=torch.float64))
        assert state_of(plan.model) == before
        measured(plan, [people(3)])
        assert state_of(plan.model) == before


def failing_loader(data: Batch, error: BaseException) -> Iterator[Batch]:
    yield data
    raise error


@pytest.mark.parametrize("outcome", ["success", "loss", "interrupt", "group", "not finite"])
def test_collection_leaves_the_model_as_it_was(restless: nn.Module, outcome: str) -> None:
    plan, data = build_plan(restless, torch.randn(2, 3, 16, 16)), people(4, torch.float32)
    before, random_state = state_of(restless), torch.get_rng_state()
    threads = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    if outcome == "success":
        measured(plan, [data, data])
    elif outcome == "loss":
        with pytest.raises(InputError, match="the loss failed on batch 0: ZeroDivisionError: no"):
            collect(plan, [data], failing_loss, progress=False)
    elif outcome == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            measured(plan, failing_loader(data, KeyboardInterrupt()))
    elif outcome == "group":
        with pytest.raises(InputError, match="no 'group'"):
            measured(plan, [data, {"x": data["x"], "y": data["y"]}])
    else:
        with pytest.raises(InputError, match="not finite on batch 1"):
            measured(plan, [data, {**data, "x": data["x"] * torch.nan}])
    assert state_of(restless) == before
    assert torch.equal(torch.get_rng_state(), random_state)
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == threads


def failing_loss(_outputs: Any, _targets: Any) -> torch.Tensor:
    raise ZeroDivisionError("no")


def test_inputs_and_the_losss_own_parameters_get_no_gradient() -> None:
    plan, data = planned("plain"), people(4)
    data["x"].requires_grad_(True)
    centres = nn.Parameter(torch.randn(CLASSES, CLASSES, dtype=torch.float64))
    collect(plan, [data], lambda out, y: (out - centres[y]).square().sum(1), progress=False)
    assert data["x"].grad is None
    assert centres.grad is None
    assert centres.requires_grad


def test_collecting_under_no_grad_is_the_same() -> None:
    plan, data = planned("residual"), people(6)
    plain = measured(plan, [data])
    with torch.no_grad():
        assert_same(measured(plan, [data]), plain, 0.0)
    with torch.inference_mode():
        assert_same(measured(plan, [data]), plain, 0.0)


def test_hooks_of_the_user_still_run_and_count() -> None:
    """A consumer's input is what it gets after the user's own hooks."""
    plan, data = planned("plain"), people(5)
    module = plan.model.get_submodule("body.2.0")
    plain = measured(plan, [data])
    handle = module.register_forward_pre_hook(lambda _m, a: (a[0] * 1,))
    assert_same(measured(plan, [data]), plain, 1e-12)
    handle.remove()
