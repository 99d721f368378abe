"""The report: its charts by arithmetic, its text, and the page in a real browser."""

import html
import itertools
import math
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_fakes import DIMENSIONS, fake_report, score_rows

from ft2.errors import RunError
from ft2.report import Curve, Estimate, GateMap, Report, ScoreRow, render_report, write_report
from ft2.report.charts import dots, lines, nice_ticks, number
from ft2.report.maps import bars, colour_range, heat

BROWSER = next(
    (p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))),
    None,
)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-sync", "--disable-background-networking", "--disable-component-update"),
    *("--hide-scrollbars", "--virtual-time-budget=8000"),
]
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium on this machine: apt-get install chromium"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    folder = tmp_path_factory.mktemp("report")
    report = fake_report(folder)
    return report, write_report(report, folder / "report.html")


def browse(page: Path, *flags: str) -> str:
    """Open a page in a browser with a profile of its own and return what it prints."""
    assert BROWSER is not None
    profile = page.parent / "profile"
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    shutil.rmtree(profile, ignore_errors=True)
    assert run.returncode == 0, run.stderr[-1000:]
    return run.stdout


def circles(svg: str) -> list[tuple[float, float]]:
    return [
        (float(c.attrib["cx"]), float(c.attrib["cy"])) for c in ET.fromstring(svg).iter("circle")
    ]


def test_long_names_have_room() -> None:
    rows = [ScoreRow(name, {"lip": Estimate(0.1)}) for name in ("a", "gate without timestep")]
    names = [
        t for t in ET.fromstring(dots(rows, "lip", "t")).iter("text") if t.get("class") == "name"
    ]
    for text in names:  # they end at x, and a letter is less than 6 pixels wide
        assert float(text.get("x", "0")) >= 6 * len(text.text or "")


@pytest.mark.parametrize("span", [3e-5, 0.004, 0.2, 40.0])
@pytest.mark.parametrize("name", ["a", "a policy with a rather long name"])
def test_labels_of_an_axis_do_not_touch(span: float, name: str) -> None:
    ends = Estimate(0.87, 0.87 - span / 2, 0.87 + span / 2)
    svg = ET.fromstring(dots([ScoreRow(name, {"lip": ends})], "lip", "t"))
    found = [t for t in svg.iter("text") if "tick" in t.get("class", "") and t.text]
    labels = [(float(t.get("x", "")), t.text or "") for t in found]
    assert len({text for _, text in labels}) == len(labels) >= 2
    for (x, one), (y, other) in itertools.pairwise(labels):
        assert y - x >= 3 * (len(one) + len(other))


def test_dots_lie_where_the_values_are() -> None:
    rows = [ScoreRow(str(v), {"lip": Estimate(v, v - 0.1, v + 0.1)}) for v in (0.0, 0.5, 0.25)]
    (x0, y0), (x1, y1), (x2, y2) = circles(dots(rows, "lip", "test"))
    assert y0 < y1 < y2
    assert (x2 - x0) / (x1 - x0) == pytest.approx(0.5, abs=0.01)
    assert x0 < x2 < x1


def test_whiskers_span_the_interval() -> None:
    row = ScoreRow("a", {"lip": Estimate(0.5, 0.3, 0.9)})
    svg = ET.fromstring(dots([row, ScoreRow("b", {"lip": Estimate(0.0)})], "lip", "test"))
    paths = [p.attrib["d"] for p in svg.iter("path") if p.attrib["class"] == "whisker"]
    assert len(paths) == 1
    start, _, end = map(float, re.findall(r"[\d.]+", paths[0]))
    (x, _), (zero, _) = circles(dots([row, ScoreRow("b", {"lip": Estimate(0.0)})], "lip", "test"))
    assert (start - zero) / (x - zero) == pytest.approx(0.6, abs=0.01)
    assert (end - zero) / (x - zero) == pytest.approx(1.8, abs=0.01)


def test_lines_rise_upwards_and_skip_what_is_no_number() -> None:
    curve = Curve("training", [0, 1, 2, 3], [0.0, math.nan, 0.5, 1.0])
    svg = ET.fromstring(lines([curve], "lip", "test"))
    points = next(svg.iter("polyline")).attrib["points"].split()
    ys = [float(p.split(",")[1]) for p in points]
    assert len(ys) == 3
    assert (ys[0] - ys[1]) == pytest.approx(ys[1] - ys[2], abs=0.2)
    assert ys[0] > ys[2]


