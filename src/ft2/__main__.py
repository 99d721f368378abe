"""Entry point of the command line: turns errors into messages and exit codes."""

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

from ft2.errors import Ft2Error

_received: list[int] = []


def _fail(message: str, hint: str = "") -> None:
    lines = [f"error: {message}"] + ([f"hint: {hint}"] if hint else [])
    sys.stderr.write("\n".join(lines) + "\n")


def _stop(signum: int, _frame: FrameType | None) -> None:
    """Note the signal and unwind; KeyboardInterrupt, because libraries swallow other errors."""
    _received.append(signum)
    raise KeyboardInterrupt


def _run(argv: list[str]) -> int:
    """Run one command; return its exit code. Typer's own errors are printed like ft2's."""
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
    if code == 130:  # what Typer makes of a KeyboardInterrupt
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _resumable(argv: Sequence[str]) -> bool:
    """Return whether the command of a command line takes --resume; a server does not."""
    import typer.main

    from ft2.cli import app

    command: Any = typer.main.get_command(app)
    for word in argv:
        command = getattr(command, "commands", {}).get(word, command)
    return any("--resume" in parameter.opts for parameter in command.params)


def main(argv: Sequence[str] | None = None) -> None:
    """Run ft2 with ``argv`` (``sys.argv[1:]`` when None) and exit.

    Exit codes: 0 done, 1 failed at run time, 2 command, config or input wrong, 130 and 143
    interrupted. ``FT2_DEBUG=1`` shows the traceback.
    """
    # torch's OpenMP threads (libgomp) wait for one another by spinning, 300,000 turns and more:
    # on cores that others use, too, most of the time goes there. 5,000 cost nothing on idle ones.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    previous = {signum: signal.signal(signum, _stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = _guarded(list(sys.argv[1:] if argv is None else argv))
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
    sys.exit(code)


def _guarded(argv: list[str]) -> int:
    """Run one command; return its exit code, also after any error."""
    debug = os.environ.get("FT2_DEBUG", "") not in {"", "0"}
    _received.clear()
    try:
        return _run(argv)
    except Ft2Error as error:
        if debug:
            raise
        _fail(error.message, error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        signum = _received[-1] if _received else signal.SIGINT
        hint = "the same command with --resume goes on" if _resumable(argv) else ""
        _fail(f"interrupted by {signal.Signals(signum).name}", hint)
        return 128 + signum
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        _fail(f"{type(error).__name__}: {error}", "FT2_DEBUG=1 shows the traceback")
        return 1


if __name__ == "__main__":
    main()
