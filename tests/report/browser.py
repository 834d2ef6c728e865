"""A Chromium without a window, driven through pipes by the DevTools protocol."""

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

VARIABLE = "TENSORPRESS_CHROMIUM"
NAMES = ("chromium", "chromium-browser", "google-chrome", "headless_shell")


def find_browser() -> str | None:
    """Return the Chromium that the environment variable names, or the first one on the path."""
    return os.environ.get(VARIABLE) or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a browser: `open` shows a file, `evaluate` runs a line of JavaScript in it."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, os.fdopen(answers, "rb", buffering=0)
        self._number, self._rest = 0, b""
        self._session: str | None = None
        self.complaints: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def open(self, file: Path, width: int, scheme: str = "light") -> None:
        self.complaints = []
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._call("Emulation.setEmulatedMedia", features=features)
        self._call("Page.navigate", url=file.as_uri())
        while self._read().get("method") != "Page.loadEventFired":
            pass
        self.evaluate("new Promise(done => setTimeout(done, 50))")  # for what comes after

    def evaluate(self, script: str) -> Any:
        options = {"returnByValue": True, "awaitPromise": True}
        return self._call("Runtime.evaluate", expression=script, **options)["result"].get("value")

    def _call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _read(self) -> Any:
        while b"\0" not in self._rest:
            piece = self._answers.read(1 << 16)
            assert piece, "the browser has ended"
            self._rest += piece
        text, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(text)
        method, content = message.get("method"), message.get("params", {})
        wrong = content.get("type") in ("error", "warning", "assert")
        if method == "Runtime.exceptionThrown" or (method == "Runtime.consoleAPICalled" and wrong):
            self.complaints.append(json.dumps(content))
        if method == "Log.entryAdded" and content["entry"]["level"] in ("error", "warning"):
            self.complaints.append(content["entry"]["text"])
        return message


@contextmanager
def open_browser(program: str) -> Iterator[Browser]:
    """Start a browser, and end it."""
    command_read, command_write = os.pipe()
    answer_read, answer_write = os.pipe()
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        words = [
            *("--headless", "--no-sandbox", "--no-zygote", "--single-process", "--disable-gpu"),
            *("--disable-dev-shm-usage", "--remote-debugging-pipe"),
            *(f"--user-data-dir={profile}", "about:blank"),
        ]

        def connect() -> None:  # a browser reads commands from 3 and answers on 4
            ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (command_read, answer_write)]
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        process = subprocess.Popen(
            [program, *words], preexec_fn=connect, pass_fds=(3, 4), stderr=subprocess.DEVNULL
        )
        os.close(command_read)
        os.close(answer_write)
        try:
            yield Browser(command_write, answer_read)
        finally:
            process.kill()
            process.wait()
            os.close(command_write)
