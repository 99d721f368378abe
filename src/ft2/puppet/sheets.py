"""Contact sheets: what a person looks at before trusting the puppets."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ft2 import media, speech
from ft2.config import ClipFormat
from ft2.puppet import identities, world
from ft2.puppet.defects import DEFECTS, Defect
from ft2.puppet.portrait import Identity

ROWS = ("clean", *DEFECTS)


def find_identity(face: str) -> Identity:
    """Return a shipped face by name, or make one of a picture file.

    Raises:
        UsageError: Neither a name nor a readable portrait.
    """
    if face not in identities.names() and Path(face).is_file():
        return identities.from_portrait(face)
    return identities.load(face)


def defects_sheet(
    path: str | Path, face: str, text: str, strength: float, seed: int, clip: ClipFormat
) -> None:
    """Write a PNG with a row of frames for the clean clip and for each defect.

    Args:
        path: PNG to write.
        face: Name of a shipped face or a portrait file.
        text: What is said.
        strength: Strength of every defect, in (0, 1].
        seed: Seeds motion and defects.
        clip: Size and length.
    """
    identity = find_identity(face)
    audio = speech.synthesise(text)
    phones = tuple(speech.phones(audio, text))
    spoken = world.Utterance("sheet", text, "en-US", audio, phones)
    start = world.start_times(spoken, clip.seconds)[0]
    rows = []
    for name in ROWS:
        spoiled = [] if name == "clean" else [Defect(name, strength, seed)]
        made = world.make_clip(identity, spoken, start, seed, spoiled, clip)
        row = np.ascontiguousarray(np.concatenate(list(made.frames), axis=1))
        cv2.putText(
            row, name, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 0), 1, cv2.LINE_AA
        )
        rows.append(row)
    media.write_png(path, np.concatenate(rows))
