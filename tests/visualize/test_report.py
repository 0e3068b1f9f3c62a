"""The report: one file, well-formed, nothing external, all words escaped, all parts there or left out."""

from __future__ import annotations

import base64
import itertools
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from caffetools.errors import DataError
from caffetools.results import Calibration, Confusion, Sample, Step
from caffetools.solver.logs.training_log import LogRow, TrainingLog, read_log
from caffetools.visualize import charts
from caffetools.visualize.charts import curve_charts
from caffetools.visualize.filters import LayerWeights
from caffetools.visualize.model import Explanation, FileEntry, FilterChange, KeyFigure, LayerRow, OnnxCheck, Phase, Report
from caffetools.visualize.report import duration, report_html, size, write_report
from tests.conftest import GOLDEN
from tests.visualize.browser import run_in_page

EVIL = "<script>alert(\"1\")</script> & 'co'"
VOID = {"meta", "img", "source", "br", "link"}


class Page(HTMLParser):
    """Every element with its attributes and its text; fails on elements that are not closed in order."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, tag: str | None = None) -> str:
        return " ".join(words for where, words in self.words if tag in (None, where) and where != "style")


@pytest.fixture(scope="module")
def report() -> Report:
    rng = np.random.default_rng(0)
    names = [EVIL, "héron 日本", "$a$"]
    samples = [
        Sample(rng.integers(0, 255, (8, 8), np.uint8), EVIL, 0.983, EVIL, "a.png"),
        Sample(rng.integers(0, 255, (300, 200, 3), np.uint8), "$a$", 0.5, EVIL),
        Sample(rng.integers(0, 255, (30, 200, 1), np.uint8), "$a$", 0.5),
    ]
    phase = Phase(
        EVIL,
        EVIL,
        Confusion.from_labels([0, 0, 1, 2, 2, 2], [0, 1, 1, 2, 2, 0], names),
        samples,
        {EVIL: read_log(GOLDEN / "logs" / "train.log")},
        [
            FilterChange(LayerWeights(EVIL, rng.standard_normal((4, 3, 3, 3))), LayerWeights(EVIL, rng.standard_normal((4, 3, 3, 3)))),
            LayerWeights("ip", rng.standard_normal((4, 9))),
        ],
        Calibration.from_confidences([0.95, 0.9, 0.6, 0.6], [True, True, True, False]),
        [Explanation(np.zeros((8, 8, 3), np.uint8), np.ones((8, 8, 3), np.uint8), EVIL, EVIL, 0.9, "$a$", EVIL)],
        [0.125, 1.5, None],
    )
    return Report(
        EVIL,
        EVIL,
        EVIL,
        [KeyFigure("98.4 %", "Accuracy", EVIL), KeyFigure("1.7 MB", "Model")],
        [Step(EVIL, f"caffetools train {EVIL}", EVIL, 12.3), Step("Second")],
        [phase, replace(phase, title="Phase 2")],
        [LayerRow(EVIL, "Convolution", (1, 20, 24, 24), 520, 288000), LayerRow("relu", "ReLU", (1, 20, 24, 24))],
        OnnxCheck(EVIL, 17, "onnxruntime 1.2", 3e-7, 1e-4, 6, 5),
        [FileEntry(EVIL, 1_724_160, EVIL), FileEntry("b", 12)],
        [f"caffetools demo {EVIL}"],
        {EVIL: EVIL},
        EVIL,
        True,
        [EVIL],
        {EVIL: EVIL},
        [Step(EVIL, f"caffetools classify {EVIL}", EVIL), Step("Last", "caffetools status")],
        EVIL,
    )


@pytest.fixture(scope="module")
def html(report: Report) -> str:
    return report_html(report)


def test_it_is_one_well_formed_page(html: str) -> None:
    page = Page(html)
    assert html.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert page.elements[0][0] == "html"
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"] for a in page.all("a")} <= {f"#{name}" for name in ids}


def test_it_loads_nothing_from_elsewhere(html: str) -> None:
    page = Page(html)
    assert not {"link", "iframe", "object", "embed"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:image/"))
    style = page.words[[where for where, _ in page.words].index("style")][1]
    assert "url(" not in style and "@import" not in style
    assert not re.search(r"<[^>]* on\w+=", html)


def test_words_of_the_user_never_become_markup(html: str) -> None:
    page = Page(html)
    assert page.all("script") == [{}], "only ours"
    assert "<script>alert" not in html
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    for tag in ("title", "h1", "h2", "h3", "p", "dd", "code", "th", "td", "strong"):
        assert EVIL in page.text(tag), tag
    assert any(EVIL in (image["alt"] or "") for image in page.all("img"))


def test_every_picture_is_a_picture_and_is_described_in_words(html: str) -> None:
    page = Page(html)
    sources = [(image["src"], image.get("alt")) for image in page.all("img")]
    assert len(sources) == 2 * (3 + 2 + 3) and not page.all(
        "source"
    )  # per phase three samples, an explanation, three sheets for both themes
    charts = [svg for svg in page.all("svg") if "role" in svg]
    assert len(charts) == 2 * (3 + 1 + 1 + 1) and all(svg["aria-label"] for svg in charts)  # curves, matrix, calibration, a histogram
    for uri, alt in sources:
        assert uri is not None and alt
        head, data = uri.split(",", 1)
        raw = base64.b64decode(data, validate=True)
        assert head.startswith("data:image/")
        assert cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_COLOR) is not None


def test_pictures_below_the_window_are_printed_too(html: str) -> None:
    """Pictures with loading="lazy" that were not scrolled to are blank in what Chromium prints through its protocol, as Puppeteer does."""
    assert "<img" in html and 'loading="lazy"' not in html


def test_samples_are_thumbnails_with_their_own_dots(html: str) -> None:
    images = [image for image in Page(html).all("img") if "classified as" in (image["alt"] or "")]
    shapes = [
        cv2.imdecode(np.frombuffer(base64.b64decode(image["src"].split(",")[1]), np.uint8), cv2.IMREAD_COLOR).shape[:2]
        for image in images[:3]
    ]
    assert shapes == [(8, 8), (168, 112), (25, 168)]
    assert [image.get("class") for image in images[:3]] == ["dots", None, None]
    assert images[0]["alt"] == f"Picture a.png of {EVIL}, classified as {EVIL}"


def test_the_numbers_are_there(html: str) -> None:
    text = " ".join(Page(html).text().split())
    for words in (
        "98.4 %", "Verified : the largest difference is 3e-07, with 0.0001 allowed", "5 of 6", "1.7 MB", "12 s",
        "520", "288,000", "1 × 20 × 24 × 24", "66.7%", "98.3%", f"✗ is {EVIL}", "✓ correct", f"caffetools train {EVIL}",
        f"caffetools classify {EVIL}", f"Paths start from {EVIL}", "Loss", "0.125", "1.500", "–",
    ):  # fmt: skip
        assert words in text, words


def test_headings_and_tables_are_in_order(html: str) -> None:
    page = Page(html)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1 and all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert len(page.all("table")) == html.count("<caption>")
    assert all("scope" in th for th in page.all("th"))


def test_parts_that_are_missing_are_left_out() -> None:
    page = Page(report_html(Report("Only a title", phases=[Phase("Empty")])))
    assert [a["id"] for a in page.all("section")] == ["phase-1"]
    assert not {"table", "img", "nav", "dl"} & {tag for tag, _ in page.elements}


def test_a_failed_verification_reports_it() -> None:
    for difference in (1e-3, math.nan):
        text = Page(report_html(Report("r", onnx=OnnxCheck("m.onnx", 17, "onnxruntime", difference, 1e-4, 1, 1)))).text()
        assert "✗ Not verified" in text and "✓" not in text


def test_long_tables_unfold() -> None:
    names = [f"class {i}" for i in range(200)]
    true = np.arange(200).repeat(5)
    given = np.where((true == 77) & (np.arange(1000) % 5 > 0), 78, true)
    layers = [LayerRow(f"layer {i}", "ReLU", (1, 2)) for i in range(150)]
    page = Page(report_html(Report("r", phases=[Phase("p", confusion=Confusion.from_labels(true, given, names))], network=layers)))
    assert page.text("summary").count("All 200 classes") == 1
    assert "150 layers" in page.text("summary")
    assert [details.get("class") for details in page.all("details")] == ["long", "long"], (
        "closed ones are not printed: they take many pages"
    )
    rows = [words for where, words in page.words if where == "th" and words.startswith("class ")]
    assert rows.count("class 77") == 3 and len(rows) == 12 + 200 + 1  # the first twelve, all, a confused pair
    assert "Lowest: class 77 20.0%." in page.text("p") and "Highest: class 199 100.0%" in page.text("p")


def test_results_come_before_the_next_steps_and_those_before_the_rest(html: str) -> None:
    ids = [section["id"] for section in Page(html).all("section")]
    assert ids == ["phase-1", "phase-2", "next", "card", "network", "onnx", "files", "repeat"]


def test_a_thousand_classes_fit_into_five_megabytes() -> None:
    rng = np.random.default_rng(1)
    names = [f"species number {i}" for i in range(1000)]
    confusion = Confusion.from_labels(rng.integers(0, 1000, 50_000), rng.integers(0, 1000, 50_000), names)
    samples = [Sample(rng.integers(0, 255, (800, 600, 3), np.uint8), name, 0.5, name, name) for name in names[:24]]
    filters = [LayerWeights("conv1", rng.standard_normal((96, 3, 11, 11)))]
    page = report_html(Report("r", phases=[Phase("p", confusion=confusion, samples=samples, filters=filters, losses=[1.0] * 1000)]))
    assert len(page.encode()) < 5_000_000


def test_names_turn_and_widen_nothing(tmp_path: Path) -> None:
    names = ["\u202eevil", "\u2066x", "n" * 200, "שלום"]
    confusion = Confusion.from_labels([0, 1, 2, 3], [1, 0, 3, 2], names)
    page = report_html(Report("r", remarks=names, phases=[Phase(name, confusion=confusion) for name in names]))
    assert not set(page) & set("\u202e\u2066") and "evil" in page and "שלום" in page
    widths = run_in_page(page, "done(document.documentElement.scrollWidth <= innerWidth)", tmp_path, size=(500, 900))
    assert widths == "true"


def test_the_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, Report("first \udcff"))
    before = path.read_bytes()
    assert b"first ?" in before
    broken = Report("second", phases=[Phase("p", samples=[Sample(tmp_path / "missing.png", "a", 1.0)])])
    with pytest.raises(DataError, match=r"missing\.png: cannot read"):
        write_report(path, broken)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DataError, match=r"text\.png: not a picture"):
        write_report(path, Report("third", phases=[Phase("p", samples=[Sample(tmp_path / "text.png", "a", 1.0)])]))
    assert path.read_bytes() == before


def test_picture_files_are_read_in_their_colours(tmp_path: Path) -> None:
    red = np.zeros((10, 12, 3), np.uint8)
    red[..., 2] = 200  # BGR
    cv2.imwrite(str(tmp_path / "red.png"), red)
    page = Page(
        report_html(Report("r", phases=[Phase("p", samples=[Sample(tmp_path / "red.png", "a", 1.0), Sample(red[..., ::-1], "a", 1.0)])]))
    )
    for image in page.all("img"):
        data = np.frombuffer(base64.b64decode(image["src"].split(",")[1]), np.uint8)
        np.testing.assert_array_equal(cv2.imdecode(data, cv2.IMREAD_COLOR), red)


def test_sizes_and_times_are_short() -> None:
    assert [size(n) for n in (0, 999, 1000, 1_724_160, 243_862_414, 999_999)] == ["0 B", "999 B", "1.0 kB", "1.7 MB", "244 MB", "1.0 MB"]
    said = [duration(s) for s in (0.01, 0.4, 9.97, 12, 200, 7500)]
    assert said == ["< 0.1 s", "0.4 s", "10 s", "12 s", "3 min 20 s", "2 h 5 min"]


def test_the_page_shows_values_under_the_pointer_and_copies_commands(report: Report, html: str, tmp_path: Path) -> None:
    script = """
      const out = [], svg = document.querySelector('svg[data-chart]'), tip = svg.closest('figure').querySelector('.tip');
      svg.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight' }));
      out.push(tip.hidden, tip.textContent);
      svg.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight' })); out.push(tip.textContent);
      svg.dispatchEvent(new KeyboardEvent('keydown', { key: 'Escape' })); out.push(tip.hidden);
      const box = svg.getBoundingClientRect();
      svg.dispatchEvent(new PointerEvent('pointermove', { clientX: box.right, clientY: box.top + 20 })); out.push(tip.textContent);
      out.push([...document.querySelectorAll('[data-copy]')].every((button) => !button.hidden));
      out.push(document.documentElement.scrollWidth <= innerWidth);
      done(out.join('|'));
    """
    shown = run_in_page(html, script, tmp_path, size=(500, 800)).split("|")
    assert shown[0] == "false" and shown[1] == "0train loss 1.253test loss 1.42"
    assert shown[2].startswith("20train loss 0.0566") and shown[3] == "true"
    assert "test loss 0.007433" in shown[4] and shown[5:] == ["true", "true"]


@pytest.mark.parametrize(
    ("last", "expected"),
    [(1, ["0", "1"]), (13, ["0", "5", "10"]), (40, ["0", "10", "20", "30", "40"]), (250, ["0", "50", "100", "150", "200", "250"])],
)
def test_iterations_are_whole_numbers(last: int, expected: list[str]) -> None:
    log = TrainingLog([LogRow(0, 0.0, outputs={"loss": 1.0}), LogRow(last, 1.0, outputs={"loss": 0.5})], [])
    assert [text for _, text in curve_charts({"run": log})[0].x_ticks] == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.001, "0.001"),
        (0.00075, "7.5e-4"),
        (0.0025, "2.5e-3"),
        (0.02, "0.02"),
        (0.1234, "0.1234"),
        (1e-7, "1e-7"),
        (0, "0"),
        (12000, "12,000"),
    ],
)
def test_numbers_at_axes_are_short(value: float, expected: str) -> None:
    assert charts._tick(value, False) == expected


def test_calibration_by_hand() -> None:
    made = Calibration.from_confidences([0.95, 0.99, 0.62, 0.68, 1.0], [True, False, True, False, True])
    assert [b.count for b in made.bins] == [0, 0, 0, 0, 0, 0, 2, 0, 0, 3]
    assert made.error == pytest.approx((2 * abs(0.65 - 0.5) + 3 * abs(0.98 - 2 / 3)) / 5)
    for confidences, correct in (([], []), ([0.5], []), ([1.5], [True])):
        with pytest.raises(DataError, match="calibration needs"):
            Calibration.from_confidences(confidences, correct)


def test_a_learning_rate_is_drawn_in_steps() -> None:
    rows = [LogRow(iteration, 0.0, lr) for iteration, lr in ((0, 0.1), (10, 0.1), (20, 0.01))]
    (chart,) = curve_charts({"run": TrainingLog(train=rows)})
    (line,) = chart.lines
    spots = [tuple(map(float, spot.split(","))) for spot in line["points"].split()]
    assert [spots[i] for i in (0, 2, 4)] == line["dots"], "the points under the pointer are the log's"
    assert all(a[0] == b[0] or a[1] == b[1] for a, b in itertools.pairwise(spots)), "no slopes"
    assert spots[3] == (spots[4][0], spots[2][1])


def test_the_names_at_the_matrix_have_room_and_long_ones_a_wide_table(tmp_path: Path) -> None:
    names = ["WWWWWWWWWWWWWWWW", "a", "golden_retriever_with_a_long_name"]
    for wide, chosen in ((True, names), (False, ["WWWWWWWWWWWWWWWW", "a", "b"])):
        html = report_html(Report("r", phases=[Phase("p", confusion=Confusion.from_labels([0, 1, 2], [0, 1, 2], chosen))]))
        assert ('<div class="pair">' in html) is not wide
        script = (
            "const left = Math.min(...[...document.querySelectorAll('.matrix text')].map((text) => text.getBoundingClientRect().left)); "
        )
        script += "done(left >= document.querySelector('.matrix').getBoundingClientRect().left)"
        assert run_in_page(html, script, tmp_path) == "true"


def test_tables_on_a_phone_break_no_type_name_and_cut_no_caption(tmp_path: Path) -> None:
    rows = [LayerRow("res2a_branch2a", "Convolution", (1, 64, 56, 56), 4_096, 12_845_056), LayerRow("fc", "InnerProduct", (1, 1000), 1, 1)]
    script = """
      const lines = (cell) => { const range = document.createRange(); range.selectNodeContents(cell); return range.getClientRects().length };
      const types = [...document.querySelectorAll('td:nth-child(2)')].filter((cell) => /^[A-Za-z]+$/.test(cell.textContent));
      const cut = [...document.querySelectorAll('caption')].filter((caption) => caption.getBoundingClientRect().right > innerWidth);
      done(`${types.length > 3} ${types.filter((cell) => lines(cell) > 1).length} ${cut.length}`)
    """
    assert run_in_page(report_html(Report("r", network=rows)), script, tmp_path, size=(390, 844)) == "true 0 0"
