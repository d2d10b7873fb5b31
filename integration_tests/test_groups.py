"""Groups of people, from columns and from batches: nobody dropped, nobody merged, everything said."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.groups import SMALL_GROUP, UNKNOWN, GroupLabels, GroupReader, as_reader

NAN = float("nan")


def names_of(labels: GroupLabels) -> list[str | None]:
    return [None if c == UNKNOWN else labels.names[c] for c in labels.codes]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["b", "a", None, "b"], ["b", "a", None, "b"]),
        (["b", "", "  ", " a "], ["b", None, None, "a"]),
        ([1, 0, -1, 10], ["1", "0", None, "10"]),
        ([1.0, 0.0, NAN, 2.5], ["1", "0", None, "2.5"]),
        (np.array([1.0, np.nan, 0.0]), ["1", None, "0"]),
        (np.array([1, 0, -3], dtype=np.int8), ["1", "0", None]),
        (np.array(["x", "y"]), ["x", "y"]),
        (np.array([["x"], ["y"]]), ["x", "y"]),
        (np.array(["x", None, np.nan], dtype=object), ["x", None, None]),
        (torch.tensor([2, -1, 0]), ["2", None, "0"]),
        (torch.tensor([2.0, NAN]), ["2", None]),
        (torch.tensor([[1], [0]]), ["1", "0"]),
        ([torch.tensor(1), torch.tensor(0)], ["1", "0"]),
        ([True, False], ["True", "False"]),
        ([True, 1, 1.0, "1"], ["True", "1", "1", "1"]),
        (pd.Series(["x", None, "y"], index=[7, 8, 9]), ["x", None, "y"]),
        (pd.Series([1, None, 2], dtype="Int64"), ["1", None, "2"]),
        (pd.Series([True, None], dtype="boolean"), ["True", None]),
        (pd.Categorical(["x", np.nan, "y", "x"]), ["x", None, "y", "x"]),
        (pd.Series(pd.to_datetime(["2020-01-01", None])), ["2020-01-01 00:00:00", None]),
        ((n for n in "ab"), ["a", "b"]),
    ],
)
def test_values_of_any_kind(values: Any, expected: list[str | None]) -> None:
    labels = GroupLabels.from_columns({"attribute": values})
    assert names_of(labels) == expected
    assert labels.names == tuple(sorted({n for n in expected if n is not None}))
    assert labels.unknown == expected.count(None)
    assert labels.counts.tolist() == [expected.count(n) for n in labels.names]
    assert int(labels.counts.sum()) + labels.unknown == len(labels) == len(expected)
    reader = as_reader("key")
    codes = reader.read({"key": expected}, len(expected))
    assert [None if c < 0 else reader.known_names[c] for c in codes.tolist()] == expected


VALUES = st.sampled_from(["a", "b", "c", None, "", -1, 0, 1, NAN, 1.0, True])


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=30), st.integers(1, 7))
def test_reading_batches_is_reading_the_column(rows: list[tuple[Any, Any]], size: int) -> None:
    """People in each group are the same whether read at once or in batches, in whatever order."""

    def known(value: Any) -> str | None:
        if value in (None, "", -1) or value != value:
            return None
        return str(int(value)) if isinstance(value, float) else str(value)

    truth = Counter(None if known(a) is None or known(b) is None else f"{known(a)} x {known(b)}" for a, b in rows)
    first, second = zip(*rows, strict=True)
    labels = GroupLabels.from_columns({"first": first, "second": second})
    assert labels.attribute == "first x second"
    assert Counter(names_of(labels)) == truth
    for ordered in (rows, rows[::-1]):
        reader = as_reader([0, 1])
        codes: list[int] = []
        for start in range(0, len(ordered), size):
            part = ordered[start : start + size]
            codes += reader.read(tuple(zip(*part, strict=True)), len(part)).tolist()
        assert Counter(None if c < 0 else reader.known_names[c] for c in codes) == truth
        assert tuple(reader.known_names[i] for i in reader.order) == labels.names


def test_an_intersection_with_an_unknown_part_is_unknown() -> None:
    labels = GroupLabels.from_columns({"race": ["x", "x", None, "y"], "gender": ["f", None, "m", "f"]})
    assert labels.names == ("x x f", "y x f")
    assert labels.codes.tolist() == [0, UNKNOWN, UNKNOWN, 1]
    assert labels.attribute == "race x gender"
    assert "2 have no known group: they count in pooled numbers and in no group." in labels.statement()


def test_a_shared_vocabulary() -> None:
    labels = GroupLabels.from_columns({"g": ["b", None, "b"]}, names=["c", "b", "a"])
    assert labels.names == ("c", "b", "a")
    assert labels.codes.tolist() == [1, UNKNOWN, 1]
    assert labels.counts.tolist() == [0, 2, 0]
    assert labels.too_small() == ("c", "b", "a")
    assert labels.too_small(2) == ("c", "a")
    with pytest.raises(InputError, match=r"'g' has values outside the known groups \['a'\]: \['b'\]"):
        GroupLabels.from_columns({"g": ["b"]}, names=["a"])


def test_the_statement_says_who_is_too_few() -> None:
    labels = GroupLabels(("many", "one", "nobody"), np.array([0] * SMALL_GROUP + [1, -1]), "age")
    assert labels.statement() == (
        f"3 groups by age over {SMALL_GROUP + 2} people, 0 to {SMALL_GROUP} people each. 1 have no known group: they "
        f"count in pooled numbers and in no group. Too small to judge (under {SMALL_GROUP}): one (1), nobody (0)."
    )
    assert GroupLabels((), np.array([-1, -1]), "age").statement().startswith("0 groups by age over 2 people.")


def test_rows_can_be_taken() -> None:
    labels = GroupLabels(("a", "b"), np.array([0, 1, -1, 1]))
    assert labels.take([3, 2]).codes.tolist() == [1, -1]
    assert labels.take(np.array([True, False, False, True])).codes.tolist() == [0, 1]
    empty = labels.take([])
    assert (len(empty), empty.names, empty.counts.tolist()) == (0, ("a", "b"), [0, 0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GroupLabels(("a",), np.array([0, 1])), r"must lie in \[-1, 1\) \(-1 is unknown\), got 0 to 1"),
        (lambda: GroupLabels(("a",), np.array([-2, 0])), "got -2 to 0"),
        (lambda: GroupLabels(("a",), np.array([[0]])), r"one value per sample, got an array of shape \(1, 1\)"),
        (lambda: GroupLabels(("a",), np.array([0.0])), "must be integers, got float64"),
        (lambda: GroupLabels(("a", "a"), np.array([0])), r"not unique: \['a', 'a'\]"),
        (lambda: GroupLabels.from_columns({}), "no sensitive attribute given"),
        (lambda: GroupLabels.from_columns({"a": [1], "b": [1, 2]}), r"different lengths: {'a': 1, 'b': 2}"),
        (lambda: GroupLabels.from_columns({"a": "female"}), "one value per sample, got an array of shape a single str"),
        (lambda: GroupLabels.from_columns({"a": 3}), "a single int"),
        (lambda: GroupLabels.from_columns({"a": np.zeros((2, 3))}), r"shape \(2, 3\)"),
    ],
)
def test_what_is_not_groups(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def sex(batch: Any) -> Any:
    return batch["people"]["sex"]


@pytest.mark.parametrize(
    ("groups", "batch", "attribute"),
    [
        ("sex", {"sex": ["f", "m"]}, "sex"),
        (2, (None, None, ["f", "m"]), "group[2]"),
        (-1, [None, ["f", "m"]], "group[-1]"),
        (sex, {"people": {"sex": ["f", "m"]}}, "sex"),
        (lambda batch: batch["s"], {"s": ["f", "m"]}, "group"),
        ({"gender": "s"}, {"s": ["f", "m"]}, "gender"),
        (GroupReader({"gender": "s"}, value_names={"gender": ["f", "m"]}), {"s": torch.tensor([0, 1])}, "gender"),
        (GroupReader({"gender": "s"}, value_names={"gender": ["f", "m"]}), {"s": torch.tensor([0.0, 1.0])}, "gender"),
        (
            GroupReader({"gender": "s"}, value_names={"gender": ["f", "m"]}),
            {"s": torch.tensor([False, True])},
            "gender",
        ),
    ],
)
def test_ways_to_say_where_groups_are(groups: Any, batch: Any, attribute: str) -> None:
    reader = as_reader(groups)
    assert reader.read(batch, 2).tolist() == [0, 1]
    assert reader.known_names == ("f", "m")
    assert reader.attribute == attribute


@pytest.mark.parametrize(
    ("groups", "batch", "message"),
    [
        (
            "race",
            {"sex": [1, 2], "x": 0},
            r"the batch has no 'race' .* it is a dict with the keys \['sex', 'x'\]. Pass groups=",
        ),
        ("race", (1, 2), "it is a tuple of 2 items"),
        (2, (1, 2), "the batch has no 2 .* it is a tuple of 2 items"),
        ("race", torch.zeros(2), "it is a Tensor"),
        ("g", {"g": ["a"]}, "'g' has 1 values for a batch of 2; one value per sample is needed"),
        ("g", {"g": ["a"] * 3}, "'g' has 3 values for a batch of 2"),
        ("g", {"g": torch.zeros(2, 3)}, r"one value per sample, got an array of shape \(2, 3\)"),
        ("g", {"g": torch.tensor(1)}, r"got an array of shape \(\)"),
        ("g", {"g": "ab"}, "a single str"),
        (GroupReader({"g": "g"}, names=["a"]), {"g": ["a", "b"]}, r"outside the known groups \['a'\]: \['b'\]"),
        (GroupReader({"g": "g"}, value_names={"g": ["a"]}), {"g": [0, 1]}, "has the code 1, but only 1 value names"),
    ],
)
def test_batches_without_groups(groups: Any, batch: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_reader(groups).read(batch, 2)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({}, "no sensitive attribute given"),
        ([], "no sensitive attribute given"),
        (3.5, "must be a key, an index, a callable, or several of them, got float"),
        (["sex", "sex"], "need different names"),
    ],
)
def test_what_cannot_say_where_groups_are(groups: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_reader(groups)
    with pytest.raises(InputError, match=r"value_names has \['race'\], which are not among the attributes \['sex'\]"):
        GroupReader({"sex": "sex"}, value_names={"race": ["x"]})


def test_a_fixed_vocabulary_keeps_its_order_and_its_empty_groups() -> None:
    reader = GroupReader({"g": "g"}, names=["z", "a", "never"])
    assert reader.read({"g": ["a", None, "z"]}, 3).tolist() == [1, UNKNOWN, 0]
    assert reader.known_names == ("z", "a", "never")
    assert reader.order == [0, 1, 2]


def test_values_that_would_merge_two_intersections_are_refused() -> None:
    columns = {"race": ["a x b", "a"], "place": ["c", "b x c"]}
    with pytest.raises(InputError, match="contains ' x '"):
        GroupLabels.from_columns(columns)
    assert GroupLabels.from_columns({"race": columns["race"]}).names == ("a", "a x b")
