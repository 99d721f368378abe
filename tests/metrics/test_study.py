"""The user study: figures by hand, blind and complete rating, the page in a browser."""

import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from chromium import Browser

from ft2.__main__ import main
from ft2.critic.annotation import AnswerStore, Item
from ft2.errors import UsageError
from ft2.metrics.config import StudyConfig
from ft2.metrics.study import SCALE, Vote, agreement, coverage, gains, means, win_rates


def scores(table):
    """Votes of a dict (method, condition) -> scores of successive raters."""
    return [
        Vote(f"r{i}", condition, "lip_sync", method, value)
        for (method, condition), values in table.items()
        for i, value in enumerate(values)
    ]


def test_means_and_relative_gains_by_hand():
    votes = scores({("base", "a"): [4, 6], ("base", "b"): [8], ("ours", "a"): [9, 9],
                    ("ours", "b"): [9], ("ours", "c"): [0]})  # fmt: skip
    found = means(votes)
    assert found["base"]["lip_sync"]["value"] == pytest.approx(6.5)  # (5 + 8) / 2
    assert found["ours"]["lip_sync"]["value"] == pytest.approx(6.0)
    gain = gains(votes, "base")["ours"]["lip_sync"]
    assert gain["value"] == pytest.approx(9 / 6.5 - 1)  # on a and b alone
    assert (gain["low"], gain["high"]) == pytest.approx((9 / 8 - 1, 9 / 5 - 1))
    with pytest.raises(UsageError, match="no clip of 'x' was rated"):
        gains(votes, "x")


def test_a_gain_of_known_size_is_found_with_its_interval():
    rng = np.random.default_rng(0)
    base = {("base", f"c{i}"): [float(np.clip(rng.normal(6, 1), 0, 10))] for i in range(60)}
    ours = {("ours", c): [v[0] * 1.15] for (_, c), v in base.items()}
    found = gains(scores(base | ours), "base")["ours"]["lip_sync"]
    assert found["value"] == pytest.approx(0.15)
    assert found["low"] == pytest.approx(0.15)
    assert found["num_groups"] == 60


def test_win_rates_count_ties_as_one_half():
    votes = [Vote(f"r{i}", c, "lip", "ours", value, "base")
             for c, values in {"a": [1, 1, 0.5], "b": [0, 1, 0]}.items()
             for i, value in enumerate(values)]  # fmt: skip
    found = win_rates(votes)["ours over base"]["lip"]
    assert found["value"] == pytest.approx((2.5 / 3 + 1 / 3) / 2)
    assert (found["won"], found["tied"], found["lost"]) == (3, 1, 2)


def test_coverage_names_what_has_too_few_raters():
    votes = scores({("base", "a"): [4, 6], ("ours", "a"): [5]})
    found = coverage(votes, [("a", "base"), ("a", "ours"), ("b", "ours")], 2, 1)
    assert found["least"] == 0
    assert found["short"] == ["ours: a", "ours: b"]
    assert agreement(votes)["lip_sync"] is not None
    assert agreement(votes[:1]) == {"lip_sync": None}


def test_somebody_who_leaves_does_not_count(tmp_path):
    store = AnswerStore(tmp_path / "a.sqlite", ["lip"], 1, clip_words=SCALE, release_minutes=0)
    store.add([Item("a.mp4")])
    assert store.task("leaves") is not None
    task = store.task("stays")
    store.answer("stays", task.item, "lip", "10")
    assert store.task("late") is None
    with pytest.raises(UsageError, match="none of 0, 1"):
        store.answer("stays", task.item, "lip", "11")
    assert [g.answer for g in store.given()] == ["10"]


@pytest.fixture
def methods(tmp_path, folders):
    for name in ("base", "ours"):
        (tmp_path / name).mkdir()
        for clip in sorted((folders / "good").glob("*.mp4"))[:2]:
            shutil.copy(clip, tmp_path / name)
    return [f"{name}={tmp_path / name}" for name in ("base", "ours")]


