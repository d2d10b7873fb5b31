"""Tables of predictions and of people, put together by id; the oracle is a pandas merge by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from scipy.special import expit, logit, softmax

from fair_prune_plugins.audit.reading import (
    Inputs,
    ModelFiles,
    Parts,
    PeopleColumns,
    PredictionColumns,
    read_tables,
    taken_apart,
)
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.groups import GroupLabels

N = 60
COLUMNS = PeopleColumns(labels=("smiling",), groups=("race", "gender"), intersections=(("race", "gender"),))
Table = pd.DataFrame


@pytest.fixture
def people() -> Table:
    rng = np.random.default_rng(0)
    return Table(
        {
            "id": [f"{i:03d}" for i in rng.permutation(N)],  # leading zeros are part of an id
            "race": rng.choice(["Black", "White", "None"], N),
            "gender": rng.choice(["f", "m"], N),
            "smiling": rng.integers(0, 2, N),
            "hat": rng.integers(0, 2, N),
            "animal": rng.choice(["cat", "dog", "owl"], N),
        }
    )


def scores(people: Table, seed: int, *names: str) -> Table:
    """Predictions in another order than the people's."""
    rng = np.random.default_rng(seed)
    table = Table({"id": people["id"], **{name: rng.normal(0, 2, len(people)) for name in names}})
    return table.sample(frac=1, random_state=seed).reset_index(drop=True)


def written(folder: Path, **tables: Table) -> dict[str, Path]:
    """Every second table as Parquet."""
    paths = {}
    for i, (name, table) in enumerate(tables.items()):
        paths[name] = folder / f"{name}.{'parquet' if i % 2 else 'csv'}"
        _ = table.to_parquet(paths[name]) if i % 2 else table.to_csv(paths[name], index=False)
    return paths


def read(
    folder: Path, people: Table, dense: Table, *pruned: Table, columns: PeopleColumns = COLUMNS, **options: Any
) -> Inputs:
    files = written(folder, people=people, dense=dense, **{f"pruned_{i}": table for i, table in enumerate(pruned)})
    models = [ModelFiles(name, (path,)) for name, path in list(files.items())[1:]]
    return read_tables(files["people"], models[0], models[1:], columns=columns, **options)


def merged(people: Table, table: Table, *names: str) -> npt.NDArray[np.float64]:
    """The oracle: a left join on the id, in the order of the people."""
    return people[["id"]].merge(table, on="id", how="left", validate="1:1")[list(names)].to_numpy(dtype=np.float64)


def test_rows_are_matched_by_id_whatever_their_order(tmp_path: Path, people: Table) -> None:
    dense, pruned = scores(people, 1, "logit"), scores(people, 2, "logit_smiling")
    found = read(tmp_path, people, dense, pruned).data
    assert found.people.ids == tuple(people["id"])
    assert np.array_equal(found.people.labels, people["smiling"])
    np.testing.assert_allclose(found.logits(found.dense)[0], merged(people, dense, "logit"), rtol=1e-12)
    np.testing.assert_allclose(found.logits(found.pruned[0])[0], merged(people, pruned, "logit_smiling"), rtol=1e-12)
    assert [g.attribute for g in found.people.groups] == ["race", "gender", "race x gender"]
    crossed = found.people.groups[2]
    for row, (race, gender) in enumerate(zip(people["race"], people["gender"], strict=True)):
        assert crossed.names[crossed.codes[row]] == f"{race} x {gender}", "a group called None keeps its name"


def test_several_files_are_runs_of_one_model(tmp_path: Path, people: Table) -> None:
    tables = {f"seed_{i}": scores(people, i, "logit") for i in range(3)}
    files = written(tmp_path, people=people, **tables)
    model = ModelFiles("dense", tuple(files[name] for name in tables))
    found = read_tables(files["people"], model, columns=COLUMNS).data
    assert found.dense.run_names == ("seed_0", "seed_1", "seed_2")
    for table, logits in zip(tables.values(), found.logits(found.dense), strict=True):
        np.testing.assert_allclose(logits, merged(people, table, "logit"), rtol=1e-12)


def test_several_labels_are_found_by_name_in_any_order_of_columns(tmp_path: Path, people: Table) -> None:
    columns = PeopleColumns(labels=("smiling", "hat"), groups=("race",))
    dense = scores(people, 1, "hat", "smiling")  # the other way round
    dense["extra"] = 1.0
    found = read(tmp_path, people, dense, columns=columns).data
    assert found.people.task == "multilabel"
    assert found.people.outputs == ("smiling", "hat")
    assert np.array_equal(found.people.labels, people[["smiling", "hat"]])
    np.testing.assert_allclose(found.logits(found.dense)[0], merged(people, dense, "smiling", "hat"), rtol=1e-12)


