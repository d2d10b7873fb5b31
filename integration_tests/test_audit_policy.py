"""A policy judged on people whose numbers are worked out by hand; the written forms are read by other parsers."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any
from xml.dom import minidom

import numpy as np
import pytest
from markdown_it import MarkdownIt
from rich.console import Console
from scipy import stats

from fair_prune_plugins.audit.data import AuditData, ModelPredictions, People
from fair_prune_plugins.audit.policy import (
    RULES,
    Finding,
    ModelCheck,
    Policy,
    PolicyCheck,
    as_junit,
    as_markdown,
    check,
    print_check,
    read_policy,
    verdict,
)
from fair_prune_plugins.errors import ConfigError, InputError
from fair_prune_plugins.evaluation.intervals import Estimate, Interval
from fair_prune_plugins.groups import GroupLabels
from integration_tests.audited_people import make_audit

SIZES = {"big": 1000, "hurt": 400, "tiny": 10}
WRONG = {"big": 100, "hurt": 40, "tiny": 1}
"""People of each group whom the dense model answers wrongly."""
LOST = {"big": 0, "hurt": 80, "tiny": 9}
"""People of each group whom the pruned model answers wrongly besides."""


def audited(*, labels: Any = None, name: str = "pruned", sizes: dict[str, int] = SIZES) -> AuditData:
    """Half of each group is truly 1; the first people of a group are those who are answered wrongly."""
    names = tuple(sizes)
    codes = np.repeat(np.arange(len(names)), list(sizes.values()))
    place = np.concatenate([np.arange(n) for n in sizes.values()])
    truth = (place % 2).astype(np.int64)
    wrong = place < np.array([WRONG[n] for n in names])[codes]
    more = place < np.array([WRONG[n] + LOST[n] for n in names])[codes]
    sign = 2.0 * truth - 1
    people = People(
        ids=tuple(str(i) for i in range(len(codes))),
        labels=truth,
        groups=(GroupLabels(names, codes, "group"),),
        outputs=("smiling",),
        task="binary",
    )
    dense = ModelPredictions("dense", (np.where(wrong, -sign, sign),))
    return AuditData(people, dense, (ModelPredictions(name, (np.where(more, -sign, sign),)),))


def findings(judged: PolicyCheck, rule: str) -> dict[str | None, Finding]:
    (model,) = judged.models
    return {f.group: f for f in model.findings if f.rule == rule}


def policy(**values: Any) -> Policy:
    return read_policy(options=values)


def test_numbers_and_verdicts_of_a_case_worked_by_hand() -> None:
    judged = check(
        audited(),
        policy(
            max_pooled_drop=0.1,
            max_group_drop=0.05,
            min_group_accuracy=0.75,
            max_excess_gap=0.05,
            max_gap_increase=0.05,
            max_flip_rate=0.05,
            max_true_positive_drop=0.05,
        ),
        progress=False,
    )
    drop = findings(judged, "max_group_drop")
    assert {name: f.number.value for name, f in drop.items()} == pytest.approx({"big": 0, "hurt": 0.2, "tiny": None})
    assert {name: f.verdict for name, f in drop.items()} == {
        "big": "holds",
        "hurt": "broken",
        "tiny": "too small to judge",
    }
    pooled = findings(judged, "max_pooled_drop")[None]
    assert pooled.number.value == pytest.approx(89 / 1410)
    assert pooled.verdict == "holds"
    accuracy = findings(judged, "min_group_accuracy")
    assert accuracy["hurt"].number.value == pytest.approx(280 / 400)
    assert accuracy["hurt"].verdict == "cannot be told", "70 % of 400 people, where 75 % are asked for"
    assert accuracy["big"].verdict == "holds"
    excess = findings(judged, "max_excess_gap")
    assert excess["hurt"].number.value == pytest.approx(0.2 - 89 / 1410)
    assert excess["hurt"].verdict == "broken"
    assert excess["big"].number.value == pytest.approx(-89 / 1410)
    gap = findings(judged, "max_gap_increase")[None]
    # tiny: 9 of 10 right, then none.
    assert gap.number.value == pytest.approx(0.9 - 0.0)
    flips = findings(judged, "max_flip_rate")
    assert flips[None].number.value == pytest.approx(89 / 1410)
    assert flips["hurt"].number.value == pytest.approx(80 / 400)
    assert [flips[n].verdict for n in ("big", "hurt", "tiny")] == ["holds", "broken", "too small to judge"]
    # Of the 200 who are truly 1 in "hurt" (odd places), 40 are lost.
    assert findings(judged, "max_true_positive_drop")["hurt"].number.value == pytest.approx(40 / 200)
    assert not judged.passed
    assert judged.comparisons == 1 + 2 + 2 + 2 + 1 + (1 + 2) + 2, "groups that are too small are not compared"


def test_intervals_are_simultaneous_and_those_of_scipy() -> None:
    """Four comparisons of 95 % together: each interval at 98.75 %, like scipy's bootstrap at that level."""
    data = audited()
    judged = check(data, policy(max_group_drop=0.05, max_excess_gap=0.05), resamples=6000, progress=False)
    assert judged.comparisons == 4
    single = check(data, policy(max_group_drop=0.05, max_excess_gap=0.05, correction="none"), progress=False)
    hurt = (np.arange(400) >= 40) & (np.arange(400) < 120)
    for found, level in ((judged, 1 - 0.05 / 4), (single, 0.95)):
        expected = stats.bootstrap(
            (hurt.astype(float),), np.mean, confidence_level=level, method="percentile", n_resamples=6000, rng=1
        ).confidence_interval
        interval = findings(found, "max_group_drop")["hurt"].number.interval
        assert interval is not None
        assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=0.006)
    # Nobody of "big" changed: with N = 1000, a loss of more than 1 - tail ** (1 / N) would have shown.
    interval = findings(judged, "max_group_drop")["big"].number.interval
    assert interval is not None
    assert interval.high == pytest.approx(1 - (0.05 / 4 / 2) ** (1 / 1000))
    assert "95 % confidence for all 4 comparisons" in " ".join(judged.notes)
    assert "for each of the 4 comparisons by itself" in " ".join(single.notes)


