"""Configurations: what is refused, in which words, and that every key is explained."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fair_prune_plugins.errors import ConfigError
from fair_prune_plugins.workflow import config
from fair_prune_plugins.workflow.explain import keys

GOOD = """
data: {kind: function, function: "somewhere:load"}
model: {factory: digits_resnet}
prune: {methods: [taylor, fairgrape], ratios: [0.5]}
"""


def parse(text: str = GOOD, *overrides: str) -> config.RunConfig:
    return config.parse(text, origin="c.yaml", overrides=overrides)


def test_bare_names_and_mappings_both_say_a_method() -> None:
    read = parse(GOOD.replace("[taylor, fairgrape]", "[taylor, {name: taylor, label: other, options: {statistic: x}}]"))
    assert [m.title for m in read.prune.methods] == ["taylor", "other"]
    assert read.prune.methods[1].options == {"statistic": "x"}


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("prune.ration=[0.5]", ["'prune.ration'", "did you mean 'ratios'?", "max_pruning_ratio"]),
        ("trainin={}", ["'trainin'", "did you mean 'training'?"]),
        ("data.optoins={}", ["'data.optoins'", "did you mean 'options'?"]),
        ("prune.ratios=[1.5]", ["prune.ratios.0", "less than 1", "got 1.5"]),
        ("prune.ratios=[]", ["exactly one of ratios", "got none"]),
        ("prune.macs=[0.3]", ["exactly one of ratios", "got ratios and macs"]),
        ("prune.allocation=globl", ["prune.allocation", "'local', 'global' or 'isomorphic'"]),
        ("prune.methods=[tailor]", ["prune.methods", "no criterion 'tailor'", "did you mean 'taylor'?", "fairgrape"]),
        ("prune.methods=[taylor, taylor]", ["prune", "must be different"]),
        ("prune.methods=[taylor, {name: fairgrape, labl: x}]", ["'prune.methods.1.labl'", "did you mean 'label'?"]),
        ("prune.steps=null", ["prune", "keep_fraction"]),
        (
            "prune={methods: [taylor], ratios: [0.3, 0.5], steps: 6, schedule: keep_fraction}",
            ["prune.steps: 6 steps are too few", "takes 7 steps to the ratio 0.5", "prune.steps: null"],
        ),
        ("prune.keep_fraction=0.8", ["prune.keep_fraction is set but does nothing with prune.schedule: linear"]),
        (
            "data={kind: npz, path: x.npz, groups: [g], parts: {column: c}, test: 0.2}",
            ["data.test is set but does nothing where data.parts.test names those people"],
        ),
        ("export.opset=10", ["export.opset", "greater than or equal to 11"]),
        ("export.opset=999", ["export.opset: this version of onnx knows the opsets 11 to", "got 999"]),
        ("training.optimizer=adam", ["training.optimizer", "'adamw' or 'sgd'", "got 'adam'"]),
        ("training.learning_rate=.nan", ["training.learning_rate", "finite"]),
        ("data.kind=tabel", ["data.kind", "did you mean 'table'?", "npz"]),
        ("data={}", ["'data.kind' is missing"]),
        ("model={}", ["'model.factory' is missing"]),
        ("device=gpu", ["device must be cpu, cuda"]),
        ("seed", ["--set takes KEY=VALUE"]),
        ("seed.x=1", ["--set takes KEY=VALUE", "seed holds no keys"]),
        ("seed=[", ["--set seed is not valid YAML"]),
    ],
)
def test_an_error_names_the_key_and_what_is_allowed(override: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse("seed: 0" + GOOD, override)
    for part in parts:
        assert part in str(caught.value)


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(GOOD, "prune.ratios=[2]", "training.epochs=0", "sed=1")
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(("text", "said"), [("a: [", "not valid YAML"), ("- 1", "must hold keys and values, got list")])
def test_what_is_not_a_mapping_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no configuration file at"):
        config.read(tmp_path / "none.yaml")


def test_overrides_replace_and_add_keys() -> None:
    read = parse(GOOD, "prune.ratios=[0.25]", "training.learning_rate=1e-3", "name=other")
    assert (read.prune.ratios, read.training.learning_rate, read.name) == ([0.25], 1e-3, "other")


def test_paths_take_environment_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOME_PLACE", str(tmp_path))
    assert config.path_of("${SOME_PLACE}/x.zip", Path("base"), key="data.images") == tmp_path / "x.zip"
    assert config.path_of("x.zip", Path("base"), key="data.images") == Path("base/x.zip")
    assert config.path_of("${SOME_PLACE:-../x}/y", Path("base"), key="data.images") == tmp_path / "y"
    monkeypatch.delenv("SOME_PLACE")
    assert config.path_of("${SOME_PLACE:-../x}/y", Path("base"), key="data.images") == Path("base/../x/y")
    with pytest.raises(
        ConfigError, match=r"data\.images: the environment variable SOME_PLACE is not set; set it, .*SOME_PLACE:-"
    ):
        config.path_of("$SOME_PLACE/x.zip", Path("base"), key="data.images")


def test_what_is_written_back_whole_can_be_read_again() -> None:
    """A run folder keeps every key with its value, also those that nobody set and that do nothing."""
    read = parse(GOOD, "finetune.epochs_between=2")
    assert config.RunConfig.model_validate(read.model_dump(mode="json")) == read


def test_epochs_between_with_one_step_are_remarked() -> None:
    (remark,) = config.remarks(parse(GOOD, "finetune.epochs_between=2"))
    assert "finetune.epochs_between is set but does nothing with one pruning step" in remark
    assert config.remarks(parse(GOOD, "finetune.epochs_between=2", "prune.steps=2")) == []
    assert config.remarks(parse()) == []


def test_the_faces_configuration_is_valid() -> None:
    read = config.read(Path(__file__).parents[1] / "benchmarks/fairface/first_run.yaml")
    assert (read.prune.steps, read.finetune.epochs_between, read.finetune.epochs) == (3, 1, 3)


def test_every_key_is_explained() -> None:
    for key in keys():
        assert key.meaning, f"{key.name} has no description"
        assert key.allowed, f"{key.name} does not say what is allowed"
        assert key.default, f"{key.name} does not say its default"


def bare(value: Any) -> Any:
    """What may be given by its name alone, so given."""
    if isinstance(value, list):
        return [bare(v) for v in value]
    named = isinstance(value, dict) and set(value) == {"name", "label", "options"}
    return value["name"] if named and not value["label"] and not value["options"] else value


def test_explained_defaults_are_the_defaults() -> None:
    """Every default that the explanation prints is, read as YAML, what an empty configuration gets."""
    read = parse().model_dump(mode="json")
    for key in keys():
        lists = ("prune.methods.", "finetune.losses.", "postprocess.thresholds.", "postprocess.overrides.")
        inside_a_list = key.name.startswith(lists)
        if key.default in ("required", "as below") or key.applies or inside_a_list:
            continue
        if key.name == "prune.ratios":  # given, because one of the quantities must be
            continue
        value = read
        for part in key.name.split("."):
            value = value[part]
        assert yaml.safe_load(key.default) == bare(value), key.name


def test_one_key_is_explained_with_those_below_it() -> None:
    assert [k.name for k in keys("prune.ratios")] == ["prune.ratios"]
    assert {k.name for k in keys("benchmark")} > {"benchmark", "benchmark.rounds"}
    assert {k.applies for k in keys("data.images")} == {"data.kind: table"}
    with pytest.raises(ConfigError, match=r"did you mean 'prune\.ratios'"):
        keys("prune.ratio")
    with pytest.raises(ConfigError, match=r"did you mean 'prune\.round_to'"):
        keys("round_to")


def test_the_quickstart_configuration_is_valid() -> None:
    from importlib.resources import files

    text = files("fair_prune_plugins.workflow").joinpath("configs/quickstart.yaml").read_text(encoding="utf-8")
    read = config.parse(text, origin="quickstart.yaml")
    assert read.prune.methods[0].name == "taylor"
    assert [m.name for m in read.prune.methods[1:]] == ["magnitude", "group_balanced_taylor", "fairgrape"]
    assert (read.prune.steps, read.finetune.epochs_between) == (3, 1)
    assert len(read.prune.ratios) == 2
