"""Chromium without a window, spoken to over two pipes by the DevTools protocol."""

import itertools
import json
import os
import shutil
import subprocess
import tempfile

INSTALL = "these tests need Chromium: apt-get install -y --no-install-recommends chromium"


class Browser:
    """One page; everything that it asks the network for, and everything that it says, is kept."""

    def __init__(self):
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        assert program is not None, INSTALL
        self.profile = tempfile.TemporaryDirectory(prefix="grpokit-chromium-")
        to_read, self.writer = os.pipe()
        self.reader, to_write = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
        flags += ["--no-first-run", "--disable-dev-shm-usage", f"--user-data-dir={self.profile.name}", "about:blank"]
        # The protocol is on descriptors 3 and 4.
        words = ["bash", "-c", f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}', program, *flags]
        self.process = subprocess.Popen(
            words, pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_read)
        os.close(to_write)
        self.numbers, self.buffer, self.events, self.session = itertools.count(1), b"", [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.writer, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.message()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def message(self):
        while b"\0" not in self.buffer:
            part = os.read(self.reader, 1 << 20)
            assert part, "Chromium has ended"
            self.buffer += part
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def open(self, path, width, *, dark=False, media=""):
        """Shows a file at a width; returns the events until it was loaded."""
        self.events = []
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=1000, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.message())
        self.ask("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")
        return self.events

    def ask(self, expression):
        """What the expression gives: it is ours, which the page's policy does not bind."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self, path):
        """All of the page."""
        import base64

        data = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self):
        os.close(self.writer)
        self.process.terminate()
        self.process.wait()
        os.close(self.reader)
        self.profile.cleanup()
