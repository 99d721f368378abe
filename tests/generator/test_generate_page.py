"""``ft2 generate --ui``: the page's requests, refusals, one job at a time, and a browser."""

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from chromium import Browser

from ft2 import faces, media
from ft2.__main__ import main
from ft2.config import load_config
from ft2.generator.best import Judge
from ft2.generator.config import GenerateConfig
from ft2.generator.desk import Desk, JobProgress
from ft2.generator.page import generate_app, page_fields
from ft2.generator.run import Talker
from ft2.loopback import serve_app
from ft2.pairs import Scores
from ft2.puppet import identities

TOKEN = "secret"


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A portrait, a wall, half a second of sound, and a file that is none."""
    folder = tmp_path_factory.mktemp("given")
    rng = np.random.default_rng(0)
    media.write_png(folder / "face.png", faces.align(identities.load("astronaut").image))
    media.write_png(folder / "wall.png", np.full((128, 128, 3), 120, np.uint8))
    media.write_wav(folder / "sound.wav", rng.normal(size=8000).astype(np.float32) * 0.1)
    media.write_wav(folder / "blip.wav", rng.normal(size=2000).astype(np.float32) * 0.1)
    (folder / "broken.wav").write_bytes(b"no sound here")
    return folder


class Page:
    """A served page on the tiny model, and its requests."""

    def __init__(self, weights, output):
        self.output, self.overrides = output, [f"model.weights={weights}", "steps=2"]
        config = load_config(GenerateConfig, None, self.overrides)
        self.loads, self.scored, self.hold = 0, [], threading.Event()
        self.hold.set()
        progress = JobProgress(self)
        self.talker = Talker(config, None, lambda *_: pytest.fail("no policy"), progress)
        fields = page_fields(config, (), judged=True)
        self.desk = Desk(
            self.talker, progress, lambda more: load_config(
                GenerateConfig, None, [*self.overrides, *more]
            ),
            ["prompt", *(f["key"] for f in fields)], output,
            judge=Judge(self.judge, min_seconds=0.45),
        )  # fmt: skip
        app = generate_app(self.desk, {"fields": fields, "prompt": ""}, TOKEN)
        ports = []
        threading.Thread(target=serve_app, args=(app, 0, ports.append), daemon=True).start()
        while not ports:
            time.sleep(0.01)
        self.home = f"http://127.0.0.1:{ports[0]}"

    def update(self, stage, done, total, note=""):
        """Be the progress that the page passes on to: loads are counted, steps may be held."""
        self.loads += stage == "load the model" and done == 0
        assert self.hold.wait(60)

    def judge(self, paths):
        self.scored.append([path.name for path in paths])
        return [Scores(0.5, i / 10, 0.5) for i in range(len(paths))]

    def ask(self, path, data=None, token=TOKEN, **values):
        query = urllib.parse.urlencode({"token": token, **values})
        body = data if isinstance(data, bytes | None) else json.dumps(data).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.home}{path}?{query}", body, headers)
        try:
            with urllib.request.urlopen(request) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def start(self, portrait, audio, **settings):
        keys = {}
        for kind, path in (("portrait", portrait), ("audio", audio)):
            status, body = self.ask("/api/upload", path.read_bytes(), kind=kind, name=path.name)
            assert status == 200
            keys[kind] = json.loads(body)["key"]
        status, body = self.ask("/api/start", {**keys, "settings": settings})
        return status, json.loads(body)

    def state(self):
        return json.loads(self.ask("/api/state")[1])

    def finished(self):
        end = time.monotonic() + 120
        while (state := self.state())["progress"] is not None:
            assert time.monotonic() < end
            time.sleep(0.02)
        return state["jobs"][-1]


@pytest.fixture(scope="module")
def page(trained, tmp_path_factory):
    made = Page(trained / "model", tmp_path_factory.mktemp("ui") / "videos")
    yield made
    made.desk.close()


def cli(*argv):
    with pytest.raises(SystemExit) as stop:
        main(["generate", *map(str, argv)])
    return int(stop.value.code or 0)


def test_nothing_is_shown_without_the_token(page, given):
    for path in ("/", "/api/facts", "/api/state", "/files/1/talking.mp4"):
        status, body = page.ask(path, token="other")
        assert (status, b"wrong token" in body) == (403, True)
    for path in ("/api/start", "/api/stop"):
        assert page.ask(path, {}, token="")[0] == 403
    assert page.ask("/api/upload", b"x", token="", kind="portrait", name="a.png")[0] == 403
    assert b"Make a portrait speak" in page.ask("/")[1]
    assert json.loads(page.ask("/api/facts")[1])["fields"][0]["key"] == "guidance.prompt"


@pytest.mark.parametrize(
    ("portrait", "audio", "settings"),
    [
        ("wall.png", "sound.wav", {}),
        ("face.png", "broken.wav", {}),
        ("sound.wav", "sound.wav", {}),
        ("face.png", "sound.wav", {"guidance.audio": -1.0}),
        ("face.png", "sound.wav", {"seed": None}),
    ],
)
def test_refusals_have_the_words_of_the_command_line(
    page, given, tmp_path, monkeypatch, capsys, portrait, audio, settings
):
    status, body = page.start(given / portrait, given / audio, **settings)
    monkeypatch.chdir(given)
    said = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    (tmp_path / "none.yaml").write_text("")
    paths = ["--portrait", portrait, "--audio", audio, "-o", tmp_path / "x.mp4"]
    assert cli(tmp_path / "none.yaml", *page.overrides, *said, *paths, "-q") == 2
    error = capsys.readouterr().err
    error = error.replace(f" in {tmp_path / 'none.yaml'}", "").replace(f"{given}/", "")
    assert status == 422
    assert error == f"error: {body['error']}\nhint: {body['hint']}\n"
    assert not page.output.exists()
    assert page.state()["progress"] is None


def test_unknown_settings_uploads_and_files_are_refused(page, given):
    status, body = page.start(given / "face.png", given / "sound.wav", device="cuda")
    assert (status, body["error"]) == (422, "the page cannot change device")
    status, text = page.ask("/api/start", {"portrait": "../../etc/passwd", "audio": ""})
    assert (status, json.loads(text)["error"]) == (422, "there is no portrait")
    assert page.ask("/api/upload", b"x", kind="weights", name="a")[0] == 422
    status, text = page.ask("/api/upload", b"x", kind="audio", name="../../a b/..\\ö.wav")
    assert json.loads(text)["key"].partition("/")[2] == "_.wav"
    assert page.ask("/files/1/portrait-face.png")[0] == 404


def test_a_video_is_made_once_and_again_from_its_record(page, given, tmp_path):
    status, body = page.start(given / "face.png", given / "sound.wav", prompt='a "man"', seed=7)
    assert status == 200
    assert any("padded with silence" in r for r in body["jobs"][-1]["remarks"])
    made = page.finished()
    assert made["state"] == "done", made
    number, video = made["number"], made["videos"][0]
    folder = page.output / f"{number:04}"
    assert {p.name for p in folder.iterdir()} == {
        "portrait-face.png", "audio-sound.wav", "talking.mp4", "talking.json",
    }  # fmt: skip
    status, sent = page.ask(f"/files/{number}/{video['video']}")
    assert sent == (folder / "talking.mp4").read_bytes()
    assert media.read_video(folder / "talking.mp4", need_audio=True).frames.shape[1:] == (64, 64, 3)
    record = json.loads(page.ask(f"/files/{number}/{video['record']}", save=1)[1])
    assert (record["config"]["prompt"], record["config"]["seed"]) == ('a "man"', 7)
    assert cli("--from", folder / "talking.json", "-o", tmp_path / "again.mp4", "-q") == 0
    assert (tmp_path / "again.mp4").read_bytes() == sent
    assert page.loads == 1


def test_the_best_of_several_seeds_is_shown_with_all_scores(page, given):
    assert page.start(given / "face.png", given / "sound.wav", num_seeds=3, best_by="lip")[0] == 200
    made = page.finished()
    assert page.scored[-1] == ["talking-0.mp4", "talking-1.mp4", "talking-2.mp4"]
    assert [c["lip"] for c in made["candidates"]] == [0.0, 0.1, 0.2]
    assert [v["seed"] for v in made["videos"]] == [2]
    assert page.loads == 1


def test_one_job_at_a_time_and_a_stopped_one_leaves_nothing(page, given):
    before = sorted(page.output.iterdir())
    page.hold.clear()
    assert page.start(given / "face.png", given / "sound.wav", num_seeds=2)[0] == 200
    status, body = page.start(given / "face.png", given / "sound.wav")
    assert (status, body["error"]) == (409, "a video is being made already")
    assert "stop it" in body["hint"]
    assert len(list(page.output.iterdir())) == len(before) + 1
    assert page.ask("/api/stop", {})[0] == 200
    page.hold.set()
    assert page.finished()["state"] == "stopped"
    assert sorted(page.output.iterdir()) == before
    assert page.start(given / "face.png", given / "sound.wav")[0] == 200
    assert page.finished()["state"] == "done"


def test_a_failure_is_told_and_leaves_nothing(page, given, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    before = sorted(page.output.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(media, "write_video", full)
        assert page.start(given / "face.png", given / "sound.wav")[0] == 200
        made = page.finished()
    assert made["state"] == "failed"
    assert "No space left on device" in made["error"]
    assert made["hint"] == "make it again"
    assert sorted(page.output.iterdir()) == before


def test_sliders_are_those_of_policy_and_model():
    config = GenerateConfig(model={"branches": ["motion"]}, guidance={"audio": 12.0})
    keys = [f["key"] for f in page_fields(config, ("lip", "quality"), judged=False)]
    assert keys == [
        "guidance.prompt", "guidance.audio", "expert.lip", "expert.quality", "motion",
        "seed", "num_seeds",
    ]  # fmt: skip
    assert page_fields(config, (), judged=False)[1]["high"] == 12.0
    assert all(f["key"] != "motion" for f in page_fields(GenerateConfig(), (), judged=True))


def test_options_that_do_not_go_with_the_page(trained, tmp_path, capsys):
    weights = f"model.weights={trained / 'model'}"
    for more in (["--portrait", "x.png"], ["--resume"], ["--batch", "x.jsonl"]):
        assert cli("--ui", weights, *more) == 2
        assert "--ui takes portraits and sounds from its page" in capsys.readouterr().err
    for more in (["--port", "0"], ["--token", "x"]):
        assert cli(weights, *more) == 2
        assert "add --ui" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert cli("--ui", weights, "-o", tmp_path / "file") == 2
    assert cli("--ui", "model.weights=/nowhere", "-o", tmp_path / "videos") == 2
    assert "there are no weights" in capsys.readouterr().err
    assert not (tmp_path / "videos").exists()


def browse(browser, process, given):
    address = process.stdout.readline().strip()
    browser.send("Page.navigate", url=address)
    browser.wait("typeof fields !== 'undefined' && fields.length > 0 && !!state")
    root = browser.send("DOM.getDocument")["root"]["nodeId"]
    for name, path in (("portrait", given / "wall.png"), ("audio", given / "sound.wav")):
        node = browser.send("DOM.querySelector", nodeId=root, selector=f"#{name}")["nodeId"]
        browser.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])
    browser.value("$('make').click(); 1")
    browser.wait("$('error').textContent.includes('no face') && !$('make').disabled")
    assert browser.value("$('hint').textContent").startswith("hint: give a portrait")
    node = browser.send("DOM.querySelector", nodeId=root, selector="#portrait")["nodeId"]
    browser.send("DOM.setFileInputFiles", nodeId=node, files=[str(given / "face.png")])
    slider = "document.querySelector('input[type=range][aria-label^=Audio]')"
    browser.value(f"{slider}.value = 2.5; {slider}.dispatchEvent(new Event('input')); 1")
    browser.value("$('field-num_seeds').value = 2; $('make').click(); 1")
    browser.wait("document.querySelectorAll('video').length === 2", 180)
    assert browser.value("$('error').textContent") == ""
    browser.wait("[...document.querySelectorAll('video')].every(v => v.readyState >= 2)")
    play = "document.querySelector('video').play()"
    browser.send("Runtime.evaluate", expression=play, userGesture=True)
    browser.wait("document.querySelector('video').currentTime > 0.1")
    assert browser.value("document.querySelector('video').webkitAudioDecodedByteCount") > 0
    links = browser.value("[...document.querySelectorAll('a')].map(a => a.textContent).join()")
    assert links == "mp4,record (json),mp4,record (json)"


@pytest.mark.slow
def test_a_person_makes_two_videos_in_a_browser_and_ends_it(trained, given, tmp_path):
    settings = [f"model.weights={trained / 'model'}", "min_portrait_psnr=null", "steps=2"]
    command = [sys.executable, "-m", "ft2", "generate", "--ui", "--port", "0", *settings]
    process = subprocess.Popen(
        [*command, "-o", "videos"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=tmp_path,
    )  # fmt: skip
    browser = Browser(tmp_path / "profile")
    try:
        browse(browser, process, given)
    finally:
        browser.close()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=180)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "finished videos are in 'videos'" in said
    record = json.loads((tmp_path / "videos/0001/talking-1.json").read_text())
    assert record["config"]["guidance"]["audio"] == 2.5
    assert not Path(record["inputs"]["portrait"]["path"]).is_absolute()
    assert [p.name for p in (tmp_path / "videos").iterdir()] == ["0001"]


def test_sound_too_short_for_the_critic_is_refused_before_anything_is_made(page, given):
    before = page.state()
    status, said = page.start(given / "face.png", given / "blip.wav", num_seeds=2)
    assert status == 422
    assert "the critic needs 0.45 s" in said["error"]
    assert page.state() == before