@pytest.mark.parametrize("kind", ["logits", "probabilities", "names", "one-hot"])
def test_classes(tmp_path: Path, people: Table, kind: str) -> None:
    columns = PeopleColumns(labels=("animal",), groups=("race",))
    classes = ["cat", "dog", "owl"]
    raw = scores(people, 3, *reversed(classes))
    values = raw[classes].to_numpy()
    dense = raw.copy()
    if kind == "probabilities":
        dense[classes] = softmax(values, axis=1)
    elif kind == "names":
        dense = Table({"id": raw["id"], "prediction": np.array(classes)[values.argmax(1)]})
    elif kind == "one-hot":
        dense[classes] = np.eye(3, dtype=int)[values.argmax(1)]
    inputs = read(tmp_path, people, dense, columns=columns)
    found = inputs.data
    assert found.people.task == "multiclass"
    assert found.people.outputs == tuple(classes)
    assert found.people.labels.tolist() == [classes.index(a) for a in people["animal"]]
    expected = merged(people, raw, *classes)
    assert np.array_equal(found.decisions(found.dense, 0)[:, 0], expected.argmax(1))
    assert found.dense.graded == (kind in ("logits", "probabilities"))
    if found.dense.graded:
        np.testing.assert_allclose(found.probabilities(found.dense, 0), softmax(expected, axis=1), rtol=1e-9)
    else:
        assert "Only decisions are known" in inputs.notes[0]
        with pytest.raises(InputError, match="only decisions are known"):
            found.probabilities(found.dense, 0)


