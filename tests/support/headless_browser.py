"""A headless Chromium that renders WebGL in software, driven through its DevTools protocol."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from debian_packages import NotInstalled, install, remedy
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader "
    "--disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync "
    "--disable-dev-shm-usage --remote-debugging-port=0"
)


class NoBrowser(Exception):
    """There is no Chromium here, and why."""


def find_chromium() -> str:
    """Its path, or that of one that was installed for the tests.

    Raises:
        NoBrowser: with the reason and the remedy.
    """
    if (found := _found()) is None:
        try:
            install("chromium")
        except NotInstalled as error:
            raise NoBrowser(str(error)) from error
    if (found := _found()) is None:
        raise NoBrowser(f"no Chromium here: {remedy('chromium')}")
    return found


def _found() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page of fixed size, ended with all its processes on leaving.

    Args:
        folder: empty, for its profile.
        size: width and height of the page, pixels.
    """

    def __init__(self, folder: Path, size: tuple[int, int]) -> None:
        self.folder, self.size = folder, size
        self._asked = 0

    def __enter__(self) -> Browser:
        from websockets.sync.client import connect

        command = [find_chromium(), *FLAGS.split(), f"--user-data-dir={self.folder}", "about:blank"]
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            port_file = self.folder / "DevToolsActivePort"
            end = time.monotonic() + 30
            while not (port_file.is_file() and port_file.read_text().strip()):
                if time.monotonic() > end or self._process.poll() is not None:
                    raise NoBrowser(f"Chromium does not start here: {(self.folder / 'log').read_text()[-500:]}")
                time.sleep(0.1)
            port = port_file.read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
                page = next(entry for entry in json.load(answer) if entry["type"] == "page")
            self._socket = connect(page["webSocketDebuggerUrl"], max_size=None)
            width, height = self.size
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            self.ask("Emulation.setDeviceMetricsOverride", **metrics)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._end()

    def _end(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a DevTools command."""
        self._asked += 1
        self._socket.send(json.dumps({"id": self._asked, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=30))
            if message.get("id") == self._asked:
                assert "error" not in message, message
                return message["result"]

    def open(self, url: str) -> None:
        """Go to a page and wait until it is there."""
        self.ask("Page.navigate", url=url)
        end = time.monotonic() + 30
        state = ""
        while state != "complete":
            assert time.monotonic() < end, f"{url} does not load"
            time.sleep(0.2)
            state = self.ask("Runtime.evaluate", expression="document.readyState")["result"]["value"]

    def screenshot(self) -> np.ndarray:
        """[H, W, 3] uint8."""
        data = base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
