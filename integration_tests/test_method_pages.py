"""The pages of ``docs/methods`` say what the code does: every method has one, their options, configurations, snippets,
links and figures are right."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from fair_prune_plugins import criteria, losses
from fair_prune_plugins import torch_pruning as fpt
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.groups import GroupLabels
from fair_prune_plugins.learned_gates import LEARNED
from fair_prune_plugins.learned_gates.by_name import DECIDED_ELSEWHERE
from fair_prune_plugins.losses import LossHook
from fair_prune_plugins.nni import pruner_class
from fair_prune_plugins.postprocessing import choose_thresholds, choose_with_fairlearn
from fair_prune_plugins.torch_pruning.criterion_importances import IMPORTANCES
from fair_prune_plugins.torch_pruning.host_criteria import HOST_CRITERIA
from fair_prune_plugins.workflow import config, methods
from fair_prune_plugins.workflow.config import RunConfig
from integration_tests import method_pages as pages
from integration_tests.method_pages import CRITERIA, INDEX, LOSSES, METHODS, OBJECTIVES, ROOT, THRESHOLDS, page
from integration_tests.method_snippets import answers, script

HEADINGS = ["", "Formula", "Use it", pages.OPTIONS, "Traps", "What our benchmark shows"]
BASE: dict[str, Any] = {
    "data": {"kind": "function", "function": "fair_prune_plugins.workflow.digits:load"},
    "model": {"factory": "digits_resnet"},
    "prune": {"methods": ["taylor"], "macs": [0.3]},
}
BENCHMARKS = ("benchmarks/methods/faces.yaml", "benchmarks/methods/adult.yaml")
STUDY = "benchmarks/fairface/study.yaml"


def parsed(text: str) -> RunConfig:
    return config.parse(yaml.safe_dump({**BASE, **yaml.safe_load(text)}), origin="page")


def page_of(method: Any) -> str:
    """The page of a method of a configuration."""
    found = "pw_taylor" if method.name == "taylor" and method.collect_loss is not None else method.name
    assert isinstance(found, str)
    return found


# --- there is a page for everything, and nothing else ---


def test_every_method_has_a_page_and_no_page_is_of_nothing() -> None:
    assert {p.stem for p in pages.FOLDER.iterdir()} == {INDEX, *METHODS}
    assert len(METHODS) == len(set(METHODS))
    assert {*CRITERIA, *HOST_CRITERIA, *LEARNED} <= set(methods.names())


def test_the_index_has_every_method_once() -> None:
    listed = re.findall(r"^\| \[`(\w+)`\]\((\w+)\.md\) \|", page(INDEX), flags=re.MULTILINE)
    assert all(name == target for name, target in listed)
    assert sorted(name for name, _ in listed) == sorted(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_page_has_all_its_parts(name: str) -> None:
    text = page(name)
    assert text.startswith(f"# `{name}`\n")
    assert [h for h in pages.sections(text) if not h.startswith("Arguments of ")] == HEADINGS
    assert all(f"\n- **{what} it when** " in text for what in ("Take", "Leave"))
    assert len(pages.snippets(text, "text")) == 1
    assert pages.snippets(text, "yaml")
    assert pages.snippets(text, "python")
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 120


@pytest.mark.parametrize("name", [INDEX, *METHODS])
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", re.sub(r"```.*?```", "", page(name), flags=re.DOTALL)):
        assert "://" in target or (pages.FOLDER / target).exists(), target
    for anchor in re.findall(r"\]\(README\.md#([^)]*)\)", page(name)):
        titles = [re.sub(r"[^\w\- ]", "", h).lower().replace(" ", "-") for h in pages.sections(page(INDEX))]
        assert anchor in titles


# --- options ---


@pytest.mark.parametrize("name", [INDEX, *METHODS])
def test_tables_of_options_are_those_of_the_code(name: str) -> None:
    expected = pages.code_tables(name)
    parts = pages.sections(page(name))
    assert {h for h, text in parts.items() if list(pages.rows(text))[:1] == [pages.HEADER]} == set(expected)
    for heading, options in expected.items():
        written = pages.option_table(parts[heading])
        assert list(written) == list(options)
        assert written == options


def test_a_table_with_another_default_type_or_option_would_be_noticed() -> None:
    text, code = pages.sections(page("fairprune"))[pages.OPTIONS], pages.code_tables("fairprune")[pages.OPTIONS]
    assert pages.option_table(text) == code
    for before, after in (("`0.33`", "`0.34`"), ("| `float` |", "| `int` |"), ("`beta`", "`betas`"), ("people", "all")):
        assert before in text
        assert pages.option_table(text.replace(before, after)) != code
    assert pages.option_table(re.sub(r"^\| `over`.*\n", "", text, flags=re.MULTILINE)) != code


@pytest.mark.parametrize("name", [*CRITERIA, *LEARNED])
def test_classes_and_configurations_know_the_same_options(name: str) -> None:
    table = pages.code_tables(name).get(pages.OPTIONS, {})
    if name in LEARNED:
        extra = pages.TERM if name == "bip" else set()
        assert set(LEARNED[name].options) - extra == set(table) - set(DECIDED_ELSEWHERE)
        return
    assert {k: o.default for k, o in table.items()} == criteria.get(name).options
    assert {k: v for k, v in pages.of_function(IMPORTANCES[name].__init__).items() if k != "on_stale"} == table
    assert pages.of_function(IMPORTANCES[name].__init__)["on_stale"].default == "error"


def test_what_bip_leaves_out_of_its_table_does_nothing() -> None:
    term = {"weight_penalty": 2.0, "mask_penalty": 0.5, "dual_rate": 0.1, "surrogate": "hinge", "sharpness": 3.0}
    term |= {"penalty": "hinge", "tau": 0.1, "task": "multiclass"}
    assert set(term) == pages.TERM - {"proportions"}
    learned = []
    for options in ({}, {k: v for k, v in term.items() if k in LEARNED["bip"].options}):
        torch.manual_seed(0)
        names = script()
        model, example = names["model"], names["example_inputs"]
        pruner = LEARNED["bip"].make(model, example, seed=0, together=False, options=options, pruning_ratio=0.5)
        pruner.fit(names["loader"], names["held_out"], F.cross_entropy, steps=3, progress=False)
        learned.append(pruner.gates.values().detach())
    assert torch.equal(*learned)


# --- configurations ---


@pytest.mark.parametrize("name", METHODS)
def test_configurations_are_valid_and_of_the_page_s_method(name: str) -> None:
    for text in pages.snippets(page(name), "yaml"):
        run = parsed(text)
        assert not config.remarks(run)
        for method in run.prune.methods:
            methods.importance(method.name, method.options)
        for loss in run.finetune.losses:
            names = script()
            dense = losses.DenseAccuracy.measure(names["dense"], names["loader"], groups="gender")
            given = {"groups": {"female": 2, "male": 1}, "teacher": names["dense"], "dense": dense}
            losses.get(loss.name).make(**given, **loss.options)
        named = {page_of(m) for m in run.prune.methods} | {loss.name for loss in run.finetune.losses}
        named |= {THRESHOLDS + t.objective for t in run.postprocess.thresholds}
        assert name in named | ({"overrides"} if run.postprocess.overrides else set())


# --- snippets ---


WRITTEN = [name for name in (INDEX, *METHODS) if (pages.FOLDER / f"{name}.md").exists()]
SNIPPETS = [(name, i) for name in WRITTEN for i in range(len(pages.snippets(page(name), "python")))]


@pytest.mark.parametrize(("name", "number"), SNIPPETS)
def test_snippets_run_and_do_what_the_page_is_about(name: str, number: int) -> None:
    text = pages.snippets(page(name), "python")[number]
    names = script()
    first = copy.deepcopy(names["model"].state_dict())
    exec(compile(text, f"{name}.md", "exec"), names)
    if "rule" in names:
        assert names["rule"].objective.split()[0] == name.removeprefix(THRESHOLDS)
    elif "policy" in names:
        assert names["done"].overridden.any()
    elif "masks" in names:
        masked = names["masks"]["conv1"]["weight"]
        assert 0 < float(masked.mean()) < 1
        if name in CRITERIA:
            assert type(names["pruner"]) is pruner_class(name)
    elif "fair_evaluator" in names:
        evaluator = names["evaluator"]
        assert type(evaluator.loss) is losses.get(name).hook
        evaluator._init_optimizer_helpers(names["model"])
        evaluator.bind_model(names["model"])
        evaluator.train(max_steps=1)
        evaluator.unbind_model()
    elif "pruner" in names:
        assert names["model"].fc.in_features < 64
        if name in CRITERIA:
            assert names["importance"].criterion.name == name
        if name in LEARNED:
            assert type(names["pruner"]) is LEARNED[name].pruner
    else:
        assert type(names["hook"]) is losses.get(name).hook
        assert any(not torch.equal(first[k], v) for k, v in names["model"].state_dict().items())


@pytest.mark.parametrize("name", LOSSES)
def test_ranking_under_a_loss_is_as_its_page_says(name: str) -> None:
    said = re.search(r"`(importance\.collect\([^`]*\))`", page(name).replace("\n", " "))
    assert said
    names = script()
    exec(pages.snippets(page(name), "python")[0], names)
    assert isinstance(names["hook"], LossHook)
    names["importance"] = fpt.TaylorImportance()
    names["pruner"] = fpt.FairPruner(names["model"], names["example_inputs"], names["importance"], pruning_ratio=0.5)
    assert eval(said[1], names) is not None


@pytest.mark.parametrize("name", CRITERIA)
def test_nni_is_named_where_a_criterion_is_measured_on_gates(name: str) -> None:
    on_gates = criteria.get(name).needs({}).passes <= {"gates"}
    assert on_gates == ("fair_prune_plugins.nni" in page(name))
    if not on_gates:
        names = script()
        with pytest.raises(InputError, match="needs more than gate statistics"):
            pruner_class(name)(names["model"], names["config_list"], names["evaluator"], 1, groups="gender")


# --- the index ---


def said(name: str) -> dict[str, str]:
    """A method's row of the index."""
    header: list[str] = []
    for row in pages.rows(page(INDEX)):
        if row[0] == "method":
            header = row
        if row[0] == f"[`{name}`]({name}.md)":
            return dict(zip(header, row, strict=True))
    raise AssertionError(name)


