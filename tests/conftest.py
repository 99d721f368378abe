"""Settings for every test: one thread, no network, no terminal, Ctrl-C as in the foreground."""

import json
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
# a suite that a shell started in the background would hand an ignored SIGINT to every child
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of foreign test data beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("the folder shared/data beside the repository is absent")
    return SHARED


BROWSER = next(
    (p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))),
    None,
)
BROWSER_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-sync", "--disable-background-networking", "--disable-component-update"),
    "--autoplay-policy=no-user-gesture-required",
]


@pytest.fixture
def ask_page(tmp_path: Path) -> Callable[..., Any]:
    """Open a copy of a page in a browser, run `script` in it once it is loaded, return its answer.

    The script is the body of an async function; what it returns comes back by a request, in real
    time: a browser's virtual time may run out before a clip on a busy machine is loaded.
    """
    if BROWSER is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")

    def ask(page: Path, script: str, *flags: str) -> Any:
        answers: list[Any] = []
        answered = Event()

        class Receiver(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                answers.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()
                answered.set()

            def log_message(self, *args: object) -> None:
                """Stay silent."""

        server = HTTPServer(("127.0.0.1", 0), Receiver)
        Thread(target=server.serve_forever, daemon=True).start()
        probe = (
            "<script>addEventListener('load', async () => { let found;"
            f"try {{ found = await (async () => {{ {script} }})(); }}"
            "catch (error) { found = String(error); }"
            f"fetch('http://127.0.0.1:{server.server_port}/', {{method: 'POST', mode: 'no-cors',"
            "body: JSON.stringify(found)}); });</script></body>"
        )
        copy = page.with_name("probe.html")
        copy.write_text(page.read_text().replace("</body>", probe))
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        browser = subprocess.Popen(
            [str(BROWSER), *BROWSER_FLAGS, profile, *flags, copy.as_uri()],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            assert answered.wait(180), "the page did not answer"
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()
            server.shutdown()
        return answers[0]

    return ask


@pytest.fixture(scope="session")
def check_command() -> Callable[[str], None]:
    """Check that an ``ft2`` command line of a text exists: command, options, preset and keys."""
    import typer.main

    from ft2.cli import app
    from ft2.cli.config import config_class
    from ft2.config import load_config, preset_names

    def check(line: str) -> None:
        words = shlex.split(line)[1:]
        command: Any = typer.main.get_command(app)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert not hasattr(command, "commands"), f"'{line}' names no command"
        known = {spelling for parameter in command.params for spelling in parameter.opts}
        odd = [word for word in words if word.startswith("-") and word not in known]
        assert not odd, f"'{line}': {odd[0]} is none of {', '.join(sorted(known))}"
        presets = [w for w in words if w.startswith(("nano/", "full/"))]
        assert set(presets) <= set(preset_names()), line
        for preset in presets:
            overrides = [w for w in words if "=" in w and not w.startswith("-")]
            load_config(config_class(preset.partition("/")[2]), preset, overrides)

    return check