def test_a_curve_below_the_usual_range_widens_the_axis() -> None:
    curve = Curve("training", [0, 10], [0.2, 0.9])
    chart = lines([curve], "lip", "accuracy", reference=0.5, limits=(0.4, 1.0), height=132)
    ends = [float(y) for y in re.findall(r"[\d.]+,([\d.]+)", chart)]
    assert ends
    assert max(ends) <= 132 - 22 + 1e-6


def test_a_nearly_constant_gate_stays_pale() -> None:
    low, high = colour_range([0.65, 0.68])
    assert high - low == pytest.approx(0.2)
    assert (low + high) / 2 == pytest.approx(0.665)
    assert colour_range([0.1, 0.9]) == (0.1, 0.9)


def test_heat_cells_grow_stronger_with_the_weight() -> None:
    gate = GateMap([1000.0, 500.0], {"lip": [[0.0, 0.5], [1.0, 0.25]]})
    svg = ET.fromstring(heat(gate, "lip", "test"))
    cells = [r for r in svg.iter("rect") if r.find("title") is not None]
    opacity = [float(c.attrib["fill-opacity"]) for c in cells]
    assert np.argsort(opacity).tolist() == [0, 3, 1, 2]
    assert cells[2].findtext("title") == "layer 1, timestep 1000: 1.000"


def test_a_signed_map_has_a_hue_for_each_sign_and_bars_start_at_0() -> None:
    table = GateMap([200.0, 900.0], {"a and b": [[-0.5, 0.25], [0.0, 0.5]]})
    svg = ET.fromstring(heat(table, "a and b", "test", "cosine", signed=True))
    cells = [r for r in svg.iter("rect") if r.find("title") is not None]
    assert [" below" in c.attrib["class"] for c in cells] == [True, False, False, False]
    opacity = [float(c.attrib["fill-opacity"]) for c in cells]
    assert opacity[0] == opacity[3] == 1
    assert opacity[1] == pytest.approx(0.53)
    assert opacity[2] == pytest.approx(0.06)
    assert [t.text for t in svg.iter("text")][-2:] == ["\u22120.50", "0.50 cosine"]

    svg = ET.fromstring(bars([0.0, 0.25, 1.0], "test"))
    drawn = list(svg.iter("rect"))
    heights = [float(bar.attrib["height"]) for bar in drawn]
    assert heights == pytest.approx([0, heights[2] / 4, heights[2]], abs=0.1)
    assert {round(float(b.attrib["y"]) + h, 1) for b, h in zip(drawn, heights, strict=True)} == {
        110
    }
    ET.fromstring(bars([0.0], "test"))


def test_named_curves_say_their_name_at_the_end() -> None:
    curves = [Curve("lip", [0, 1], [0.2, 0.5]), Curve("motion", [0, 1], [0.2, 0.3])]
    svg = ET.fromstring(lines(curves, "run", "test", named=True))
    assert [t.text for t in svg.iter("text") if t.get("class") == "end"] == [
        "lip 0.50", "motion 0.30",
    ]  # fmt: skip
    assert [g.get("class", "").split()[0] for g in svg.iter("g")] == ["d-lip", "d-motion"]


def test_constant_values_and_no_values_draw_without_an_error() -> None:
    gate = GateMap([1000.0], {"lip": [[0.5]]})
    ET.fromstring(heat(gate, "lip", "test"))
    ET.fromstring(lines([Curve("a", [0], [0.5])], "lip", "test"))
    ET.fromstring(dots([ScoreRow("a", {"lip": Estimate(1.0)})], "lip", "test"))
    assert lines([], "lip", "test") == ""
    assert dots([], "lip", "test") == ""


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-2.3, -0.4), (24.1, 24.9), (0.5, 0.5), (0, 3e4)]
)
def test_ticks_are_round_and_cover_the_range(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 8
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0])


def test_numbers_have_a_true_minus_and_no_negative_zero() -> None:
    assert number(-0.0) == "0.00"
    assert number(-0.004) == "\u22120.004"
    assert number(-0.0004, 2) == "0.00"
    assert number(-1.5, 1) == "\u22121.5"
    assert number(float("nan")) == "\u2013"


