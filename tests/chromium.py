"""A page in headless Chromium, driven over its debugging port."""

import json
import subprocess
import time
import urllib.request

import websockets.sync.client


class Browser:
    """A page in headless Chromium, driven over its debugging port."""

    def __init__(self, folder):
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += [f"--user-data-dir={folder}", "--remote-debugging-port=0", "about:blank"]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        port_file = folder / "DevToolsActivePort"
        while not port_file.exists() or not port_file.read_text().strip():
            assert self.process.poll() is None
            time.sleep(0.1)
        port = port_file.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as reply:
            page = next(p for p in json.load(reply) if p["type"] == "page")
        self.socket = websockets.sync.client.connect(
            page["webSocketDebuggerUrl"], max_size=None, open_timeout=60
        )
        self.number = 0

    def send(self, method, **params):
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while (reply := json.loads(self.socket.recv())).get("id") != self.number:
            pass
        return reply["result"]

    def value(self, code):
        return self.send("Runtime.evaluate", expression=code)["result"].get("value")

    def wait(self, code, seconds=60):
        end = time.monotonic() + seconds
        while not (found := self.value(code)):
            assert time.monotonic() < end, (code, self.value("document.body.innerText"))
            time.sleep(0.05)
        return found

    def key(self, key):
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, text=key)

    def close(self):
        self.socket.close()
        self.process.kill()
        self.process.wait()
