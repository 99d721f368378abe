"""Driving curves against what is known about speech and heads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft2.puppet.curves import LIPS, MOTION, Curves, Style, from_speech, lip_tracks
from ft2.puppet.visemes import VISEMES
from ft2.speech import Phone

RATE = 16000
AUDIO = np.random.default_rng(0).normal(0, 0.1, 3 * RATE).astype(np.float32)


def _spoken(*names: str) -> list[Phone]:
    return [Phone(n, 0.3 + 0.15 * k, 0.45 + 0.15 * k) for k, n in enumerate(names)]


@pytest.mark.parametrize("phone", ["B", "P", "M"])
def test_lips_shut_and_pressed_in_closures_between_wide_vowels(phone: str) -> None:
    middle = np.array([0.3 + 0.15 * 1.5])
    opened, _, press, _ = lip_tracks(_spoken("AA", phone, "AA"), AUDIO, middle)
    assert opened[0] < 0.08
    assert press[0] > 0.8


def test_visemes_reach_their_targets() -> None:
    middle = np.array([0.3 + 0.15 * 2.5])
    for name, (open_target, width_target) in VISEMES.items():
        if name in ("B", "P", "M", "F", "V"):
            continue
        opened, width, press, tuck = lip_tracks(_spoken(*[name] * 5), AUDIO, middle)
        assert opened[0] == pytest.approx(open_target * 1.25, rel=0.2, abs=0.03), name
        assert width[0] == pytest.approx(np.clip(1.15 * width_target, -1, 1), abs=0.08), name
        assert press[0] < 0.01
        assert tuck[0] < 0.01


def test_order_of_openings_and_rounding_follows_the_table() -> None:
    middle = np.array([0.3 + 0.15 * 1.5])

    def at(name: str) -> tuple[float, float, float]:
        opened, width, _, tuck = lip_tracks(_spoken("SIL", name, "SIL"), AUDIO, middle)
        return float(opened[0]), float(width[0]), float(tuck[0])

    assert at("AA")[0] > at("EH")[0] > at("IY")[0] > at("S")[0]
    assert at("UW")[1] < at("AH")[1] < at("IY")[1]
    assert at("F")[2] > 0.7 > 0.1 > at("S")[2]


def test_mouth_is_shut_in_silence_and_outside_the_utterance() -> None:
    tracks = lip_tracks([Phone("SIL", 0.0, 3.0)], 0 * AUDIO, np.linspace(-2, 6, 50))
    assert all(np.abs(track).max() < 1e-6 for track in tracks)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), nods=st.booleans(), background=st.booleans())
def test_clips_start_at_rest_and_always_move(seed: int, nods: bool, background: bool) -> None:
    style = Style(nods=nods, background=background)
    made = from_speech(_spoken(*["AA", "M"] * 5), AUDIO, 12.5, 21, seed, style)
    table = made.stack()
    assert np.abs(table[0]).max() == 0.0
    across = made.tx + 1.1 * made.yaw + 1.3 * made.roll
    along = made.ty + 1.1 * made.pitch
    path = np.hypot(np.ptp(across), np.ptp(along)) * 0.30 * 64
    assert path > 1.5, "a head that talks moves by at least 1.5 pixels of 64"
    steps = np.hypot(np.diff(across, 2), np.diff(along, 2)) * 0.30 * 64
    assert steps.max() < 1.6, "natural motion has no jerks"
    assert (np.ptp(made.background) > 0) == background


def test_same_seed_same_curves_and_lips_do_not_depend_on_it() -> None:
    phones = _spoken("AA", "IY", "M", "OW")
    one, same, other = (from_speech(phones, AUDIO, 12.5, 21, s).stack() for s in (1, 1, 2))
    assert np.array_equal(one, same)
    names = list(Curves.names())
    lips = [names.index(n) for n in LIPS]
    assert np.array_equal(one[:, lips], other[:, lips])
    assert not np.allclose(one[:, [names.index("yaw")]], other[:, [names.index("yaw")]])


def test_window_reads_the_same_track_as_the_whole() -> None:
    phones = _spoken("AA", "IY", "M", "OW", "F", "UW")
    times = np.arange(21) / 12.5
    whole = lip_tracks(phones, AUDIO, times + 0.32)
    made = from_speech(phones, AUDIO, 12.5, 21, 0, start=0.32)
    assert np.allclose(made.open[3:], whole[0][3:])
    assert np.allclose(made.width[3:], whole[1][3:])


def test_names_and_table_round_trip() -> None:
    made = from_speech(_spoken("AA"), AUDIO, 25, 41, 3)
    assert set(Curves.names()) == {*LIPS, *MOTION}
    assert np.array_equal(Curves.unstack(made.stack()).stack(), made.stack())


def test_caption_names_what_moves() -> None:
    quiet = Style(False, False, False, False, False).caption()
    busy = Style(True, True, True, True, True).caption()
    assert "level" in quiet
    assert "calm brows" in quiet
    assert "still" in quiet
    for word in ("nodding", "brows", "breathe", "background moves", "lively"):
        assert word in busy


def test_energy_scales_what_the_head_does_and_nothing_else() -> None:
    phones = _spoken(*["AA", "M"] * 5)
    made = {
        energy: from_speech(phones, AUDIO, 12.5, 21, 5, Style(energy=energy))
        for energy in (0.25, 1.0, 2.0)
    }
    assert (made[1.0].stack() == from_speech(phones, AUDIO, 12.5, 21, 5, Style()).stack()).all()
    for name in Curves.names():
        still, plain, much = (getattr(made[e], name) for e in (0.25, 1.0, 2.0))
        factors = (0.25, 2.0) if name in ("yaw", "pitch", "roll", "tx", "ty") else (1.0, 1.0)
        assert still == pytest.approx(factors[0] * plain, abs=1e-6), name
        assert much == pytest.approx(factors[1] * plain, abs=1e-6), name
    assert Style(energy=2.0).caption() == Style().caption()
