"""People from tables of files, .npz archives and functions: read right, parted right, and bad input named."""

import io
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.groups import GroupLabels
from fair_prune_plugins.workflow import digits, sources
from fair_prune_plugins.workflow.data import Augmentation, Batches, Normalisation, Part, Samples, draw_parts
from fair_prune_plugins.workflow.data_config import FunctionData, NpzData, Parts, TableData

COUNT = 40


def picture(shade: int, size: tuple[int, int] = (12, 12), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, (shade,) * 3 if mode == "RGB" else shade).save(buffer, "PNG")
    return buffer.getvalue()


def table_of(count: int = COUNT) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "file": [f"faces/{i}.png" for i in range(count)],
            "smile": ["yes" if i % 2 else "no" for i in range(count)],
            "skin": ["dark" if i % 4 < 2 else "light" for i in range(count)],
            "sex": ["f" if i % 3 else "m" for i in range(count)],
            "part": ["held" if i % 5 == 0 else "rest" for i in range(count)],
        }
    )


def write(
    folder: Path, table: pd.DataFrame, images: dict[str, bytes], *, zipped: bool = True, inside: bool = True
) -> None:
    """The table and images, as a zip archive or a folder; ``inside`` puts the table among the images."""
    members = dict(images)
    if inside:
        members["labels.csv"] = table.to_csv(index=False).encode()
    else:
        table.to_csv(folder / "labels.csv", index=False)
    if zipped:
        with zipfile.ZipFile(folder / "images.zip", "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    else:
        for name, data in members.items():
            target = folder / "images" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)


def images_of(table: pd.DataFrame) -> dict[str, bytes]:
    return {str(name): picture(i * 5) for i, name in enumerate(table["file"])}


def load(folder: Path, *, images: str = "images.zip", **changes: object) -> Samples:
    settings = {
        "images": images,
        "table": "labels.csv",
        "target": "smile",
        "groups": ["skin", "sex"],
        "parts": {"column": "part", "train": "rest", "test": "held"},
        "validation": 0.25,
    }
    return sources.load(TableData.model_validate({**settings, **changes}), base=folder, seed=0)


@pytest.mark.parametrize(("zipped", "inside"), [(True, True), (True, False), (False, True), (False, False)])
def test_a_table_of_files_is_read_in_order(tmp_path: Path, zipped: bool, inside: bool) -> None:
    table = table_of()
    write(tmp_path, table, images_of(table), zipped=zipped, inside=inside)
    people = load(tmp_path, images="images.zip" if zipped else "images")
    assert people.inputs.shape == (COUNT, 3, 12, 12)
    assert people.inputs.dtype == np.uint8
    assert (people.inputs[:, 0, 0, 0] == np.arange(COUNT) * 5).all()
    assert people.classes == ("no", "yes")
    assert [people.classes[c] for c in people.labels] == table["smile"].tolist()
    expected = [f"{a} x {b}" for a, b in zip(table["skin"], table["sex"], strict=True)]
    assert [people.groups.names[c] for c in people.groups.codes] == expected
    assert set(people.rows(Part.TEST)) == set(np.flatnonzero(table["part"] == "held"))
    assert people.sizes == {"train": 24, "validation": 8, "test": 8}
    assert people.called == people.ids == tuple(table["file"])


def test_rows_are_called_by_number_where_files_do_not_tell_them_apart(tmp_path: Path) -> None:
    table = table_of()
    table.loc[1, "file"] = table.loc[0, "file"]
    write(tmp_path, table, images_of(table))
    people = load(tmp_path)
    assert people.ids == ()
    assert people.called == tuple(map(str, range(COUNT)))


def test_parquet_grey_and_resizing(tmp_path: Path) -> None:
    table = table_of()
    write(tmp_path, table, images_of(table))
    table.to_parquet(tmp_path / "people.parquet")
    people = load(tmp_path, table="people.parquet", channels=1, size=8)
    assert people.inputs.shape == (COUNT, 1, 8, 8)
    assert (people.inputs[:, 0, 0, 0] == np.arange(COUNT) * 5).all()