def test_many_comparisons_get_more_resamples() -> None:
    few = check(audited(), policy(max_group_drop=0.05), progress=False)
    assert (few.comparisons, few.resamples) == (2, 1000)
    data = make_audit(300, outputs=("a", "b", "c", "d"), pruned=1)
    many = check(data, policy(max_group_drop=0.05, minimum_group=2), progress=False)
    assert many.comparisons == 20  # (3 races + 2 genders) x 4 outputs
    assert many.resamples == 2 * 5 * 20 / 0.05
    with pytest.raises(ConfigError, match=r"need 8\d{6} bootstrap resamples, more than 50000"):
        check(data, policy(max_group_drop=0.05, confidence=0.999995, minimum_group=2), progress=False)


@pytest.mark.parametrize(
    ("low", "high", "at_least", "expected"),
    [
        (0.021, 0.05, False, "broken"),
        (0.019, 0.05, False, "cannot be told"),
        (-0.01, 0.02, False, "holds"),
        (0.02, 0.02, False, "holds"),
        (-0.01, 0.021, False, "cannot be told"),
        (0.001, 0.019, True, "broken"),
        (0.019, 0.05, True, "cannot be told"),
        (0.02, 0.05, True, "holds"),
    ],
)
def test_a_rule_is_broken_where_the_favourable_end_breaks_it(
    low: float, high: float, at_least: bool, expected: str
) -> None:
    number = Estimate((low + high) / 2, Interval(low, high))
    assert verdict(number, 0.02, at_least=at_least) == expected
    assert verdict(Estimate(None, None), 0.02, at_least=at_least) == "cannot be told"
    assert verdict(Estimate(0.5, None), 0.02, at_least=at_least) == "cannot be told"


def test_strict_refuses_what_cannot_be_told_but_not_what_is_too_small() -> None:
    lenient = check(audited(), policy(min_group_accuracy=0.7), progress=False)
    assert [m.refused for m in lenient.models] == [False]
    assert lenient.models[0].of("cannot be told")
    assert not check(audited(), policy(min_group_accuracy=0.7, strict=True), progress=False).passed
    small = check(audited(), policy(min_group_accuracy=0.5, strict=True), progress=False)
    assert small.models[0].of("too small to judge")
    assert small.passed


