"""``ft2 generator cache``: equal to encoding anew, resumable, refused where it does not belong."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from ft2.__main__ import main
from ft2.config import load_config
from ft2.generator import data as data_module
from ft2.generator.cache import complete, encoded_clips, open_cache
from ft2.generator.config import EncodingConfig, TrainConfig
from ft2.generator.data import Rows, read_clips
from ft2.generator.precompute import cache_clips
from ft2.runs import Silent
from ft2.wan import store as store_module
from ft2.wan.encoders import encode_image
from ft2.wan.model import TalkingModel
from ft2.wan.spec import WanSpec
from ft2.wan.weights import load_talking_model

SMALL = EncodingConfig(batch_size=3, shard_size=5)


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["generator", *argv, "-q"])
    return int(stop.value.code or 0)


def stage_arguments(trained: Path, *more: str) -> list[str]:
    """The second stage after ``trained``, in small batches of the encoders."""
    return [str(trained / "config.yaml"), "stage=frame", f"start={trained}", "steps=2",
            "encoding.batch_size=3", "encoding.shard_size=5", "lip_source=box", *more]  # fmt: skip


def files(folder: Path, skip: tuple[str, ...] = ("data.json",)) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name not in skip}


@pytest.fixture(scope="module")
def model(trained: Path) -> TalkingModel:
    return load_talking_model(WanSpec(weights=str(trained / "model")))


@pytest.fixture(scope="module")
def cache(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished cache of the tiny clips, made by the command."""
    folder = tmp_path_factory.mktemp("cache") / "encoded"
    assert run("cache", *stage_arguments(trained), "-o", str(folder)) == 0
    return folder


def test_rows_of_several_files_are_one_array(shards: Path, tmp_path: Path) -> None:
    tensors = load_file(next(shards.glob("*.safetensors")))
    rows = [{"identity_id": "a", "audio_id": str(i), "caption": f"c{i}"} for i in range(12)]
    for name, part in (("a", slice(0, 5)), ("b", slice(5, 6)), ("c", slice(6, 12))):
        arrays = {key: value[part].copy() for key, value in tensors.items()}
        save_file(arrays, tmp_path / f"{name}.safetensors", {"clips": json.dumps(rows[part])})
    clips = read_clips(tmp_path)
    frames = tensors["frames"]
    assert clips.captions == [f"c{i}" for i in range(12)]
    assert clips.frames.shape == frames.shape
    rng = np.random.default_rng(3)
    index, when = rng.integers(12, size=20), rng.integers(9, size=20)
    for place in (slice(4, 7), index, slice(None, None, 3), frames[:, 0, 0, 0, 0] > 128):
        np.testing.assert_array_equal(clips.frames[place], frames[place])
    np.testing.assert_array_equal(clips.frames[index, when], frames[index, when])
    np.testing.assert_array_equal(clips.frames[:, -1], frames[:, -1])
    np.testing.assert_array_equal(clips.sound(index), np.float32(tensors["audio"][index]) / 32767)
    assert len(read_clips(tmp_path, limit=7).frames) == 7
    assert isinstance(clips.frames, Rows)
    assert len(set(clips.keys)) == 12


@torch.no_grad()
def test_cached_rows_are_what_the_encoders_say(
    model: TalkingModel, shards: Path, cache: Path
) -> None:
    clips = read_clips(shards)
    encoded = encoded_clips(open_cache(cache, model, landmarks=False), model, clips)
    assert len(encoded) == 12
    index = torch.tensor([6, 5, 7])
    found = encoded.rows(index)
    frames = torch.from_numpy(clips.frames[index.numpy()])
    assert torch.equal(found["y"], model.image_latents(frames[:, 0]).half().float())
    image = encode_image(model.image, frames[:, 0], model.architecture.image)
    assert torch.equal(found["image"], image.half().float())
    sounds = list(clips.sound(index.numpy()))
    cond = model.encode_conditions(frames[:, 0].numpy(), sounds, ["", "", ""])
    assert torch.equal(found["x"], model.encode_video(frames, cond).half().float())
    prompts = [clips.captions[i] for i in index.tolist()]
    given = encoded.conditioning(found, index, model.architecture, whole_audio=False)
    assert torch.equal(given.text, model.encode_prompts(prompts).half().float())
    torch.testing.assert_close(given.audio, cond.audio, atol=2e-3, rtol=1e-3)
    assert torch.equal(given.audio_mask, cond.audio_mask)


def test_training_from_the_cache_is_training_without_it_to_the_bit(
    trained: Path, cache: Path, tmp_path: Path
) -> None:
    before = files(cache)
    assert run("train", *stage_arguments(trained, f"cache={cache}"), "-o", str(tmp_path / "a")) == 0
    assert not (tmp_path / "a" / "encoded").exists()
    assert files(cache) == before, "a complete cache is only read"
    alone = tmp_path / "start"
    shutil.copytree(trained, alone)
    shutil.rmtree(alone / "encoded")
    arguments = stage_arguments(alone)
    assert run("train", *arguments, "-o", str(tmp_path / "b")) == 0
    assert (tmp_path / "b" / "encoded").is_dir()
    weights = [(tmp_path / run_ / "model" / "dit.safetensors").read_bytes() for run_ in "ab"]
    assert weights[0] == weights[1]


class Killed(Exception):
    """Stands for a kill between a file of tensors and its index."""


