"""The audit's report fetches nothing, can be read by a screen reader, and shows numbers that were counted elsewhere."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import itertools
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score

from fair_prune_plugins.audit.auditing import audit
from fair_prune_plugins.audit.data import AuditData, ModelPredictions, People, TrainingPeople
from fair_prune_plugins.audit.report import model_card, render, write_report
from fair_prune_plugins.audit.result import Audit
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.groups import GroupLabels
from integration_tests.audited_people import make_audit

VOID = {"meta", "img", "source", "br", "link", "input", "hr"}
WHEN = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
FAST: dict[str, Any] = {"resamples": 60, "progress": False}
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to open the page with")


class Page(HTMLParser):
    """Tags in order, balance, text, and every table as rows of (tag, text, attributes)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.tables: list[dict[str, Any]] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append({"caption": "", "rows": []})
        elif tag == "tr":
            self.tables[-1]["rows"].append([])
        elif tag in ("th", "td"):
            self.tables[-1]["rows"][-1].append([tag, "", dict(attrs)])

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words.append(data)
        if "caption" in self.open:
            self.tables[-1]["caption"] += data
        elif {"td", "th"} & set(self.open):
            self.tables[-1]["rows"][-1][-1][1] += f" {data}"

    @property
    def text(self) -> str:
        return plain(" ".join(self.words))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    def table(self, start: str) -> dict[str, list[str]]:
        """Cells by row head, of the table whose caption starts so."""
        (found,) = (t for t in self.tables if plain(t["caption"]).startswith(start))
        return {plain(row[0][1]): [plain(cell[1]) for cell in row[1:]] for row in found["rows"][1:]}


def plain(text: str) -> str:
    return " ".join(text.replace("\N{NO-BREAK SPACE}", " ").split())


@pytest.fixture(scope="module")
def digits() -> tuple[AuditData, AuditData]:
    """Real digits under a logistic regression and the same with most weights gone; groups by the ink on the paper."""
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(labels))
    train, validation, test = order[:600], order[600:1000], order[1000:]
    model = LogisticRegression(max_iter=300, C=0.01).fit(images[train] / 16, labels[train])
    ink = np.digitize(images.sum(axis=1), [285, 340])
    side = (images.reshape(-1, 8, 8)[:, :, :4].sum(axis=(1, 2)) > images.sum(axis=1) / 2).astype(int)
    weights = np.where(np.abs(model.coef_) < np.quantile(np.abs(model.coef_), 0.8), 0, model.coef_)

    def groups(rows: Any) -> tuple[GroupLabels, ...]:
        names = ("bold", "regular", "thin")
        return (
            GroupLabels(names, 2 - ink[rows], "stroke"),
            GroupLabels(("leans left", "leans right"), 1 - side[rows], "side"),
        )

    def data(rows: Any) -> AuditData:
        x = images[rows] / 16
        logits = [x @ w.T + model.intercept_ for w in (model.coef_, weights)]
        people = People(
            tuple(f"digit-{i:04d}" for i in rows),
            labels[rows].astype(np.int64),
            groups(rows),
            tuple(map(str, range(10))),
            "multiclass",
        )
        return AuditData(
            people,
            ModelPredictions("dense", (logits[0],)),
            (ModelPredictions("80 % gone", (logits[1],)),),
            TrainingPeople(labels[train].astype(np.int64), groups(train)),
        )

    return data(validation), data(test)


@pytest.fixture(scope="module")
def found(digits: tuple[AuditData, AuditData]) -> Audit:
    return audit(digits[1], validation=digits[0], **FAST)


@pytest.fixture(scope="module")
def alone(digits: tuple[AuditData, AuditData]) -> Audit:
    return audit(dataclasses.replace(digits[1], pruned=()), **FAST)


@pytest.fixture(scope="module")
def text(found: Audit) -> str:
    return render(found, title="digits", when=WHEN)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


@pytest.fixture(scope="module")
def many() -> Audit:
    """Many outputs and groups, some of them too small, several runs."""
    races = tuple(f"{r} x {g}" for r in ("A", "B", "C", "D", "E", "F", "G") for g in ("Female", "Male"))
    how: dict[str, Any] = {"outputs": tuple(f"label {i}" for i in range(40)), "races": races, "pruned": 1, "unknown": 3}
    return audit(make_audit(500, seed=2, **how), **{**FAST, "resamples": 40})