def test_the_validation_people_depend_on_the_seed_and_leave_the_test_people_alone(tmp_path: Path) -> None:
    table = table_of()
    write(tmp_path, table, images_of(table))
    settings = TableData(
        kind="table", images="images.zip", table="labels.csv", target="smile", groups=["skin"], test=0.2, validation=0.2
    )
    same, again, other = (sources.load(settings, base=tmp_path, seed=s) for s in (1, 1, 2))
    assert same.fingerprint() == again.fingerprint() != other.fingerprint()
    assert same.sizes == other.sizes == {"train": 24, "validation": 8, "test": 8}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("damage", ["cut", "text"])
def test_a_corrupt_image_is_named_and_can_be_left_out(tmp_path: Path, zipped: bool, damage: str) -> None:
    table = table_of()
    images = images_of(table)
    images["faces/7.png"] = images["faces/7.png"][:50] if damage == "cut" else b"not an image"
    write(tmp_path, table, images, zipped=zipped)
    place = "images.zip" if zipped else "images"
    with pytest.raises(InputError, match=rf"'faces/7.png' in .*{place} cannot be read.*skip_corrupt: true"):
        load(tmp_path, images=place)
    people = load(tmp_path, images=place, skip_corrupt=True)
    assert len(people) == COUNT - 1
    assert people.inputs[7, 0, 0, 0] == 8 * 5, "the rows after it must keep their own images, labels and groups"
    assert people.classes[people.labels[7]] == table["smile"][8]
    assert people.notes == ("1 of 40 images are damaged and were left out, the first 'faces/7.png'.",)


def test_damage_that_only_the_archive_notices_is_named(tmp_path: Path) -> None:
    table = table_of()
    write(tmp_path, table, images_of(table))
    data = bytearray((tmp_path / "images.zip").read_bytes())
    with zipfile.ZipFile(tmp_path / "images.zip") as archive:
        info = archive.getinfo("faces/3.png")
    data[info.header_offset + 30 + len(info.filename) + info.file_size - 15] ^= 0xFF
    (tmp_path / "images.zip").write_bytes(data)
    with pytest.raises(InputError, match=r"'faces/3.png'.*CRC"):
        load(tmp_path)


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    table = table_of()
    images = images_of(table)
    del images["faces/9.png"]
    write(tmp_path, table, images)
    with pytest.raises(InputError, match=r"'faces/9.png' \(row 9 of the table\) is not in"):
        load(tmp_path, skip_corrupt=True)


def test_images_of_different_sizes_are_named_unless_resized(tmp_path: Path) -> None:
    table = table_of()
    images = images_of(table)
    images["faces/9.png"] = picture(1, (14, 10))
    write(tmp_path, table, images)
    with pytest.raises(InputError, match=r"'faces/9.png'.* is 10 x 14 pixels .*others are 12 x 12; set data.size"):
        load(tmp_path)
    assert load(tmp_path, size=12).inputs.shape == (COUNT, 3, 12, 12)


Change = Callable[[pd.DataFrame], object]


