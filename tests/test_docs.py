"""README and guides: their links lead somewhere."""

import functools
import re
import subprocess
import sys

import pytest
from golden_values import ROOT

PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("export/*.md")])
COMMAND = re.compile(r"python -m (amdim_tf\.\w+)((?: \\\n|[^\n`])*)")


def anchors(page):
    """Those that GitHub and MkDocs give to the headings of a page."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text())
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    for link in links:
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 130 and len(COMMAND.findall(text)) >= 5


@functools.cache
def help_of(command):
    done = subprocess.run([sys.executable, "-m", command, "--help"], capture_output=True, text=True)
    return done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_have_the_flags_that_they_are_given(page):
    for command, arguments in COMMAND.findall(page.read_text()):
        known = help_of(command)
        assert known, command
        for flag in re.findall(r"--[\w.]+", arguments):
            boolean = flag.replace("--", "--[no]", 1)
            assert f"{flag}=" in known or f"{flag}:" in known or f"{boolean}:" in known, flag
