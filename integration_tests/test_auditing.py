"""The whole audit in one call: its parts agree, its notes say what must be known, its JSON is strict."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from fair_prune_plugins.audit.auditing import audit
from fair_prune_plugins.audit.data import AuditData, ModelPredictions
from fair_prune_plugins.audit.forecast import Gradients, GroupGradient
from fair_prune_plugins.audit.result import Audit
from fair_prune_plugins.errors import InputError
from integration_tests.audited_people import LABELS, make_audit

FAST: dict[str, Any] = {"resamples": 60, "progress": False}


@pytest.fixture(scope="module")
def data() -> AuditData:
    return make_audit(700, seed=2, unknown=4)


@pytest.fixture(scope="module")
def found(data: AuditData) -> Audit:
    return audit(data, validation=make_audit(500, seed=1, who="validator"), **FAST)


def test_all_parts_are_about_the_same_people(data: AuditData, found: Audit) -> None:
    assert found.people == found.measures.n == found.risk.people == 700
    assert found.pruned == tuple(c.model for c in found.changes) == tuple(q.model for q in found.quality)
    assert found.countermeasures is not None
    assert found.countermeasures.test_people == 700
    assert found.countermeasures.validation_people == 500
    for model in data.models:
        for i, output in enumerate(found.measures.model(model.name).outputs):
            expected = accuracy_score(data.people.labels[:, i], model.runs[0][:, i] > 0)
            assert output.everybody.scores.accuracy.value == pytest.approx(expected)
    for changes, model in zip(found.changes, data.pruned, strict=True):
        for i, question in enumerate(changes.questions):
            expected = int(((model.runs[0][:, i] > 0) != (data.dense.runs[0][:, i] > 0)).sum())
            assert question.everyone.exemplars == expected
        assert found.changes_of(model.name) is changes
    # the countermeasures start from the very numbers that were measured
    for remedy in found.countermeasures.remedies:
        output = found.measures.model(remedy.model).output(remedy.output)
        assert remedy.accuracy.before.value == pytest.approx(output.everybody.scores.accuracy.value)
        assert remedy.rare_ratio is not None
        assert remedy.rare_ratio.before.value == pytest.approx(output.everybody.scores.rare_value.value)
        for shift in remedy.attributes:
            assert shift.gap.before.value == pytest.approx(output.attribute(shift.attribute).gaps.accuracy.value)
    sizes = found.attributes[0]
    assert sizes.unknown == 4
    assert sizes.groups == {
        name: int((data.people.groups[0].codes == g).sum()) for g, name in enumerate(data.people.groups[0].names)
    }


def test_json_is_strict_and_without_people_nobody_is_in_it(data: AuditData, found: Audit) -> None:
    text = json.dumps(found.as_dict(), allow_nan=False)
    assert json.loads(text)["risk"]["likely"][0]["id"] in data.people.ids
    assert json.loads(text)["countermeasures"]["chosen"][0]["rule"]["kind"] == "thresholds"
    hidden = json.dumps(found.as_dict(people=False), allow_nan=False)
    assert "person " not in hidden
    assert "validator " not in hidden
    both = json.loads(text)
    del both["risk"]["likely"]
    for changes in both["changes"]:
        del changes["listed"]
    assert both == json.loads(hidden)


def said(found: Audit, words: str) -> bool:
    return any(words in note for note in found.notes)


def test_notes_say_what_a_reader_must_know(found: Audit) -> None:
    assert said(found, "plain disagreement")
    assert said(found, "By race, 4 people have no known group")
    assert not said(found, "training people")
    assert not said(found, "No validation people")
    assert not said(found, "fewer than")
    bare = audit(make_audit(300, runs=2, pruned=1, trained=False, outputs=LABELS[:2]), minimum=60, **FAST)
    assert not said(bare, "plain disagreement")
    assert said(bare, "dense: 2, pruned 50 %: 2")
    assert said(bare, "Nothing is known of the training people")
    assert said(bare, "No validation people were given")
    assert said(bare, "By race, Indian has fewer than 60 people")
    assert bare.countermeasures is None


def test_the_dense_model_alone_gives_its_risks() -> None:
    data = make_audit(400, pruned=0, outputs=LABELS[:2])
    gradients = Gradients(
        "gender", tuple(GroupGradient(g, 200, 0.4, n, 0.01, 3.0, 200) for g, n in (("Female", 0.9), ("Male", 0.1))), ()
    )
    found = audit(data, validation=make_audit(300, seed=4, pruned=0, outputs=LABELS[:2]), gradients=[gradients], **FAST)
    assert found.changes == found.quality == found.pruned == ()
    assert found.countermeasures is None
    assert said(found, "Only the dense model was given")
    assert not said(found, "plain disagreement")
    kept = {g.group: g.gradient for g in found.risk.attributes[1].groups}
    assert kept["Female"] is not None
    assert kept["Female"].norm == 0.9
    json.dumps(found.as_dict(), allow_nan=False)
    with pytest.raises(InputError, match="no pruned model 'x'"):
        found.changes_of("x")


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_other_tasks(task: Any) -> None:
    outputs = ("smiles",) if task == "binary" else LABELS
    how: dict[str, Any] = {"task": task, "outputs": outputs, "pruned": 1}
    found = audit(make_audit(400, seed=2, **how), validation=make_audit(400, seed=1, **how), **FAST)
    assert found.task == task
    assert found.countermeasures is not None
    assert {r.kind for r in found.countermeasures.remedies} >= {"dense overrides", "human overrides"}
    json.dumps(found.as_dict(), allow_nan=False)


def test_models_of_whom_only_decisions_are_known() -> None:
    def blunt(data: AuditData) -> AuditData:
        models = [
            ModelPredictions(m.name, tuple(np.where(r > 0, 1.0, -1.0) for r in m.runs), graded=False)
            for m in data.models
        ]
        return dataclasses.replace(data, dense=models[0], pruned=tuple(models[1:]))

    how: dict[str, Any] = {"task": "binary", "outputs": ("smiles",), "pruned": 1}
    sharp = make_audit(400, seed=2, **how)
    found = audit(blunt(sharp), validation=blunt(make_audit(300, seed=1, who="other", **how)), **FAST)
    (output,) = found.measures.pruned[0].outputs
    expected = accuracy_score(sharp.people.labels, sharp.pruned[0].runs[0] > 0)
    assert output.everybody.scores.accuracy.value == pytest.approx(expected)
    assert found.countermeasures is not None
    assert found.countermeasures.remedies == found.countermeasures.curves == ()
    assert any("Only decisions are known of 'dense'" in note for note in found.countermeasures.notes)
    json.dumps(found.as_dict(), allow_nan=False)