@pytest.mark.parametrize("name", [*CRITERIA, *HOST_CRITERIA, *LEARNED, *LOSSES])
def test_the_index_says_what_a_method_needs(name: str) -> None:
    row, word = said(name), {True: "yes", False: "no"}
    if name in LOSSES:
        loss = losses.get(name)
        assert row["groups"] == word[loss.needs_groups]
        assert row["dense model"] == word[bool({"teacher", "dense"} & set(loss.requirements))]
        return
    found = methods.get(name)
    needs = found.needs({}) if isinstance(found, criteria.Criterion) else None
    assert row["groups"] == word[found.needs_groups if needs is None else needs.groups]
    assert row["labels"] == word[found.needs_data if needs is None else needs.loss]
    assert row["dense model"] == "no"
    if name not in LEARNED:
        passes = needs.passes if needs else set()
        assert row["over the data"] == {"gates": "one", "snnl": "one, forward", None: "none"}[next(iter(passes), None)]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_index_says_what_thresholds_are_chosen_from(objective: str) -> None:
    row, given = said(THRESHOLDS + objective), answers(1)
    one_group = GroupLabels(("all",), np.zeros(240, dtype=np.int64))

    def choose(labels: Any, people: GroupLabels, dense: Any) -> Any:
        if objective == "fairlearn":
            return choose_with_fairlearn(labels, given["logits"], people)
        return choose_thresholds(labels, given["logits"], people, objective, dense_logits=dense)  # type: ignore[arg-type]

    def refused(labels: Any, people: GroupLabels, dense: Any) -> bool:
        try:
            choose(labels, people, dense)
        except InputError:
            return True
        return False

    whole = choose(given["labels"], given["people"], given["dense_logits"])
    assert (row["groups"] == "yes") == refused(given["labels"], one_group, given["dense_logits"])
    assert (row["dense model"] == "yes") == refused(given["labels"], given["people"], None)
    other = choose(given["labels"] * (np.arange(240) % 3 > 0), given["people"], given["dense_logits"])
    assert (row["labels"] == "no") == (whole.outputs == other.outputs)


