"""Controlled negatives: each defect does what it says, and only its answers turn to No."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.signal import correlate

from ft2.critic.config import CriticConfig
from ft2.critic.names import Negative
from ft2.critic.negatives import SPOILS, spoil, spoiled_answers
from ft2.critic.tokens import Critic, encode_ratings, lazy_ratings, silenced
from ft2.critic.training_data import read_data
from ft2.qwen.thinker import load_thinker
from ft2.qwen.view import ClipView

RATE = 16000


@pytest.fixture
def view():
    """A clip whose frames are known apart by their brightness, and a sound known by its samples."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 60, (22, 96, 64, 3))
    frames = (noise + 8 * np.arange(22)[:, None, None, None]).clip(0, 255).astype(np.uint8)
    small = np.ascontiguousarray(frames[:, :64, :64])
    return ClipView((frames, small), rng.standard_normal(26880).astype(np.float32))


def sharpness(frames):
    return np.abs(np.diff(frames.astype(float), axis=2)).mean()


def test_sound_moves_by_two_to_fifteen_frames(view):
    found = set()
    for seed in range(60):
        other = spoil(view, "audio_shift", np.random.default_rng(seed), RATE)
        assert other.streams is view.streams
        full = correlate(other.audio, view.audio, method="fft")
        found.add(round((int(full.argmax()) - (len(view.audio) - 1)) / RATE * 25, 6))
    assert {abs(x) for x in found} <= {float(n) for n in range(2, 16)}
    assert min(found) < 0 < max(found)
    assert len(found) > 15


def test_silence_takes_the_sound_and_nothing_else(view):
    other = spoil(view, "silence", np.random.default_rng(0), RATE)
    assert other.streams is view.streams
    assert not other.audio.any()
    assert other.audio.shape == view.audio.shape
    assert view.audio.any()


def test_frames_are_shuffled_frozen_blurred_and_squeezed_alike_in_all_streams(view):
    means = view.streams[0].mean((1, 2, 3))
    rng = np.random.default_rng(1)
    shuffled = spoil(view, "shuffle", rng, RATE)
    assert sorted(shuffled.streams[0].mean((1, 2, 3))) == pytest.approx(sorted(means))
    assert np.abs(shuffled.streams[0].mean((1, 2, 3)) - means).max() > 5
    assert np.abs(np.argsort(shuffled.streams[0].mean((1, 2, 3))) - np.arange(22)).max() < 8
    frozen = spoil(view, "freeze", rng, RATE)
    still = [(np.diff(s.astype(int), axis=0) == 0).all((1, 2, 3)) for s in frozen.streams]
    assert np.array_equal(*still)
    assert 6 <= still[0].sum() <= 21
    for kind in ("blur", "bitrate"):
        other = spoil(view, kind, rng, RATE)
        for one, two in zip(view.streams, other.streams, strict=True):
            assert two.shape == one.shape
            assert two.dtype == np.uint8
            assert sharpness(two) < 0.6 * sharpness(one)
            assert np.abs(two.mean((1, 2, 3)) - one.mean((1, 2, 3))).max() < 6
        assert np.array_equal(other.audio, view.audio)


@pytest.mark.parametrize("kind", SPOILS)
def test_same_seed_same_defect(view, kind):
    one, two = (spoil(view, kind, np.random.default_rng(5), RATE) for _ in range(2))
    assert np.array_equal(one.streams[0], two.streams[0])
    assert np.array_equal(one.audio, two.audio)


def test_only_what_is_spoilt_turns_to_no():
    given = (True, None, True)
    dimensions = ("motion", "lip", "quality")
    assert set(SPOILS) == set(Negative.__args__)
    assert spoiled_answers(given, dimensions, "audio_shift") == (True, False, True)
    assert spoiled_answers(given, dimensions, "silence") == (True, False, True)
    assert spoiled_answers(given, dimensions, "freeze") == (False, False, True)
    assert spoiled_answers(given, dimensions, "blur") == (True, None, False)
    assert spoiled_answers((True,), ("taste",), "blur") == (True,)


def test_training_mixes_them_in_and_reads_them_alike(config, spec):
    settings = config.model_copy(update={"negatives": {"freeze": 0.25, "blur": 0.5}})
    data = read_data(settings)
    spoilt = [r for r in data.train if r.spoilt]
    assert (data.num_train, len(spoilt)) == (24, 6 + 12)
    assert all(r.labels[0] is False for r in spoilt if r.spoilt[0] == "freeze")
    assert read_data(settings).train == data.train
    assert not any(r.spoilt for r in data.dev)
    critic = Critic(*load_thinker(spec), spec)
    some = spoilt[:2] + data.train[:1]
    cached, lazy = encode_ratings(critic, some), lazy_ratings(critic, some)
    index = np.arange(3)
    one, other = cached.take(index, index), lazy.take(*(cached.rows.clip,) * 2)
    assert np.allclose(one[0], other[0], atol=1e-5)


def test_a_silenced_clip_is_measured_as_one_that_was_trained_on(config, spec):
    settings = config.model_copy(update={"negatives": {"silence": 0.1}})
    clips = [r for r in read_data(settings).train if r.spoilt]
    assert clips
    assert all(r.labels[1] is False for r in clips)
    critic = Critic(*load_thinker(spec), spec)
    whole = encode_ratings(critic, [replace(r, spoilt=None) for r in clips])
    quiet, spoilt = silenced(critic, whole), encode_ratings(critic, clips)
    assert torch.equal(quiet.video, spoilt.video)
    assert torch.allclose(quiet.audio, spoilt.audio, atol=1e-5)
    assert not torch.allclose(quiet.audio, whole.audio, atol=1e-2)


def test_swap_without_a_question_about_lips_is_remarked(config):
    assert config.model_copy(update={"swap": 0.2}).remarks == []
    other = config.model_copy(update={"swap": 0.2, "questions": {"light": "Is it lit?"}})
    assert other.remarks == ["swap=0.2 has no effect: no question is called lip"]
    assert other.model_copy(update={"swap": 0.0}).remarks == []


def test_wrong_shares_and_kinds(config):
    given = config.model_dump()
    for negatives in ({"freeze": 2.0}, {"melt": 0.1}):
        with pytest.raises(ValueError, match=r"negatives|shares"):
            CriticConfig.model_validate(given | {"negatives": negatives})
    with pytest.raises(ValueError, match="no negatives"):
        CriticConfig.model_validate(
            given | {"objective": "regression", "swap": 0.0, "negatives": {"blur": 0.1}}
        )
