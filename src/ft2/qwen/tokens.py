"""A processor that needs no download: Qwen2.5-Omni's own classes over a small BPE.

The tokenizer is a byte-level BPE like Qwen's, with its special tokens, learnt from the sentences
that a talking-clip judge meets. "Yes" and "No" are one token each, as they are in Qwen's.
"""

from typing import TYPE_CHECKING

from ft2.qwen.spec import QwenSpec

if TYPE_CHECKING:
    from transformers import Qwen2_5OmniProcessor, Qwen2Tokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_bos|><|VIDEO|><|vision_eos|>"
    "{% elif part['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif part['type'] == 'image' %}<|vision_bos|><|IMAGE|><|vision_eos|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

CORPUS = (
    "system\nYou judge talking portrait videos. Answer Yes or No.",
    "user\nIs the motion natural? Is the lip synchronized? Is the visual quality good?",
    "assistant\nYes",
    "assistant\nNo",
    "Yes. No. Yes No",
    "Is the mouth open at the end? Is the mouth wide at the start? Are the lips pressed together?",
    "Is the voice loud at the end? Is there speech at the start? Is the voice louder than before?",
    "Is the picture bright? Is the picture colourful? Is the background dark? Is the face large?",
    "Is the head turned to the left? Is the head tilted to the right? Does the head move up?",
    "Are the eyes closed at the end? Are the brows raised? Does the head nod? Does it move much?",
    "A person talks to the camera. A portrait of a woman or a man who speaks calmly.",
)


def build_tokenizer() -> "Qwen2Tokenizer":
    """Return the offline tokenizer; the same code gives the same ids on every machine."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    learner = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    learner.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    # Repeats put the answers and the three questions ahead of the rest of the corpus.
    learner.train_from_iterator([*CORPUS[:5] * 8, *CORPUS], trainer)
    merges = _merges(learner)
    vocab = learner.get_vocab()
    ordered = {token: index for index, token in enumerate(sorted(vocab, key=vocab.__getitem__))}
    return Qwen2Tokenizer(
        vocab=ordered,
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        extra_special_tokens={
            "image_token": "<|IMAGE|>",
            "audio_token": "<|AUDIO|>",
            "video_token": "<|VIDEO|>",
            "vision_bos_token": "<|vision_bos|>",
            "vision_eos_token": "<|vision_eos|>",
            "audio_bos_token": "<|audio_bos|>",
            "audio_eos_token": "<|audio_eos|>",
            "start_token": "<|im_start|>",
        },
    )


def _merges(learner: object) -> list[tuple[str, str]]:
    import json

    state = json.loads(learner.to_str())  # type: ignore[attr-defined]
    return [tuple(pair) for pair in state["model"]["merges"]]


def build_processor(spec: QwenSpec) -> "Qwen2_5OmniProcessor":
    """Return Qwen2.5-Omni's processor for the sizes of `spec`, with the offline tokenizer."""
    from transformers import (
        Qwen2_5OmniProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
        WhisperFeatureExtractor,
    )

    sizes = {"patch_size": spec.vision.patch_size, "merge_size": spec.vision.merge_size}
    pixels = spec.view.height * spec.view.face_size
    size = {"shortest_edge": pixels, "longest_edge": pixels}
    return Qwen2_5OmniProcessor(
        image_processor=Qwen2VLImageProcessor(temporal_patch_size=2, size=size, **sizes),
        video_processor=Qwen2VLVideoProcessor(temporal_patch_size=2, size=size, **sizes),
        feature_extractor=WhisperFeatureExtractor(
            feature_size=spec.audio.num_mel_bins,
            sampling_rate=spec.clip.sample_rate,
            hop_length=160,
            n_fft=400,
            chunk_length=spec.audio.chunk_seconds,
        ),
        tokenizer=build_tokenizer(),
        chat_template=CHAT_TEMPLATE,
    )