def check_structure(page: Page) -> None:
    """What makes a page readable for those who do not see it."""
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == len(page.all("main")) == len(page.all("title")) == 1
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [str(a["id"]) for _, a in page.tags if "id" in a]
    assert len(set(ids)) == len(ids)
    for section in page.all("section"):
        assert section["aria-labelledby"] in ids
    links = [str(a["href"]) for a in page.all("a")]
    assert links[0] == "#findings"
    assert {link[1:] for link in links} <= set(ids)
    for image in page.all("img"):
        assert image["alt"]
        assert int(image["width"] or 0) > 0
    assert page.tables
    for table in page.tables:
        assert plain(table["caption"])
        width = len(table["rows"][0])
        assert all(cell[0] == "th" and cell[2]["scope"] == "col" for cell in table["rows"][0])
        for row in table["rows"][1:]:
            assert row[0][0] == "th"
            assert row[0][2]["scope"] in ("row", "rowgroup")
            assert all(cell[0] == "td" for cell in row[1:])
            assert sum(int(cell[2].get("colspan") or 1) for cell in row) == width, table["caption"]
    regions = [a for a in page.all("div") if a.get("class") == "scroll"]
    assert len(regions) == len(page.tables)
    for region in regions:
        assert (region["role"], region["tabindex"]) == ("region", "0")
        assert region["aria-label"]
    assert len(page.all("details")) == len(page.all("summary"))


def check_nothing_is_fetched(text: str, page: Page) -> None:
    for tag, attrs in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        for name in ("src", "srcset", "href", "action", "poster", "data"):
            value = attrs.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, name, value)
        assert not any(name.startswith("on") for name in attrs)
    outside = re.sub(r"data:image/[a-z+]+;base64,[A-Za-z0-9+/=]+", "", text)
    assert "://" not in outside
    assert "@import" not in outside
    assert "url(" not in outside
    for uri in re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", text):
        for element in ET.fromstring(base64.b64decode(uri)).iter():
            assert not element.tag.endswith(("image", "script"))
            for name, value in element.attrib.items():
                assert not name.endswith("href") or value.startswith("#")


def test_the_page_is_whole_and_accessible(text: str, page: Page) -> None:
    check_structure(page)
    check_nothing_is_fetched(text, page)
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert "2026-01-02 03:04 UTC" in page.text


def test_numbers_are_those_of_sklearn(digits: tuple[AuditData, AuditData], page: Page) -> None:
    people, dense, pruned = digits[1].people, digits[1].dense.runs[0], digits[1].pruned[0].runs[0]
    for groups in people.groups:
        rows = page.table(f"Accuracy by {groups.attribute}")
        for g, name in enumerate(groups.names):
            mine = groups.codes == g
            before, after = (accuracy_score(people.labels[mine], m[mine].argmax(1)) for m in (dense, pruned))
            assert rows[name][0] == str(mine.sum())
            assert rows[name][1].startswith(f"{100 * before:.1f} % ")
            assert rows[name][2].startswith(f"{100 * after:.1f} % ")
            change = f"{100 * (after - before):+.1f}".replace("-", "−")
            assert f" {change} (" in rows[name][2] or change in ("+0.0", "−0.0")
    before, after = (accuracy_score(people.labels, m.argmax(1)) for m in (dense, pruned))
    assert f"Accuracy of everybody went from {100 * before:.1f} % to {100 * after:.1f} %" in page.text
    flips = dense.argmax(1) != pruned.argmax(1)
    assert f"{flips.sum()} of {len(people)} answers changed" in page.text
    assert f"{100 * flips.mean():.1f} % of people have an answer that changed" in page.text
    right = [m.argmax(1) == people.labels for m in (dense, pruned)]
    changed = page.table("any class under 80 % gone: people whose answer changed")
    for groups in people.groups:
        for g, name in enumerate((*groups.names, "Everybody")):
            mine = groups.codes == g if name != "Everybody" else np.ones(len(people), dtype=bool)
            assert changed[name][:2] == [str(mine.sum()), f"{flips[mine].sum()} {100 * flips[mine].mean():.1f} %"]
            lost, gained = (right[0] & ~right[1] & mine).sum(), (~right[0] & right[1] & mine).sum()
            assert changed[name][-2] == f"{lost}, {gained}"


def test_verdicts_follow_holm_and_the_headline_names_the_largest_loss(found: Audit, text: str, page: Page) -> None:
    (model,) = found.measures.pruned
    assert model.overall is not None
    lost = []
    for attribute in model.overall.attributes:
        rows = page.table(f"Accuracy by {attribute.attribute}")
        for group in attribute.groups:
            assert group.change is not None
            assert group.change.value is not None
            assert group.test is not None
            shown = group.test.holm < 0.05
            verdict = ("▼ worse" if group.change.value < 0 else "▲ better") if shown else "no difference shown"
            assert rows[group.name][-1] == verdict
            if shown and group.change.value < 0:
                lost.append((group.change.value, group.name))
    assert lost, "the fixture is made to lose"
    value, name = min(lost)
    (headline,) = re.findall(r"<h1>(.*?)</h1>", text)
    assert f"costs {name} (" in headline
    assert f"{-100 * value:.1f} points" in headline


