"""Criteria and losses of other installed packages: real tiny packages, built by pip, seen from a fresh interpreter."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest

from fair_prune_plugins import criteria, losses
from fair_prune_plugins.criteria import registry as criteria_registry
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.losses import registry as losses_registry
from fair_prune_plugins.registry import place

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "{distribution}"
version = "0.{number}"

[project.entry-points."fair_prune_plugins.criteria"]
{criteria}

[project.entry-points."fair_prune_plugins.losses"]
{losses}

[tool.setuptools]
py-modules = ["{module}"]
"""

GOOD = """
import torch

from fair_prune_plugins import criteria, losses


@criteria.criterion("tiny_last", summary="Keeps the last units.", source="nowhere", needs_data=False)
def tiny_last(statistics, *, sign: float = 1.0):
    return sign * torch.arange(len(statistics.weight_square), dtype=torch.float64)


@losses.loss("tiny_double", summary="Twice the cross-entropy.", source="nowhere")
class TinyDouble(losses.LossHook):
    def __init__(self, *, times: float = 2.0):
        super().__init__()
        self.times = times

    def sample_losses(self, batch):
        return self.times * super().sample_losses(batch)
"""

BROKEN = """
from fair_prune_plugins import criteria


@criteria.criterion("half_done", summary="Is there before the error.", source="nowhere")
def half_done(statistics):
    return statistics.weight_square


raise RuntimeError("this package is broken")
"""

DUPLICATE = """
from fair_prune_plugins import criteria


@criteria.criterion("tiny_last", summary="Takes a name.", source="nowhere")
def also_last(statistics):
    return statistics.weight_square
"""

BAD_SIGNATURE = """
from fair_prune_plugins import criteria


@criteria.criterion("tiny_bad", summary="Has an option without a default.", source="nowhere")
def bad(statistics, *, power):
    return statistics.weight_square
"""

SILENT = """
def register():
    raise AssertionError("functions are not called")
"""

