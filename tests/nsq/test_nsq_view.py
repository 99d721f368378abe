"""`ft2 nsq view` and `ft2 nsq stats --page`, opened in a browser."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ft2.cli.nsq import app
from ft2.errors import UsageError
from ft2.nsq.gallery import write_gallery
from ft2.nsq.stats_page import win_rates
from ft2.pairs import DIMENSIONS, read_table
from ft2.runs import read_json

PROBE = """
  const found = { all: document.querySelectorAll(".pair").length };
  found.first = document.querySelector(".pair").dataset.pair;
  document.querySelector('[data-store="lip"]').click();
  found.lip = [...document.querySelectorAll(".pair")].map((p) => p.dataset.pair);
  document.querySelector('[data-store=""]').click();
  document.getElementById("conflicts").click();
  found.conflicts = document.querySelectorAll(".pair").length;
  found.marked = document.querySelectorAll(".pair .conflict").length;
  document.getElementById("conflicts").click();
  const videos = [...document.querySelector(".pair").querySelectorAll("video")];
  await Promise.all(videos.map((v) => v.readyState >= 2 ? 0 :
    new Promise((done) => { v.addEventListener("loadeddata", done); v.load(); })));
  document.querySelector(".both").click();
  found.button = document.querySelector(".both").textContent;
  found.paused = videos.map((v) => v.paused);
  found.sizes = videos.map((v) => v.videoWidth);
  return found;
"""


def test_gallery_filters_and_plays_in_step(
    dataset: Path, tmp_path: Path, ask_page: Callable[..., Any]
) -> None:
    report = write_gallery(dataset, tmp_path / "page", "train", 500)
    rows = read_table(dataset, "pairs", "train").to_pylist()
    assert report["pairs"] == report["of"] == len(rows)
    found = ask_page(tmp_path / "page" / "index.html", PROBE)
    assert found["all"] == len(rows)
    assert sorted(found["lip"]) == sorted(r["pair_id"] for r in rows if r["in_lip"])
    opposed = [r for r in rows if {0, 1} <= {r[f"label_{d}"] for d in DIMENSIONS}]
    assert found["conflicts"] == found["marked"] == report["with_conflict"] == len(opposed) > 0
    assert found["first"] in {r["pair_id"] for r in opposed}
    assert (found["button"], found["paused"]) == ("Pause both", [False, False])
    assert found["sizes"] == [32, 32]


def test_gallery_has_each_clip_once_and_no_local_path(dataset: Path, tmp_path: Path) -> None:
    report = write_gallery(dataset, tmp_path / "page", "train", 5)
    assert report["pairs"] == 5
    html = (tmp_path / "page" / "index.html").read_text()
    names = set(re.findall(r"media/(\w+\.mp4)", html))
    assert names == {p.name for p in (tmp_path / "page" / "media").iterdir()}
    assert str(tmp_path) not in html
    with pytest.raises(UsageError, match="already exists"):
        write_gallery(dataset, tmp_path / "page", "train", 5)


def test_prompt_cannot_break_out_of_the_page(dataset: Path, tmp_path: Path) -> None:
    from ft2.nsq import gallery

    page = gallery._render(dataset, "train", [{"prompt": "</script><script>alert(1)</script>"}])
    assert "</script><script>alert" not in page


def test_stats_page_and_command(dataset: Path, tmp_path: Path) -> None:
    runner, page = CliRunner(), tmp_path / "stats.html"
    result = runner.invoke(app, ["stats", str(dataset), "--json", "--page", str(page)])
    assert result.exit_code == 0, result.output
    stats = json.loads(result.stdout)
    assert stats == read_json(dataset / "stats.json")
    html = page.read_text()
    train = stats["splits"][0]
    assert f"<td>{train['pairs']}</td>" in html
    assert html.count("<i style") == 20 * 3 * len(stats["splits"])
    assert isinstance(runner.invoke(app, ["stats", str(tmp_path)]).exception, UsageError)


def test_counts_of_the_statistics_are_those_of_the_rows(dataset: Path) -> None:
    train = read_json(dataset / "stats.json")["splits"][0]
    rows = read_table(dataset, "pairs", "train").to_pylist()
    clips = read_table(dataset, "clips", "train").drop_columns(["video", "audio", "reference"])
    for d in DIMENSIONS:
        inside = [r for r in rows if r[f"in_{d}"]]
        assert train[d] == len(inside)
        wins = sum(r[f"label_{d}"] == 0 for r in inside)
        assert train["position_a"][d] == pytest.approx(wins / len(inside))
        assert abs(wins - len(inside) / 2) <= 13
        assert sum(train["score_histogram"][d]) == train["clips"] == clips.num_rows
        yes = sum(s >= 0.5 for s in clips[f"score_{d}"].to_pylist())
        assert train[f"yes_{d}"] == pytest.approx(yes / clips.num_rows)
    for couple, counted in train["conflicts"].items():
        one, other = couple.split("-")
        both = [(r[f"label_{one}"], r[f"label_{other}"]) for r in rows]
        both = [(x, y) for x, y in both if x != 2 and y != 2]
        assert counted == {"agree": sum(x == y for x, y in both),
                           "oppose": sum(x != y for x, y in both)}  # fmt: skip


def test_win_rates_sum_over_splits() -> None:
    def split(wins: int, losses: int, clips: int, score: float) -> dict[str, object]:
        row = {"clips": clips, "mean_score": dict.fromkeys(DIMENSIONS, score)}
        return {"models": {"m": {**row, "wins": dict.fromkeys(DIMENSIONS, wins),
                                 "losses": dict.fromkeys(DIMENSIONS, losses)}}}  # fmt: skip

    (row,) = win_rates({"splits": [split(3, 1, 10, 0.2), split(0, 4, 30, 0.6)]})
    assert row["lip"] == {"score": pytest.approx(0.5), "wins": 3 / 8, "met": 8}


def test_view_takes_the_first_split_that_has_pairs(dataset: Path, tmp_path: Path) -> None:
    copied = tmp_path / "only-test"
    shutil.copytree(dataset, copied)
    for path in (copied / "data").rglob("*.arrow"):
        if not path.name.startswith("test-"):
            path.unlink()
    done = CliRunner().invoke(app, ["view", str(copied), "-o", str(tmp_path / "page")])
    assert done.exit_code == 0, done.output
    assert "split: test" in done.stderr
    assert (tmp_path / "page" / "index.html").is_file()


@pytest.mark.parametrize("command", ["view", "stats", "validate"])
def test_a_wrong_path_is_called_one(command: str, tmp_path: Path) -> None:
    more = ["-o", str(tmp_path / "page")] if command == "view" else []
    done = CliRunner().invoke(app, [command, str(tmp_path / "nope"), *more])
    assert isinstance(done.exception, UsageError)
    assert "there is no directory" in str(done.exception)
