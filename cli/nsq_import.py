"""`ft2 nsq import`: pairs that others labelled become a dataset."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ft2.cli.options import (
    DryRun,
    Json,
    PlannedOutput,
    Quiet,
    emit,
    make_progress,
    require_output,
    say,
)
from ft2.errors import UsageError

if TYPE_CHECKING:
    from ft2.critic.answers import Answer
    from ft2.nsq.labelled import Labelled, Refused
    from ft2.pairs import Store

_FILES = {"trl": "train.jsonl", "videoalign": "pairs.csv", "genai-bench": "data.json"}
"""What an export's folder holds."""


def import_dataset(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="trl, ms-swift, videoalign, genai-bench, webdataset, parquet, "
            "mj-bench-video, visionreward or hpdv3.",
        ),
    ],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A file, or an export's folder.")],
    output: PlannedOutput = None,
    dimension: Annotated[
        str | None,
        typer.Option(
            "--dimension", metavar="NAME",
            help="What labels are about where PATH does not say: motion, lip, quality or fusion.",
        ),
    ] = None,
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="Which split.")] = "train",
    label_source: Annotated[
        str, typer.Option("--label-source", metavar="WHO", help="human, critic or synthetic.")
    ] = "human",
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Make a dataset of pairs that others labelled; rows outside the vocabulary are refused."""
    import re
    import tempfile

    from ft2.nsq.importing import describe, import_pairs
    from ft2.nsq.labelled import Refused
    from ft2.pairs import LABEL_SOURCES, STORES
    from ft2.runs import check_output

    for value, words, name in (
        (dimension, (None, *STORES), "--dimension"),
        (label_source, LABEL_SOURCES, "--label-source"),
    ):
        if value not in words:
            raise UsageError(
                f"{name} {value} is unknown", f"one of {', '.join(filter(None, words))}"
            )
    if not re.fullmatch(r"[a-z][a-z0-9]*", split):
        raise UsageError(f"--split {split!r} is no split", "train, validation or test")
    refused = Refused()
    with tempfile.TemporaryDirectory() as folder:
        rows = read_labelled(kind, path, Path(folder), dimension, refused)  # type: ignore[arg-type]
        if dry_run:
            count = sum(1 for _ in rows)
            emit({"rows": count, "refused": len(refused.reasons)}, json)
        else:
            output = require_output(output)
            check_output(output, resume=False)
            found = import_pairs(
                rows, output, format_name=kind, split=split, label_source=label_source,
                refused=refused, progress=make_progress(quiet),
            )  # fmt: skip
            emit({"output": str(output), **found["pairs"], "refused": len(refused.reasons)}, json)
    if refused.reasons:
        say(f"{len(refused.reasons)} rows were refused:\n{describe(refused)}")


def read_labelled(
    kind: str, path: Path, folder: Path, dimension: "Store | None", refused: "Refused"
) -> "Iterator[Labelled]":
    """Yield the rows of a collection; those without media inside are read as ratings are.

    Raises:
        UsageError: an unknown format, no such file, or a dimension that nobody said.
    """
    from ft2.critic.importers import FORMATS, import_file
    from ft2.nsq.labelled import READERS

    if not path.exists():
        raise UsageError(f"there is no {path}", "give a file, or the folder of an export")
    if kind in READERS:
        yield from READERS[kind](path, folder, dimension, refused)
        return
    if kind not in FORMATS or kind == "ft2":
        known = sorted({*READERS, *FORMATS} - {"ft2"})
        raise UsageError(f"unknown format {kind!r}", f"choose one of {', '.join(known)}")
    file = path / _FILES.get(kind, "") if path.is_dir() else path
    found = import_file(kind, file)
    for reject in found.rejects:
        refused.add(reject.row, reject.reason)
    for number, answer in zip(found.rows, found.answers, strict=True):
        labelled = _labelled(number, answer, file.parent, dimension)
        if isinstance(labelled, str):
            refused.add(number, labelled)
        elif labelled is not None:
            yield labelled


def _labelled(
    number: int, answer: "Answer", root: Path, dimension: "Store | None"
) -> "Labelled | str | None":
    """Return an answer as a row, why it is refused, or None where it is about something else."""
    from ft2.nsq.labelled import Labelled, first_is_a
    from ft2.pairs import DIMENSIONS

    own = answer.dimension if answer.dimension in DIMENSIONS else None
    if own is None and answer.dimension != "overall":
        return None
    if own is None and dimension is None:
        raise UsageError(
            f"{answer.source} does not say what its labels are about",
            "say it with --dimension motion, lip, quality or fusion (wins on all three)",
        )
    about = own or dimension
    if about is None or answer.other is None or dimension not in (None, about):
        return None
    clips, models = (answer.clip, answer.other), (answer.model, answer.other_model)
    letter, margin = answer.answer, answer.margin
    if answer.source in ("trl", "hpdv3") and not first_is_a(*(Path(c).name for c in clips)):
        clips, models, letter = clips[::-1], models[::-1], "B"
    elif margin is not None and letter != "tie":
        margin = margin if letter == "A" else -margin
        if margin < 0:
            return f"the better clip has the lower opinion score ({answer.margin:g})"
    margins = {} if margin is None else {about: abs(margin)}
    return Labelled(
        number, (root / clips[0], root / clips[1]), {about: letter}, margins,
        prompt=answer.prompt, models=models,
    )  # fmt: skip