def _put(column: str, row: int, value: object) -> Change:
    def change(table: pd.DataFrame) -> None:
        table[column] = table[column].astype(object)
        table.loc[row, column] = value

    return change


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        (None, {"groups": ["race"]}, r"data.groups: the data has no column 'race'; it has \['file', 'part'"),
        (None, {"target": "frown"}, "data.target: the data has no column 'frown'"),
        (None, {"file": "path"}, "data.file: the data has no column 'path'"),
        (None, {"parts": {"column": "split"}}, "data.parts.column: the data has no column 'split'"),
        (None, {"images": "none.zip"}, "data.images: there is no folder or zip archive at"),
        (None, {"table": "none.csv"}, "data.table: none.csv is neither a file nor inside"),
        (None, {"table": "labels.txt"}, "must end in .csv or .parquet"),
        (None, {"parts": {"column": "part", "train": "rest", "test": "tst"}}, "'held'; allowed are"),
        (_put("file", 3, None), {}, "data.file: 1 of 40 rows name no image, first row 3"),
        (_put("smile", 3, None), {}, "data.target: 1 of 40 people have no value, first in row 3"),
        (_put("smile", 5, "grin"), {}, "the test part has the value 'grin' .row 5., which is not among the classes"),
        (None, {"classes": ["no", "maybe"]}, "has the value 'yes' .row 1."),
        (lambda t: t.update({"smile": ["no"] * COUNT}), {}, "only the class 'no'"),
        (
            lambda t: t.update({"skin": [""] * COUNT}),
            {"groups": ["skin"]},
            "not one of the 40 people has a known value",
        ),
        (lambda t: t.update({"part": ["rest"] * COUNT}), {}, "data.parts.test: no person is left for the test part"),
        (None, {"validation": 0.01}, "data.validation: no person is left for the validation part .* enlarge"),
    ],
)
def test_bad_tables_are_refused_in_words(
    tmp_path: Path, change: Change | None, settings: dict[str, object], said: str
) -> None:
    table = table_of()
    if change is not None:
        change(table)
    write(tmp_path, table, images_of(table))
    with pytest.raises(InputError, match=said):
        load(tmp_path, **settings)


def test_text_in_a_csv_file_stays_as_it_stands(tmp_path: Path) -> None:
    table = table_of()
    table["file"] = [f"{i:05d}" for i in range(COUNT)]
    table["skin"] = ["None" if i % 4 < 2 else "NA" for i in range(COUNT)]
    table["smile"] = ["01" if i % 2 else "1" for i in range(COUNT)]
    _put("skin", 6, None)(table)
    write(tmp_path, table, images_of(table))
    people = load(tmp_path, groups=["skin"])
    assert (people.inputs[:, 0, 0, 0] == np.arange(COUNT) * 5).all()
    assert people.groups.names == ("NA", "None")
    assert people.groups.codes[:7].tolist() == [1, 1, 0, 0, 1, 1, -1]
    assert len(people.classes) == 2


def test_a_negative_code_in_a_csv_file_is_an_unknown_group(tmp_path: Path) -> None:
    table = table_of()
    table["skin"] = [(i % 4 < 2) * 1 for i in range(COUNT)]
    table.loc[6, "skin"] = -1
    write(tmp_path, table, images_of(table))
    people = load(tmp_path, groups=["skin"])
    assert people.groups.names == ("0", "1")
    assert people.groups.codes[6] == -1


def test_people_of_unknown_group_are_kept_and_said(tmp_path: Path) -> None:
    table = table_of()
    _put("sex", 4, None)(table)
    write(tmp_path, table, images_of(table))
    people = load(tmp_path)
    assert len(people) == COUNT
    assert people.groups.codes[4] == -1
    batch = next(iter(Batches(people, np.arange(6), Normalisation.of_training(people))))
    assert batch["group"][4] is None


@pytest.mark.real_data
def test_real_faces_are_read_out_of_their_archive() -> None:
    place = Path(os.environ.get("FAIR_PRUNE_DATA", Path(__file__).parents[2] / "shared/data"))
    if not (place / "fairface-tiny-48.zip").is_file():
        pytest.skip(f"fairface-tiny-48.zip is not in {place}; FAIR_PRUNE_DATA names the folder of the real data")
    settings = TableData(
        kind="table",
        images="fairface-tiny-48.zip",
        table="labels.csv",
        target="gender",
        groups=["race", "gender"],
        parts=Parts(column="part"),
        validation=0.2,
    )
    faces = sources.load(settings, base=place, seed=0)
    assert faces.inputs.shape == (2800, 3, 48, 48)
    assert faces.sizes == {"train": 1680, "validation": 420, "test": 700}
    assert faces.classes == ("Female", "Male")
    for part, each in ((Part.TRAIN, 120), (Part.VALIDATION, 30), (Part.TEST, 50)):
        assert faces.groups.take(faces.rows(part)).counts.tolist() == [each] * 14


