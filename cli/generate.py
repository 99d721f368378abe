"""The command `ft2 generate`."""

from ft2.errors import RunError


def generate() -> None:
    """Run generate."""
    raise RunError("ft2 generate is not available in this build")
