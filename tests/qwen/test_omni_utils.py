"""Frames that qwen-omni-utils reads for a chat message are those that the critic sees."""

import numpy as np
import torch

from ft2.media import read_video, write_video


def test_chat_messages_carry_the_same_frames(tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_QWENVL_VIDEO_READER", "decord")
    from qwen_omni_utils import process_mm_info

    rng = np.random.default_rng(0)
    frames = np.repeat(np.repeat(rng.integers(0, 256, (20, 14, 14, 3), np.uint8), 8, 1), 8, 2)
    path = tmp_path / "a.mp4"
    write_video(path, frames, 12.5, np.zeros(25600, np.float32))
    shown = {"type": "video", "video": str(path), "nframes": 20}
    shown |= {"resized_height": 112, "resized_width": 112}
    message = {"role": "user", "content": [shown, {"type": "text", "text": "?"}]}
    _, _, videos = process_mm_info([message], use_audio_in_video=False)
    ours = torch.from_numpy(read_video(path).frames).permute(0, 3, 1, 2)
    assert videos[0].shape == ours.shape
    assert torch.equal(videos[0].round().to(torch.uint8), ours)