def test_page_has_every_section_in_order(page: tuple[Report, Path]) -> None:
    text = page[1].read_text()
    ids = re.findall(r'<section id="(\w+)">', text)
    assert ids == [
        *("trained", "samples", "critic", "pairs", "experts"),
        *("gate", "scores", "files", "commands", "limits"),
    ]
    for anchor in re.findall(r'href="#(\w+)"', text):
        assert anchor in ids


def test_page_needs_no_network_and_names_relative_files(page: tuple[Report, Path]) -> None:
    text = page[1].read_text()
    addresses = re.findall(r'(?:src|href|poster)="([^"]*)"', text)
    assert addresses
    for address in addresses:
        assert address.startswith(("#", "data:", "clips/")), address
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text


def test_page_shows_every_figure_it_was_given(page: tuple[Report, Path]) -> None:
    report, path = page
    text = html.unescape(path.read_text())
    for row in report.scores:
        for value in row.values.values():
            assert f">{number(value.value)}<" in text
    for expert in report.experts:
        assert expert.heldout is not None
        assert f"<b>{number(expert.heldout.value)}</b>" in text
    for command in report.commands:
        assert command.line in text


def test_text_is_escaped(tmp_path: Path) -> None:
    report = fake_report(tmp_path)
    evil = "<script>alert(1)</script>"
    row = ScoreRow(evil, {d: Estimate(0.5) for d in DIMENSIONS}, delta={"lip": Estimate(0.1)})
    text = render_report(replace(report, title=evil, scores=[*score_rows(), row], notes=[evil]))
    assert "<script>alert" not in text


def test_unclear_difference_is_said(tmp_path: Path) -> None:
    report = fake_report(tmp_path)
    base, policy = report.headline
    unclear = replace(policy, delta={**policy.delta, "lip": Estimate(0.01, -0.02, 0.04, 96)})
    text = render_report(replace(report, headline=[base, unclear]))
    assert text.count("no clear difference") == 1


def test_missing_clip_is_an_error(tmp_path: Path) -> None:
    report = fake_report(tmp_path)
    (tmp_path / report.samples[0].clips[0].video).unlink()
    with pytest.raises(RunError, match="not there"):
        write_report(report, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_report_without_a_gate_or_pairs_still_renders(tmp_path: Path) -> None:
    report = replace(fake_report(tmp_path), gate=None, pair_examples=[], critic=[], headline=[])
    assert "No gate was trained" in render_report(report)


def test_clips_load_in_a_browser_and_both_can_play(
    page: tuple[Report, Path], ask_page: Callable[..., Any]
) -> None:
    report, path = page
    found = ask_page(
        path,
        """
        const all = [...document.querySelectorAll("video")];
        await Promise.all(all.map((v) => v.readyState >= 2 ? 0 :
          new Promise((done) => { v.onloadeddata = done; v.onerror = done; v.load(); })));
        const clips = all.map((v) =>
          [v.readyState, v.duration, v.videoWidth, v.error ? v.error.message : ""]);
        const asked = [];
        HTMLMediaElement.prototype.play = function () { asked.push(this.muted); };
        document.querySelector("button.both").click();
        return {
          clips,
          both: asked,
          fits: document.documentElement.scrollWidth <= innerWidth,
        };
        """,
        "--window-size=500,900",
    )
    assert len(found["clips"]) == 2 * (len(report.samples) + len(report.pair_examples))
    for ready, duration, width, error in found["clips"]:
        assert ready >= 2, error
        assert duration == pytest.approx(1.68, abs=0.1)
        assert width == 64
    assert found["both"] == [True, False]
    assert found["fits"]


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (500, True)])
def test_screenshot_is_a_page_and_not_blank(
    page: tuple[Report, Path], tmp_path: Path, width: int, dark: bool
) -> None:
    shot = tmp_path / "shot.png"
    theme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    browse(page[1], f"--screenshot={shot}", f"--window-size={width},1600", *theme)
    pixels = np.asarray(Image.open(shot).convert("RGB"), np.float64)
    assert pixels.shape == (1600, width, 3)
    background = pixels[5, 5]
    assert (background.mean() < 60) == dark
    ink = np.abs(pixels - background).max(axis=2) > 60
    assert 0.01 < ink.mean() < 0.6
    assert ink[: 1600 // 2].any(axis=0).mean() > 0.5
