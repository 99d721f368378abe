"""Pages and servers for this machine alone: where they listen, and who may see them."""

import secrets
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ft2.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from fastapi import FastAPI

HOST = "127.0.0.1"
"""The loopback device: no other machine reaches it."""


def load_fastapi() -> Any:
    """Return the package fastapi.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        import fastapi
    except ImportError as error:
        raise MissingExtra("fastapi", "app") from error
    return fastapi


def check_token(given: str, token: str) -> None:
    """Refuse a request (403) that does not carry the token of the page's address."""
    if not secrets.compare_digest(given.encode(), token.encode()):
        raise load_fastapi().HTTPException(403, "wrong token: use the address that was printed")


def serve_app(app: "FastAPI", port: int, ready: Callable[[int], None]) -> None:
    """Serve on the loopback device until interrupted; port 0 takes a free one.

    Args:
        app: What to serve.
        port: Port, or 0.
        ready: Told the port once requests are taken.

    Raises:
        UsageError: The port is taken.
    """
    load_fastapi()
    import uvicorn

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        raise UsageError(f"port {port} is taken", "choose another with --port") from error
    listener.listen(64)
    ready(listener.getsockname()[1])
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    server.run(sockets=[listener])