def test_figures_of_the_index_are_those_of_the_benchmarks() -> None:
    def medians(file: str, path: str, of: str) -> list[float]:
        networks = json.loads((ROOT / "benchmarks/results" / file).read_text())["results"].values()
        tables = [n[path] if path else n for n in networks]
        return [v["median_ratio"] for t in tables for k, v in t.items() if of in k]

    def span(values: list[float]) -> str:
        return f"{min(values):.2f}x to {max(values):.2f}x"

    one_pass = medians("collection_cost.json", "time", "one pass")
    elementwise = medians("elementwise_cost.json", "", "groups")
    gates = [n for n in CRITERIA if criteria.get(n).needs({}).passes == {"gates"}]
    assert {n for n in METHODS if said(n).get("cost") == span(one_pass)} == set(gates)
    assert f"take {span(elementwise)}" in " ".join(page(INDEX).split())
    assert len(re.findall(r"\d\.\d+x", page(INDEX))) == 2 * len(gates) + 2


# --- what the benchmark shows ---


@pytest.mark.parametrize("name", METHODS)
def test_pages_say_under_which_titles_they_are_compared(name: str) -> None:
    compared = [parsed_file(path) for path in BENCHMARKS]
    titles = [
        {m.title for m in run.prune.methods if page_of(m) == name}
        | {loss.title for loss in run.finetune.losses if loss.name == name}
        for run in compared
    ]
    assert titles[0] == titles[1]
    study = parsed_file(STUDY)
    text = " ".join(pages.sections(page(name))["What our benchmark shows"].split())
    first = text.split(". ")[0]
    assert set(re.findall(r"`([^`]+)`", first)) - {"finetune.losses", "postprocess"} == titles[0]
    assert ("Not in the [comparison" in text) == (not titles[0])
    in_study = name in {page_of(m) for m in study.prune.methods} | {x.name for x in study.finetune.losses}
    assert ("- In the [study on faces]" in text) == in_study
    assert not re.search(r"\d", re.sub(r"\([^)]*\)", "", text)), "figures belong where a script writes them"


def parsed_file(path: str) -> RunConfig:
    return config.read(ROOT / path)
