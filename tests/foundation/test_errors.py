import pickle
import signal

import pytest

from ft2.errors import Ft2Error, Interrupted, MissingExtra, RunError, UsageError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("a"), 2),
        (RunError("a"), 1),
        (MissingExtra("mediapipe", "face"), 2),
        (Interrupted(signal.SIGINT), 130),
        (Interrupted(signal.SIGTERM), 143),
    ],
)
def test_exit_codes(error: Ft2Error, code: int):
    assert error.exit_code == code
    assert isinstance(error, Ft2Error)


def test_a_missing_extra_says_what_to_install():
    error = MissingExtra("mediapipe", "face")
    assert "mediapipe" in error.message
    assert ".[face]" in error.hint
    assert isinstance(error, UsageError)


def test_the_text_has_message_and_hint():
    assert str(UsageError("no face in 'a.png'", "use a frontal portrait")) == (
        "no face in 'a.png' (use a frontal portrait)"
    )
    assert str(UsageError("no face")) == "no face"


@pytest.mark.parametrize(
    "error",
    [UsageError("m", "h"), RunError("m"), Interrupted(15, "h"), MissingExtra("p", "e")],
)
def test_errors_survive_a_worker_process(error: Ft2Error):
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert (back.message, back.hint, back.exit_code) == (
        error.message,
        error.hint,
        error.exit_code,
    )
