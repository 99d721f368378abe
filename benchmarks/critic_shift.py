"""Where a trained critic thinks that a real person's sound belongs: its score with the sound moved.

For one video of a person who talks, longer than the critic's clips: windows every half second, the
sound moved by -0.6 to +0.6 s a frame at a time (taken from the recording, not padded), the mean
log-odds of lip with its standard error over windows. Beside it the lip-sync measure without
SyncNet on the whole video: the correlation of the tracked mouth with the one that the moved sound
asks for. Later sound is positive; both should be highest within a frame of 0.

Files that QuickTime wrote without sample groups hold 2,112 samples of the AAC encoder before the
sound and say so nowhere (QuickTime File Format, Appendix G); ffmpeg plays them, so that the sound
is late. `--encoder-delay 2112` takes them away, in samples of the file's own rate.

    python benchmarks/critic_shift.py VIDEO --adapter RUN/adapter [RUN/adapter ...]
        [--encoder-delay SAMPLES] [--about TEXT]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import header

from ft2 import faces
from ft2.critic import TalkingCritic
from ft2.media import Audio, read_video, sound_rate
from ft2.metrics.lips import predicted_mouth, tracked_mouth
from ft2.qwen.view import _align_clip, _cut, _places, make_view

RESULT = Path(__file__).parent / "results" / "critic_shift.json"
SECONDS, EVERY = 0.6, 6


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("--adapter", type=Path, nargs="+", required=True)
    parser.add_argument("--encoder-delay", type=int, default=0)
    parser.add_argument("--about", default="one video")
    options = parser.parse_args()
    torch.set_num_threads(1)
    command = "python benchmarks/critic_shift.py VIDEO --adapter RUN/adapter ..."
    report: dict[str, Any] = {"machine": {**header(), "command": command}}
    late = options.encoder_delay / sound_rate(options.video)
    report |= {"video": options.about, "sound_taken_from_seconds": round(late, 4), "critics": []}
    for adapter in options.adapter:
        report["critics"].append(critic_curve(options.video, adapter, late))
        print(json.dumps(report["critics"][-1]), flush=True)
    report["sync_measure"] = measure_curve(options.video, late)
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["sync_measure"]))


def critic_curve(path: Path, adapter: Path, late: float) -> dict[str, Any]:
    """Return mean lip log-odds by shift, over windows of the video, its sound taken from `late`."""
    critic = TalkingCritic.from_pretrained(adapter)
    spec, clip = critic.scorer.spec, critic.scorer.spec.clip
    video = read_video(path, sample_rate=clip.sample_rate, need_audio=True)
    frames = _align_clip(video.frames[_places(len(video.frames), video.fps, clip.fps)], clip, path)
    assert video.audio is not None
    most = int(SECONDS * clip.fps)
    starts = range(most, len(frames) - clip.num_frames - most, EVERY)
    rows = []
    for shift in range(-most, most + 1):
        views = [
            make_view(
                frames[s : s + clip.num_frames],
                _cut(video.audio, late + (s - shift) / clip.fps, clip),
                spec,
            )
            for s in starts
        ]
        odds = critic.scorer.log_odds(views)[:, critic.dimensions.index("lip")].double().numpy()
        error = float(odds.std(ddof=1) / np.sqrt(len(odds)))
        rows.append({"seconds": shift / clip.fps, "log_odds": float(odds.mean()), "se": error})
    best = max(rows, key=lambda row: row["log_odds"])
    trained = json.loads((adapter.parent / "result.json").read_text())
    about = f"{trained['ratings']['train']} ratings, {trained['steps']} steps"
    found = {"training": about, "peak_seconds": best["seconds"], "windows": len(starts)}
    return {**found, "curve": rows}


def measure_curve(path: Path, late: float) -> dict[str, Any]:
    """Return the correlation of tracked and predicted mouth by shift, over the whole video."""
    video = read_video(path, need_audio=True)
    assert video.audio is not None
    points = np.stack([faces.landmarks(frame) for frame in video.frames])
    shown, most = tracked_mouth(points), int(SECONDS * video.fps)
    inner = slice(most, len(shown) - most)
    rows = []
    for shift in range(-most, most + 1):
        sound = moved(video.audio, round((shift / video.fps - late) * 16000))
        meant = predicted_mouth(sound, video.fps, len(shown))
        parts = [np.corrcoef(shown[inner, c], meant[inner, c])[0, 1] for c in (0, 1)]
        value = float((parts[0] + 0.5 * parts[1]) / 1.5)
        rows.append({"seconds": shift / video.fps, "correlation": value})
    best = max(rows, key=lambda row: row["correlation"])
    return {"peak_seconds": best["seconds"], "curve": rows}


def moved(audio: Audio, samples: int) -> Audio:
    """Return a sound that comes later by `samples`; what is pushed out comes back at the start."""
    return np.roll(audio, samples)


if __name__ == "__main__":
    main()
