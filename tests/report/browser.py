"""A report in a real browser: headless Chromium opens it in a frame of a given width and tells what it sees.

The frame matters: a window of a headless browser cannot be as narrow as a phone. Pages come from a small server on the
loopback, because a page from a file may not look into a frame.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--enable-logging=stderr", "--force-color-profile=srgb",
)  # fmt: skip

_LOOK = """
<!DOCTYPE html><html><body style="margin:0"><pre hidden id="seen"></pre>
<iframe id="page" src="PAGE" style="border:0;width:WIDTHpx;height:HEIGHTpx"></iframe>
<script>
const frame = document.getElementById("page");
const errors = [];
frame.contentWindow.addEventListener("error", e => errors.push(String(e.message || e.target.src)), true);
frame.addEventListener("load", () => {
  const d = frame.contentDocument, root = d.documentElement;
  if (UNFOLD) d.querySelectorAll("details").forEach(e => { e.open = true; });
  root.style.scrollBehavior = "auto";
  const target = frame.contentWindow.location.hash.slice(1);
  const aim = target && d.getElementById(target);
  for (let e = aim; e; e = e.parentElement) if (e.tagName === "DETAILS") e.open = true;
  if (aim) { aim.querySelectorAll(":scope > details").forEach(e => { e.open = true; }); aim.scrollIntoView(); }
  const wide = [];
  for (const e of d.body.querySelectorAll("*")) {
    const box = e.getBoundingClientRect();
    if (box.width && box.right > root.clientWidth + 1 && !e.closest(".scroll") && !e.closest("svg"))
      wide.push(e.tagName + "." + e.className + " " + (e.textContent || "").trim().slice(0, 40));
  }
  const blank = [...d.querySelectorAll("svg, img")].filter(e => {
    const box = e.getBoundingClientRect();
    return box.width < 40 || box.height < 40 || (e.tagName === "IMG" && !e.naturalWidth);
  }).length;
  const small = [...d.querySelectorAll("svg text")].filter(e => e.getBoundingClientRect().height < 6).length;
  document.getElementById("seen").textContent = JSON.stringify({
    errors, wide, blank, small, pictures: d.querySelectorAll("svg, img").length,
    unnamed: [...d.querySelectorAll("[role=img]")].filter(e => !e.getAttribute("aria-label")).length,
    broken: [...d.querySelectorAll('a[href^="#"]')].filter(e => !d.getElementById(e.hash.slice(1))).length,
    scroll: root.scrollWidth, client: root.clientWidth, height: root.scrollHeight,
  });
});
</script></body></html>
"""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a browser found on a page."""

    facts: dict[str, Any]
    console: list[str]
    """Errors and warnings of the console."""


@contextmanager
def _temporary_page(folder: Path, content: str) -> Iterator[str]:
    """Name of a page that is in the folder while the block lasts."""
    handle, name = tempfile.mkstemp(suffix=".html", dir=folder)
    path = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
        path.chmod(0o644)
        yield path.name
    finally:
        path.unlink()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def find_browser() -> str | None:
    """Path of Chromium or Chrome: ``$CHROMIUM``, else one of the usual names; None where there is none."""
    return os.environ.get("CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)


def _chromium(url: str, *arguments: str, dark: bool) -> subprocess.CompletedProcess[str]:
    browser = find_browser()
    assert browser is not None
    with tempfile.TemporaryDirectory(prefix="browser-") as profile:
        scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
        command = [browser, *FLAGS, scheme, f"--user-data-dir={profile}", *arguments, url]
        return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)


class Site:
    """A folder served on the loopback while the block lasts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))

    def __enter__(self) -> Site:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def look(self, page: str, width: int, *, dark: bool = False) -> Seen:
        """Open a page of the folder in a frame of so many CSS pixels, with everything unfolded."""
        done = self._framed(page, width, 900, True, "--dump-dom", "--virtual-time-budget=8000", dark=dark)
        found = re.search(r'<pre hidden="" id="seen">(.*?)</pre>', done.stdout, flags=re.DOTALL)
        assert found is not None
        assert found[1], f"the page did not load: {done.stderr[-500:]}"
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        return Seen(facts=json.loads(html.unescape(found[1])), console=console)

    def screenshot(
        self, page: str, width: int, height: int, out: Path, *, dark: bool = False, unfold: bool = False
    ) -> None:
        """A PNG of a page as it looks in a window so wide, from its top or from the part that ``#id`` names.

        Below 500 CSS pixels the picture is 500 wide; the page takes its left part.
        """
        size = f"--window-size={max(width, 500)},{height}"
        self._framed(page, width, height, unfold, f"--screenshot={out}", size, "--virtual-time-budget=8000", dark=dark)

    def pdf(self, page: str, out: Path) -> None:
        """The page as printed."""
        _chromium(self._address(page), f"--print-to-pdf={out}", "--no-pdf-header-footer", dark=False)

    def _framed(
        self, page: str, width: int, height: int, unfold: bool, *arguments: str, dark: bool
    ) -> subprocess.CompletedProcess[str]:
        frame = (
            _LOOK.replace("UNFOLD", str(unfold).lower())
            .replace("PAGE", page)
            .replace("WIDTH", str(width))
            .replace("HEIGHT", str(height))
        )
        with _temporary_page(self.folder, frame) as name:
            return _chromium(self._address(name), *arguments, dark=dark)

    def _address(self, page: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/{page}"


def assert_sound(site: Site, page: str, width: int, *, pictures: int, dark: bool = False) -> None:
    """Fail for the faults that a page must not have.

    Args:
        site: where it is served.
        page: its name there.
        width: of the frame in CSS pixels.
        pictures: least number of pictures.
        dark: whether the reader prefers dark pages.
    """
    seen = site.look(page, width, dark=dark)
    assert seen.console == []
    assert seen.facts["errors"] == []
    assert seen.facts["wide"] == []
    assert seen.facts["scroll"] == seen.facts["client"] == width
    assert (seen.facts["blank"], seen.facts["unnamed"], seen.facts["broken"]) == (0, 0, 0)
    assert seen.facts["pictures"] >= pictures