def npz(folder: Path, **arrays: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    default = {
        "inputs": rng.integers(0, 256, (COUNT, 3, 6, 6)).astype(np.uint8),
        "labels": np.arange(COUNT) % 2,
        "sex": np.where(np.arange(COUNT) % 3 == 0, "m", "f"),
    }
    np.savez(folder / "people.npz", **{**default, **arrays})


def load_npz(folder: Path, **changes: object) -> Samples:
    return sources.load(
        NpzData.model_validate({"path": "people.npz", "groups": ["sex"], **changes}), base=folder, seed=0
    )


def test_npz_layouts_agree(tmp_path: Path) -> None:
    npz(tmp_path)
    first = load_npz(tmp_path)
    npz(tmp_path, inputs=first.inputs.transpose(0, 2, 3, 1))
    assert (load_npz(tmp_path, layout="nhwc").inputs == first.inputs).all()
    npz(tmp_path, inputs=first.inputs[:, 0])
    assert (load_npz(tmp_path, layout="nhw").inputs == first.inputs[:, :1]).all()
    npz(tmp_path, inputs=first.inputs[:, 0, 0].astype(np.float64))
    assert load_npz(tmp_path, layout="features").inputs.dtype == np.float32


@pytest.mark.parametrize(
    ("arrays", "settings", "said"),
    [
        ({}, {"groups": ["race"]}, r"data.groups: the data has no column 'race'; it has \['inputs', 'labels', 'sex'\]"),
        ({}, {"layout": "nhw"}, "data.layout: nhw needs 3 dimensions"),
        ({"labels": np.arange(COUNT) % 3}, {"classes": ["a", "b"]}, r"labels must be 0 to 1 .* got 0 to 2 \(row 2\)"),
        ({"labels": np.arange(COUNT) % 2 - 1}, {"classes": ["a", "b"]}, "labels must be 0 to 1 .* got -1 to 0"),
        ({"labels": np.arange(COUNT) % 3}, {"classes": ["a", "b"]}, r"data\.labels: the labels .* in data\.classes"),
        ({"labels": np.where(np.arange(COUNT) % 2, 1, np.nan)}, {}, "data.labels: 20 of 40 people have no value"),
        ({"labels": np.array(["a", "b"] * 20)}, {"classes": ["a", "c"]}, "data.labels: the .* has the value 'b'"),
        ({"labels": np.arange(COUNT - 1) % 2}, {}, "'labels' must have one value for each of 40 inputs"),
        ({"labels": np.array([None] * COUNT)}, {}, "'labels' holds Python objects"),
        ({"inputs": np.full((COUNT, 4), np.nan)}, {"layout": "features"}, "NaN or infinite values, first in row 0"),
    ],
)
def test_bad_npz_is_refused_in_words(
    tmp_path: Path, arrays: dict[str, np.ndarray], settings: dict[str, object], said: str
) -> None:
    npz(tmp_path, **arrays)
    with pytest.raises(InputError, match=said):
        load_npz(tmp_path, **settings)


def test_what_is_not_npz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "people.npz").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"cannot be read as \.npz"):
        load_npz(tmp_path)


def test_class_codes_may_stand_for_named_classes(tmp_path: Path) -> None:
    npz(tmp_path)
    people = load_npz(tmp_path, classes=["cat", "dog"])
    assert people.classes == ("cat", "dog")
    assert (people.labels == np.arange(COUNT) % 2).all()


