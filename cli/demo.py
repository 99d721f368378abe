"""The command `ft2 demo`."""

from ft2.errors import RunError


def demo() -> None:
    """Run demo."""
    raise RunError("ft2 demo is not available in this build")
