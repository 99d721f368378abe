"""What goes wrong between the command line and the Hub: exit codes, words, nothing lost."""

import hashlib
import json
import resource
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from loopback_hub import TOKEN, Hub, loopback_hub
from nsq_fakes import CLIP, ColourScorer, coloured_clip, write_conditions
from test_build import fingerprint

import ft2.__main__ as entry
from ft2.nsq.card import REQUIRED
from ft2.nsq.store import ScoreStore
from ft2.pairs import Scores
from ft2.runs import read_json

Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    """Run `ft2 nsq ...` and return its exit code and what it said on stderr."""

    def run(*words: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            entry.main(["nsq", *map(str, words)])
        assert isinstance(stop.value.code, int)
        return stop.value.code, capfd.readouterr().err

    return run


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Conditions, clips of another model, and a store in which a critic has judged them all."""
    folder = tmp_path / "world"
    folder.mkdir()
    write_conditions(folder, ["train", "train", "test"])
    rows, keys = [], []
    for condition in range(3):
        for seed in range(6):
            file = folder / f"c{condition}-{seed}.mp4"
            file.write_bytes(coloured_clip(file.stem, 5))
            rows.append({"file": file.name, "condition_id": f"c{condition}", "model": "other",
                         "seed": seed})  # fmt: skip
            keys.append((digest(file), digest(folder / f"voice{condition}.wav")))
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = ColourScorer().score([folder / str(row["file"]) for row in rows])
    with ScoreStore(folder / "scores.sqlite") as store:
        store.put("colours", zip(keys, scores, strict=True))
    return folder


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def words(world: Path, *more: str) -> list[str]:
    config = {
        "conditions": str(world / "conditions.jsonl"), "folders": [str(world / "clips.jsonl")],
        "critic": "store", "store": str(world / "scores.sqlite"), "train_shards": 2,
        "clip": CLIP.model_dump(),
    }  # fmt: skip
    (world / "nsq.yaml").write_text(yaml.safe_dump(config))
    return ["build", str(world / "nsq.yaml"), *more]


def test_clips_of_others_are_a_dataset_without_a_generator(
    world: Path, tmp_path: Path, call: Call
) -> None:
    assert call(*words(world), "-o", tmp_path / "out", "-n")[0] == 0
    assert call(*words(world), "-o", tmp_path / "out", "-q")[0] == 0
    assert call("validate", tmp_path / "out")[0] == 0
    assert read_json(tmp_path / "out" / "stats.json")["num_clips"] == 18
    code, said = call(*words(world, "folders=[]"), "-o", tmp_path / "b")
    assert (code, "one of them must give clips" in said) == (2, True)


def test_two_critics_in_one_store(world: Path, tmp_path: Path, call: Call) -> None:
    with ScoreStore(world / "scores.sqlite") as store:
        store.put("another", [(("v", "a"), Scores(0.1, 0.2, 0.3))])
    code, said = call(*words(world), "-o", tmp_path / "out")
    assert code == 2
    assert "the scores of 2 critics: 'another' (1 clips), 'colours' (18 clips)" in said
    assert "critic=store:NAME" in said
    assert not (tmp_path / "out").exists()
    assert call(*words(world, "critic=store:colours"), "-o", tmp_path / "out", "-q")[0] == 0
    code, said = call(*words(world, "critic=store:another"), "-o", tmp_path / "b")
    assert code == 1
    assert "'another' has no scores in the store" in said


def test_duplicate_ids_and_nan_scores(world: Path, tmp_path: Path, call: Call) -> None:
    import sqlite3

    path = world / "conditions.jsonl"
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[0] + "\n")
    code, said = call(*words(world), "-o", tmp_path / "out")
    assert (code, "conditions.jsonl:4: condition_id 'c0' is there twice" in said) == (2, True)
    path.write_text(whole)
    clips = world / "clips.jsonl"
    lines = clips.read_text()
    clips.write_text(lines + lines.splitlines()[7] + "\n")
    code, said = call(*words(world), "-o", tmp_path / "out")
    assert (code, "clips.jsonl:19: condition 'c1', model 'other', seed 1 is twice" in said) == (
        2, True,
    )  # fmt: skip
    clips.write_text(lines)
    base = sqlite3.connect(world / "scores.sqlite")
    base.execute("UPDATE verdicts SET quality = NULL")
    base.commit()
    base.close()
    code, said = call(*words(world), "-o", tmp_path / "out")
    assert (code, "'quality': nan" in said) == (2, True)
    assert not (tmp_path / "out" / "manifest.json").exists()


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Writes beyond `size` bytes of a file fail (EFBIG), as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_clips_deleted_between_stages(world: Path, tmp_path: Path, call: Call) -> None:
    out, victim = tmp_path / "out", world / "c1-3.mp4"
    with files_up_to(40_000):
        assert call(*words(world), "-o", out)[0] == 1
    assert (out / "scores" / "chunk-00000.arrow").exists()
    assert not (out / "manifest.json").exists()
    kept = victim.read_bytes()
    victim.unlink()
    code, said = call(*words(world), "-o", out, "--resume")
    assert code == 1
    assert f"the clip {victim} was judged and is gone" in said
    assert "bring it back" in said
    victim.write_bytes(kept)
    assert call(*words(world), "-o", out, "--resume", "-q")[0] == 0
    victim.unlink()
    code, said = call(*words(world), "-o", tmp_path / "b")
    assert code == 1
    assert "1 of 18 clips failed, more than max_failed_fraction=0.05" in said
    assert "missing: 1" in said
    assert call(*words(world, "max_failed_fraction=0.1"), "-o", tmp_path / "c", "-q")[0] == 0
    assert "- missing: 1" in (tmp_path / "c" / "README.md").read_text()


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[], None] | None]:
    """A tmpfs of `size` on `folder` and what makes it larger; None where none may be mounted."""
    folder.mkdir()

    def mount(*options: str) -> int:
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode
        except FileNotFoundError:
            return 1

    if mount(f"size={size}"):
        yield None
        return
    try:
        yield lambda: exec_ok(mount("remount", "size=64m"))
    finally:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def exec_ok(code: int) -> None:
    assert code == 0


@pytest.mark.parametrize("size", ["16k", "64k", "250k"])
def test_full_disk_then_more_room(world: Path, tmp_path: Path, call: Call, size: str) -> None:
    """On a tmpfs of a few pages; where nothing may be mounted, below a limit of a file's size."""
    assert call(*words(world), "-o", tmp_path / "whole", "-q")[0] == 0
    with small_disk(tmp_path / "small", size) as more_room:
        out = tmp_path / "small" / "out"
        if more_room is None:
            with files_up_to({"16k": 500, "64k": 20_000, "250k": 40_000}[size]):
                code, said = call(*words(world), "-o", out)
        else:
            code, said = call(*words(world), "-o", out)
            more_room()
        assert code == 1, said
        assert "cannot write" in said
        assert "--resume" in said
        assert not (out / "manifest.json").exists()
        assert call(*words(world), "-o", out, "--resume", "-q")[0] == 0
        assert fingerprint(out) == fingerprint(tmp_path / "whole")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub.utils import _http

    with loopback_hub() as running:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", running.url)
        monkeypatch.setattr(_http.time, "sleep", lambda _: None)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


def test_pushes_that_must_not_happen(
    world: Path, tmp_path: Path, call: Call, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, card = tmp_path / "out", tmp_path / "card.yaml"
    assert call(*words(world), "-o", out, "-q")[0] == 0
    push = ["push", out, "--repo", "me/talking", "--card", card]
    facts = {name: f"The fact {name}." for name in REQUIRED}

    def write(facts: dict[str, str], drop: Sequence[str] = ()) -> None:
        card.write_text(yaml.safe_dump({k: v for k, v in facts.items() if k not in drop}))

    write(facts, drop=["consent"])
    for flag in ("-n", "-y"):
        code, said = call(*push, flag)
        assert (code, "the card does not state: consent" in said) == (2, True)
    write(facts)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "old" * 12)
    code, said = call(*push, "-y")
    assert (code, "refused the token (HTTP 401)" in said) == (1, True)
    assert "oldold" not in said
    assert not hub.repos
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert call(*push, "-y", "-q")[0] == 0
    before = hub.files("me/talking")
    code, said = call(*push, "-y")
    assert (code, "me/talking exists and has" in said) == (2, True)
    assert hub.files("me/talking") == before
    assert len(hub.commits) == 1
