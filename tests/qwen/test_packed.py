"""The packed forward gives what separate questions and `generate` give."""

import numpy as np
import pytest
import torch

from ft2.qwen import packed, towers
from ft2.qwen.spec import QwenSpec
from ft2.qwen.thinker import new_thinker
from ft2.qwen.tokens import build_processor

QUESTIONS = (
    "Is the motion natural?",
    "Is the lip synchronized?",
    "Is the visual quality good?",
)
SPEC = QwenSpec()


@pytest.fixture(scope="module")
def model():
    processor = build_processor(SPEC)
    return new_thinker(SPEC, processor, seed=3), processor


@pytest.fixture(scope="module")
def clip():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (22, 96, 64, 3), dtype=np.uint8)
    return pixels, (0.1 * rng.standard_normal(SPEC.clip.num_samples)).astype(np.float32)


def features(model, clip, scale=1.0):
    thinker, processor = model
    pixels, audio = clip
    patches = towers.patchify(torch.from_numpy(pixels)[None], SPEC, processor)
    mel, _ = towers.mel_features(processor, [scale * audio])
    return towers.video_features(thinker, patches, SPEC), towers.audio_features(thinker, mel)


@torch.no_grad()
def test_batched_towers_equal_the_classes_own(model, clip):
    thinker, processor = model
    data = packed.process(processor, SPEC, packed.PREFIX, *clip)
    patches = towers.patchify(torch.from_numpy(clip[0])[None], SPEC, processor)
    assert torch.allclose(patches[0], data["pixel_values_videos"], atol=1e-5)
    video, audio = features(model, clip)
    own = thinker.get_video_features(
        data["pixel_values_videos"], data["video_grid_thw"], return_dict=True
    ).pooler_output[0]
    heard = thinker.get_audio_features(
        data["input_features"], feature_attention_mask=data["feature_attention_mask"]
    ).last_hidden_state
    assert torch.allclose(video[0], own, atol=1e-5)
    assert torch.allclose(audio[0], heard, atol=1e-5)


@torch.no_grad()
def test_packed_equals_separate_forwards_and_generate(model, clip):
    thinker, processor = model
    layout = packed.make_layout(thinker, processor, SPEC, QUESTIONS)
    video, audio = features(model, clip)
    together = packed.answer_logits(thinker, layout, video, audio)[0]
    for index, question in enumerate(QUESTIONS):
        text = packed.PREFIX + packed.TAIL.format(question=question)
        data = packed.process(processor, SPEC, text, *clip)
        alone = thinker(**data, use_audio_in_video=True).logits[0, -1]
        assert torch.allclose(together[index], alone, atol=1e-5)
        made = thinker.generate(
            **data,
            use_audio_in_video=True,
            max_new_tokens=1,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        assert torch.allclose(together[index], made.logits[0][0], atol=1e-5)
