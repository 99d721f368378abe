"""Talking-Critic: from people's ratings to a reward model that answers three questions.

`TalkingCritic` is loaded when it is asked for: importing this package imports no torch.
"""

from typing import TYPE_CHECKING, Any

if not __name__.startswith("ft2."):
    raise ImportError("import ft2.critic, not critic")

if TYPE_CHECKING:
    from ft2.critic.api import TalkingCritic

__all__ = ["TalkingCritic"]


def __getattr__(name: str) -> Any:
    if name == "TalkingCritic":
        from ft2.critic.api import TalkingCritic

        return TalkingCritic
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
