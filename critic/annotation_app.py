"""The annotation page and the reward server: FastAPI on the loopback device."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft2.critic.annotation import AnswerStore
from ft2.errors import UsageError
from ft2.loopback import check_token, load_fastapi

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ft2.critic.api import TalkingCritic


def annotation_app(
    store: AnswerStore, questions: Mapping[str, str], root: Path, secret: str
) -> "FastAPI":
    """Return the page where raters answer; every request must carry the token.

    Args:
        store: Items and answers.
        questions: What is asked, by dimension.
        root: What the clips' paths are relative to.
        secret: Token of the page's address.
    """
    fastapi = load_fastapi()
    from fastapi.responses import FileResponse, HTMLResponse

    app: FastAPI = fastapi.FastAPI(openapi_url=None)
    page = (Path(__file__).parent / "annotate.html").read_text(encoding="utf-8")

    @app.get("/", response_class=HTMLResponse)
    def index(token: str = "") -> str:
        check_token(token, secret)
        return page

    @app.post("/api/next")
    def following(body: dict[str, Any]) -> dict[str, Any]:
        return _current(store, questions, _rater(body, secret))

    @app.post("/api/answer")
    def answer(body: dict[str, Any]) -> dict[str, Any]:
        rater = _rater(body, secret)
        try:
            store.answer(rater, int(body["item"]), str(body["dimension"]), str(body["answer"]))
        except (UsageError, KeyError, ValueError) as error:
            raise fastapi.HTTPException(422, str(error)) from error
        return _current(store, questions, rater)

    @app.post("/api/undo")
    def undo(body: dict[str, Any]) -> dict[str, Any]:
        rater = _rater(body, secret)
        store.undo(rater)
        return _current(store, questions, rater)

    @app.get("/media/{item}/{side}")
    def media(item: int, side: int, token: str = "", rater: str = "") -> FileResponse:
        check_token(token, secret)
        task = store.task(rater) if rater else None
        if task is None or task.item != item or not 0 <= side < len(task.sides):
            raise fastapi.HTTPException(404, "no such clip before this rater")
        return FileResponse(root / task.sides[side])

    return app


def _rater(body: Mapping[str, Any], token: str) -> str:
    """Return the rater's name of a request that carries the token."""
    check_token(str(body.get("token", "")), token)
    name = str(body.get("rater", "")).strip()
    if not name or len(name) > 80:
        raise load_fastapi().HTTPException(422, "a rater has a name of 1 to 80 letters")
    return name


def _current(store: AnswerStore, questions: Mapping[str, str], rater: str) -> dict[str, Any]:
    """Return what the page shows: the open item with its answers so far, or that all is done."""
    task = store.task(rater)
    if task is None:
        return {"finished": True}
    return {
        "item": task.item,
        "sides": [f"/media/{task.item}/{number}" for number in range(len(task.sides))],
        "questions": [{"name": name, "text": text} for name, text in questions.items()],
        "words": store.words(pair=len(task.sides) > 1),
        "answered": task.answered,
        "done": task.done,
        "total": task.total,
    }


def reward_app(critic: "TalkingCritic", root: Path) -> "FastAPI":
    """Return a server with OpenRLHF's ``POST /get_reward``: ``{"query": [...]}`` to ``rewards``.

    A query is the path of a clip below `root`. The reward is P(yes) of ``dimension``, or the mean
    over all dimensions where none is named; ``details`` has them all. (OpenRLHF reads a key
    ``scores`` as a tensor.)
    """
    fastapi = load_fastapi()
    app: FastAPI = fastapi.FastAPI(title="Talking-Critic")

    @app.post("/get_reward")
    def get_reward(body: dict[str, Any]) -> dict[str, Any]:
        query, dimension = body.get("query"), body.get("dimension")
        if not isinstance(query, list) or not all(isinstance(q, str) for q in query):
            raise fastapi.HTTPException(422, "query is a list of clip paths")
        if dimension not in (None, *critic.dimensions):
            raise fastapi.HTTPException(422, f"dimension is one of {critic.dimensions}")
        try:
            paths = [(root / q).resolve() for q in query]
        except (ValueError, OSError) as error:
            raise fastapi.HTTPException(422, f"a query is no path: {error}") from error
        outside = [q for q, p in zip(query, paths, strict=True) if not p.is_relative_to(root)]
        if outside:
            raise fastapi.HTTPException(403, f"{outside[0]} is not below the served folder")
        rows = critic.score(videos=paths)
        failed = {q: row.error for q, row in zip(query, rows, strict=True) if row.error}
        if failed:
            raise fastapi.HTTPException(422, failed)
        used = [dimension] if dimension else critic.dimensions
        return {
            "rewards": [sum(row.p[d] for d in used) / len(used) for row in rows],
            "details": [row.p for row in rows],
        }

    return app
