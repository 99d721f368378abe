"""Raters: who sees what, undo, resume, gold, agreement, the page in a browser; the rewards."""

import json
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta

import krippendorff
import numpy as np
import pytest
from chromium import Browser

from ft2.__main__ import main
from ft2.critic.agreement import agreement
from ft2.critic.annotation import AnswerStore, Item
from ft2.critic.answers import Answer
from ft2.critic.importers import read_answers
from ft2.errors import UsageError
from ft2.media import write_video

DIMENSIONS = ("motion", "lip", "quality")


def rate(store, rater, word=None):
    """Answer the open item; return it, or None when all is done."""
    task = store.task(rater)
    if task is not None:
        for d in DIMENSIONS:
            store.answer(rater, task.item, d, word or ("yes" if len(task.sides) == 1 else "tie"))
    return task


def test_every_item_reaches_as_many_raters_as_wanted(tmp_path):
    store = AnswerStore(tmp_path / "a.sqlite", DIMENSIONS, raters_per_item=2)
    gold = Item("gold.mp4", gold={"lip": "no"})
    store.add([*(Item(f"{i}.mp4") for i in range(6)), gold])
    seen = {name: [] for name in ("ann", "bob", "cy")}
    while any(seen[name].append(t.sides[0]) is None for name in seen if (t := rate(store, name))):
        pass
    counts = {clip: sum(clip in s for s in seen.values()) for clip in ("gold.mp4", "3.mp4")}
    assert counts == {"gold.mp4": 3, "3.mp4": 2}
    assert sum(len(s) for s in seen.values()) == 6 * 2 + 3
    assert len({tuple(s) for s in seen.values()}) == 3
    report = {row["rater"]: row for row in store.report()}
    assert report["ann"]["gold_right"] == 0.0
    assert report["ann"]["answers"] == 3 * len(seen["ann"])
    assert all(answer.clip != "gold.mp4" for answer in store.answers())


def test_a_rater_who_leaves_takes_nothing_away(tmp_path):
    path = tmp_path / "a.sqlite"
    store = AnswerStore(path, DIMENSIONS, release_minutes=30)
    store.add([Item("a.mp4")])
    left = store.task("ann")
    assert store.task("bob") is None
    hour_ago = (datetime.now(UTC) - timedelta(hours=1)).isoformat(timespec="microseconds")
    with sqlite3.connect(path) as db:
        db.execute("update assignments set time = ?", (hour_ago,))
    store.answer("ann", left.item, "lip", "no")
    assert store.task("bob") is None  # ann is at it
    with sqlite3.connect(path) as db:
        db.execute("update answers set time = ?", (hour_ago,))
    assert store.task("bob").total == 1
    assert store.task("cy") is None
    assert rate(store, "bob").sides == ("a.mp4",)
    assert store.task("cy") is None
    assert rate(store, "ann").answered == {"lip": "no"}  # back again, she may finish
    assert len(store.answers()) == 6


def test_reload_undo_and_a_second_start(tmp_path):
    path = tmp_path / "a.sqlite"
    store = AnswerStore(path, DIMENSIONS)
    store.add([Item("a.mp4"), Item("b.mp4"), Item("c.mp4")])
    first = rate(store, "ann")
    second = store.task("ann")
    assert second.item != first.item
    assert (second.done, second.total) == (1, 3)
    store.answer("ann", second.item, "lip", "unsure")
    again = AnswerStore(path, DIMENSIONS)
    again.add([Item("a.mp4")])
    assert again.task("ann").answered == {"lip": "unsure"}
    assert again.undo("ann")
    assert again.task("ann").item == second.item
    assert again.undo("ann")
    assert again.task("ann").item == first.item
    assert not again.undo("ann")
    with pytest.raises(UsageError, match="not given"):
        again.answer("bob", first.item, "lip", "yes")
    for dimension, word in (("lip", "A"), ("colour", "yes")):
        with pytest.raises(UsageError, match="none of"):
            again.answer("ann", first.item, dimension, word)


