"""The report is one file that fetches nothing, that a screen reader can read, and that shows the run's own numbers."""

from __future__ import annotations

import base64
import itertools
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.reporting import group_pictures
from fair_prune_plugins.reporting.drawing import Format, Theme
from fair_prune_plugins.reporting.estimates import Estimate
from fair_prune_plugins.workflow import plots, report
from fair_prune_plugins.workflow.readings import read_run
from fair_prune_plugins.workflow.results import RunResults
from fair_prune_plugins.workflow.table import COLUMNS, csv_rows, read_csv
from fair_prune_plugins.workflow.words import headline, limits, meaning
from integration_tests.report_runs import face_run, make_run

VOID = {"meta", "img", "source", "br", "link", "input", "hr"}
URL_ATTRIBUTES = ("src", "srcset", "href", "action", "poster", "data", "xlink:href")


class Page(HTMLParser):
    """Collects what the checks need, and that tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.tables: list[dict[str, int]] = []
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append({"caption": 0, "col": 0, "row": 0, "bare": 0})
        if self.tables and "table" in self.open:
            if tag == "caption":
                self.tables[-1]["caption"] += 1
            if tag == "th":
                scope = dict(attrs).get("scope")
                self.tables[-1]["row" if scope == "row" else "col" if scope in ("col", "colgroup") else "bare"] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\N{NO-BREAK SPACE}", " ").split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module", params=[make_run, face_run], ids=["3 groups", "14 groups"])
def run(request: pytest.FixtureRequest) -> RunResults:
    made: RunResults = request.param()
    return made


@pytest.fixture(scope="module")
def html(run: RunResults) -> str:
    return report.render(run)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_nothing_is_fetched_from_outside(html: str, page: Page) -> None:
    for tag, attrs in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        for name in URL_ATTRIBUTES:
            value = attrs.get(name)
            assert value is None or value.startswith(("data:image/svg+xml;base64,", "#")), (tag, name, value)
        assert not any(name.startswith("on") for name in attrs)
    outside = re.sub(r"data:image/svg\+xml;base64,[A-Za-z0-9+/=]+", "", html)
    assert "://" not in outside
    assert "@import" not in outside
    assert "url(" not in outside


def test_embedded_pictures_reference_nothing_but_themselves(html: str) -> None:
    uris = re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", html)
    assert len(uris) == 6  # three pictures, light and dark
    for uri in uris:
        root = ET.fromstring(base64.b64decode(uri))
        assert root.tag.endswith("svg")
        for element in root.iter():
            assert not element.tag.endswith(("image", "script"))
            for name, value in element.attrib.items():
                if name.endswith("href"):
                    assert value.startswith("#")
                assert "url(http" not in value


def test_language_title_and_landmarks(page: Page) -> None:
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == len(page.all("main")) == len(page.all("title")) == 1
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [str(a["id"]) for _, a in page.tags if "id" in a]
    assert len(set(ids)) == len(ids)
    for section in page.all("section"):
        assert section["aria-labelledby"] in ids
    assert page.all("a")[0]["href"] == "#picture"
    assert "picture" in ids


def test_every_picture_has_an_alternative_text_with_its_numbers(run: RunResults, page: Page) -> None:
    alts = [str(img["alt"]) for img in page.all("img")]
    assert len(alts) == 3
    for model in run.models:
        assert all(model.name in alt for alt in (alts[0], alts[2]))
    assert all(group in alts[1] and group in alts[2] for group in run.task.groups)


def test_tables_are_real_tables_and_scrolling_ones_take_the_keyboard(page: Page) -> None:
    assert len(page.tables) >= 6
    for table in page.tables:
        assert table["caption"] == 1
        assert table["col"] >= 2
        assert table["row"] >= 1
        assert table["bare"] == 0
    regions = [a for a in page.all("div") if a.get("class") == "scroll"]
    assert regions
    for region in regions:
        assert (region["role"], region["tabindex"]) == ("region", "0")
        assert region["aria-label"]


def test_dark_light_and_print_are_styled(html: str) -> None:
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_it_says_what_the_words_say_and_names_every_number(run: RunResults, page: Page) -> None:
    reading = read_run(run)
    found = headline(reading)
    said = [found.text, found.detail, *(r.text for r in [*meaning(reading), *limits(reading)])]
    for sentence in said:
        assert " ".join(sentence.replace("\N{NO-BREAK SPACE}", " ").split()) in page.text
    for column in COLUMNS:
        assert column.title in page.text
        for model in reading.models:
            assert column.cell(model).replace("\N{NO-BREAK SPACE}", " ") in page.text
    for expected in (run.task.statement, run.machine["cpu"], *run.data.attribution, "CPUExecutionProvider"):
        assert expected in page.text
    for model in run.pruned:
        assert model.summary[1:] in page.text
        assert model.source in page.text
        assert all(width.layer in page.text for width in model.widths)


def test_names_from_the_data_are_escaped() -> None:
    evil = '<script>alert(1)</script> & "co"'
    html = report.render(make_run({evil: 60, "b": 60}, ratios=(0.5,), methods=("taylor",), name=evil, worst=evil))
    assert "<script" not in html
    assert evil in Page(html).text


def test_same_results_same_bytes(run: RunResults, html: str) -> None:
    assert report.render(RunResults.from_json(run.to_json())) == html


def test_write_puts_everything_side_by_side(run: RunResults, html: str, tmp_path: Path) -> None:
    files = report.write(run, tmp_path / "new" / "folder")
    assert files.html.read_text(encoding="utf-8") == html
    assert RunResults.read_json(files.json) == run
    assert read_csv(files.csv) == csv_rows(read_run(run))
    assert [p.name for p in files.pictures] == ["pareto.svg", "pareto.png"]
    assert files.pictures[0].read_bytes().lstrip().startswith(b"<?xml")
    assert files.pictures[1].read_bytes().startswith(b"\x89PNG")


def test_a_run_without_timing_still_has_a_report(tmp_path: Path) -> None:
    run = make_run(ratios=(0.5,))
    bare = run.model_copy(update={"models": [m.model_copy(update={"latency": {}}) for m in run.models], "machine": {}})
    files = report.write(bare, tmp_path)
    assert files.pictures == ()
    page = Page(files.html.read_text(encoding="utf-8"))
    assert "There is no picture" in page.text
    assert len(page.all("img")) == 2


def test_a_run_with_only_the_dense_model_still_has_a_report() -> None:
    page = Page(report.render(make_run(ratios=())))
    assert "Only the dense model was measured." in page.text
    assert len(page.all("img")) == 1


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["svg", "png"])
def test_pictures_can_be_drawn_with_hard_numbers(kind: Format, theme: Theme) -> None:
    one = plots.Point("dense", None, Estimate(0.5), Estimate(1.0), True)
    same = [plots.Point(f"{i} %", "m", Estimate(0.5, 0.5, 0.5), Estimate(1.0, 0.9, 1.0), False) for i in range(12)]
    # a percentile interval that does not contain its estimate
    odd = plots.Point("odd", "m", Estimate(0.4, 0.41, 0.45), Estimate(0.9, 0.91, 0.95), True)
    for points in ([one], [one, odd, *same]):
        assert plots.pareto_plot(points, ["m"], accuracy_title="a & b <c>", format=kind, theme=theme)
    bars = [
        group_pictures.Bar(r"日本 $\foo$ & <b>", Estimate(), Estimate(), Estimate()),
        group_pictures.Bar("b", *[Estimate(0.0, 0.0, 0.0)] * 3),
    ]
    panels = [group_pictures.Panel("p", "m", bars)] * 4
    assert group_pictures.group_bars(panels, ["m"], minimum=30, format=kind, theme=theme)
    assert group_pictures.change_plot(panels, ["m"], minimum=30, format=kind, theme=theme)


@pytest.mark.parametrize("title", ["taylor", "magnitude, finetune.learning_rate 0.001", "fairgrape, " * 6])
def test_legends_stay_inside_of_the_picture(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    extents = []

    def kept(figure: Any, _format: Format) -> bytes:
        figure.canvas.draw()
        extents.append((figure.legends[0].get_window_extent(), figure.bbox))
        return b""

    monkeypatch.setattr(plots, "image_bytes", kept)
    methods = [f"{title} {i}" for i in range(4)]
    points = [plots.Point("50 %", m, Estimate(0.1 + i), Estimate(0.5), False) for i, m in enumerate(methods)]
    plots.pareto_plot(points, methods, accuracy_title="a")
    legend, picture = extents[0]
    assert picture.x0 <= legend.x0
    assert legend.x1 <= picture.x1


def test_pictures_without_anything_to_draw_say_so() -> None:
    with pytest.raises(InputError, match="no model has both"):
        plots.pareto_plot([plots.Point("x", None, Estimate(), Estimate(0.9), False)], [], accuracy_title="a")
    with pytest.raises(InputError, match="no pruned model with per-group numbers"):
        group_pictures.change_plot([], [], minimum=30)
    two = [
        group_pictures.Panel(n, "m", [group_pictures.Bar(n, Estimate(0.5), Estimate(0.5), Estimate(0.0))]) for n in "ab"
    ]
    with pytest.raises(InputError, match="'b' has other groups than 'a'"):
        group_pictures.group_bars(two, ["m"], minimum=30)