@pytest.fixture
def served(tmp_path):
    """Start `ft2 study serve` as a process and return it with its address."""
    running = []

    def start(*args):
        command = [sys.executable, "-m", "ft2", "study", "serve", *args, "--port", "0"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
        running.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


def run(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        main(["study", *map(str, argv)])
    out = capsys.readouterr()
    return stop.value.code, out.out, out.err


def rate(home, token, rater, word):
    """Answer all questions of everything that a rater is shown; return what the page was told."""

    def post(path, **body):
        request = urllib.request.Request(
            f"{home}{path}", json.dumps({"token": token, "rater": rater, **body}).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)

    seen, task = [], post("/api/next")
    while not task.get("finished"):
        seen.append(task)
        for question in task["questions"]:
            answer = word(home, token, rater, task)
            task = post("/api/answer", item=seen[-1]["item"], dimension=question["name"],
                        answer=answer)  # fmt: skip
    return seen


def test_pairs_are_blind_and_their_sides_do_not_matter(tmp_path, methods, served, capsys):
    marked = (tmp_path / "ours" / "face0-0000.mp4").read_bytes() + b"ours"
    for clip in (tmp_path / "ours").glob("*.mp4"):
        clip.write_bytes(clip.read_bytes() + b"ours")
    assert marked.endswith(b"ours")
    args = [*methods, "--study", "st", "mode=pairs", "raters_per_clip=2"]
    process, address = served(*args, 'questions={lip: "Which lips match better?"}')
    home, token = re.fullmatch(r"(http://127\.0\.0\.1:\d+)/\?token=(.+)", address).groups()

    def prefers_ours(home, token, rater, task):
        clip = f"{home}{task['sides'][0]}?token={token}&rater={rater}"
        with urllib.request.urlopen(clip) as reply:
            return "A" if reply.read().endswith(b"ours") else "B"

    seen = [rate(home, token, rater, prefers_ours) for rater in ("ann", "bob")]
    assert [len(s) for s in seen] == [2, 2]
    assert "ours" not in json.dumps(seen)
    assert rate(home, token, "cy", prefers_ours) == []
    process.send_signal(signal.SIGINT)
    process.wait()
    code, out, _ = run(capsys, "report", tmp_path / "st", "--json")
    assert code == 0
    result = json.loads(out)
    cell = result["win_rates"]["ours over base"]["lip"]
    assert (cell["value"], cell["won"], cell["lost"]) == (1.0, 4, 0)
    assert result["coverage"]["least"] == 2
    assert not result["coverage"]["short"]
    code, out, _ = run(capsys, "report", tmp_path / "st", "--base", "ours")
    assert "base over ours  0.000" in out
    assert "Win rates" in (tmp_path / "st" / "report.html").read_text()


def test_what_is_wrong_is_told_before_the_page_opens(tmp_path, methods, folders, capsys):
    (tmp_path / "other").mkdir()
    shutil.copy(folders / "good" / "face1-0000.mp4", tmp_path / "other" / "x.mp4")
    kept = ["--study", tmp_path / "st"]
    cases = [
        (["serve", "base", *kept], "is not METHOD=FOLDER"),
        (["serve", methods[0], *kept], "compares two methods"),
        (["serve", methods[0], methods[0], *kept], "comes twice"),
        (["serve", methods[0], f"b={tmp_path / 'absent'}", *kept], "there is no file or folder"),
        (["serve", methods[0], f"b={tmp_path / 'other'}", *kept], "the folders do not match"),
        (["serve", methods[0], f"b={tmp_path / 'base'}", *kept], "share a folder"),
        (["serve", *methods, *kept, "mode=ranks"], "mode"),
        (["report", tmp_path / "absent"], "there is no study in"),
    ]
    for argv, message in cases:
        code, _, err = run(capsys, *argv)
        assert code == 2, message
        assert message in err
        assert not (tmp_path / "st").exists()
    from ft2.cli.study_report import build

    sets = {text.split("=")[0]: tmp_path / text.split("=")[0] for text in methods}
    build(sets, StudyConfig(), tmp_path / "st")
    code, _, err = run(capsys, "report", tmp_path / "st")
    assert (code, "nobody has rated anything" in err) == (2, True)
    code, _, err = run(capsys, "serve", *methods, *kept, "mode=pairs")
    assert (code, "holds a study of other clips or settings" in err) == (2, True)


@pytest.mark.slow
def test_a_rater_scores_clips_with_the_keyboard(tmp_path, methods, served, capsys):
    process, address = served(*methods, "--study", "st", "raters_per_clip=1")
    browser = Browser(tmp_path / "profile")
    try:
        browser.send("Page.navigate", url=address)
        browser.wait("document.readyState === 'complete' && !!document.getElementById('name')")
        browser.value("$('name').value = 'ann'; $('login').requestSubmit(); 1")
        browser.wait("!!task && document.querySelectorAll('video').length > 0")
        assert browser.value("document.querySelectorAll('.question').length") == 4
        assert browser.value("document.querySelectorAll('.question button').length") == 44
        assert "0 worst, 10 best" in browser.value("document.body.innerText")
        assert "base" not in browser.value("document.documentElement.outerHTML")
        for place, key in enumerate("t907"):
            browser.wait(f"Object.keys(task.answered).length === {place} && !busy")
            browser.key(key)
        browser.wait("task.done === 1 && !busy")
        while not browser.value("!!task.finished"):
            number = browser.value("Object.keys(task.answered).length + 10 * task.done")
            browser.key("5")
            browser.wait(
                f"task.finished || Object.keys(task.answered).length + 10 * task.done !== {number}"
            )
    finally:
        browser.close()
    process.send_signal(signal.SIGINT)
    process.wait()
    code, out, _ = run(capsys, "report", tmp_path / "st", "--json")
    assert code == 0
    result = json.loads(out)
    every = [result["means"][m]["lip_sync"]["value"] for m in ("base", "ours")]
    assert sorted(every) == [5.0, 7.5]
    assert result["coverage"]["least"] == 1
    assert set(result["gains"]["ours"]) == set(StudyConfig().questions)
    page = (tmp_path / "st" / "report.html").read_text()
    assert "FantasyTalking2 states lip 12.7%" in page
    assert "9.45" in page
