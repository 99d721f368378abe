"""The page of ``ft2 generate --ui``: its fields, and FastAPI in front of the desk."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft2.errors import Ft2Error, RunError
from ft2.generator.config import GenerateConfig
from ft2.generator.desk import Busy, Desk
from ft2.loopback import check_token, load_fastapi

if TYPE_CHECKING:
    from fastapi import FastAPI

Field = dict[str, Any]
"""One field of the page: config key, label, value, and its range or choices; JSON."""


def slider(key: str, label: str, value: float, high: float, step: float = 0.1) -> Field:
    """Return a field that is dragged between 0 and `high`, or further if the value is."""
    return {"key": key, "label": label, "value": value, "high": max(high, value), "step": step}


def page_fields(config: GenerateConfig, experts: Sequence[str], judged: bool) -> list[Field]:
    """Return the fields of the page: experts only of a policy, motion only of a model with it.

    Args:
        config: what the fields begin with.
        experts: names of the policy's experts.
        judged: whether a critic chooses among seeds.
    """
    names = {"motion": "Motion expert", "lip": "Lip expert", "quality": "Quality expert"}
    fields = [
        slider("guidance.prompt", "Prompt guidance (CFG)", config.guidance.prompt, 10.0),
        slider("guidance.audio", "Audio guidance (CFG)", config.guidance.audio, 10.0),
    ]
    fields += [
        slider(f"expert.{name}", names[name], getattr(config.expert, name), 2.0, 0.05)
        for name in experts
    ]
    if "motion" in config.model.branches:
        fields.append(slider("motion", "How much moves", config.motion.face, 1.0, 0.05))
    fields += [
        {"key": "seed", "label": "Seed", "value": config.seed, "low": 0},
        {"key": "num_seeds", "label": "Videos (seeds)", "value": config.num_seeds, "low": 1},
    ]
    if judged:
        choices = ["mean", "motion", "lip", "quality"]
        best = {"key": "best_by", "label": "Keep the best by", "value": config.best_by}
        fields.append({**best, "choices": choices})
    return fields


def generate_app(desk: Desk, facts: dict[str, Any], secret: str) -> "FastAPI":
    """Return the page; every request must carry the token.

    Args:
        desk: makes the videos.
        facts: what the page shows from the start: model, prompt and fields.
        secret: token of the page's address.
    """
    fastapi = load_fastapi()
    from fastapi import Request
    from fastapi.responses import HTMLResponse, JSONResponse

    def guard(token: str = "") -> None:
        check_token(token, secret)

    app: FastAPI = fastapi.FastAPI(openapi_url=None, dependencies=[fastapi.Depends(guard)])
    page = (Path(__file__).parent / "generate.html").read_text(encoding="utf-8")

    @app.exception_handler(Ft2Error)
    def refused(_: Request, error: Ft2Error) -> JSONResponse:
        status = 409 if isinstance(error, Busy) else 500 if isinstance(error, RunError) else 422
        return JSONResponse({"error": error.message, "hint": error.hint}, status)

    @app.get("/", response_class=HTMLResponse)
    def index() -> str:
        return page

    @app.get("/api/facts")
    def shown() -> dict[str, Any]:
        return facts

    _add_jobs(app, desk)
    return app


def _add_jobs(app: "FastAPI", desk: Desk) -> None:
    """Add uploads, the job and its files to the page."""
    from fastapi import HTTPException, Request
    from fastapi.responses import FileResponse

    @app.get("/api/state")
    def state() -> dict[str, Any]:
        return desk.state()

    @app.post("/api/upload")
    async def upload(request: Request, kind: str, name: str) -> dict[str, str]:
        path = desk.uploads.place(kind, name)
        try:
            with path.open("wb") as file:
                async for piece in request.stream():
                    file.write(piece)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise RunError(f"cannot keep '{name}': {error.strerror}", "make room") from error
        return {"key": desk.uploads.key(path)}

    @app.post("/api/start")
    def start(body: dict[str, Any]) -> dict[str, Any]:
        given = body.get("settings")
        settings = given if isinstance(given, dict) else {}
        desk.start(str(body.get("portrait")), str(body.get("audio")), settings)
        return desk.state()

    @app.post("/api/stop")
    def stop() -> dict[str, Any]:
        desk.stop()
        return desk.state()

    @app.get("/files/{number}/{name}")
    def file(number: int, name: str, save: bool = False) -> FileResponse:
        path = desk.file(number, name)
        if path is None:
            raise HTTPException(404, "no such video or record in this session")
        return FileResponse(path, filename=f"{number:04}-{name}" if save else None)
