"""What the commands that open a page share: where it listens, who may see it, what they print."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ft2.cli.options import say

if TYPE_CHECKING:
    from ft2.critic.annotation import AnswerStore

Port = Annotated[
    int, typer.Option("--port", metavar="N", min=0, max=65535, help="0 takes a free one.")
]
Token = Annotated[
    str | None,
    typer.Option("--token", metavar="WORD", help="Part of the address; drawn anew without it."),
]


def serve_questions(
    store: "AnswerStore",
    questions: Mapping[str, str],
    *,
    port: int,
    token: str | None,
    remark: str,
) -> None:
    """Serve the page where people answer, on loopback, until it is interrupted.

    Args:
        store: The items and where answers are kept.
        questions: Text by the name of a dimension.
        port: 0 takes a free one.
        token: Part of the address; drawn anew when None.
        remark: Said when the page is open.
    """
    import secrets

    from ft2.critic.annotation_app import annotation_app
    from ft2.loopback import HOST, serve_app

    secret = token or secrets.token_urlsafe(12)

    def ready(taken: int) -> None:
        typer.echo(f"http://{HOST}:{taken}/?token={secret}")
        say(remark)

    serve_app(annotation_app(store, dict(questions), Path("/"), secret), port, ready)
