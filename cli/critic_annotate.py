"""Commands of `ft2 critic` that serve: the annotation page, its report, and the reward server."""

from collections.abc import Sequence
from mimetypes import guess_type
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ft2.cli.critic_ratings import OutputFile, refuse_existing
from ft2.cli.critic_use import Critic, Device, find_critic
from ft2.cli.options import Json, emit, say
from ft2.cli.serving import Port, Token, serve_questions
from ft2.errors import UsageError

if TYPE_CHECKING:
    from ft2.critic.annotation import Item

Store = Annotated[Path, typer.Option("--store", metavar="FILE", help="Where the answers are kept.")]


def annotate(
    args: Annotated[
        list[str],
        typer.Argument(
            metavar="CLIP... [KEY=VALUE]...",
            help="Videos, or JSONL with `clip`, `other`, `gold`; raters_per_item=3, "
            "questions={...}, release_minutes=30.",
            show_default=False,
        ),
    ],
    store: Store = Path("answers.sqlite"),
    port: Port = 7860,
    token: Token = None,
) -> None:
    """Open a page on this machine where people rate clips; the same command goes on later."""
    from ft2.config import load_config
    from ft2.critic.annotation import AnswerStore
    from ft2.critic.config import AnnotationConfig

    clips = [Path(arg) for arg in args if "=" not in arg or Path(arg).is_file()]
    config = load_config(AnnotationConfig, None, [a for a in args if Path(a) not in clips])
    if not clips:
        raise UsageError("no clip is named", "give videos, or JSONL with a `clip` a row")
    items = _items(clips, tuple(config.questions))
    kept = AnswerStore(
        store, tuple(config.questions), config.raters_per_item,
        release_minutes=config.release_minutes,
    )  # fmt: skip
    kept.add(items)
    raters = f"{config.raters_per_item} rater(s) each"
    serve_questions(
        kept, config.questions, port=port, token=token,
        remark=f"{len(items)} items, {raters}; answers: {store}",
    )  # fmt: skip


def _items(clips: Sequence[Path], dimensions: tuple[str, ...]) -> "list[Item]":
    """Return the items of videos and of JSONL files, paths made absolute.

    Raises:
        UsageError: A clip is missing, or a row is not what it must be.
    """
    from ft2.critic.annotation import Item
    from ft2.critic.importers import read_rows

    found = []
    for path in clips:
        if path.suffix.lower() != ".jsonl":
            found.append(Item(str(path.resolve())))
            continue
        for number, row in read_rows(path):
            try:
                found.append(_item(row, path.parent, dimensions))
            except ValueError as error:
                raise UsageError(f"{path}: row {number}: {error}") from error
    if not found:
        raise UsageError(f"there are no clips in {clips[0]}", 'write {"clip": "a.mp4"} a line')
    for name in dict.fromkeys(name for item in found for name in (item.clip, item.other) if name):
        _refuse_unplayable(name)
    return found


def _refuse_unplayable(name: str) -> None:
    """Refuse what no browser would play."""
    from ft2.critic.probe import why_not

    if not Path(name).is_file():
        raise UsageError(f"no such clip: {name}", "give paths of video files")
    if not str(guess_type(name)[0]).startswith("video/"):
        raise UsageError(f"not a video by its name: {name}", "give mp4 or webm files")
    reason = why_not(Path(name), silent=True)
    if reason:
        raise UsageError(reason, "take it out: raters could not see it")


def _item(row: Any, root: Path, dimensions: tuple[str, ...]) -> "Item":
    from ft2.critic.annotation import Item
    from ft2.critic.answers import CLIP_ANSWERS, PAIR_ANSWERS

    facts = ("identity_id", "audio_id", "source_clip", "prompt")
    if not isinstance(row, dict) or not isinstance(row.get("clip"), str):
        raise ValueError('a row is {"clip": "a.mp4"}, with "other" for a pair')
    unknown = sorted(set(row) - {"clip", "other", "gold", *facts})
    if unknown:
        raise ValueError(f"unknown keys: {', '.join(unknown)}")
    gold, other = row.get("gold") or {}, row.get("other")
    if other is not None and (not isinstance(other, str) or other == row["clip"]):
        raise ValueError(f"other is the path of a second clip, got {other!r}")
    words = CLIP_ANSWERS if other is None else PAIR_ANSWERS
    if not isinstance(gold, dict) or not set(gold) <= set(dimensions):
        raise ValueError(f"gold is an answer per dimension, got {gold!r}")
    if not all(word in words for word in gold.values()):
        raise ValueError(f"a gold answer is none of {', '.join(words)}: {gold}")
    paths = [
        None if name is None else str((root / name).resolve()) for name in (row["clip"], other)
    ]
    return Item(
        str(paths[0]), paths[1], gold, {k: str(row[k]) for k in facts if row.get(k) is not None}
    )


def raters(
    store: Annotated[
        Path, typer.Argument(metavar="FILE", help="What `ft2 critic annotate` kept.")
    ] = Path("answers.sqlite"),
    output: OutputFile = None,
    json: Json = False,
) -> None:
    """Print each rater's answers and gold score, how far raters agree, and write the answers."""
    from ft2.critic.agreement import agreement
    from ft2.critic.annotation import AnswerStore
    from ft2.critic.answers import write_answers

    if not store.is_file():
        raise UsageError(
            f"there are no answers in '{store}'", "make some: ft2 critic annotate CLIP"
        )
    if output is not None:
        refuse_existing(output)
    kept = AnswerStore(store)
    answers = kept.answers()
    if output is not None:
        write_answers(output, answers)
    found = {"answers": len(answers), "agreement_alpha": agreement(answers)}
    if not answers and not json:
        say("nobody has answered yet: open the page that `ft2 critic annotate` prints")
        found = {"answers": 0}
    rows = kept.report()
    emit({**found, **({"raters": rows} if rows or json else {}),
          "output": str(output) if output else None}, json=json)  # fmt: skip


def serve(
    critic: Critic = None,
    media: Annotated[
        Path, typer.Option("--media", metavar="DIR", help="Clips are served from here only.")
    ] = Path(),
    port: Port = 5000,
    device: Device = "cpu",
) -> None:
    """Serve rewards on this machine, as OpenRLHF asks for them: POST /get_reward."""
    folder = find_critic(critic)
    if not media.is_dir():
        raise UsageError(f"there is no folder '{media}'", "give --media DIR")
    from ft2.critic.annotation_app import reward_app
    from ft2.critic.api import TalkingCritic
    from ft2.critic.cache import default_dir
    from ft2.loopback import HOST, serve_app

    judge = TalkingCritic.from_pretrained(folder, device=device, cache_dir=default_dir())
    app = reward_app(judge, media.resolve())
    serve_app(app, port, lambda taken: typer.echo(f"http://{HOST}:{taken}/get_reward"))
