"""The token plan where each question gets the look at the clip that it needs.

A header, then stream by stream its tokens and the questions that follow it. A question sees the
header, its own stream and those before it. Sound is in the last streams, so that what comes before
it (quality on full frames, motion on frames without sound) cannot depend on it, not by one bit.

The class's own `get_rope_index` takes one audio flag for a whole text and gives useless positions
for such a mix. Here it is asked for one stream at a time, each with its own flag, and each stream
starts one after the largest position before it.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ft2.errors import UsageError
from ft2.qwen import packed
from ft2.qwen.spec import QwenSpec

if TYPE_CHECKING:
    from transformers import Qwen2_5OmniProcessor, Qwen2_5OmniThinkerForConditionalGeneration

VIDEO = "<|vision_bos|><|VIDEO|><|vision_eos|>"
HEADER = packed.PREFIX.removesuffix(VIDEO)


def layout_of(
    thinker: "Qwen2_5OmniThinkerForConditionalGeneration",
    processor: "Qwen2_5OmniProcessor",
    spec: QwenSpec,
    questions: Mapping[str, str],
) -> packed.Layout:
    """Return the token plan of the questions, single-stream or by streams as the spec says.

    Args:
        thinker: Gives the position ids (only its config is used).
        processor: Gives the token ids.
        spec: Sizes and streams.
        questions: Question of each dimension; answers come in this order.

    Raises:
        UsageError: The streams do not answer exactly these dimensions.
    """
    if not spec.streams:
        return packed.make_layout(thinker, processor, spec, list(questions.values()))
    asked = [name for stream in spec.streams for name in stream.answers]
    if sorted(asked) != sorted(questions):
        raise UsageError(
            f"the streams answer {', '.join(asked)}, the questions are {', '.join(questions)}",
            "give every question one stream: model.streams",
        )
    parts = _Parts()
    parts.add(_ids(processor, HEADER), None, -1)
    for stream, part in zip(spec.streams, spec.stream_specs, strict=True):
        parts.add(*_stream(thinker, processor, part, stream.audio), -1)
        for name in stream.answers:
            text = packed.TAIL.format(question=questions[name])
            parts.add(_ids(processor, text), None, list(questions).index(name))
    return parts.layout(thinker, processor, len(questions))


def _ids(processor: "Qwen2_5OmniProcessor", text: str) -> Tensor:
    return torch.tensor(processor.tokenizer(text, add_special_tokens=False).input_ids)


def _stream(
    thinker: "Qwen2_5OmniThinkerForConditionalGeneration",
    processor: "Qwen2_5OmniProcessor",
    spec: QwenSpec,
    with_audio: bool,
) -> tuple[Tensor, Tensor]:
    """Return token ids [L] and positions from 0 [3, L] of one stream."""
    frames = 2 * spec.num_patches_in_time
    blank = np.zeros((frames, spec.view.height, spec.view.face_size, 3), np.uint8)
    silence = np.zeros(spec.clip.num_samples, np.float32) if with_audio else None
    data = packed.process(processor, spec, VIDEO, blank, silence)
    return data["input_ids"][0], packed.positions(thinker, data, with_audio)


class _Parts:
    """Token ids, positions and owners, collected part by part."""

    def __init__(self) -> None:
        self.ids: list[Tensor] = []
        self.places: list[Tensor] = []
        self.owners: list[Tensor] = []
        self._next = 0

    def add(self, ids: Tensor, places: Tensor | None, owner: int) -> None:
        """Append a part; only parts that all questions see move the clock on."""
        places = torch.arange(len(ids)).expand(3, -1) if places is None else places
        places = places + self._next
        self.ids.append(ids)
        self.places.append(places)
        self.owners.append(torch.full((len(ids),), owner))
        if owner < 0:
            self._next = int(places.max()) + 1

    def layout(
        self,
        thinker: "Qwen2_5OmniThinkerForConditionalGeneration",
        processor: "Qwen2_5OmniProcessor",
        num_questions: int,
    ) -> packed.Layout:
        """Return the whole plan, answers in the order of the questions."""
        plan = packed.assemble(thinker, processor, self.ids, self.places, self.owners)
        ends = torch.tensor([len(ids) for ids in self.ids]).cumsum(0) - 1
        found = {int(o[0]): end for o, end in zip(self.owners, ends.tolist(), strict=True)}
        answers = torch.tensor([found[number] for number in range(num_questions)])
        return replace(plan, answers=answers)
