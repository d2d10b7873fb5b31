"""``fair-prune audit`` and ``fair-prune check`` on tables of predictions, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.dom import minidom

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from fair_prune_plugins.workflow.audit_commands import EXIT_REFUSED
from fair_prune_plugins.workflow.commands import app

N = 1200


def invoke(*arguments: str | Path, width: int = 220) -> Any:
    return CliRunner(env={"COLUMNS": str(width), "TERM": "dumb"}).invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """People of two groups; the pruned model forgets a quarter of one of them, its twin nobody."""
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    ids = [f"p{i}" for i in range(N)]
    group = np.where(np.arange(N) % 3 == 0, "few", "many")
    label = rng.integers(0, 2, N)
    people = pd.DataFrame({"id": ids, "group": group, "sex": rng.choice(["f", "m"], N), "smile": label})
    people.to_csv(folder / "people.csv", index=False)
    score = np.where(label == 1, 2.0, -2.0) + rng.normal(0, 1, N)
    hurt = np.where((group == "few") & (rng.random(N) < 0.25), -score, score)
    for name, values in (("dense", score), ("twin", 0.9 * score), ("hurt", hurt), ("dense-1", score[::-1].copy())):
        table = pd.DataFrame({"id": ids, "logit": values}).sample(frac=1, random_state=1)
        table.to_csv(folder / f"{name}.csv", index=False)
    return folder


def given(place: Path, *pruned: str, dense: str = "dense.csv") -> list[str | Path]:
    options: list[str | Path] = ["--people", place / "people.csv", "--label", "smile", "--group", "group"]
    options += ["--dense", place / dense]
    for name in pruned:
        label, equals, file = name.rpartition("=")
        options += ["--pruned", f"{label}{equals}{place / file}"]
    return options


def test_check_passes_refuses_and_writes_what_ci_reads(place: Path, tmp_path: Path) -> None:
    limits = ["--max-group-drop", "0.05", "--max-gap-increase", "0.05", "--max-flip-rate", "0.05"]
    good = invoke("check", *given(place, "twin.csv"), *limits)
    assert good.exit_code == 0, good.output
    assert "twin passes: 6 holds" in good.stdout
    written = ["--junit", tmp_path / "new/check.xml", "--markdown", tmp_path / "new/check.md"]
    bad = invoke("check", *given(place, "twin.csv", "hurt.csv"), *limits, *written)
    assert bad.exit_code == EXIT_REFUSED == 3, bad.output
    assert "twin passes" in bad.stdout
    assert "hurt REFUSED" in bad.stdout
    root = minidom.parse(str(tmp_path / "new/check.xml")).documentElement
    assert root is not None
    suites = {s.getAttribute("name"): int(s.getAttribute("failures")) for s in root.getElementsByTagName("testsuite")}
    assert suites["twin"] == 0
    assert suites["hurt"] >= 3  # the group's drop, the gap, the group's flips
    assert "### hurt REFUSED" in (tmp_path / "new/check.md").read_text()


def test_a_policy_file_and_options_beside_it(place: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("max_group_drop: 0.05\n")
    assert invoke("check", *given(place, "hurt.csv"), "--policy", policy).exit_code == EXIT_REFUSED
    assert invoke("check", *given(place, "hurt.csv"), "--policy", policy, "--max-group-drop", "0.9").exit_code == 0
    undecided = ["--policy", policy, "--max-group-drop", "0.25"]
    found = invoke("check", *given(place, "hurt.csv"), *undecided)
    assert found.exit_code == 0
    assert "cannot be told" in found.stdout
    strict = invoke("check", *given(place, "hurt.csv"), *undecided, "--strict")
    assert strict.exit_code == EXIT_REFUSED
    assert "strict: what cannot be told refuses" in strict.stdout


def test_runs_groups_and_intersections(place: Path) -> None:
    options = ["--group", "sex=m,f", "--intersection", "group,sex", "--max-group-drop", "0.9", "--correction", "none"]
    dense = ["--dense", place / "dense-1.csv"]
    found = invoke("check", *given(place, "a=twin.csv", "a=hurt.csv", "b=hurt.csv"), *dense, *options)
    assert found.exit_code == 0, found.output
    assert "a passes" in found.stdout
    assert "b passes" in found.stdout
    assert "Runs (training seeds) of a model are averaged" in found.stdout
    assert "group x sex: few x f" in found.stdout
    assert "for each of the 8 comparisons by itself" in found.stdout


def test_audit_writes_a_report(place: Path, tmp_path: Path) -> None:
    done = invoke("audit", *given(place, "hurt.csv"), "-o", tmp_path / "audit", "--resamples", "200")
    assert done.exit_code == 0, done.output
    for name in ("audit.html", "audit.json", "model_card.md"):
        assert (tmp_path / "audit" / name).stat().st_size
    assert "dense.csv: logit read as logits" in done.stdout
    assert "group: few" in done.stdout
    found = json.loads((tmp_path / "audit/audit.json").read_text())
    assert found["pruned"] == ["hurt"]
    assert any("read as logits" in note for note in found["notes"])
    people = pd.read_csv(place / "people.csv").merge(pd.read_csv(place / "hurt.csv"), on="id")
    right = ((people["logit"] > 0) == people["smile"]).mean()
    everybody = found["measures"]["pruned"][0]["outputs"][0]["everybody"]
    assert everybody["scores"]["accuracy"]["value"] == pytest.approx(right)


def test_single_people_are_named_unless_asked_not_to_and_shown_only_when_asked(place: Path, tmp_path: Path) -> None:
    quick = ["--resamples", "100"]
    for flags, named in (((), True), (("--no-ids",), False)):
        done = invoke("audit", *given(place, "hurt.csv"), "-o", tmp_path / "out", *quick, *flags)
        assert done.exit_code == 0, done.output
        scores = pd.read_csv(place / "dense.csv").set_index("id")["logit"].abs()
        nearest = str(scores.idxmin())
        html = (tmp_path / "out/audit.html").read_text()
        assert (f">{nearest}<" in html) is named
        assert "data:image/png" not in html
        assert (f'"{nearest}"' in (tmp_path / "out/audit.json").read_text()) is named
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (8, 8), "teal").save(pictures / f"{nearest}.png")
    shown = invoke("audit", *given(place), "-o", tmp_path / "shown", *quick, "--thumbnails", pictures)
    assert shown.exit_code == 0, shown.output
    html = (tmp_path / "shown/audit.html").read_text()
    assert "data:image/png" in html
    assert "faces" in html
    missing = invoke("audit", *given(place), *quick, "--thumbnails", tmp_path / "nowhere")
    assert missing.exit_code == 2
    assert "is no folder" in missing.output


def test_the_dense_model_alone_gives_the_risk_report(place: Path, tmp_path: Path) -> None:
    done = invoke("audit", *given(place), "-o", tmp_path / "risk", "--resamples", "200")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "risk/audit.json").read_text())
    assert found["pruned"] == []
    assert found["risk"]


def test_hard_decisions_can_be_judged(place: Path, tmp_path: Path) -> None:
    for name in ("dense", "hurt"):
        table = pd.read_csv(place / f"{name}.csv")
        table.assign(logit=(table["logit"] > 0).astype(int)).rename(columns={"logit": "decision"}).to_csv(
            tmp_path / f"{name}.csv", index=False
        )
    options = [
        "--people",
        place / "people.csv",
        "--label",
        "smile",
        "--group",
        "group",
        "--dense",
        tmp_path / "dense.csv",
    ]
    limits = ["--max-group-drop", "0.05", "--max-gap-increase", "0.05"]
    hard = invoke("check", *options, "--pruned", tmp_path / "hurt.csv", *limits)
    soft = invoke("check", *given(place, "hurt.csv"), *limits)
    assert hard.exit_code == soft.exit_code == EXIT_REFUSED, hard.output
    rows = [[line for line in r.stdout.splitlines() if "accuracy" in line and "%" in line] for r in (hard, soft)]
    assert rows[0] == rows[1]
    assert "Only decisions are known" in hard.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dense", "{place}/none.csv"], "--dense: there is nothing at"),
        (["--dense", "{place}"], "is not a run folder"),
        (["--dense", "{place}/dense.csv"], "tables of predictions need --people"),
        (["--dense", "{place}/dense.csv", "--people", "{place}/people.csv"], "need --label"),
        (["{tables}", "--dense", "a={place}/dense.csv", "--dense", "b={place}/dense.csv"], "--dense names one model"),
        (["{tables}", "--dense", "{place}"], "all models must be given in one form"),
        (["{tables}", "--dense", "={place}/dense.csv"], "is no .csv, .parquet or .onnx file|nothing"),
        (["{tables}", "--group", "age"], "has no column 'age'; it has ['id', 'group', 'sex', 'smile']"),
        (["{tables}", "--group", "sex=f"], "has the value 'm' in 'sex'; the groups that were named are ['f']"),
        (["{tables}", "--model", "x"], "--model belong to run folders"),
        (["{tables}", "--parts", "sex=a,b"], "--parts takes COLUMN or COLUMN=TEST,VALIDATION,TRAIN"),
        (["{tables}", "--predictions", "probabilities"], "probabilities lie in 0 to 1"),
    ],
)
def test_bad_input_is_one_clear_message_with_exit_code_2(place: Path, arguments: list[str], said: str) -> None:
    given_all: list[str | Path] = []
    for argument in arguments:
        given_all += given(place) if argument == "{tables}" else [argument.format(place=place)]
    result = invoke("audit", *given_all)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ")
    assert any(part in result.stderr for part in said.split("|"))
    assert "Traceback" not in result.output


def test_bad_policies_are_bad_input_and_no_refusal(place: Path, tmp_path: Path) -> None:
    for arguments, said in (
        ([], "sets no limit; give at least one"),
        (["--policy", tmp_path / "none.yaml"], "there is no policy file at"),
        (["--max-group-drop", "0.1", "--only-attribute", "age"], "attributes: there is no 'age'"),
        (["--max-group-drop", "0.1", "--junit", place], "cannot be written"),
    ):
        result = invoke("check", *given(place, "twin.csv"), *arguments)
        assert result.exit_code == 2, result.output
        assert said in result.stderr
    same = invoke("check", *given(place, "twin.csv", "twin.csv"), "--max-group-drop", "0.1")
    assert same.exit_code == 2
    assert "two pruned files are called 'twin'" in same.stderr


@pytest.mark.parametrize("command", ["audit", "check"])
def test_help_shows_an_example(command: str) -> None:
    assert command in invoke("--help").stdout
    shown = invoke(command, "--help").stdout
    assert f"fair-prune {command} --" in shown
    for option in ("--dense", "--people", "--data", "--model", "--debug"):
        assert option in shown
