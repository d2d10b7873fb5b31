"""Turns, clocks and reports. No test asserts how long anything took: clocks are injected."""

import csv
import gc
import json
import re

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.latency import ConvLayer, Layout, Machine, benchmark, describe_machine, fast_layout
from fair_prune_plugins.latency import timing as timing_module
from fair_prune_plugins.latency.timing import measure, summarise
from fair_prune_plugins.onnx import export


class Clock:
    """A clock that only moves when a call says so."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def __call__(self):
        return self.now

    def call(self, name, seconds):
        def run():
            self.log.append(name)
            self.now += seconds(len(self.log)) if callable(seconds) else seconds

        return run


def take(calls, clock, **settings):
    chosen = {"rounds": 4, "warmup": 3, "min_iterations": 10, "min_seconds": 0.0, "rng": np.random.default_rng(0)}
    return measure(calls, clock=clock, **{**chosen, **settings})


def test_models_are_warmed_up_then_take_turns():
    clock = Clock()
    calls = {name: clock.call(name, seconds) for name, seconds in {"a": 1.0, "b": 2.0, "c": 4.0}.items()}
    times = take(calls, clock)
    assert clock.log[:9] == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    turns = [[clock.log[9:][i : i + 4] for i in range(0, len(clock.log) - 9, 4)][k : k + 3] for k in range(0, 12, 3)]
    assert len(turns) == 4
    for one_round in turns:
        assert all(len(set(turn)) == 1 for turn in one_round)  # one untimed call and three timed ones (10 in 4 rounds)
        assert {turn[0] for turn in one_round} == {"a", "b", "c"}
    assert len({tuple(turn[0] for turn in one_round) for one_round in turns}) > 1  # the order changes
    for name, seconds in {"a": 1.0, "b": 2.0, "c": 4.0}.items():
        assert len(times[name]) == 4
        assert all(t.tolist() == [seconds] * 3 for t in times[name])


def test_the_order_of_turns_follows_the_seed():
    def order(seed):
        clock = Clock()
        take({name: clock.call(name, 1.0) for name in "abcd"}, clock, rng=np.random.default_rng(seed))
        return clock.log

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_time_and_iterations_are_both_minima():
    clock = Clock()
    times = take({"fast": clock.call("fast", 0.01), "slow": clock.call("slow", 5.0)}, clock, min_seconds=2.0)
    assert [len(t) for t in times["slow"]] == [3] * 4  # by iterations
    assert all(len(t) in (50, 51) for t in times["fast"])  # by time: half a second per round


def test_garbage_collection_waits_and_comes_back():
    clock, seen = Clock(), []

    def call():
        seen.append(gc.isenabled())
        clock.now += 1.0

    take({"a": call}, clock)
    assert not any(seen)
    assert gc.isenabled()

    def fails():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        take({"a": fails}, clock)
    assert gc.isenabled()


MACHINE = Machine(
    "cpu", "x86_64", ("avx2",), 2, 2, 0.1, "Linux", "3.11", {"onnxruntime": "1"}, ("CPUExecutionProvider",)
)
SETTINGS = {"confidence": 0.95, "threads": 1, "batch_size": 1, "provider": "CPUExecutionProvider"}


def report_of(times, *, macs=None, layouts=None, seed=0, reference="dense"):
    return summarise(
        {name: [np.asarray(t, dtype=float) for t in turns] for name, turns in times.items()},
        sizes=dict.fromkeys(times, 100),
        layouts=layouts or dict.fromkeys(times),
        macs=macs or {},
        reference=reference,
        settings=SETTINGS,
        machine=MACHINE,
        rng=np.random.default_rng(seed),
    )


def test_percentiles_are_numpys_over_all_rounds():
    rng = np.random.default_rng(0)
    turns = [rng.exponential(0.01, size=n) for n in (30, 40, 50)]
    model = report_of({"dense": turns})["dense"]
    pooled = 1e3 * np.concatenate(turns)
    for estimate, q in ((model.p50_ms, 0.5), (model.p90_ms, 0.9), (model.p99_ms, 0.99)):
        assert estimate.value == pytest.approx(np.quantile(pooled, q))
        assert estimate.low <= estimate.value <= estimate.high
    assert model.iterations == 120
    assert model.min_ms == pytest.approx(pooled.min())
    assert model.mean_ms == pytest.approx(pooled.mean())
    medians = np.array([np.median(t) for t in turns])
    assert model.rounds_p50_ms == pytest.approx(1e3 * medians)
    assert model.dispersion == pytest.approx(medians.std(ddof=1) / medians.mean())
    assert model.speedup is None  # of the reference over itself


def test_speedups_are_paired_by_round():
    # A machine that slows down threefold halfway: single times are all over the place, the ratio is not.
    weather = [1, 3, 1, 3, 1, 3, 1, 3, 1, 3]
    jitter = np.random.default_rng(0).uniform(0.99, 1.01, (10, 50))
    times = {"dense": [0.02 * w * j for w, j in zip(weather, jitter, strict=True)]}
    times["pruned"] = [t / 2 for t in times["dense"]]
    report = report_of(times, macs={"dense": 300.0, "pruned": 100.0})
    pruned, dense = report["pruned"], report["dense"]
    assert dense.p50_ms.high / dense.p50_ms.low > 2
    assert pruned.speedup.low == pytest.approx(2.0, rel=1e-9)
    assert pruned.speedup.high == pytest.approx(2.0, rel=1e-9)
    assert pruned.theoretical == pytest.approx(3.0)
    assert pruned.realised_share == pytest.approx(2 / 3)
    assert dense.theoretical is None
    assert any("noisy" in note and "dense" in note for note in report.notes)


def test_quiet_runs_have_no_note_and_missing_macs_are_undefined():
    times = {"dense": [[0.01] * 40] * 5, "pruned": [[0.005] * 40] * 5}
    report = report_of(times, macs={"pruned": 10.0})
    assert report.notes == ()
    assert report["pruned"].speedup.value == pytest.approx(2.0)
    assert report["pruned"].theoretical is None
    assert report["pruned"].realised_share is None
    assert report["pruned"].dispersion == 0


def test_few_calls_and_one_round_are_said():
    report = report_of({"dense": [[0.01] * 12]})
    assert report["dense"].p50_ms.low is None
    assert report["dense"].dispersion is None
    assert any("one round gives no intervals" in note for note in report.notes)
    assert any("under 100 calls of dense" in note for note in report.notes)
    assert "dense: 10 ms" in report.statement()


def test_layers_that_left_the_fast_layout_are_said():
    slow = tuple(ConvLayer(f"node_{i}", 3, 22 + i, 1, f"layer.{i}" if i % 2 else None) for i in range(14))
    layouts = {"dense": Layout(20, 20), "pruned": Layout(6, 20, slow), "none": Layout(0, 0)}
    report = report_of({name: [[0.01] * 50] * 3 for name in layouts}, layouts=layouts)
    assert [n for n in report.notes if "fast layout" in n] == [
        "14 of 20 convolutions of pruned run outside the fast layout: node_0 (3 to 22), layer.1 (3 to 23), node_2 "
        "(3 to 24), layer.3 (3 to 25), node_4 (3 to 26), layer.5 (3 to 27), node_6 (3 to 28), layer.7 (3 to 29) and "
        "6 more; widths that ONNX Runtime rewards (round_to='auto') keep them in it"
    ]
    assert report["none"].fast_share is None
    assert report["pruned"].fast_share == 0.3


def test_json_and_csv_hold_the_same_numbers_and_undefined_is_empty(tmp_path):
    rng = np.random.default_rng(0)
    times = {name: [rng.exponential(0.01, 60) for _ in range(4)] for name in ("dense", "pruned")}
    report = report_of(times, macs={"dense": 9.0, "pruned": 3.0}, layouts={"dense": Layout(1, 2), "pruned": None})
    report.write_json(tmp_path / "r.json")
    report.write_csv(tmp_path / "r.csv")
    loaded = json.loads((tmp_path / "r.json").read_text())
    assert loaded["machine"]["flags"] == ["avx2"]
    assert loaded["settings"]["threads"] == 1
    with (tmp_path / "r.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["dense", "pruned"]
    for row, model in zip(rows, loaded["models"], strict=True):
        assert float(row["p90_ms_high"]) == model["p90_ms"]["high"]
        assert row["cpu"] == "cpu"
    assert rows[0]["speedup"] == rows[0]["theoretical"] == rows[1]["convs"] == ""
    assert float(rows[1]["realised_share"]) == pytest.approx(float(rows[1]["speedup"]) / 3)
    assert re.search(r"pruned: .* ms, .* times as fast as dense \(.* of what its 3.00x fewer MACs", report.statement())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two convolutional nets, widths that fit the runtime's blocks and widths that do not, and a linear layer."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)

    def convolutional(a, b):
        return nn.Sequential(
            nn.Conv2d(3, a, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(a, b, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(b, 16, 3, padding=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 4),
        )

    nets = {"aligned": convolutional(32, 16), "odd": convolutional(31, 13)}
    for name, net in nets.items():
        export(net, torch.randn(2, 3, 16, 16), folder / f"{name}.onnx")
    export(nn.Linear(8, 2), torch.randn(2, 8), folder / "linear.onnx")
    return {path.stem: path for path in folder.iterdir()}


QUICK = {"rounds": 3, "warmup": 1, "min_seconds": 0.0, "progress": False}


@pytest.mark.parametrize("threads", [1, 2])
def test_onnx_files_are_timed_side_by_side(files, threads):
    report = benchmark(
        {name: files[name] for name in ("odd", "aligned")},
        batch_size=3,
        threads=threads,
        reference="aligned",
        macs={"aligned": 2e6, "odd": 1e6},
        **QUICK,
    )
    assert [model.name for model in report.models] == ["odd", "aligned"]
    for model in report.models:
        assert model.iterations >= 10
        assert model.size == files[model.name].stat().st_size
        assert 0 < model.min_ms <= model.p50_ms.value <= model.p90_ms.value <= model.p99_ms.value
        assert len(model.rounds_p50_ms) == 3
    assert report["odd"].theoretical == 2.0
    assert report.settings["inputs"] == "made up"
    json.dumps(report.as_dict(), allow_nan=False)
    assert str(files["odd"].parent) not in json.dumps(report.as_dict())


def test_sessions_get_the_batch_and_the_threads_asked_for(files, monkeypatch):
    seen = []
    real = timing_module._call

    def spy(session, feed):
        seen.append((session.get_session_options(), feed))
        return real(session, feed)

    monkeypatch.setattr(timing_module, "_call", spy)
    samples = np.arange(2 * 8, dtype=np.float64).reshape(2, 8)
    benchmark({"m": files["linear"]}, inputs=samples, batch_size=5, threads=2, **QUICK)
    ((options, feed),) = seen
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
    np.testing.assert_array_equal(feed["input"], samples[[0, 1, 0, 1, 0]].astype(np.float32))


def test_fast_layout_is_read_from_the_runtimes_own_graph(files):
    aligned, odd, linear = (fast_layout(files[name]) for name in ("aligned", "odd", "linear"))
    assert (aligned.total, odd.total, linear.total, linear.share) == (3, 3, 0, None)
    if aligned.fast == 0:
        pytest.skip("this CPU has no NCHWc kernels")
    assert aligned.share == 1.0
    assert odd.fast < 3
    assert len(odd.slow) == odd.total - odd.fast
    assert (31, 13, 1) in {(layer.inputs, layer.outputs, layer.conv_groups) for layer in odd.slow}


def test_several_inputs_integers_and_fixed_batches(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(10, 4)

        def forward(self, image, code):
            return image + self.table(code)

    path = tmp_path / "two.onnx"
    image, code = torch.randn(3, 4), torch.tensor([1, 2, 3])
    export(Two(), (image, code), path)
    report = benchmark({"m": path}, inputs={"image": image.numpy(), "code": code.numpy()}, batch_size=2, **QUICK)
    assert report["m"].layout.share is None
    with pytest.raises(InputError, match=r"takes tensor\(int64\) as its input 'code'"):
        benchmark({"m": path}, **QUICK)
    with pytest.raises(InputError, match=r"has no \['code'\] for 'm'"):
        benchmark({"m": path}, inputs={"image": image.numpy()}, **QUICK)
    with pytest.raises(InputError, match=r"inputs \['image', 'code'\]; pass inputs= as a mapping"):
        benchmark({"m": path}, inputs=image.numpy(), **QUICK)


def relu(path, shape):
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_shapes_that_do_not_fit_are_explained(tmp_path):
    with pytest.raises(InputError, match="fixed batch of 2"):
        benchmark({"m": relu(tmp_path / "a.onnx", [2, 3])}, **QUICK)
    assert benchmark({"m": tmp_path / "a.onnx"}, batch_size=2, **QUICK)["m"].iterations >= 10
    with pytest.raises(InputError, match="leaves more than the batch open"):
        benchmark({"m": relu(tmp_path / "b.onnx", ["n", "width"])}, **QUICK)
    assert benchmark({"m": tmp_path / "b.onnx"}, inputs=np.zeros((1, 5)), **QUICK)["m"].iterations >= 10
    with pytest.raises(InputError, match="does not run on its inputs"):
        benchmark({"m": relu(tmp_path / "c.onnx", ["n", 3])}, inputs=np.zeros((1, 5)), **QUICK)
    with pytest.raises(InputError, match="must have samples in dimension 0"):
        benchmark({"m": tmp_path / "c.onnx"}, inputs=np.zeros((0, 3)), **QUICK)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": {}}, "there is no model to time"),
        ({"models": {"m": "missing.onnx"}}, "there is no ONNX file missing.onnx for 'm'"),
        ({"threads": 0}, "threads must be a whole number from 1, got 0"),
        ({"batch_size": 1.5}, "batch_size must be"),
        ({"rounds": 0}, "rounds must be"),
        ({"warmup": -1}, "warmup must be"),
        ({"min_iterations": True}, "min_iterations must be"),
        ({"min_seconds": float("inf")}, "min_seconds must be"),
        ({"confidence": 1.0}, "confidence must be between 0 and 1"),
        ({"reference": "dense"}, r"reference names \['dense'\], which are not among the models \['m'\]"),
        ({"macs": {"x": 1}}, r"macs names \['x'\]"),
        ({"macs": {"m": 0}}, "macs of 'm' must be a positive number"),
        ({"provider": "Abacus"}, "ONNX Runtime has no 'Abacus' here; it has"),
    ],
)
def test_bad_arguments_are_named(change, message, files):
    arguments = {"models": {"m": files["linear"]}, **QUICK, **change}
    with pytest.raises(InputError, match=message):
        benchmark(arguments.pop("models"), **arguments)


def test_a_file_that_is_no_model_is_named(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    with pytest.raises(InputError, match="cannot load 'm'"):
        benchmark({"m": tmp_path / "m.onnx"}, **QUICK)
    with pytest.raises(InputError, match="cannot load"):
        fast_layout(tmp_path / "m.onnx")
    with pytest.raises(InputError, match="there is no ONNX file"):
        fast_layout(tmp_path / "missing.onnx")


def test_the_machine_is_described_without_naming_it():
    import platform

    machine = describe_machine()
    assert machine.cpu
    assert 1 <= machine.usable_cores <= machine.cores
    assert "CPUExecutionProvider" in machine.providers
    assert {"torch", "onnxruntime", "numpy"} <= set(machine.packages)
    assert platform.node() not in machine.statement()
    assert describe_machine().flags == machine.flags
