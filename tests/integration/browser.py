"""A headless Chromium, driven by the DevTools protocol over pipes: no driver program, no packages."""
import base64
import json
import os
import select
import subprocess
import tempfile
import time

from harness import PATIENCE, clean_environment, find_tool


class Browser:
    """One page. `errors` collects what scripts threw and what the content security policy refused."""

    def __init__(self, test):
        program = find_tool(test, "chromium-headless-shell")
        self._profile = tempfile.TemporaryDirectory(prefix="adapterd-browser-",
                                                    ignore_cleanup_errors=True)
        to_browser, self._commands = os.pipe()
        self._replies, from_browser = os.pipe()

        def hand_over():  # the protocol's ends are descriptors 3 and 4
            read, write = os.dup(to_browser), os.dup(from_browser)
            os.dup2(read, 3)
            os.dup2(write, 4)
            os.closerange(5, 256)

        # --no-sandbox: tests run as root in containers; the page is ours.
        self._process = subprocess.Popen(
            [program, "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             "--force-color-profile=srgb", f"--user-data-dir={self._profile.name}", "about:blank"],
            preexec_fn=hand_over, close_fds=False, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=clean_environment())
        os.close(to_browser)
        os.close(from_browser)
        test.addCleanup(self.close)
        self._buffer, self._number, self._session = b"", 0, None
        self.errors = []
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._send(f"{domain}.enable")

    def close(self):
        if self._process.returncode is not None:
            return
        self._process.kill()
        self._process.wait()
        os.close(self._commands)
        os.close(self._replies)
        self._profile.cleanup()

    def _receive(self, deadline):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._replies], [], [], max(0, deadline - time.monotonic()))
            data = os.read(self._replies, 1 << 16) if ready else b""
            if not data:
                raise AssertionError("Chromium does not answer" if not ready else "Chromium ended")
            self._buffer += data
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def _note(self, message):
        if message.get("method") == "Runtime.exceptionThrown":
            details = message["params"]["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
            self.errors.append(message["params"]["entry"]["text"])

    def _send(self, method, **params):
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while True:
            reply = self._receive(deadline)
            if reply.get("id") == self._number:
                if "error" in reply:
                    raise AssertionError(f"{method}: {reply['error']}")
                return reply["result"]
            self._note(reply)

    def resize(self, width, height, mobile=False):
        self._send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                   deviceScaleFactor=1, mobile=mobile)

    def prefer(self, scheme):
        self._send("Emulation.setEmulatedMedia",
                   features=[{"name": "prefers-color-scheme", "value": scheme}])

    def ignore_policy(self):
        """For scripts of the test, not of the page, on pages that are opened from here on."""
        self._send("Page.setBypassCSP", enabled=True)

    def open(self, url):
        self._send("Page.navigate", url=url)

    def run(self, script):
        """The value of an expression; a promise is waited for."""
        result = self._send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True,
                            allowUnsafeEvalBlockedByCSP=False)
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            raise AssertionError(details.get("exception", {}).get("description", details["text"]))
        return result["result"].get("value")

    def until(self, condition):
        """Waits, in the page, for an expression to become true."""
        self.run("new Promise(done => { const look = () => { try { if (" + condition + ") return done(); }"
                 " catch (error) {} setTimeout(look, 5); }; look(); })")

    def press(self, key, code=None, text=None, modifiers=0):
        common = {"key": key, "code": code or key, "modifiers": modifiers,
                  "windowsVirtualKeyCode": {"Tab": 9, "Enter": 13, " ": 32}.get(key, 0)}
        self._send("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {}))
        self._send("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text):
        self._send("Input.insertText", text=text)

    def screenshot(self, path):
        data = self._send("Page.captureScreenshot", format="png")["data"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(data))
