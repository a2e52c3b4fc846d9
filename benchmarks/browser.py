"""A headless Chromium, driven over a pipe by the DevTools protocol: no driver, no package.

`--remote-debugging-pipe` reads commands from descriptor 3 and writes answers and events to 4, each
a JSON object that ends in a zero byte.
"""

from __future__ import annotations

__all__ = ["Browser", "Page", "find_chromium"]

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new --remote-debugging-pipe --no-first-run --disable-gpu --mute-audio "
    "--no-sandbox --disable-dev-shm-usage --disable-extensions --disable-sync "
    "--disable-background-networking --disable-component-update --disable-default-apps "
    "--no-default-browser-check --autoplay-policy=no-user-gesture-required --hide-scrollbars"
)

Facts = dict[str, Any]


def find_chromium() -> str | None:
    """The browser's path: that in `CHROMIUM`, or the first on the path; None without one."""
    named = os.environ.get("CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One browser with one tab, as a context manager.

    Arguments:
        path: The browser.
    """

    def __init__(self, path: str):
        self.path, self.count, self.rest = path, 0, b""
        self.events: list[Facts] = []
        self.session = ""

    def __enter__(self) -> Browser:
        self.profile = tempfile.mkdtemp(prefix="browser_")
        (their_in, self.out), (self.into, their_out) = map(_high, (os.pipe(), os.pipe()))
        ends = [(os.POSIX_SPAWN_DUP2, their_in, 3), (os.POSIX_SPAWN_DUP2, their_out, 4)]
        quiet = (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)
        arguments = [self.path, *FLAGS.split(), f"--user-data-dir={self.profile}", "about:blank"]
        self.pid = os.posix_spawn(
            self.path, arguments, os.environ, file_actions=[*ends, quiet], setpgroup=0
        )
        for end in (their_in, their_out):
            os.close(end)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            self.session = ""
            self.call("Browser.close", wait=5)
        for end in (self.out, self.into):
            os.close(end)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method: str, wait: float = 60, **params: Any) -> Facts:
        """Send a command; its result. Events that come before it are kept in `events`.

        Raises:
            RuntimeError: the browser refused.
            TimeoutError: no answer.
        """
        self.count += 1
        message: Facts = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + wait
        while True:
            answer = self._read(until)
            if answer.get("id") == self.count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def wait(self, method: str, wait: float = 60) -> Facts:
        """The parameters of the first event of this name, come or to come."""
        until = time.monotonic() + wait
        while True:
            for event in self.events:
                if event.get("method") == method:
                    return event["params"]
            self.events.append(self._read(until))

    def _read(self, until: float) -> Facts:
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.into], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise TimeoutError("the browser does not answer")
            found = os.read(self.into, 2**20)
            if not found:
                raise OSError("the browser has ended")
            self.rest += found
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)


class Page:
    """A page opened in a browser.

    Arguments:
        browser: Running.
        path: The HTML file.
        width, height: Of the window, in CSS pixels.
        dark: Whether the reader prefers dark pages.
        phone: Whether it is one.
    """

    def __init__(
        self,
        browser: Browser,
        path: Path,
        *,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
        phone: bool = False,
    ):
        self.browser, self.width, self.height = browser, width, height
        size: Facts = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        browser.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.call("Emulation.setEmulatedMedia", features=[scheme])
        browser.events.clear()
        began = time.perf_counter()
        browser.call("Page.navigate", url=path.resolve().as_uri())
        browser.wait("Page.loadEventFired")
        self.seconds = time.perf_counter() - began
        """From the address to the load event."""

    def run(self, code: str) -> Any:
        """The value of a JavaScript expression; of a promise, what it becomes."""
        how = {"returnByValue": True, "awaitPromise": True, "userGesture": True}
        answer = self.browser.call("Runtime.evaluate", expression=code, **how)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:500])
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """A key, down and up."""
        about: Facts = {"key": key} | ({"text": key} if len(key) == 1 else {})
        for kind in ("keyDown", "keyUp"):
            self.browser.call("Input.dispatchKeyEvent", type=kind, **about)

    @property
    def requests(self) -> list[str]:
        """Addresses that were asked for, but those inside of the page."""
        sent = [e for e in self.browser.events if e.get("method") == "Network.requestWillBeSent"]
        urls = [event["params"]["request"]["url"] for event in sent]
        return [url for url in urls if not url.startswith("data:")]

    @property
    def complaints(self) -> list[str]:
        """Errors and warnings: of the console, uncaught, of the browser's log."""
        found = []
        for event in self.browser.events:
            about = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(json.dumps(about["exceptionDetails"])[:300])
            elif event.get("method") == "Log.entryAdded":
                found.append(about["entry"]["text"])
            elif event.get("method") == "Runtime.consoleAPICalled" and about["type"] in (
                "error",
                "warning",
                "assert",
            ):
                found.append(json.dumps(about["args"])[:300])
        return found

    def picture(self, *, top: int = 0, height: int | None = None, quality: int = 0) -> bytes:
        """What the window shows, or `height` pixels from `top`: PNG, or JPEG of a quality."""
        size = {"x": 0, "y": top, "width": self.width, "height": height or self.height, "scale": 1}
        how: Facts = {"clip": size, "captureBeyondViewport": True, "format": "png"}
        if quality:
            how |= {"format": "jpeg", "quality": quality}
        return base64.b64decode(self.browser.call("Page.captureScreenshot", **how)["data"])


def _high(ends: tuple[int, int]) -> tuple[int, int]:
    """The same pipe under descriptors that are not 3 or 4."""
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]