@pytest.mark.parametrize(
    ("body", "reference", "said"),
    [
        ("def load(): return 3", "m:load", "must return fair_prune_plugins.workflow.data.Samples, got int"),
        ("def load(): raise KeyError('x')", "m:load", "was called with no options and failed: KeyError: 'x'"),
        ("def lode(): pass", "m:load", r"has no function 'load'; it has \['lode'\]"),
        ("load = 3", "m:load", "is a int, not a function"),
        ("", "nowhere_at_all:load", "no module 'nowhere_at_all' can be imported"),
        ("", "load", "must look like module:function"),
    ],
)
def test_functions_that_do_not_give_people(tmp_path: Path, body: str, reference: str, said: str) -> None:
    module = f"people_{tmp_path.name.replace('-', '_')}"  # a module is imported once per process, so each has its name
    (tmp_path / f"{module}.py").write_text(body)
    reference = reference.replace("m:", f"{module}:")
    with pytest.raises(InputError, match=said):
        sources.load(FunctionData(kind="function", function=reference), base=tmp_path, seed=0)


def test_a_function_gives_people_and_the_configuration_adds_attribution() -> None:
    reference = "fair_prune_plugins.workflow.digits:load"
    settings = FunctionData(kind="function", function=reference, options={"test": 0.5}, attribution=["One more line."])
    people = sources.load(settings, base=Path(), seed=0)
    assert people.sizes["test"] == pytest.approx(1797 / 2, abs=1)
    assert people.attribution == (digits.ATTRIBUTION, "One more line.")


def test_a_function_that_takes_a_seed_gets_that_of_the_run() -> None:
    reference = "fair_prune_plugins.workflow.digits:load"
    settings = FunctionData(kind="function", function=reference)
    for seed in (0, 1):
        assert sources.load(settings, base=Path(), seed=seed).fingerprint() == digits.load(seed=seed).fingerprint()
    fixed = FunctionData(kind="function", function=reference, options={"seed": 5})
    assert sources.load(fixed, base=Path(), seed=1).fingerprint() == digits.load(seed=5).fingerprint()