def test_harmless_pruning_is_not_called_harmless() -> None:
    data = make_audit(500, task="binary", outputs=("smiles",), pruned=1)
    twin = AuditData(data.people, data.dense, (ModelPredictions("twin", data.dense.runs),), data.training)
    page = Page(render(audit(twin, **FAST), when=WHEN))
    assert "No group was shown to lose accuracy under twin." in page.text
    assert "That is not proof of harmlessness" in page.text
    assert "No validation people were given" in page.text
    assert "0.0 % of people have an answer that changed" in page.text
    check_structure(page)


def test_nobody_is_named_unless_asked_for(found: Audit, alone: Audit, text: str, tmp_path: Path) -> None:
    files = write_report(found, tmp_path / "new" / "folder", title="digits", when=WHEN)
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [
        "audit.html",
        "audit.json",
        "model_card.md",
    ]
    for path in (files.html, files.json, files.card):
        assert "digit-" not in path.read_text(encoding="utf-8")
    assert files.html.read_text(encoding="utf-8") == text  # the same numbers give the same bytes
    assert json.loads(files.json.read_text(encoding="utf-8")) == json.loads(json.dumps(found.as_dict(people=False)))

    named = write_report(alone, tmp_path, when=WHEN, people=True)
    page = Page(named.html.read_text(encoding="utf-8"))
    assert "names single people by their ids" in page.text
    assert alone.risk.likely[0].id in page.text
    assert not any("image/png" in str(i.get("src")) for i in page.all("img"))
    assert alone.risk.likely[0].id in named.json.read_text(encoding="utf-8")
    check_structure(page)


def test_thumbnails_are_small_without_metadata_and_warned_of(alone: Audit, tmp_path: Path) -> None:
    images = load_digits().images
    sources: dict[str, Any] = {}
    for i in range(len(images)):
        out = io.BytesIO()
        exif = Image.Exif()
        exif[0x010E] = "secret place"
        image = Image.fromarray((255 - 15 * images[i]).astype(np.uint8)).resize((400, 300))
        image.save(out, format="JPEG", exif=exif)
        sources[f"digit-{i:04d}"] = out.getvalue()
    first = alone.risk.likely[0].id
    path = tmp_path / "first.jpg"
    path.write_bytes(sources[first])
    text = render(alone, when=WHEN, thumbnails={**sources, first: path})
    page = Page(text)
    assert "This file holds pictures of people." in page.text
    check_structure(page)
    check_nothing_is_fetched(text, page)
    faces = [i for i in page.all("img") if "image/png" in str(i["src"])]
    assert len(faces) == 24
    assert faces[0]["alt"] == f"Picture of {first}"
    raw = base64.b64decode(str(faces[0]["src"]).partition(",")[2])
    assert b"secret" not in raw
    assert Image.open(io.BytesIO(raw)).size == (96, 72)
    with pytest.raises(InputError, match="keys are ids such as 'x'"):
        render(alone, thumbnails={"x": b""})
    with pytest.raises(InputError, match=f"thumbnail of '{first}'.*not an image"):
        render(alone, thumbnails={first: b"nothing"})


def test_the_dense_model_alone(tmp_path: Path) -> None:
    found = audit(make_audit(400, pruned=0), **FAST)
    files = write_report(found, tmp_path, when=WHEN)
    page = Page(files.html.read_text(encoding="utf-8"))
    check_structure(page)
    assert f"watch {found.risk.ranked[0].output} first" in page.text
    assert not any(a.get("id") in ("changes", "remedies") for a in page.all("section"))
    ids = [a["id"] for a in page.all("section")]
    assert ids.index("forecast") < ids.index("groups")
    rows = page.table("Outputs by risk")
    assert list(rows) == [f"{o.rank}. {o.output}" for o in found.risk.ranked]
    assert "## Bias risks before pruning" in files.card.read_text(encoding="utf-8")


def test_many_outputs_and_groups_are_folded_and_all_there(many: Audit) -> None:
    text = render(many, when=WHEN)
    page = Page(text)
    check_structure(page)
    check_nothing_is_fetched(text, page)
    closed = [a for a in page.all("details") if "open" not in a]
    assert len(closed) >= 80  # every output's numbers, every output's flips
    heat = page.table("pruned 50 %, by race: change of accuracy")
    assert len(heat) == 40
    assert all(len(cells) == 14 for cells in heat.values())
    measured = many.measures.pruned[0]
    for output in measured.outputs[::9]:
        for group, cell in zip(output.attributes[0].groups, heat[output.name], strict=True):
            value = None if group.too_small or group.change is None else group.change.accuracy.value
            said = "–" if value is None else f"{100 * value:+.1f}".replace("-", "−")
            assert cell.removesuffix(" •") == ("0.0" if said in ("+0.0", "−0.0") else said)
            assert cell.endswith("•") == (group.test is not None and group.test.holm < 0.05)
    rows = page.table("Accuracy by race")
    assert measured.overall is not None
    corrected = 0
    for line in measured.overall.attributes[0].groups:
        if line.test is None:
            assert rows[f"{line.name} too small to judge"][-1] == "too small to judge"
            continue
        corrected += line.test.p < 0.05 <= line.test.holm
        assert (rows[line.name][-1] == "no difference shown") == (line.test.holm >= 0.05)
    assert corrected  # what single tests would call a difference, and all together do not
    assert "3 people of unknown group" in page.text