def test_pairs_are_shown_on_both_sides_and_stored_as_shown(tmp_path):
    store = AnswerStore(tmp_path / "a.sqlite", DIMENSIONS, raters_per_item=20)
    store.add([Item("a.mp4", "b.mp4", facts={"prompt": "p"}), Item("c.mp4", "d.mp4", {"lip": "A"})])
    for number in range(20):
        while (task := store.task(f"r{number}")) is not None:
            word = "A" if task.sides[0] in ("a.mp4", "c.mp4") else "B"  # people prefer a and c
            for d in DIMENSIONS:
                store.answer(f"r{number}", task.item, d, word)
    answers = store.answers()
    assert {(a.clip, a.answer) for a in answers} == {("a.mp4", "A"), ("b.mp4", "B")}
    assert answers[0].prompt == "p"
    assert all(row["gold_right"] == 1.0 for row in store.report())


def test_agreement_is_krippendorffs_alpha():
    rng = np.random.default_rng(0)
    table = rng.choice(["yes", "no", "unsure"], (3, 30), p=[0.5, 0.3, 0.2])
    answers = [
        Answer(f"{i}.mp4", "lip", str(word), rater=f"r{r}")
        for r, row in enumerate(table)
        for i, word in enumerate(row)
    ]
    codes = np.select([table == "yes", table == "no"], [1.0, 0.0], np.nan)
    want = krippendorff.alpha(reliability_data=codes, level_of_measurement="nominal")
    assert agreement(answers)["lip"] == pytest.approx(want)
    assert agreement(answers[:1]) == {"lip": None}
    same = [Answer("a", "lip", "A", other="b"), Answer("b", "lip", "B", other="a")]
    same += [Answer("c", "lip", "A", other="d"), Answer("d", "lip", "B", other="c")]
    assert agreement(same) == {"lip": None}
    same += [Answer("e", "lip", "B", other="f"), Answer("f", "lip", "A", other="e")]
    assert agreement(same)["lip"] == pytest.approx(1.0)