def test_probabilities_become_logits_and_certainty_stays_finite(tmp_path: Path, people: Table) -> None:
    raw = scores(people, 1, "smiling")
    dense = raw.assign(smiling=expit(raw["smiling"]))
    dense.loc[:1, "smiling"] = [0.0, 1.0]
    inputs = read(tmp_path, people, dense)
    got = inputs.data.logits(inputs.data.dense)[0][:, 0]
    at = {name: i for i, name in enumerate(people["id"])}
    rows = [at[i] for i in dense["id"]]
    np.testing.assert_allclose(got[rows][2:], logit(dense["smiling"].to_numpy())[2:], rtol=1e-9)
    assert got[rows[0]] < -30
    assert got[rows[1]] > 30
    assert "read as probabilities (all lie in 0 to 1" in inputs.notes[0]
    assert "2 probabilities are exactly 0 or 1" in inputs.notes[0]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0, 1], "decisions"),
        ([-1, 1], "decisions"),
        ([False, True], "decisions"),
        ([0.0, 0.3], "probabilities"),
        ([0.2, 1.3], "logits"),
        ([-0.1, 0.5], "logits"),
    ],
)
def test_what_a_column_holds_is_told_from_its_values(
    tmp_path: Path, people: Table, values: list[Any], kind: str
) -> None:
    dense = Table({"id": people["id"], "score": values * (N // 2)})
    inputs = read(tmp_path, people, dense)
    assert f"score read as {kind}" in inputs.notes[0]
    assert inputs.data.dense.graded == (kind != "decisions")
    expected = np.array(values * (N // 2), dtype=float) > (0.5 if kind == "probabilities" or values[0] == 0 else 0)
    assert np.array_equal(inputs.data.decisions(inputs.data.dense, 0)[:, 0], expected)
    if kind == "probabilities":
        declared = read(tmp_path, people, dense, predictions=PredictionColumns(kind="logits"))
        np.testing.assert_allclose(declared.data.logits(declared.data.dense)[0][:, 0], dense["score"])
        assert "as declared" in declared.notes[0]


def test_two_columns_of_two_classes(tmp_path: Path, people: Table) -> None:
    people["smiling"] = np.where(people["smiling"] == 1, "yes", "no")
    dense = scores(people, 1, "logit_yes", "logit_no")
    found = read(tmp_path, people, dense).data
    assert found.people.outputs == ("smiling: yes",)
    expected = merged(people, dense, "logit_yes") - merged(people, dense, "logit_no")
    np.testing.assert_allclose(found.logits(found.dense)[0], expected, rtol=1e-9, atol=1e-12)
    assert np.array_equal(found.people.labels, people["smiling"] == "yes")
    named = read(tmp_path, people, Table({"id": people["id"], "pred": people["smiling"]})).data
    assert np.array_equal(named.decisions(named.dense, 0)[:, 0], named.people.labels)


def test_columns_that_are_named_are_taken_in_that_order(tmp_path: Path, people: Table) -> None:
    columns = PeopleColumns(labels=("animal",), groups=("race",), classes=("owl", "dog", "cat", "emu"))
    dense = scores(people, 1, "a", "b", "c", "d")
    asked = PredictionColumns(columns=("c", "a", "d", "b"), kind="logits")
    found = read(tmp_path, people, dense, columns=columns, predictions=asked).data
    assert found.people.outputs == ("owl", "dog", "cat", "emu"), "a class that nobody has here"
    np.testing.assert_allclose(found.logits(found.dense)[0], merged(people, dense, "c", "a", "d", "b"), rtol=1e-12)


def test_one_file_can_hold_people_and_predictions(tmp_path: Path, people: Table) -> None:
    table = people.assign(logit=np.random.default_rng(0).normal(size=N))
    (path,) = written(tmp_path, people=table).values()
    found = read_tables(path, ModelFiles("dense", (path,)), columns=COLUMNS).data
    np.testing.assert_allclose(found.logits(found.dense)[0][:, 0], table["logit"], rtol=1e-12)


def test_ids_of_numbers_agree_between_csv_and_parquet(tmp_path: Path, people: Table) -> None:
    people["id"] = np.arange(N) * 7
    dense = scores(people, 1, "logit")
    found = read(tmp_path, people, dense).data  # the people as CSV, the predictions as Parquet
    assert found.people.ids[:2] == ("0", "7")
    np.testing.assert_allclose(found.logits(found.dense)[0], merged(people, dense, "logit"), rtol=1e-12)


def test_people_who_are_not_everywhere(tmp_path: Path, people: Table) -> None:
    dense, pruned = scores(people, 1, "logit"), scores(people, 2, "logit")
    lacking, gone = dense.iloc[3:], set(dense["id"].iloc[:3])
    with pytest.raises(InputError, match=r"dense\.parquet lacks 3 of the 60 people .*only-common"):
        read(tmp_path, people, lacking, pruned)
    extra = pd.concat([pruned, Table({"id": ["x", "y"], "logit": [0.0, 1.0]})])
    with pytest.raises(InputError, match=r"pruned_0\.csv has 2 of its 62 people not in .*first the id 'x' \(row 60\)"):
        read(tmp_path, people, dense, extra)
    inputs = read(tmp_path, people, lacking, extra, only_common=True)
    kept = people[~people["id"].isin(gone)]
    assert inputs.data.people.ids == tuple(kept["id"])
    np.testing.assert_allclose(inputs.data.logits(inputs.data.pruned[0])[0], merged(kept, extra, "logit"), rtol=1e-12)
    assert "Only the 57 people who are in all tables are audited; 3 of 60 are left out" in inputs.notes[-1]


def test_parts_give_validation_and_training_people(tmp_path: Path, people: Table) -> None:
    people["part"] = (["train"] * 3 + ["val"] * 2 + ["test"] * 5) * (N // 10)
    columns = PeopleColumns(labels=("smiling",), groups=("race",), parts=Parts("part", "test", "val", "train"))
    judged = people[people["part"] != "train"]
    dense = scores(judged, 1, "logit")  # nobody was asked about training people
    inputs = read(tmp_path, people, dense, columns=columns)
    for part, data in (("test", inputs.data), ("val", inputs.validation)):
        assert data is not None
        some = people[people["part"] == part]
        assert data.people.ids == tuple(some["id"])
        np.testing.assert_allclose(data.logits(data.dense)[0], merged(some, dense, "logit"), rtol=1e-12)
        assert data.training is not None
        trained = people[people["part"] == "train"]
        assert np.array_equal(data.training.labels, trained["smiling"])
        groups = data.training.groups[0]
        assert [groups.names[c] for c in groups.codes] == trained["race"].tolist()
    only_test = read(tmp_path, people, scores(people[people["part"] == "test"], 1, "logit"), columns=columns)
    assert only_test.validation is None
    assert "predictions of none of them" in only_test.notes[-1]


def test_unknown_groups_are_counted_apart(tmp_path: Path, people: Table) -> None:
    people.loc[[2, 5], "race"] = None
    people["gender"] = np.where(people["gender"] == "f", 0, 1)
    people.loc[7, "gender"] = -1
    race, gender, crossed = read(tmp_path, people, scores(people, 1, "logit")).data.people.groups
    assert np.flatnonzero(race.codes < 0).tolist() == [2, 5]
    assert np.flatnonzero(gender.codes < 0).tolist() == [7]
    assert np.flatnonzero(crossed.codes < 0).tolist() == [2, 5, 7]
    assert gender.names == ("0", "1")


def test_an_intersection_is_taken_apart() -> None:
    rows = {"race": ["B", "W", None, "W"], "gender": ["f", "m", "f", "f"]}
    crossed = GroupLabels.from_columns(rows)
    race, gender, same = taken_apart(crossed)
    assert same is crossed
    assert (race.attribute, race.names, race.codes.tolist()) == ("race", ("B", "W"), [0, 1, -1, 1])
    assert (gender.attribute, gender.names, gender.codes.tolist()) == ("gender", ("f", "m"), [0, 1, -1, 0])
    assert taken_apart(race) == (race,)


Spoil = Callable[[Table, Table], Any]
"""Changes the people or the dense model's predictions in place."""

JUDGED: dict[str, Any] = {"labels": ("smiling",), "groups": ("race",)}

BAD: dict[str, tuple[Spoil, dict[str, Any], str]] = {
    "repeated id": (
        lambda p, d: d.__setitem__("id", ["007", *d["id"][1:-1], "007"]),
        {},
        r"dense\.parquet: the id '007' is in the rows 0 and",
    ),
    "missing id": (
        lambda p, d: d.__setitem__("id", [None, *d["id"][1:]]),
        {},
        "nothing in the id column 'id', first row 0",
    ),
    "no id column": (
        lambda p, d: d.__setitem__("id", 0),
        {"predictions": PredictionColumns(id="key")},
        "no column 'key'; it has",
    ),
    "other ids": (
        lambda p, d: d.__setitem__("id", [f"x{i}" for i in range(N)]),
        {},
        r"not one id in common with .*people\.csv: ids such as 'x0' here and '\d{3}' there",
    ),
    "NaN": (
        lambda p, d: d.__setitem__("logit", [*d["logit"][1:], np.nan]),
        {},
        "NaN or infinity in the column 'logit'",
    ),
    "infinity": (
        lambda p, d: d.__setitem__("logit", [*d["logit"][1:], np.inf]),
        {},
        r"the id '\d+' has NaN or infinity",
    ),
    "words": (
        lambda p, d: d.__setitem__("logit", [*d["logit"].astype(str)[1:], "high"]),
        {},
        r"the id '\d+' has 'high' in the column 'logit', where numbers are expected",
    ),
    "a class that is none": (
        lambda p, d: d.__setitem__("decision", ["1", "2", *["1"] * (N - 2)]) or d.pop("logit"),
        {},
        r"decided to be '2' in the column 'decision'; the classes are \['0', '1'\]",
    ),
    "one column of three classes": (
        lambda p, d: None,
        {"columns": PeopleColumns(("animal",), ("race",))},
        "the single column 'logit' cannot hold logits of 3 classes",
    ),
    "no predictions": (lambda p, d: d.pop("logit"), {}, "no columns of predictions"),
    "two that might be": (
        lambda p, d: d.__setitem__("a", d.pop("logit")) or d.__setitem__("b", 1.0),
        {},
        r"no columns of predictions are recognised among \['a', 'b'\]",
    ),
    "beyond 1": (
        lambda p, d: d.__setitem__("prob", d.pop("logit")),
        {},
        "probabilities lie in 0 to 1",
    ),
    "no decisions": (lambda p, d: None, {"predictions": PredictionColumns(kind="decisions")}, "decisions are 0 or 1"),
    "a column too many": (
        lambda p, d: None,
        {"predictions": PredictionColumns(columns=("logit", "id", "x"))},
        "3 columns of predictions are named",
    ),
    "no label": (
        lambda p, d: p.__setitem__("smiling", [None, *p["smiling"][1:]]),
        {},
        "1 of 60 people have nothing in the label column 'smiling'",
    ),
    "no label column": (lambda p, d: p.pop("smiling"), {}, "has no column 'smiling'; it has"),
    "one class": (lambda p, d: p.__setitem__("smiling", 1), {}, "the label column 'smiling' has the single value '1'"),
    "an unknown class": (
        lambda p, d: None,
        {"columns": PeopleColumns(("animal",), ("race",), classes=("cat", "dog"))},
        r"has the label 'owl' in 'animal'; the classes are \['cat', 'dog'\]",
    ),
    "no yes or no": (
        lambda p, d: None,
        {"columns": PeopleColumns(labels=("smiling", "animal"), groups=("race",))},
        r"'animal' holds \['cat', 'dog', 'owl'\]; with several label columns each must hold 0 and 1",
    ),
    "no group column": (lambda p, d: p.pop("race"), {}, "has no column 'race'"),
    "an unknown group": (
        lambda p, d: None,
        {"columns": PeopleColumns(**JUDGED, names={"race": ["Black", "White"]})},
        r"the id '\d+' has the value 'None' in 'race'; the groups that were named are \['Black', 'White'\]",
    ),
    "groups all unknown": (
        lambda p, d: p.__setitem__("race", None),
        {},
        "none of the 60 rows has a known value of race",
    ),
    "an unknown part": (
        lambda p, d: None,
        {"columns": PeopleColumns(**JUDGED, parts=Parts("gender"))},
        r"in the column 'gender' of parts; expected are \['train', 'validation', 'test'\]",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tables_are_told(tmp_path: Path, people: Table, name: str) -> None:
    change, options, said = BAD[name]
    dense = scores(people, 1, "logit")
    change(people, dense)
    with pytest.raises(InputError, match=said):
        read(tmp_path, people, dense, **options)


def test_other_classes_are_told(tmp_path: Path, people: Table) -> None:
    columns = PeopleColumns(labels=("animal",), groups=("race",))
    more = scores(people, 1, "logit_cat", "logit_dog", "logit_owl", "logit_emu")
    with pytest.raises(InputError, match=r"has the columns \['logit_emu'\], and the people's classes are"):
        read(tmp_path, people, more, columns=columns)
    with pytest.raises(InputError, match=r"lacks the columns \['logit_owl'\] \(it has \['logit_cat', 'logit_dog'\]\)"):
        read(tmp_path, people, more.drop(columns=["logit_owl", "logit_emu"]), columns=columns)
    off = scores(people, 1, "cat", "dog", "owl")
    off[["cat", "dog", "owl"]] = 0.2
    asked = PredictionColumns(kind="probabilities")
    with pytest.raises(InputError, match=r"the probabilities of the id '\d+' sum to 0\.6, not to 1"):
        read(tmp_path, people, off, columns=columns, predictions=asked)
    off["cat"], off["dog"], off["owl"] = 1, 1, 0
    with pytest.raises(InputError, match=r"is decided for 2 classes over the columns"):
        read(tmp_path, people, off, columns=columns)


def test_runs_must_hold_the_same(tmp_path: Path, people: Table) -> None:
    decided = Table({"id": people["id"], "pred": 1})
    files = written(tmp_path, people=people, a=scores(people, 1, "logit"), b=decided)
    with pytest.raises(InputError, match=r"the runs of 'dense' hold different things: .*logits.*decisions"):
        read_tables(files["people"], ModelFiles("dense", (files["a"], files["b"])), columns=COLUMNS)


def test_files_that_cannot_be_read(tmp_path: Path, people: Table) -> None:
    good = written(tmp_path, people=people)["people"]
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "empty.csv").write_text("id,logit\n")
    (tmp_path / "nothing.csv").write_text("")
    (tmp_path / "twice.csv").write_text("id,logit,logit\n1,2,3\n")
    for name, said in (
        ("none.csv", "there is no table"),
        ("broken.parquet", "cannot be read as parquet"),
        ("empty.csv", "has no rows"),
        ("nothing.csv", "cannot be read as csv"),
        ("twice.csv", "two columns called 'logit'"),
        ("people.xlsx", r"must end in \.csv or \.parquet"),
    ):
        with pytest.raises(InputError, match=said):
            read_tables(good, ModelFiles("dense", (tmp_path / name,)), columns=COLUMNS)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"labels": ()}, "no label column is given"),
        ({"groups": ()}, "no sensitive attribute is given"),
        ({"intersections": (("race",),)}, "an intersection needs two or more"),
        ({"intersections": (("race", "age"),)}, "an intersection needs two or more"),
        ({"labels": ("a", "b"), "classes": ("no", "yes")}, "classes are named for one label column; there are 2"),
        ({"classes": ("no", "no")}, "two different classes or more"),
        ({"names": {"age": ["old"]}}, r"groups are named for \['age'\]"),
    ],
)
def test_columns_that_do_not_fit_each_other(columns: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        PeopleColumns(**{"labels": ("smiling",), "groups": ("race", "gender"), **columns})