def test_the_card_is_markdown_whose_tables_hold_together(digits: tuple[AuditData, AuditData], found: Audit) -> None:
    card = model_card(found)
    rendered = Page(f"<html>{MarkdownIt('commonmark').enable('table').render(card)}</html>".replace("<br />", ""))
    people = digits[1].people
    tables = [t["rows"] for t in rendered.tables] or [[]]
    assert len(tables) == 3  # two attributes, gaps
    for groups, rows in zip(people.groups, tables, strict=False):
        assert [plain(row[0][1]) for row in rows[1:]] == [*groups.names, "Everybody"]
        assert [plain(row[1][1]) for row in rows[1:-1]] == [str(c) for c in groups.counts]
        assert {len(row) for row in rows} == {6}
    assert card.startswith("## Bias audit\n")
    assert all(note.split(".")[0] in plain(rendered.text) for note in found.notes)


def test_names_from_the_data_are_only_names() -> None:
    evil = '<script>alert(1)</script> & "co" | *x* $\\foo$'
    data = make_audit(300, task="binary", outputs=(evil,), races=(evil, "b"), pruned=1)
    named = AuditData(
        data.people,
        ModelPredictions(f"dense {evil}", data.dense.runs),
        (ModelPredictions(evil, data.pruned[0].runs),),
        data.training,
    )
    found = audit(named, **FAST)
    text = render(found, when=WHEN)
    page = Page(text)
    assert "<script" not in text
    assert plain(evil) in page.text
    check_structure(page)
    card = MarkdownIt("commonmark").enable("table").render(model_card(found))
    assert "<script" not in card
    assert "<em>" not in card
    assert html.escape(evil, quote=False).replace('"', "&quot;") in card


def chromium(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        f"--user-data-dir={folder / 'profile'}",
    ]
    command += ["--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)


PROBE = """<script>addEventListener("load", () => {
  const images = [...document.images].map(i => i.naturalWidth);
  const root = document.documentElement;
  const got = performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:"));
  document.title = JSON.stringify({images, got, wide: root.scrollWidth - root.clientWidth, high: root.scrollHeight,
    dark: matchMedia("(prefers-color-scheme: dark)").matches, paper: getComputedStyle(document.body).backgroundColor,
    hidden: document.querySelector("details:not([open]) table")?.checkVisibility({contentVisibilityAuto: true})});
});</script>"""


def looked_at(text: str, folder: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """What the page is like inside of Chromium, and what Chromium complained of."""
    path = folder / "page.html"
    path.write_text(text.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    done = chromium(folder, *arguments, "--dump-dom", path.as_uri())
    title = html.unescape(re.findall(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[0])
    complaints = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return json.loads(title), complaints


@needs_chromium
def test_chromium_renders_it_without_fetching_anything(text: str, tmp_path: Path) -> None:
    light, complaints = looked_at(text, tmp_path, "--window-size=1280,900", "--blink-settings=preferredColorScheme=1")
    assert complaints == ""
    assert light["got"] == []
    assert light["images"]
    assert min(light["images"]) > 100
    assert light["wide"] <= 0
    assert light["high"] > 3000
    assert light["hidden"] is False
    assert not light["dark"]
    dark, complaints = looked_at(text, tmp_path, "--window-size=500,900", "--blink-settings=preferredColorScheme=0")
    assert complaints == ""
    assert dark["got"] == []
    assert dark["wide"] <= 0  # on a narrow screen tables scroll, the page does not
    assert dark["dark"]
    assert dark["paper"] != light["paper"]


@needs_chromium
def test_chromium_would_have_told(text: str, tmp_path: Path) -> None:
    fetching = text.replace("</main>", '<img alt="" src="http://example.com/x.png"><script>nonsense()</script></main>')
    seen, complaints = looked_at(fetching, tmp_path)
    assert seen["got"] == ["http://example.com/x.png"]
    assert "nonsense is not defined" in complaints


@needs_chromium
def test_it_prints(text: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(text, encoding="utf-8")
    pdf = tmp_path / "page.pdf"
    chromium(tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={pdf}", path.as_uri())
    assert pdf.read_bytes().startswith(b"%PDF")
    assert pdf.stat().st_size > 50_000
