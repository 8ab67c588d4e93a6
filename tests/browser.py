"""How a page looks in a real browser, if there is one."""

import json
import re
import shutil
import subprocess

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# The page tells the frame around it, which may be narrower than any window.
TELL = """<script>addEventListener("load", () => {
  const missing = [...document.images].filter((x) => !x.naturalWidth).map((x) => x.alt);
  const width = document.documentElement.scrollWidth;
  parent.postMessage({width, missing, images: document.images.length}, "*");
});</script>"""
LISTEN = """<script>addEventListener("message", (event) => {
  document.body.innerHTML = "<pre>" + JSON.stringify(event.data) + "</pre>";
});</script>"""


def look(page, width):
    """{"width", "missing", "images"} of an HTML file that is shown in that width.

    The width that the page takes, the images that are broken, and how many there are.
    """
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if not browser:
        pytest.skip("no Chromium is here")
    told, frame = (page.with_name(f"{word}-{page.name}") for word in ("told", "frame"))
    told.write_text(page.read_text() + TELL)
    frame.write_text(f'{LISTEN}<iframe src="{told.name}" width="{width}" height="900"></iframe>')
    command = [browser, "--headless", "--no-sandbox", "--virtual-time-budget=9000", "--dump-dom"]
    done = subprocess.run([*command, frame.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r"<pre>(\{.*?\})</pre>", done.stdout)
    assert found, done.stderr
    return json.loads(found[1])
