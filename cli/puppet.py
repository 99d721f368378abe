"""Commands of `ft2 puppet`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ft2.cli.options import Json, Output, Quiet, emit, make_progress, say
from ft2.errors import UsageError

if TYPE_CHECKING:
    from ft2.config import ClipFormat

app = typer.Typer(help="Make clips with known driving curves and defects.", no_args_is_help=True)

Split = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Faces, sentences and voices of which split: train, dev or test."
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Another seed gives other people and clips.")]
Size = Annotated[
    int | None,
    typer.Option(metavar="N", help="Side of the frames in pixels.", show_default="as the models"),
]
Frames = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Frames a clip, one more than a multiple of 4.",
        show_default="as the models",
    ),
]
Fps = Annotated[
    float | None, typer.Option(metavar="X", help="Frames a second.", show_default="as the models")
]


@app.command("build")
def build(
    output: Output,
    split: Split = "train",
    clips: Annotated[int, typer.Option(metavar="N", help="How many rated clips.")] = 60,
    conditions: Annotated[
        int, typer.Option(metavar="N", help="How many portraits with a sound to generate from.")
    ] = 0,
    seed: Seed = 0,
    defects: Annotated[
        float, typer.Option(metavar="X", help="Chance of a defect, independent per dimension.")
    ] = 0.5,
    size: Size = None,
    frames: Frames = None,
    fps: Fps = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write rated mp4 clips (ratings.jsonl) and generation conditions (conditions.jsonl)."""
    from ft2.puppet import dataset

    clip = _clip(size, frames, fps)
    if clips < 0 or conditions < 0 or clips + conditions == 0:
        raise UsageError(
            f"{clips} clips and {conditions} conditions make no data set", "ask for at least one"
        )
    if not 0.0 <= defects <= 1.0:
        raise UsageError(f"the chance of a defect is {defects}", "give a number from 0 to 1")
    dataset.check_split(split)
    if output.exists():
        raise UsageError(f"'{output}' exists", "give another directory or delete it")
    progress = make_progress(quiet)
    result: dict[str, object] = {}
    if clips:
        path = dataset.build(
            output, clips, split, seed, clip, probability=defects, progress=progress
        )
        result["ratings"] = str(path)
    if conditions:
        path = dataset.build_conditions(output, conditions, split, seed, clip, progress=progress)
        result["conditions"] = str(path)
    emit(result, json)


@app.command("sheet")
def sheet(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PNG", help="Picture to write.")
    ],
    face: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Name of a shipped face, or a portrait file; '?' lists the names."
        ),
    ] = "beard",
    text: Annotated[
        str, typer.Option(metavar="TEXT", help="What to say (English).")
    ] = "Bob may move the blue van.",
    strength: Annotated[
        float, typer.Option(metavar="X", help="Strength of the defects, above 0 to 1.")
    ] = 0.8,
    seed: Seed = 0,
    size: Size = 128,
    quiet: Quiet = False,
) -> None:
    """Draw a contact sheet: a row for the clean clip and one for each defect."""
    from ft2.puppet import sheets

    if face == "?":
        from ft2.puppet import identities

        emit({"faces": identities.names()})
        return
    if not 0.0 < strength <= 1.0:
        raise UsageError(f"the strength is {strength}", "give a number above 0, at most 1")
    clip = _clip(size, None, None)
    sheets.defects_sheet(output, face, text, strength, seed, clip)
    if not quiet:
        say(f"rows: {', '.join(sheets.ROWS)}")
    emit({"sheet": str(output)})


def _clip(size: int | None, frames: int | None, fps: float | None) -> "ClipFormat":
    from pydantic import ValidationError

    from ft2.config import ClipFormat

    try:
        given = {"width": size, "height": size, "num_frames": frames, "fps": fps}
        return ClipFormat.model_validate({k: v for k, v in given.items() if v is not None})
    except ValidationError as error:
        problem = error.errors()[0]
        raise UsageError(
            f"no such clip: {problem['msg'].removeprefix('Value error, ')}",
            "for example --size 64 --frames 21 --fps 12.5",
        ) from None
