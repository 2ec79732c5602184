"""A real browser, Debian's Chromium without a window, and a web server with or without cross-origin isolation."""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from waiting import HANG_S

ISOLATION = {"Cross-Origin-Embedder-Policy": "require-corp", "Cross-Origin-Opener-Policy": "same-origin"}

_DROP = """
const transfer = new DataTransfer();
for (const [name, content] of arguments[0]) {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  transfer.items.add(new File([bytes], name));
}
document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
"""

# WCAG's contrast of each text with what is behind it.
_CONTRASTS = """(() => {
const linear = (value) => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
const light = (colour) => {
  const [r, g, b] = colour.match(/[0-9.]+/g).slice(0, 3).map((value) => linear(value / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (one) => {
  const colour = getComputedStyle(one).backgroundColor;
  return colour.endsWith(", 0)") && one.parentElement ? ground(one.parentElement) : colour;
};
const texts = "h1, h2, h3, p, li, dt, dd, button, .button, small, .share";
return [...document.querySelectorAll(texts)].filter((one) => one.textContent.trim()).map((one) => {
  const [a, b] = [light(getComputedStyle(one).color), light(ground(one))].sort((x, y) => y - x);
  return [(a + 0.05) / (b + 0.05), one.textContent];
});
})()"""


def runtime_folder() -> Path:
    """Return where onnxruntime-web lies; skip where that is not said."""
    named = os.environ.get("ONNXRUNTIME_WEB")
    if not named:
        pytest.skip("ONNXRUNTIME_WEB names no folder in which npm has installed onnxruntime-web (docs/browser.md)")
    return Path(named)


@contextmanager
def serving(folder: Path, headers: Mapping[str, str]) -> Iterator[str]:
    """Serve a folder with further headers; yield its address."""

    class Handler(SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            for name, value in headers.items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, *what: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


class Browser:
    """Chromium, and what a visitor does with it.

    Attributes:
        driver: selenium's.
    """

    def __init__(self) -> None:
        chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
        if not (chromium and chromedriver):
            pytest.skip("chromium and chromedriver are not installed (docs/browser.md)")
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        self._profile = tempfile.mkdtemp(prefix="ccnn-browser-")
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for argument in (
            "--headless=new",
            "--no-sandbox",  # which root has none of
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--no-first-run",
            "--use-fake-device-for-media-stream",
            "--use-fake-ui-for-media-stream",
            f"--user-data-dir={self._profile}",
            "--window-size=1200,1000",
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(chromedriver))
        self.driver.set_page_load_timeout(HANG_S)
        self.driver.set_script_timeout(HANG_S)

    def close(self) -> None:
        self.driver.quit()
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, address: str) -> None:
        self.logs(), self.requests()
        self.driver.get(address)
        self.until("!document.getElementById('status').textContent.startsWith('Loading')")

    def js(self, expression: str, *arguments: object) -> Any:
        return self.driver.execute_script(f"return {expression}", *arguments)

    def until(self, expression: str) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, HANG_S, 0.05).until(lambda _: self.js(expression))

    def drop(self, *files: tuple[str, bytes]) -> None:
        self.driver.execute_script(_DROP, [(name, base64.b64encode(content).decode()) for name, content in files])

    def answered(self, count: int) -> list[str]:
        """Wait until so many pictures were answered; return their top classes, the first picture's first."""
        self.until(f"document.querySelectorAll('#history button').length >= {count}")
        return self.texts("#history button span")[::-1]

    def text(self, selector: str) -> str:
        return self.js("document.querySelector(arguments[0]).textContent", selector)

    def texts(self, selector: str) -> list[str]:
        return self.js("[...document.querySelectorAll(arguments[0])].map((one) => one.textContent)", selector)

    def facts(self) -> dict[str, str]:
        return dict(zip(self.texts("#facts dt"), self.texts("#facts dd"), strict=True))

    def shares(self) -> dict[str, float]:
        """The bars: names and their shares, 0 to 1."""
        numbers = [float(text.removesuffix(" %")) / 100 for text in self.texts("#bars .share")]
        return dict(zip(self.texts("#bars .name"), numbers, strict=True))

    def contrasts(self) -> list[tuple[float, str]]:
        """The contrast of each text with what is behind it, 1 to 21, and the text."""
        return self.js(_CONTRASTS)

    def logs(self) -> list[str]:
        """What the browser complained of since it was asked last."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """The addresses that were asked for since that was asked last, whoever asked."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
