"""Base training: exact resume, conditions that drop out, weights of the lips, stages."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from generator_toys import TINY, speech

from ft2.errors import UsageError
from ft2.generator.average import Average
from ft2.generator.batches import draw_batch, lip_weights
from ft2.generator.cache import Encoded
from ft2.generator.config import DropoutConfig, TrainConfig
from ft2.generator.data import read_clips
from ft2.generator.prepare import PHONES, phone_targets
from ft2.generator.train import train_generator
from ft2.runs import load_tensors
from ft2.speech import Phone
from ft2.wan.store import Store


class Killed(Exception):
    """Stands for a kill between two steps."""


class KillAt:
    """A progress display that ends the run at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def update(self, stage: str, done: int, total: int, note: str = "") -> None:
        if stage.startswith("train") and done == self.step:
            raise Killed


def test_a_killed_run_resumes_to_the_same_bytes(
    tiny_config: TrainConfig, trained: Path, tmp_path: Path
) -> None:
    config = tiny_config.model_copy(update={"checkpoint_seconds": 1e-6})
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for place in (whole, broken):
        place.mkdir()
        shutil.copytree(trained / "prepared", place / "prepared")
        shutil.copytree(trained / "encoded", place / "encoded")
        shutil.copy(trained / "config.yaml", place)
    text = (
        (trained / "config.yaml")
        .read_text()
        .replace("checkpoint_seconds: 60.0", "checkpoint_seconds: 1.0e-06")
    )
    for place in (whole, broken):
        (place / "config.yaml").write_text(text)
    train_generator(config, whole, resume=True)
    with pytest.raises(Killed):
        train_generator(config, broken, resume=True, progress=KillAt(4))
    train_generator(config, broken, resume=True)
    for name in ("dit.safetensors", "codec.safetensors"):
        assert (whole / "model" / name).read_bytes() == (broken / "model" / name).read_bytes()
    assert len((broken / "metrics.jsonl").read_text().splitlines()) == 6


def test_the_next_stage_starts_from_the_average(
    tiny_config: TrainConfig, trained: Path, tmp_path: Path
) -> None:
    config = tiny_config.model_copy(
        update={"stage": "frame", "start": str(trained), "steps": 1, "ema_decay": 0.0}
    )
    train_generator(config, tmp_path / "frame")
    before, _ = load_tensors(trained / "model" / "dit.safetensors")
    after, _ = load_tensors(tmp_path / "frame" / "model" / "dit.safetensors")
    moved = max((after[n].float() - before[n].float()).abs().max().item() for n in before)
    assert 0 < moved < 5e-3
    assert not (tmp_path / "frame" / "encoded").exists(), "the encoding is shared"


def test_an_unfinished_start_is_refused(tiny_config: TrainConfig, tmp_path: Path) -> None:
    config = tiny_config.model_copy(update={"start": str(tmp_path)})
    with pytest.raises(UsageError, match="no finished stage"):
        train_generator(config, tmp_path / "out")


def test_missing_data_is_said(tiny_config: TrainConfig, tmp_path: Path) -> None:
    config = tiny_config.model_copy(update={"data": str(tmp_path)})
    with pytest.raises(UsageError, match="no array shards"):
        train_generator(config, tmp_path / "out", speech=speech)


@pytest.fixture
def encoded(trained: Path, shards: Path) -> Encoded:
    return Encoded(Store(trained / "encoded"), read_clips(shards), TINY.text.max_tokens)


def test_batches_depend_on_the_seed_alone(tiny_config: TrainConfig, encoded: Encoded) -> None:
    one, same = (draw_batch(tiny_config, encoded, TINY, 5) for _ in range(2))
    other = draw_batch(tiny_config, encoded, TINY, 6)
    assert torch.equal(one.noise, same.noise)
    assert torch.equal(one.sigma, same.sigma)
    assert not torch.equal(one.noise, other.noise)


def test_conditions_drop_out_independently(tiny_config: TrainConfig, encoded: Encoded) -> None:
    rates = DropoutConfig(text=0.5, image=0.25, audio=0.75)
    engine = tiny_config.engine.model_copy(update={"micro_batch_size": 4000})
    config = tiny_config.model_copy(update={"dropout": rates, "engine": engine})
    batch = draw_batch(config, encoded, TINY, 0)
    empty = encoded.prompts([""])[0]
    text = (batch.cond.text == empty).all(dim=(1, 2))
    image = (batch.cond.image == 0).all(dim=(1, 2))
    audio = batch.audio_scale == 0
    for dropped, rate in ((text, 0.5), (image, 0.25), (audio, 0.75)):
        assert dropped.float().mean().item() == pytest.approx(rate, abs=0.03)
    both = (text & image & audio).float().mean().item()
    assert both == pytest.approx(0.5 * 0.25 * 0.75, abs=0.02)


def test_stages_differ_in_what_a_token_hears(tiny_config: TrainConfig, encoded: Encoded) -> None:
    clip = draw_batch(tiny_config, encoded, TINY, 0)
    frame = draw_batch(tiny_config.model_copy(update={"stage": "frame"}), encoded, TINY, 0)
    assert clip.cond.audio.shape[1] == 1
    assert frame.cond.audio.shape[1] == 3
    assert clip.weight.shape == (1, 1, 1, 1, 1)


def test_lip_weights_have_mean_one_and_the_given_ratio() -> None:
    lips = torch.zeros(3, 1, 8, 8)
    lips[:, :, 4:6, 3:6] = 1
    weights = lip_weights(lips, 0.25)
    assert weights.mean().item() == pytest.approx(1.0)
    assert (weights.max() / weights.min()).item() == pytest.approx(4.0)


def test_average_follows_its_recursion() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 1.0)
    average = Average(layer, 0.9)
    want = 1.0
    for count, value in enumerate((2.0, 5.0, -1.0), start=1):
        torch.nn.init.constant_(layer.weight, value)
        average.update(layer)
        decay = min(0.9, (1 + count) / (10 + count))
        want = decay * want + (1 - decay) * value
    assert average.tensors["weight"].item() == pytest.approx(want)


def test_phone_targets_take_the_phone_at_each_tokens_middle() -> None:
    phones = [Phone("AA", 0.0, 0.05), Phone("ZZZ", 0.05, 0.11), Phone("SIL", 0.11, 0.2)]
    targets = phone_targets(phones, 5).tolist()
    middles = np.arange(5) * 0.04 + 0.02
    names = [next(p.name for p in phones if p.start <= m < p.end) for m in middles]
    assert targets == [PHONES.index(n) if n in PHONES else 40 for n in names]


def test_clips_are_read_as_written(shards: Path) -> None:
    clips = read_clips(shards, limit=5)
    assert len(clips) == 5
    assert clips.captions[1] == "a person talks 1"
    sound = clips.sound(slice(None))
    assert sound.dtype == np.float32
    assert sound.shape[0] == 5
    assert np.abs(sound).max() <= 1
