"""The shipped closed-form codec beside a trained AutoencoderKLWan of the same latent shape.

Both learn from puppet clips of training faces and code clips of a face that neither saw. The Wan
autoencoder (diffusers; 16 latent channels, 8 times smaller in space, 1 + 4k in time) is trained by
AdamW on L1 over the clip, L1 over the mouth box and a small KL term, for a stated time of one core.
"still" repeats frame 0: what a codec scores that loses all motion. Prints PSNR in dB over
all frames but the first (whole frame, mouth box) and writes benchmarks/results/codec.json.

    python benchmarks/codec.py [--minutes 25] [--base-dim 8] [--data DIR]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from machine import header
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import l1_loss

from ft2.config import ClipFormat
from ft2.faces import mouth_slice
from ft2.generator.codec_fit import mouth_psnr, psnr
from ft2.generator.data import read_clips
from ft2.puppet.dataset import build_arrays
from ft2.wan.codec import Codec, WanVae, to_unit
from ft2.wan.spec import WanSpec
from ft2.wan.weights import load_talking_model

RESULT = Path(__file__).parent / "results" / "codec.json"
TRAIN_CLIPS, TEST_CLIPS, BATCH = 1680, 120, 4
MOUTH_WEIGHT, KL_WEIGHT = 1.0, 1e-6


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=25, help="CPU time of its training")
    parser.add_argument("--base-dim", type=int, default=8, help="its width")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--data", type=Path, default=Path("runs/codec-data"), help="array shards")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    build_arrays(options.data / "train", "train", TRAIN_CLIPS, ClipFormat(), num_workers=1)
    build_arrays(options.data / "test", "test", TEST_CLIPS, ClipFormat(), num_workers=1)
    frames = read_clips(options.data / "train", TRAIN_CLIPS).frames[:]
    held = read_clips(options.data / "test", TEST_CLIPS).frames[:]
    vae = AutoencoderKLWan(
        base_dim=options.base_dim, z_dim=16, num_res_blocks=1, dim_mult=[1, 2, 4, 4]
    )
    curve = train(vae, frames, held, options.minutes * 60, options.learning_rate)
    still = np.repeat(held[:, :1], held.shape[1], 1)
    rows = {
        "still": score(still, held),
        "motion codec": score(code(load_talking_model(WanSpec()).codec, held), held),
        "AutoencoderKLWan": score(code(WanVae(vae.eval()), held), held),
    }
    report = {
        "machine": header(),
        "setting": {name: str(value) for name, value in vars(options).items() if name != "data"},
        "parameters": sum(p.numel() for p in vae.parameters()),
        "rows": rows,
        "curve": curve,
    }
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    for name, row in rows.items():
        print(f"{name:18} {row}")


def train(
    vae: AutoencoderKLWan,
    frames: NDArray[np.uint8],
    held: NDArray[np.uint8],
    seconds: float,
    learning_rate: float,
) -> list[dict[str, float]]:
    """Train in place for ``seconds`` of CPU time; return held-out figures, every five minutes."""
    optimizer = torch.optim.AdamW(vae.parameters(), learning_rate, betas=(0.9, 0.99))
    rng = np.random.default_rng(0)
    curve: list[dict[str, float]] = []
    began, step = time.process_time(), 0
    while (spent := time.process_time() - began) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 50) * (1 - spent / seconds)
        chosen = np.sort(rng.choice(len(frames), BATCH, replace=False))
        loss = step_loss(vae, torch.from_numpy(frames[chosen]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        if spent > 300 * len(curve):
            figures = score(code(WanVae(vae), held[:16]), held[:16])
            curve.append({"seconds": round(spent), "steps": step, "loss": loss.item(), **figures})
            print(curve[-1], flush=True)
    return curve


def step_loss(vae: AutoencoderKLWan, clip: Tensor) -> Tensor:
    """Return the loss of clips uint8 [B, F, H, W, 3]."""
    pixels = to_unit(clip).permute(0, 4, 1, 2, 3)
    posterior = vae.encode(pixels).latent_dist
    back = vae.decode(posterior.sample()).sample
    rows, columns = mouth_slice(clip.shape[2])
    mouth = l1_loss(back[..., rows, columns], pixels[..., rows, columns])
    return l1_loss(back, pixels) + MOUTH_WEIGHT * mouth + KL_WEIGHT * posterior.kl().mean()


def code(codec: Codec, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Encode and decode clips."""
    parts = torch.from_numpy(frames).split(8)
    return np.concatenate([codec.decode(codec.encode(p), p[:, 0]).numpy() for p in parts])


def score(back: NDArray[np.uint8], frames: NDArray[np.uint8]) -> dict[str, float]:
    """Return PSNR in dB without frame 0."""
    whole, mouth = psnr(back[:, 1:], frames[:, 1:]), mouth_psnr(back[:, 1:], frames[:, 1:])
    return {"psnr": round(whole, 2), "mouth_psnr": round(mouth, 2)}


if __name__ == "__main__":
    main()
