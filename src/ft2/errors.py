"""The errors that ft2 raises on purpose: each says what is wrong and what to do about it."""

import signal


class Ft2Error(Exception):
    """An error with a message for a person, a hint, and the exit code of the command line.

    Attributes:
        message: What is wrong, with the offending value.
        hint: What to type or change; empty when there is nothing useful to say.
        exit_code: Exit status of the process when the error reaches the command line.
    """

    exit_code: int = 1

    def __init__(self, message: str, hint: str = "") -> None:
        """Keep the message and the hint."""
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Return the message, with the hint in brackets when there is one."""
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(Ft2Error):
    """The command, the config or an input is wrong; nothing was started. Exit code 2."""

    exit_code = 2


class RunError(Ft2Error):
    """The work itself failed after it had started. Exit code 1."""

    exit_code = 1


class Interrupted(Ft2Error):
    """A signal asked the work to stop, and it stopped at a safe point. Exit code 128 + signal."""

    def __init__(self, signum: int, hint: str = "") -> None:
        """Name the signal; ``hint`` says how to go on."""
        super().__init__(f"interrupted by {signal.Signals(signum).name}", hint)
        self.signum = signum
        self.exit_code = 128 + signum

    def __reduce__(self) -> tuple[type["Interrupted"], tuple[int, str]]:
        """Pickle by the constructor's own arguments, so that worker processes can raise it."""
        return (type(self), (self.signum, self.hint))


class MissingExtra(UsageError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        """Name the package that could not be imported and the extra that installs it."""
        super().__init__(
            f"the package '{package}' is not installed",
            f"in a clone of ft2: uv sync --extra {extra}, or pip install '.[{extra}]'",
        )
        self.package = package
        self.extra = extra

    def __reduce__(self) -> tuple[type["MissingExtra"], tuple[str, str]]:
        """Pickle by the constructor's own arguments, so that worker processes can raise it."""
        return (type(self), (self.package, self.extra))