PACKAGES: dict[str, tuple[str, str, str]] = {
    # module: source, entry points of criteria, of losses
    "tiny_good": (GOOD, 'tiny_good = "tiny_good:tiny_last"', 'tiny_good = "tiny_good"'),
    "tiny_broken": (BROKEN, 'broken_one = "tiny_broken"', ""),
    "tiny_twice": (DUPLICATE, 'twice = "tiny_twice"', ""),
    "tiny_bad": (BAD_SIGNATURE, 'bad = "tiny_bad"', ""),
    "tiny_silent": (SILENT, 'silent = "tiny_silent:register"', ""),
    "tiny_absent": ("", 'absent = "no_such_module_at_all"', ""),
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Installs all packages once; hands out a folder with those asked for."""
    root, site = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("site")
    for number, (module, (source, criterion_points, loss_points)) in enumerate(PACKAGES.items()):
        folder = root / module
        folder.mkdir()
        (folder / f"{module}.py").write_text(source)
        text = PYPROJECT.format(
            distribution=module.replace("_", "-") + "-plugin",
            number=number,
            criteria=criterion_points,
            losses=loss_points,
            module=module,
        )
        (folder / "pyproject.toml").write_text(text)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--no-build-isolation", "--no-deps", "--no-compile", "--target", str(site)]
    subprocess.run([*command, *(str(root / m) for m in PACKAGES)], check=True, timeout=300)

    def chosen(*modules: str) -> Path:
        folder = tmp_path_factory.mktemp("chosen")
        for module in modules:
            shutil.copy(site / f"{module}.py", folder)
            (info,) = site.glob(f"{module}_plugin-*.dist-info")
            assert (info / "entry_points.txt").is_file()
            shutil.copytree(info, folder / info.name)
        return folder

    return chosen


def answer(site: Path, code: str, cwd: Path) -> Any:
    """What ``code`` leaves in ``result``, in a fresh interpreter that sees the packages; and the warnings it made."""
    program = f"""
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", UserWarning)
{indent(dedent(code).strip(), "    ")}
messages = [str(w.message) for w in caught if "entry point" in str(w.message)]
print("ANSWER", json.dumps([result, messages]))
"""
    paths = [str(site), str(Path(criteria.__file__).parents[2])]
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        cwd=cwd,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("ANSWER "))
    return json.loads(line.removeprefix("ANSWER "))


def test_a_foreign_criterion_and_loss_work_like_built_in_ones(installed: Callable[..., Path], tmp_path: Path) -> None:
    code = """
    import sys
    import torch, torch.nn.functional as F
    from torch import nn
    import fair_prune_plugins.torch_pruning as fpt
    from fair_prune_plugins import criteria, losses
    early = "tiny_good" in sys.modules
    from fair_prune_plugins.workflow.prune_config import MethodConfig
    from fair_prune_plugins.workflow.explain import keys

    listed = criteria.names(), losses.names(), keys("prune.methods.name")[0].allowed
    config = MethodConfig.model_validate({"name": "tiny_last", "options": {"sign": -1.0}})
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2))
    first = model[0].weight.detach().clone()
    importance = fpt.importance(config.name, **config.options)
    x = torch.randn(2, 3, 8, 8)
    pruner = fpt.FairPruner(model, x, importance, pruning_ratio=0.5, round_to=None)
    importance.collect(pruner)
    pruner.step()
    kept = [i for i in range(8) if any(torch.equal(first[i], row) for row in model[0].weight)]

    out, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    hook = losses.get("tiny_double").make(times=3.0, groups=2)
    ratio = float(hook(out, y) / F.cross_entropy(out, y))
    result = {"early": early, "listed": listed, "kept": kept, "ratio": ratio}
    """
    result, messages = answer(installed("tiny_good"), code, tmp_path)
    assert messages == []
    assert result["early"] is False, "nothing is looked for before somebody asks"
    names, loss_names, explained = result["listed"]
    assert "tiny_last" in names
    assert "tiny_last" in explained.split(" | ")
    assert "tiny_double" in loss_names
    assert result["kept"] == [0, 1, 2, 3]  # sign -1: the last have the lowest scores
    assert result["ratio"] == pytest.approx(3)


def test_a_broken_package_is_reported_once_and_breaks_nothing_else(
    installed: Callable[..., Path], tmp_path: Path
) -> None:
    code = """
    from fair_prune_plugins import criteria, losses
    names = criteria.names(), criteria.names(), losses.names()
    said = {}
    for name in ("broken_one", "half_done", "tiny_last", "taylor", "zzz"):
        try:
            said[name] = criteria.get(name).summary
        except Exception as error:
            said[name] = [type(error).__name__, str(error), repr(error.__cause__)]
    result = {"names": names, "said": said}
    """
    result, messages = answer(installed("tiny_good", "tiny_broken"), code, tmp_path)
    names, again, loss_names = result["names"]
    assert names == again
    assert set(names) == {*criteria.names(), "tiny_last"}
    assert "tiny_double" in loss_names
    assert len(messages) == 1
    for part in ("'broken_one'", "tiny-broken-plugin 0.1", "RuntimeError: this package is broken"):
        assert part in messages[0]
    for asked in ("broken_one", "half_done"):  # the entry point's name, and what it had registered before it failed
        kind, message, cause = result["said"][asked]
        assert kind == "InputError"
        assert messages[0] in message
        assert cause == "RuntimeError('this package is broken')"
    assert result["said"]["tiny_last"] == "Keeps the last units."
    assert result["said"]["taylor"] == criteria.get("taylor").summary
    assert "there is no criterion 'zzz'" in result["said"]["zzz"][1]
    assert "tiny-broken-plugin" in result["said"]["zzz"][1]


def test_duplicates_and_bad_signatures_name_file_line_and_package_of_both(
    installed: Callable[..., Path], tmp_path: Path
) -> None:
    code = """
    from fair_prune_plugins import criteria
    criteria.names()
    try:
        criteria.get("tiny_bad")
    except Exception as error:
        bad = str(error)
    result = {"last": criteria.get("tiny_last").summary, "bad": bad}
    """
    result, messages = answer(installed("tiny_good", "tiny_twice", "tiny_bad"), code, tmp_path)
    bad, twice = messages
    assert result["last"] == "Keeps the last units."  # packages are taken in the order of their names
    for part in ("tiny_good.tiny_last", "tiny-good-plugin 0.0", "tiny_twice.also_last", "tiny-twice-plugin 0.2"):
        assert part in twice
    for module, function in (("tiny_good", "def tiny_last"), ("tiny_twice", "def also_last")):
        assert f"{module}.py:{decorator_line(module, function)}" in twice
    assert f"tiny_bad.py:{decorator_line('tiny_bad', 'def bad')}" in bad
    assert "tiny-bad-plugin" in bad
    assert "'power' has no default" in bad
    assert "'power' has no default" in result["bad"]


def decorator_line(module: str, function: str) -> int:
    """Where Python says that a decorated function begins: at its decorator."""
    lines = PACKAGES[module][0].splitlines()
    return next(i for i, text in enumerate(lines) if text.startswith(function))


def test_an_entry_point_that_registers_nothing_or_names_nothing_says_so(
    installed: Callable[..., Path], tmp_path: Path
) -> None:
    code = "from fair_prune_plugins import criteria\nresult = criteria.names()"
    result, messages = answer(installed("tiny_silent", "tiny_absent"), code, tmp_path)
    assert result == criteria.names()
    absent, silent = messages
    assert "No module named 'no_such_module_at_all'" in absent
    assert "nothing there is registered as a criterion" in silent
    assert "functions are not called" in silent


def test_a_package_imported_by_hand_before_is_not_registered_twice(
    installed: Callable[..., Path], tmp_path: Path
) -> None:
    code = """
    import tiny_good
    from fair_prune_plugins import criteria, losses
    result = criteria.get("tiny_last").function is tiny_good.tiny_last, "tiny_double" in losses.names()
    """
    result, messages = answer(installed("tiny_good"), code, tmp_path)
    assert (result, messages) == ([True, True], [])


# --- in this process ----------------------------------------------------------------------------------------------


@pytest.fixture
def _own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (criteria_registry, losses_registry):
        monkeypatch.setattr(module, "_REGISTRY", module._REGISTRY.copy())


def register(name: str, hook: Any) -> None:
    losses.loss(name, summary="for a test", source="nowhere")(hook)


@pytest.mark.usefixtures("_own_registries")
def test_a_taken_loss_name_is_refused_with_both_places() -> None:
    class Mine(losses.LossHook):
        pass

    with pytest.raises(InputError, match="the loss 'group_dro' is registered already") as raised:
        register("group_dro", Mine)
    assert "group_dro.py:" in str(raised.value)
    assert place(Mine) in str(raised.value)
    assert "test_registry.py:" in place(Mine)
    assert "fair-prune-plugins" in str(raised.value)
    assert losses.get("group_dro").hook is losses.GroupDRO


class NeedsSomething(losses.LossHook):
    def __init__(self, temperature: float) -> None:
        super().__init__()


class TakesAnything(losses.LossHook):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)


class OptionalTeacher(losses.LossHook):
    def __init__(self, teacher: Any = None) -> None:
        super().__init__()


class OtherFactors(losses.LossHook):
    def __init__(self) -> None:
        super().__init__()

    def factors(self, batch: Any) -> Any:  # type: ignore[override]
        return batch.weights


@pytest.mark.usefixtures("_own_registries")
@pytest.mark.parametrize(
    ("hook", "problem"),
    [
        (NeedsSomething, "'temperature' has no default"),
        (TakesAnything, "'options' takes anything"),
        (OptionalTeacher, "'teacher' has a default"),
        (OtherFactors, r"factors must take \(self, batch, losses\)"),
        (dict, "this is not one"),
        (lambda outputs, targets: None, "this is not one"),
    ],
)
def test_a_bad_loss_is_refused_when_registered(hook: Any, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        register("mine", hook)
    assert "mine" not in losses.names()


def test_a_loss_says_what_it_needs_and_refuses_what_it_does_not_know() -> None:
    with pytest.raises(InputError, match=r"'group_dro' needs groups=, the sensitive groups"):
        losses.get("group_dro").make()
    with pytest.raises(InputError, match=r"'group_dro' has no option 'stepsize'; it takes .*'step_size'"):
        losses.get("group_dro").make(groups=2, stepsize=1.0)
    with pytest.raises(InputError, match="Did you mean 'group_dro'"):
        losses.get("groupdro")
    made = losses.get("group_dro").make(groups=["a", "b"], teacher=None, dense=None, step_size=0.5)
    assert isinstance(made, losses.GroupDRO)
    assert made.step_size == 0.5
    for name in losses.names():
        known = losses.get(name)
        assert known.summary.endswith(".")
        assert len(known.summary) < 120
        assert known.source
        assert {"task", "label_smoothing", "reduction"} <= set(known.options)