def test_each_output_or_the_class_is_judged() -> None:
    several = make_audit(600, pruned=2)
    judged = check(several, policy(max_group_drop=0.1, attributes=["gender"], outputs=["Young", "overall"]))
    assert [m.model for m in judged.models] == ["pruned 50 %", "pruned 80 %"]
    assert [(f.output, f.attribute, f.group) for f in judged.models[0].findings] == [
        (output, "gender", group) for output in ("Young", "overall") for group in ("Female", "Male")
    ]
    for model, found in zip(several.pruned, judged.models, strict=True):
        for f in found.findings:
            mine = several.people.groups[1].codes == several.people.groups[1].names.index(str(f.group))
            columns = [3] if f.output == "Young" else [0, 1, 2, 3]
            right = [
                ((several.logits(m)[0] > 0) == several.people.labels)[mine][:, columns].mean()
                for m in (several.dense, model)
            ]
            assert f.number.value == pytest.approx(right[0] - right[1])
    classes = make_audit(600, task="multiclass", outputs=("cat", "dog", "owl"), pruned=1, runs=3)
    judged = check(classes, policy(max_pooled_drop=0.1, max_flip_rate=0.1), progress=False)
    drop = findings(judged, "max_pooled_drop")[None]
    assert drop.output == "overall"
    accuracy = [
        np.mean([(z.argmax(1) == classes.people.labels).mean() for z in classes.logits(m)]) for m in classes.models
    ]
    assert drop.number.value == pytest.approx(accuracy[0] - accuracy[1])
    votes = [
        np.stack([np.bincount(row, minlength=3) for row in np.stack([z.argmax(1) for z in classes.logits(m)], 1)])
        for m in classes.models
    ]
    clear = np.logical_and.reduce([v.max(1) >= 2 for v in votes])  # of three, two agree
    flipped = votes[0].argmax(1) != votes[1].argmax(1)
    everybody = next(f for f in judged.models[0].findings if f.rule == "max_flip_rate" and f.group is None)
    assert everybody.number.value == pytest.approx(flipped.mean(), abs=float((~clear).mean()))
    assert any("Runs (training seeds)" in note for note in judged.notes)


