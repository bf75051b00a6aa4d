"""A headless Chromium, controlled over a pipe (the DevTools protocol).

Tests use it to look at a page as a person would.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time

PROGRAM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
WHERE_FROM = (
    "Chromium is not installed (Debian: apt-get install chromium); the report is not opened in a"
    " browser"
)


class Browser:
    """`with Browser(profile) as browser`: one page, with its requests and complaints."""

    def __init__(self, profile, seconds=240):
        self.seconds, self.number = seconds, 0
        self.requests, self.complaints = [], []
        self._to_browser, self._commands = os.pipe()[::-1]
        self._answers, self._from_browser = os.pipe()
        self._buffer = b""
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
        ]
        command = [
            PROGRAM,
            *flags,
            "--hide-scrollbars",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
        ]
        # Chromium reads commands from descriptor 3 and answers on 4.
        shell = f'exec "$0" "$@" 3<&{self._commands} 4>&{self._from_browser}'
        self.process = subprocess.Popen(
            ["bash", "-c", shell, *command],
            pass_fds=(self._commands, self._from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(self._commands)
        os.close(self._from_browser)
        os.set_blocking(self._answers, False)

    def __enter__(self):
        target = self._send("Target.createTarget", {"url": "about:blank"})["targetId"]
        self.session = self._send("Target.attachToTarget", {"targetId": target, "flatten": True})[
            "sessionId"
        ]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()
        os.close(self._to_browser)
        os.close(self._answers)

    def send(self, method, **parameters):
        """Sends one command to the page; returns its result."""
        return self._send(method, parameters, self.session)

    def _send(self, method, parameters, session=None):
        self.number += 1
        message = {
            "id": self.number,
            "method": method,
            "params": parameters,
            **({"sessionId": session} if session else {}),
        }
        os.write(self._to_browser, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self):
        deadline = time.monotonic() + self.seconds
        while b"\0" not in self._buffer:
            assert time.monotonic() < deadline, "the browser does not answer"
            try:
                self._buffer += os.read(self._answers, 1 << 20)
            except BlockingIOError:
                time.sleep(0.01)
        message, self._buffer = self._buffer.split(b"\0", 1)
        answer = json.loads(message)
        method, parameters = answer.get("method"), answer.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(str(parameters["args"]))
        elif method == "Log.entryAdded":
            self.complaints.append(parameters["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"]))
        return answer

    def open(self, url, width=1280, height=900, dark=False, media=""):
        """Shows a page in a window of that size."""
        mobile = width < 600
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=mobile,
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", media=media, features=scheme)
        self.send("Page.navigate", url=url)
        while self.evaluate("document.readyState") != "complete":
            time.sleep(0.05)

    def evaluate(self, expression):
        """Returns the value of a JavaScript expression (a promise is waited for)."""
        result = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def screenshot(self, path):
        """Writes the whole page as a PNG file."""
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        with open(path, "wb") as f:
            f.write(base64.b64decode(data))