def some_people(count: int = 30, **changes: object) -> Samples:
    rng = np.random.default_rng(0)
    values: dict[str, object] = {
        "inputs": rng.integers(0, 256, (count, 2, 5, 5)).astype(np.uint8),
        "labels": np.arange(count) % 3,
        "classes": ("a", "b", "c"),
        "groups": GroupLabels(("x", "y"), np.arange(count) % 2, "g"),
        "parts": np.array([str(list(Part)[i // 3 % 3]) for i in range(count)], dtype=object),
    }
    return Samples(**{**values, **changes})  # type: ignore[arg-type]


def test_normalisation_is_that_of_the_training_people() -> None:
    people = some_people()
    normalise = Normalisation.of_training(people)
    train = people.inputs[people.rows(Part.TRAIN)] / 255
    np.testing.assert_allclose(normalise.mean, train.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(normalise.std, train.std(axis=(0, 2, 3)), rtol=1e-12)
    out = normalise(torch.from_numpy(people.inputs[people.rows(Part.TRAIN)])).numpy()
    np.testing.assert_allclose(out.mean(axis=(0, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(out.std(axis=(0, 2, 3)), 1, rtol=1e-6)
    entries = normalise.metadata("in 0 to 1")
    np.testing.assert_allclose([float(m) for m in entries["normalisation_mean"].split()], normalise.mean, rtol=1e-8)


def test_a_constant_feature_is_not_divided_by_zero() -> None:
    people = some_people(inputs=np.ones((30, 4), dtype=np.float32))
    assert Normalisation.of_training(people).std == (1.0,) * 4


@pytest.mark.parametrize(("shares", "count"), [((0.2, 0.35), 1000), ((0.1, 0.1), 57), ((0.5, 0.25), 16)])
def test_parts_take_their_share_of_every_cell(shares: tuple[float, float], count: int) -> None:
    rng = np.random.default_rng(3)
    cells = rng.choice(["a", "b", "c", "rare"], count, p=[0.5, 0.3, 0.15, 0.05]).tolist()
    parts = draw_parts(cells, {Part.VALIDATION: shares[0], Part.TEST: shares[1]}, seed=0)
    for cell in set(cells):
        mine = parts[np.array(cells) == cell]
        for part, share in ((Part.VALIDATION, shares[0]), (Part.TEST, shares[1])):
            assert abs((mine == part).sum() - share * len(mine)) <= 2
    assert abs((parts == Part.TEST).sum() - shares[1] * count) <= 1


def test_parts_must_leave_people_for_training() -> None:
    with pytest.raises(InputError, match="leave people for training"):
        draw_parts(["a"] * 10, {Part.VALIDATION: 0.5, Part.TEST: 0.5}, seed=0)


def test_batches_hold_each_person_once_and_shuffle_by_seed() -> None:
    people = some_people(60)
    rows = people.rows(Part.TRAIN)
    normalise = Normalisation((0.0, 0.0), (1.0, 1.0))
    plain = Batches(people, rows, normalise, 8)
    assert len(plain) == 3
    together = torch.cat([b["inputs"] for b in plain])
    torch.testing.assert_close(together * 255, torch.from_numpy(people.inputs[rows]).float())
    assert [g for b in plain for g in b["group"]] == [people.groups.names[c] for c in people.groups.codes[rows]]

    def order(seed: int, passes: int) -> list[float]:
        shuffled = Batches(people, rows, normalise, 8, shuffle_seed=seed)
        assert len(shuffled) == 2
        return [float(x) for _ in range(passes) for b in shuffled for x in b["inputs"].sum(dim=(1, 2, 3))]

    assert order(1, 2) == order(1, 2) != order(2, 2)
    assert order(1, 2)[:16] != order(1, 2)[16:], "each pass draws a new order"


def test_augmentation_moves_and_mirrors() -> None:
    images = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8).repeat(200, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    flipped = Augmentation(flip=True)(images, generator)
    mirrored = (flipped == images.flip(-1)).all(dim=(1, 2, 3))
    assert ((flipped == images).all(dim=(1, 2, 3)) ^ mirrored).all()
    assert 60 < int(mirrored.sum()) < 140
    shifted = Augmentation(shift=2)(images, generator)
    padded = torch.nn.functional.pad(images[:1].float(), (2, 2, 2, 2), mode="replicate")[0, 0]
    windows = {tuple(padded[i : i + 8, j : j + 8].flatten().tolist()) for i in range(5) for j in range(5)}
    assert {tuple(s.flatten().tolist()) for s in shifted} == windows


def test_the_digits_groups_are_fixed_on_the_training_images() -> None:
    people = digits.load(seed=0)
    assert len(people) == 1797
    assert people.inputs.shape[1:] == (1, 32, 32)
    assert people.groups.names == ("thin", "usual", "thick")
    train = people.rows(Part.TRAIN)
    for digit in range(10):
        mine = people.groups.codes[train][people.labels[train] == digit]
        shares = np.bincount(mine, minlength=3) / len(mine)
        np.testing.assert_allclose(shares, [0.2, 0.6, 0.2], atol=0.03)
    assert people.groups.too_small() == ()
    assert digits.load(seed=0).fingerprint() == people.fingerprint() != digits.load(seed=1).fingerprint()


def test_stroke_width_of_drawn_strokes() -> None:
    """A straight stroke of width w and length l >> w has area w l and an outline of about 2 l."""
    images = np.zeros((3, 40, 40), dtype=np.float32)
    for i, width in enumerate((1, 2, 4)):
        images[i, 2:38, 10 : 10 + width] = 1
    np.testing.assert_allclose(digits.stroke_width(images) / [1, 2, 4], 1, rtol=0.15)


def test_ids_tell_rows_apart_and_change_no_result() -> None:
    plain, named = some_people(), some_people(ids=tuple(f"person {i}" for i in range(30)))
    assert plain.called == tuple(map(str, range(30)))
    fewer = replace(
        plain,
        inputs=plain.inputs[:18],
        labels=plain.labels[:18],
        groups=plain.groups.take(range(18)),
        parts=plain.parts[:18],
    )
    assert fewer.called == plain.called[:18]
    assert named.fingerprint() == plain.fingerprint()
    with pytest.raises(InputError, match="different for all rows"):
        some_people(ids=("a",) * 30)
