"""Streams by question: one clock, no leak of sound, and the logits of asking alone."""

import numpy as np
import pytest
import torch

from ft2.errors import UsageError
from ft2.qwen import packed, towers
from ft2.qwen.spec import QwenSpec, StreamSpec
from ft2.qwen.streams import HEADER, layout_of
from ft2.qwen.thinker import new_thinker
from ft2.qwen.tokens import build_processor
from ft2.qwen.view import make_view

QUESTIONS = {
    "motion": "Is the motion natural?",
    "lip": "Is the lip synchronized?",
    "quality": "Is the visual quality good?",
}
SPEC = QwenSpec(
    streams=(
        StreamSpec(answers=("quality",), every=5),
        StreamSpec(answers=("motion",), width=32, height=32),
        StreamSpec(answers=("lip",), crop="mouth", width=64, height=32, audio=True),
    )
)


@pytest.fixture(scope="module")
def model():
    processor = build_processor(SPEC)
    return new_thinker(SPEC, processor, seed=3), processor


def clip(seed=0, loud=0.1):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (21, 64, 64, 3), dtype=np.uint8)
    audio = loud * np.random.default_rng(9 + seed).standard_normal(SPEC.clip.num_samples)
    return make_view(frames, audio.astype(np.float32), SPEC)


@torch.no_grad()
def encode(model, view):
    thinker, processor = model
    parts = []
    for pixels, spec in zip(view.streams, SPEC.stream_specs, strict=True):
        patches = towers.patchify(torch.from_numpy(pixels)[None], spec, processor)
        parts.append(towers.video_features(thinker, patches, spec))
    mel, _ = towers.mel_features(processor, [view.audio])
    return torch.cat(parts, 1), towers.audio_features(thinker, mel)


def test_each_stream_shows_its_part_at_its_rate():
    view = clip()
    assert [s.shape for s in view.streams] == [(6, 64, 64, 3), (22, 32, 32, 3), (22, 32, 64, 3)]
    frames = np.random.default_rng(0).integers(0, 256, (21, 64, 64, 3), dtype=np.uint8)
    assert np.array_equal(view.streams[0][:5], frames[::5])
    means = frames[3].reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(view.streams[1][3] - means).mean() < 25
    assert SPEC.num_video_tokens == 3 * 4 + 11 * 1 + 11 * 2


@torch.no_grad()
def test_only_lip_moves_with_the_sound_and_to_the_bit(model):
    thinker, _ = model
    layout = layout_of(*model, SPEC, QUESTIONS)
    video, audio = encode(model, clip())
    _, other = encode(model, clip(1, 0.5))
    one, two = (packed.answer_logits(thinker, layout, video, a)[0] for a in (audio, other))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[2], two[2])
    assert (one[1] - two[1]).abs().max() > 1e-4
    composite = QwenSpec()
    single = layout_of(*model, composite, QUESTIONS)
    pixels = torch.randint(0, 256, (1, 22, 96, 64, 3), dtype=torch.uint8)
    seen = towers.video_features(thinker, towers.patchify(pixels, composite, model[1]), composite)
    paper = [packed.answer_logits(thinker, single, seen, a)[0] for a in (audio, other)]
    assert (paper[0] - paper[1]).abs().amax(-1).min() > 1e-4


@torch.no_grad()
def test_packed_equals_asking_alone(model):
    thinker, _ = model
    layout = layout_of(*model, SPEC, QUESTIONS)
    video, audio = encode(model, clip())
    together = packed.answer_logits(thinker, layout, video, audio)[0]
    table = thinker.get_input_embeddings()
    for index, (name, question) in enumerate(QUESTIONS.items()):
        ids, places, hidden = alone(model, name, question)
        x = table(ids)[None].clone()
        x[0, ids == thinker.config.video_token_id] = video[0, :hidden]
        heard = ids == thinker.config.audio_token_id
        if heard.any():
            x[0, heard] = audio[0]
        out = thinker.model.language_model(
            inputs_embeds=x, position_ids=places[:, None], use_cache=False
        )
        want = thinker.lm_head(out.last_hidden_state[0, -1])
        assert torch.allclose(together[index], want, atol=1e-5)


def alone(model, name, question):
    """Token ids, positions and number of video tokens of a question with its streams only."""
    thinker, processor = model
    ids = [torch.tensor(processor.tokenizer(HEADER).input_ids)]
    places = [torch.arange(len(ids[0])).expand(3, -1)]
    count = 0
    for stream, spec in zip(SPEC.streams, SPEC.stream_specs, strict=True):
        sound = np.zeros(spec.clip.num_samples, np.float32) if stream.audio else None
        blank = np.zeros((2 * spec.num_patches_in_time, stream.height, stream.width, 3), np.uint8)
        text = "<|vision_bos|><|VIDEO|><|vision_eos|>"
        data = packed.process(processor, spec, text, blank, sound)
        ids.append(data["input_ids"][0])
        places.append(packed.positions(thinker, data, stream.audio) + places[-1].max() + 1)
        count += spec.num_video_tokens
        if name in stream.answers:
            break
    tail = torch.tensor(processor.tokenizer(packed.TAIL.format(question=question)).input_ids)
    ids.append(tail)
    places.append(torch.arange(len(tail)).expand(3, -1) + places[-1].max() + 1)
    return torch.cat(ids), torch.cat(places, 1), count


def test_sound_and_mouth_share_one_clock(model):
    layout = layout_of(*model, SPEC, QUESTIONS)
    time = layout.position_ids[0]
    mouth = time[layout.video[-22:]][::2]
    sound = time[layout.audio]
    # 25 ids a second: two-frame patches at 12.5 frames a second are 0.16 s = 4 ids apart, which
    # the class rounds down from 3.9999... now and then
    assert (mouth - mouth[0] - 4 * torch.arange(11)).abs().max() <= 1
    assert torch.equal(sound.diff(), torch.ones(len(sound) - 1, dtype=torch.long))
    assert mouth[0] == sound[0]
    full = time[layout.video[:12]][::4]
    assert torch.equal(full.diff(), torch.tensor([20, 20]))
    assert full[-1] < time[layout.video[12]] < mouth[0]


def test_wrong_questions_and_streams(model):
    with pytest.raises(UsageError, match="streams answer"):
        layout_of(*model, SPEC, {"motion": "?"})
    for wrong in (
        {"answers": ("lip",), "audio": True, "every": 2},
        {"answers": ()},
    ):
        with pytest.raises(ValueError, match=r"every|at least 1"):
            StreamSpec(**wrong)
    with pytest.raises(ValueError, match="multiples"):
        QwenSpec(streams=(StreamSpec(answers=("lip",), width=40),))
    with pytest.raises(ValueError, match="one stream"):
        QwenSpec(streams=(StreamSpec(answers=("lip",)), StreamSpec(answers=("lip",))))