def test_an_interrupted_cache_is_completed_to_the_same_bytes(
    trained: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place, written = tmp_path / "encoded", []
    arguments = ["cache", *stage_arguments(trained), "-o", str(place)]
    inner = store_module.write_json

    def dies(path: Path, value: object) -> None:
        written.append(path)
        if len(written) == 3:
            raise Killed
        inner(path, value)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(store_module, "write_json", dies)
        settings = load_config(TrainConfig, arguments[1], arguments[2:-2])
        cache_clips(settings, place, Silent())
    assert len(list(place.glob("clips-*"))) == 3, "two files of tensors, one index"
    assert run(*arguments) == 2
    assert "complete it with --resume" in capsys.readouterr().err
    assert run(*arguments, "--resume", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["clips"], found["of"], found["prompts"]) == (12, 12, 3)
    assert files(place) == files(cache)


KILLED = """
import os, signal, sys
from ft2.wan import store
inner, calls, name = getattr(store, sys.argv[1]), [], sys.argv[1]
def dies(path, value):
    calls.append(path)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    inner(path, value)
setattr(store, name, dies)
from ft2.__main__ import main
from ft2.config import load_config
main(sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("writer", ["write_json", "save_tensors"])
def test_a_killed_cache_is_completed_to_the_same_bytes(
    writer: str, trained: Path, cache: Path, tmp_path: Path
) -> None:
    place = tmp_path / "encoded"
    arguments = ["cache", *stage_arguments(trained), "-o", str(place)]
    command = [sys.executable, "-c", KILLED, writer, "generator", *arguments, "-q"]
    assert subprocess.run(command, capture_output=True).returncode == -9
    assert files(place).keys() < files(cache).keys() or writer == "write_json"
    assert run(*arguments, "--resume") == 0
    assert files(place) == files(cache)


def test_other_settings_and_other_weights_are_named(
    trained: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = stage_arguments(trained, f"cache={cache}", "lip_source=landmarks")
    assert run("train", *arguments, "-o", str(tmp_path / "run")) == 2
    said = capsys.readouterr().err
    assert "lip_source: was box, now landmarks" in said
    assert "weights" not in said
    other = tmp_path / "start"
    shutil.copytree(trained, other)
    path = other / "model" / "text.safetensors"
    text = load_file(path)
    name = max(text, key=lambda key: text[key].size)
    save_file({**text, name: text[name] + 1}, path, {"ft2_schema": "1"})
    assert run("cache", *stage_arguments(other), "-o", str(cache), "--resume") == 2
    said = capsys.readouterr().err
    assert "text_weights: was" in said
    assert "image_weights" not in said


def test_new_clips_alone_are_encoded_and_shares_make_a_whole(
    model: TalkingModel, shards: Path, tmp_path: Path
) -> None:
    folder, place = tmp_path / "data", tmp_path / "encoded"
    shutil.copytree(shards, folder)
    for rank in (1, 0):
        store = open_cache(place, model, landmarks=False)
        complete(store, model, read_clips(folder), SMALL, Silent(), landmarks=False,
                 share=(rank, 2))  # fmt: skip
        assert len(store.keys("clips")) == (5, 12)[rank == 0]
    before = files(place)
    shard = next(folder.glob("*.safetensors"))
    tensors = {name: value[:2] for name, value in load_file(shard).items()}
    rows = [{"identity_id": "n", "audio_id": "n", "caption": "somebody new"}] * 2
    save_file(tensors, folder / "shard-1.safetensors", {"clips": json.dumps(rows)})
    clips = read_clips(folder)
    complete(store, model, clips, SMALL, Silent(), landmarks=False)
    assert len(encoded_clips(store, model, clips)) == 14
    after = files(place)
    assert all(after[name] == before[name] for name in before)
    assert len(after) == len(before) + 4, "one file of clips, one of a prompt, and their indices"


def test_hashes_are_remembered_until_a_file_changes(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, known = tmp_path / "data", tmp_path / "data.json"
    shutil.copytree(shards, folder)
    first = read_clips(folder, known=known)
    hashed: list[Path] = []
    inner = data_module.hash_file
    monkeypatch.setattr(data_module, "hash_file", lambda p: hashed.append(p) or inner(p))
    assert read_clips(folder, known=known).fingerprint == first.fingerprint
    assert hashed == []
    path = next(folder.glob("*.safetensors"))
    tensors = load_file(path)
    tensors["audio"][0, 0] += 1
    save_file(tensors, path, {"clips": json.dumps([{"identity_id": "a", "audio_id": "b",
                                                    "caption": "c"}] * 12)})  # fmt: skip
    assert read_clips(folder, known=known).fingerprint != first.fingerprint
    assert hashed == [path]


def test_what_cannot_be_cached_is_refused_before_anything_is_written(
    trained: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "encoded"
    assert run("cache", str(trained / "config.yaml"), "-o", str(place)) == 2
    assert "starts from nothing" in capsys.readouterr().err
    assert run("cache", *stage_arguments(trained), "-n", "--json", "-o", str(place)) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["clips"], plan["prompts"]) == (12, 3)
    assert not place.exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    assert run("cache", *stage_arguments(trained), "-o", str(tmp_path / "mine"), "--resume") == 2
    assert "no training cache" in capsys.readouterr().err
    small = tmp_path / "small"
    small.mkdir()
    tensors = load_file(next(shards.glob("*.safetensors")))
    tensors["frames"] = tensors["frames"][:, :5].copy()
    rows = [{"identity_id": "a", "audio_id": "b", "caption": "c"}] * 12
    save_file(tensors, small / "s.safetensors", {"clips": json.dumps(rows)})
    assert run("cache", *stage_arguments(trained, f"data={small}"), "-o", str(place)) == 2
    assert "(5, 64, 64, 3)" in capsys.readouterr().err