def test_every_rule_finds_its_number() -> None:
    """Also that no rule is without an option, a meaning and a number."""
    limits = {rule.key: 1.0 for rule in RULES}
    assert set(limits) < set(Policy.model_fields)
    judged = check(make_audit(500, task="binary", outputs=("a",), pruned=1), policy(**limits), progress=False)
    found = judged.models[0].findings
    assert {f.rule for f in found} == set(limits)
    assert all(f.number.value is not None and f.number.interval is not None for f in found)
    assert {f.rule for f in found if f.at_least} == {"min_group_accuracy"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"max_grup_drop": 0.1}, r"unknown key 'max_grup_drop'; did you mean 'max_group_drop'\? allowed are"),
        ({"max_group_drop": 2}, r"max_group_drop: should be less than or equal to 1 \(got 2\)"),
        ({"max_group_drop": "much"}, r"max_group_drop: should be a valid number"),
        ({"confidence": 0.4, "max_group_drop": 0.1}, "confidence: should be greater than 0.5"),
        ({"strict": True}, "sets no limit; give at least one, such as max_group_drop: 0.02"),
        ({"max_group_drop": float("nan")}, "max_group_drop"),
    ],
)
def test_bad_policies_are_told(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_policy(options=values)
    path = tmp_path / "policy.yaml"
    path.write_text("\n".join(f"{k}: {str(v).replace('nan', '.nan')}" for k, v in values.items()))
    with pytest.raises(ConfigError, match=r"policy\.yaml.*" + said):
        read_policy(path)


def test_options_replace_keys_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("max_group_drop: 0.1\nstrict: true\nattributes: [gender]\n")
    found = read_policy(path, {"max_group_drop": 0.02, "strict": None})
    assert (found.max_group_drop, found.strict, found.attributes) == (0.02, True, ["gender"])
    for text, said in (("- 1", "must hold keys and values"), ("a: [", "is not valid YAML")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            read_policy(path)
    with pytest.raises(ConfigError, match="there is no policy file at"):
        read_policy(tmp_path / "none.yaml")


def test_what_does_not_fit_the_people_is_told() -> None:
    for values, said in (
        ({"attributes": ["age"]}, r"attributes: there is no 'age'; there are \['race', 'gender'\]"),
        ({"outputs": ["hat"]}, "outputs: there is no 'hat'"),
        ({"max_equalized_odds_increase": 0.1, "outputs": ["overall"]}, "one output at a time"),
    ):
        with pytest.raises(ConfigError, match=said):
            check(make_audit(200), policy(max_group_drop=0.1, **values), progress=False)
    with pytest.raises(InputError, match="no pruned model to check"):
        check(make_audit(200, pruned=0), policy(max_group_drop=0.1), progress=False)


NASTY = 'a<b>&"c"|*d*\x07'


def text_of(node: Any) -> str:
    return "".join(child.data for child in node.childNodes if child.nodeType == child.TEXT_NODE)


@pytest.mark.parametrize("strict", [False, True])
def test_junit_is_read_by_another_parser(strict: bool) -> None:
    judged = check(
        audited(name=NASTY), policy(max_group_drop=0.05, min_group_accuracy=0.7, strict=strict), progress=False
    )
    root = minidom.parseString(as_junit(judged)).documentElement
    assert root is not None
    assert root.tagName == "testsuites"
    (suite,) = root.getElementsByTagName("testsuite")
    (model,) = judged.models
    assert suite.getAttribute("name") == NASTY.replace("\x07", "\ufffd")
    told = model.of("cannot be told")
    expected = {
        "tests": len(model.findings),
        "failures": len(model.of("broken")) + (len(told) if strict else 0),
        "errors": 0,
        "skipped": len(model.of("too small to judge")) + (0 if strict else len(told)),
    }
    assert told
    for node in (root, suite):
        assert {key: int(node.getAttribute(key)) for key in expected} == expected
        assert float(node.getAttribute("time")) >= 0
    cases = suite.getElementsByTagName("testcase")
    assert (
        len(cases) == len({(c.getAttribute("classname"), c.getAttribute("name")) for c in cases}) == expected["tests"]
    )
    failed = [c for c in cases if c.getElementsByTagName("failure")]
    assert len(failed) == expected["failures"]
    assert sum(len(c.getElementsByTagName("skipped")) for c in cases) == expected["skipped"]
    hurt = next(c for c in failed if c.getAttribute("name") == "max_group_drop: group: hurt")
    failure = hurt.getElementsByTagName("failure")[0]
    assert failure.getAttribute("type") == "max_group_drop"
    assert text_of(failure) == failure.getAttribute("message")
    assert "at most 5 % is allowed; found 20 %" in text_of(failure).replace("\N{NO-BREAK SPACE}", " ")
    # The order that the schema of Jenkins' plugin asks for, and no element that it does not know.
    assert [n.tagName for n in suite.childNodes if n.nodeType == n.ELEMENT_NODE] == [
        "properties",
        *["testcase"] * len(cases),
        "system-out",
    ]


def test_markdown_is_read_by_another_parser() -> None:
    judged = check(audited(name=NASTY), policy(max_group_drop=0.05), progress=False)
    tokens = MarkdownIt("commonmark").enable("table").parse(as_markdown(judged))
    rows: list[list[str]] = []
    for before, token in itertools.pairwise(tokens):
        if before.type == "tr_open":
            rows.append([])
        if before.type in ("th_open", "td_open"):
            rows[-1].append("".join(c.content for c in token.children or []).replace("\N{NO-BREAK SPACE}", " "))
    assert rows[0] == ["Rule", "Of whom", "People", "Limit", "Found", "Interval", "Verdict"]
    assert [row[1] for row in rows[1:]] == ["group: hurt", "group: big", "group: tiny"], "what is broken comes first"
    assert rows[1][0] == "accuracy that a group lost"
    assert rows[1][2:5] == ["400", "at most 5 %", "20 %"]
    assert rows[1][6] == "broken"
    assert rows[3][4:] == ["–", "–", "too small to judge"]
    headings = [t.content for b, t in itertools.pairwise(tokens) if b.type == "heading_open"]
    assert headings[0] == "Fairness policy: REFUSED"
    heading = next(t for b, t in itertools.pairwise(tokens) if b.type == "heading_open" and b.tag == "h3")
    shown = "".join(c.content for c in heading.children or [])
    assert shown.startswith(f"{NASTY} REFUSED")


def test_the_table_says_all(capsys: pytest.CaptureFixture[str]) -> None:
    judged = check(audited(name="[red]x"), policy(max_group_drop=0.05), progress=False)
    print_check(judged, Console(width=200))
    printed = capsys.readouterr().out.replace("\N{NO-BREAK SPACE}", " ")
    assert re.search(r"\[red\]x REFUSED: 1 broken, 1 holds and 1 too small to judge", printed)
    assert re.search(r"group: hurt +400 +at most 5 % +20 % .* broken", printed)
    assert "95 % confidence for all 2 comparisons of a model together (Bonferroni" in printed


def test_runs_of_the_same_seed_are_the_same() -> None:
    one, two = (check(audited(), policy(max_group_drop=0.05), progress=False) for _ in range(2))
    assert one == two
    assert isinstance(one.models[0], ModelCheck)
