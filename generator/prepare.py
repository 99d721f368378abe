"""What must exist before the transformer trains: codec, tokenizer, encoders, speech tower."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ft2.errors import UsageError
from ft2.generator.codec_fit import fit_codec, mouth_psnr, psnr
from ft2.generator.config import PrepareConfig
from ft2.generator.data import Clips
from ft2.runs import Progress
from ft2.speech import Phone
from ft2.wan.codec import MotionCodec
from ft2.wan.encoders import SpeechTower, mel_frames
from ft2.wan.model import TalkingModel
from ft2.wan.own import NUM_PHONES, build_model
from ft2.wan.spec import Architecture, WanSpec

PHONES = [
    "SIL",
    "AA",
    "AE",
    "AH",
    "AO",
    "AW",
    "AY",
    "B",
    "CH",
    "D",
    "DH",
    "EH",
    "ER",
    "EY",
    "F",
    "G",
    "HH",
    "IH",
    "IY",
    "JH",
    "K",
    "L",
    "M",
    "N",
    "NG",
    "OW",
    "OY",
    "P",
    "R",
    "S",
    "SH",
    "T",
    "TH",
    "UH",
    "UW",
    "V",
    "W",
    "Y",
    "Z",
    "ZH",
]
"""Classes of the speech tower; whatever else comes is the last class."""

WINDOW_TOKENS = 64


@dataclass(frozen=True)
class Speech:
    """One utterance with its phones: what the speech tower learns from."""

    audio: NDArray[np.float32]
    phones: Sequence[Phone]


def learn_tokenizer(captions: Sequence[str], size: int) -> object:
    """Return a byte-level BPE tokenizer learned on the captions; it can read any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(set(captions)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def phone_targets(phones: Sequence[Phone], num_tokens: int) -> Tensor:
    """Return the phone class of each 40 ms token, [num_tokens], by the token's middle."""
    classes = {name: index for index, name in enumerate(PHONES)}
    targets = torch.zeros(num_tokens, dtype=torch.long)
    for phone in phones:
        first, last = math.ceil(phone.start * 25 - 0.5), math.ceil(phone.end * 25 - 0.5)
        targets[max(first, 0) : max(last, 0)] = classes.get(phone.name, NUM_PHONES - 1)
    return targets


def train_tower(
    tower: SpeechTower, speech: Sequence[Speech], *, steps: int, seed: int, progress: Progress
) -> float:
    """Train the speech tower to name the phone of each token; return its last accuracy.

    Each window gets a random gain and a little noise, so that it does not learn one loudness.
    """
    generator = torch.Generator().manual_seed(seed)
    mels = [mel_frames(item.audio, tower.first.in_channels) for item in speech]
    pad = 2 * WINDOW_TOKENS
    mels = [F.pad(mel, (0, 0, 0, max(0, pad - len(mel))), value=-1.5) for mel in mels]
    targets = [
        phone_targets(item.phones, len(mel) // 2) for item, mel in zip(speech, mels, strict=True)
    ]
    optimizer = torch.optim.AdamW(tower.parameters(), lr=2e-3, weight_decay=1e-2)
    accuracy = 0.0
    tower.train().requires_grad_(True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, 2 * (1 - step / steps))
        windows, wanted = [], []
        for index in torch.randint(len(mels), (16,), generator=generator).tolist():
            last = len(targets[index]) - WINDOW_TOKENS
            start = int(torch.randint(last + 1, (1,), generator=generator))
            windows.append(mels[index][2 * start : 2 * (start + WINDOW_TOKENS)])
            wanted.append(targets[index][start : start + WINDOW_TOKENS])
        mel = torch.stack(windows)
        mel = mel + 0.15 * torch.randn(16, 1, 1, generator=generator)
        mel = mel + 0.1 * torch.randn(mel.shape, generator=generator)
        logits = tower.head(tower(mel))
        classes = torch.stack(wanted)
        F.cross_entropy(logits.flatten(0, 1), classes.flatten(), label_smoothing=0.05).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0 or step + 1 == steps:
            now = (logits.argmax(2) == classes).float().mean().item()
            accuracy = now if not step else 0.8 * accuracy + 0.2 * now
            progress.update("speech tower", step + 1, steps, f"accuracy {accuracy:.3f}")
    tower.eval().requires_grad_(False)
    return accuracy


def prepare_model(
    spec: WanSpec,
    architecture: Architecture,
    clips: Clips,
    speech: Sequence[Speech],
    config: PrepareConfig,
    seed: int,
    progress: Progress,
) -> tuple[TalkingModel, dict[str, float]]:
    """Build a model from nothing: everything is fitted but the transformer, which is fresh.

    Returns:
        The model, and figures: codec PSNR on training clips (whole and mouth box, dB) and the
        speech tower's phone accuracy.
    """
    tokenizer = learn_tokenizer(clips.captions, config.vocabulary)
    if architecture.text.vocab_size < config.vocabulary:
        raise UsageError(
            f"text.vocab_size {architecture.text.vocab_size} is below the tokenizer's"
            f" {config.vocabulary}"
        )
    torch.manual_seed(config.encoder_seed)
    model = build_model(spec, architecture, tokenizer)
    codec = model.codec
    assert isinstance(codec, MotionCodec)
    frames = clips.frames[: config.codec_clips]
    fit_codec(
        codec,
        model.space,
        frames,
        ridge=config.ridge,
        power=config.scale_power,
        progress=progress,
    )
    whole, mouth = codec_psnr(codec, frames[:100])
    figures = {"codec_psnr": whole, "codec_mouth_psnr": mouth}
    if isinstance(model.speech, SpeechTower):
        figures["tower_accuracy"] = train_tower(
            model.speech, speech, steps=config.tower_steps, seed=seed, progress=progress
        )
    torch.manual_seed(seed)
    for module in (model.text, model.image, codec, model.space):
        module.eval().requires_grad_(False)
    return model, figures


def codec_psnr(codec: MotionCodec, frames: NDArray[np.uint8]) -> tuple[float, float]:
    """Return PSNR in dB (whole, mouth box) of decoding after encoding, frame 0 left out."""
    decoded = [
        codec.decode(codec.encode(part), part[:, 0]).numpy()
        for part in torch.from_numpy(frames).split(32)
    ]
    back = np.concatenate(decoded)
    return psnr(back[:, 1:], frames[:, 1:]), mouth_psnr(back[:, 1:], frames[:, 1:])