@pytest.fixture
def served(tmp_path, ratings):
    """Start `ft2 critic ARGS` as a process and return its address; end it afterwards."""
    running = []

    def start(*args):
        command = [sys.executable, "-m", "ft2", "critic", *map(str, args), "--port", "0"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
        running.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


def post(address, body):
    request = urllib.request.Request(
        address, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_page_is_shut_without_its_token_and_clips_to_strangers(served, ratings):
    clips = [ratings.parent / f"{n}.mp4" for n in (28, 29)]
    process, address = served("annotate", *clips)
    home, token = re.fullmatch(r"(http://127\.0\.0\.1:\d+)/\?token=(.+)", address).groups()
    assert post(f"{home}/api/next", {"token": "x", "rater": "ann"})[0] == 403
    assert post(f"{home}/api/next", {"token": token, "rater": " "})[0] == 422
    code, task = post(f"{home}/api/next", {"token": token, "rater": "ann"})
    assert code == 200
    assert [q["name"] for q in task["questions"]] == list(DIMENSIONS)
    clip = f"{home}{task['sides'][0]}?token={token}&rater="
    with urllib.request.urlopen(clip + "ann") as reply:
        assert reply.read() in [c.read_bytes() for c in clips]
    for rater in ("bob", ""):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{home}/media/99/0?token={token}&rater={rater}")
    bad = {"token": token, "rater": "ann", "item": task["item"], "dimension": "lip"}
    assert post(f"{home}/api/answer", bad | {"answer": "A"})[0] == 422
    assert post(f"{home}/api/answer", bad | {"answer": "no"})[1]["answered"] == {"lip": "no"}
    process.send_signal(signal.SIGINT)
    assert process.wait() in (0, 130)


@pytest.mark.slow
def test_a_rater_rates_reloads_and_goes_on_after_a_kill(served, ratings, tmp_path):
    rows = [{"clip": str(ratings.parent / f"{n}.mp4")} for n in (28, 29)]
    rows.append({"clip": str(ratings.parent / "30.mp4"), "other": str(ratings.parent / "31.mp4")})
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    arguments = ("annotate", "clips.jsonl", "--token", "secret")
    process, address = served(*arguments)
    browser = Browser(tmp_path / "profile")
    try:
        browser.send("Page.navigate", url=address)
        browser.wait("document.readyState === 'complete' && !!document.getElementById('name')")
        browser.value("$('name').value = 'ann'; $('login').requestSubmit(); 1")
        browser.wait("!!task && document.querySelectorAll('video').length > 0")
        for place, key in enumerate("123"):
            browser.wait(f"Object.keys(task.answered).length === {place} && !busy")
            browser.key(key)
        browser.wait("task.done === 1 && !busy")
        undo = "new KeyboardEvent('keydown', {key: 'u', bubbles: true})"
        browser.value(f"$('name').dispatchEvent({undo})")  # hidden, yet focused until a redraw
        browser.wait("task.done === 0 && !busy")
        for place, key in enumerate("112"):
            browser.wait(f"Object.keys(task.answered).length === {place} && !busy")
            browser.key(key)
        browser.wait("task.done === 1 && !busy")
        item = browser.value("task.item")
        browser.key("1")
        browser.wait("Object.keys(task.answered).length === 1 && !busy")
        process.send_signal(signal.SIGKILL)
        process.wait()
        _, address = served(*arguments)
        port = address.split(":")[2].split("/")[0]
        browser.send("Page.navigate", url=f"http://127.0.0.1:{port}/?token=secret")
        browser.wait("typeof task !== 'undefined' || !!document.getElementById('name')")
        browser.value("if (!task) { $('name').value = 'ann'; $('login').requestSubmit(); } 1")
        browser.wait("!!task && !busy")
        assert browser.value("task.item") == item
        assert browser.value("task.done") == 1
        assert browser.value("Object.keys(task.answered).length") == 1
        while not browser.value("!!task.finished"):
            number = browser.value("Object.keys(task.answered).length + 10 * task.done")
            browser.key("2")
            browser.wait(
                f"task.finished || Object.keys(task.answered).length + 10 * task.done !== {number}"
            )
        assert "All done" in browser.value("document.body.innerText")
    finally:
        browser.close()
    out = tmp_path / "out.jsonl"
    with pytest.raises(SystemExit) as stop:
        main(["critic", "raters", str(tmp_path / "answers.sqlite"), "-o", str(out)])
    assert stop.value.code == 0
    answers = read_answers(out)
    assert len(answers) == 9
    assert {a.rater for a in answers} == {"ann"}
    first = [a.answer for a in answers if not a.is_pair][:3]
    assert len([a for a in answers if a.is_pair]) == 3
    assert set(first) <= {"yes", "no", "unsure", "A", "B", "tie"}


@pytest.mark.slow
def test_space_plays_and_stops_a_pair_in_step(served, tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (2, 75, 64, 64, 3)).astype(np.uint8)
    for name, picture in zip("ab", frames, strict=True):
        write_video(tmp_path / f"{name}.mp4", picture, 25, np.zeros(48000, np.float32))
    (tmp_path / "clips.jsonl").write_text('{"clip": "a.mp4", "other": "b.mp4"}\n')
    _, address = served("annotate", "clips.jsonl")
    browser = Browser(tmp_path / "profile")
    try:
        browser.send("Page.navigate", url=address)
        browser.wait("document.readyState === 'complete' && !!document.getElementById('name')")
        browser.value("$('name').value = 'ann'; $('login').requestSubmit(); 1")
        browser.wait("!!task && videos().length === 2 && videos().every(v => v.readyState >= 3)")
        assert browser.value("videos().every(v => v.paused && v.currentTime === 0)")
        browser.key(" ")
        browser.wait("videos().every(v => !v.paused && v.currentTime > 0.1)")
        assert browser.value("videos().map(v => v.muted).join()") == "false,true"
        browser.value("videos()[1].currentTime = (videos()[0].currentTime + 1.5) % 3; 1")
        browser.wait("Math.abs(videos()[0].currentTime - videos()[1].currentTime) < 0.1")
        browser.key(" ")
        browser.wait("videos().every(v => v.paused)")
        before = browser.value("videos().map(v => v.currentTime)")
        time.sleep(0.3)
        after = browser.value("videos().map(v => v.currentTime)")
        assert after == pytest.approx(before, abs=0.02)  # the last picture settles by some 0.1 ms
    finally:
        browser.close()


def test_rewards_as_openrlhf_asks_for_them(adapter, ratings, tmp_path):
    from ft2.critic import TalkingCritic
    from ft2.critic.annotation_app import reward_app
    from ft2.loopback import serve_app

    critic = TalkingCritic.from_pretrained(adapter)
    shutil.copy(ratings, tmp_path / "bad.mp4")
    for n in (28, 29):
        shutil.copy(ratings.parent / f"{n}.mp4", tmp_path)
    ports = []
    app = reward_app(critic, tmp_path.resolve())
    threading.Thread(target=serve_app, args=(app, 0, ports.append), daemon=True).start()
    while not ports:
        time.sleep(0.05)
    address = f"http://127.0.0.1:{ports[0]}/get_reward"
    want = critic.score(videos=[tmp_path / "28.mp4", tmp_path / "29.mp4"])
    code, found = post(address, {"query": ["28.mp4", "29.mp4"], "dimension": "lip"})
    assert code == 200
    assert found["rewards"] == pytest.approx([w.p["lip"] for w in want], abs=1e-5)
    _, mean = post(address, {"query": ["28.mp4"]})
    assert mean["rewards"][0] == pytest.approx(np.mean(list(want[0].p.values())), abs=1e-5)
    assert post(address, {"query": "28.mp4"})[0] == 422
    assert post(address, {"query": ["28.mp4"], "dimension": "taste"})[0] == 422
    assert post(address, {"query": ["../x.mp4"]})[0] == 403
    assert set(found) == {"rewards", "details"}  # OpenRLHF takes a key "scores" for a tensor
    assert found["details"][1] == pytest.approx(want[1].p, abs=1e-5)
    code, reply = post(address, {"query": ["a\0b"]})
    assert code == 422
    assert "a query is no path" in reply["detail"]
    code, reply = post(address, {"query": ["x" * 5000]})
    assert code == 422
    assert "no such file" in next(iter(reply["detail"].values()))
    code, reply = post(address, {"query": ["28.mp4", "bad.mp4"]})
    assert code == 422
    assert "decode" in reply["detail"]["bad.mp4"]


@pytest.fixture
def no_page(monkeypatch):
    """Fail where a page would open, rather than serve it for ever."""
    monkeypatch.setattr("ft2.cli.critic_annotate.serve_questions", lambda *a, **k: sys.exit(9))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"clip": 1}, "row 1: a row is"),
        ({"clip": "a.mp4", "x": 1}, "unknown keys: x"),
        ({"clip": "a.mp4", "gold": {"lip": "A"}}, "none of yes"),
        ({"clip": "a.mp4", "gold": {"taste": "no"}}, "gold is an answer"),
        ({"clip": "absent.mp4"}, "no such clip"),
        ({"clip": "clips.jsonl"}, "not a video"),
        ({"clip": "a.mp4", "gold": {"lip": ["no"]}}, "none of yes"),
        ({"clip": "a.mp4", "other": 5}, "other is the path"),
        ({"clip": "a.mp4", "other": "a.mp4"}, "other is the path"),
        ({"clip": "text.mp4"}, "cannot decode"),
        (None, "no clips"),
    ],
)
def test_clips_to_rate_are_checked_before_anything_starts(tmp_path, capsys, no_page, row, message):
    path = tmp_path / "clips.jsonl"
    path.write_text(json.dumps(row) + "\n" if row else "")
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(SystemExit) as stop:
        main(["critic", "annotate", str(path), "--store", str(tmp_path / "a.sqlite")])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "a.sqlite").exists()


@pytest.mark.parametrize("questions", ["{}", "{split: 'Is it?'}", "{lip: ''}"])
def test_pages_without_questions_are_refused(tmp_path, capsys, no_page, ratings, questions):
    store = tmp_path / "a.sqlite"
    clip = str(ratings.parent / "0.mp4")
    with pytest.raises(SystemExit) as stop:
        main(["critic", "annotate", clip, "--store", str(store), f"questions={questions}"])
    assert stop.value.code == 2
    assert "question" in capsys.readouterr().err
    assert not store.exists()
