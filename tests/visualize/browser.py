"""A headless Chromium for tests of pages; they are skipped where none is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--hide-scrollbars", "--disable-dev-shm-usage"]


def run_in_page(html: str, script: str, folder: Path, *, size: tuple[int, int] = (1280, 900)) -> str:
    """Open ``html`` with ``script`` appended and return the page's ``data-result`` attribute, which the script has to set."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    page = folder / "page.html"
    wrapped = f"<script>window.addEventListener('load', async () => {{ try {{ {script} }} catch (e) {{ done('error: ' + e) }} }});"
    wrapped += "function done(text) { const p = document.createElement('pre'); p.id = 'result'; p.textContent = text; document.body.append(p); }</script>"
    page.write_text(html.replace("</body>", wrapped + "</body>"), encoding="utf-8")
    return open_page(page.as_uri(), folder, size=size)


def open_page(url: str, folder: Path, *, size: tuple[int, int] = (1280, 900), budget: int = 4000) -> str:
    """Open an address and return the text of its element ``#result``."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    command = [
        CHROMIUM,
        *FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={size[0]},{size[1]}",
        f"--virtual-time-budget={budget}",
    ]
    done = subprocess.run([*command, "--dump-dom", url], capture_output=True, text=True, timeout=120, check=False)
    start = done.stdout.rfind('<pre id="result">')
    assert start >= 0, f"the page has no result: {done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout[start + len('<pre id="result">') : done.stdout.index("</pre>", start)]
