"""Entry point of the command line: turns errors into messages and exit codes."""

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

from ft2.errors import Ft2Error, Interrupted


def _fail(message: str, hint: str = "") -> None:
    lines = [f"error: {message}"] + ([f"hint: {hint}"] if hint else [])
    sys.stderr.write("\n".join(lines) + "\n")


def _terminate(signum: int, _frame: FrameType | None) -> None:
    raise Interrupted(signum, "the same command with --resume goes on from the last checkpoint")


def _run(argv: list[str]) -> int:
    """Run one command; return its exit code. Errors that Typer finds become `Ft2Error`-like."""
    import typer

    from ft2.cli import app

    # ClickException, wherever this Typer keeps it.
    click_error: type[Any] = typer.BadParameter.__mro__[2]
    try:
        code = app(argv, prog_name="ft2", standalone_mode=False)
    except typer.Abort:
        _fail("aborted")
        return 1
    except click_error as error:
        message = error.format_message()
        context = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.stderr.write(message + "\n")
        else:
            _fail(message, f"`{context.command_path} --help`" if context is not None else "")
        return 2
    return code if isinstance(code, int) else 0


def main(argv: Sequence[str] | None = None) -> None:
    """Run ft2 with ``argv`` (``sys.argv[1:]`` when None) and exit.

    Exit codes: 0 done, 1 failed at run time, 2 command, config or input wrong, 130 and 143
    interrupted. ``FT2_DEBUG=1`` shows the traceback.
    """
    if hasattr(signal, "SIGTERM"):
        signal.signal(signal.SIGTERM, _terminate)
    debug = os.environ.get("FT2_DEBUG", "") not in {"", "0"}
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
    except Ft2Error as error:
        if debug:
            raise
        _fail(error.message, error.hint)
        code = error.exit_code
    except KeyboardInterrupt:
        _fail("interrupted by SIGINT", "the same command with --resume goes on, if it can")
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        if debug:
            raise
        _fail(f"{type(error).__name__}: {error}", "FT2_DEBUG=1 shows the traceback")
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    main()
