"""A page as a browser would read it, and a real browser that hears all it says."""

import contextlib
import html.parser
import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = [f"--disable-{part}" for part in ("gpu", "sync", "component-update", "background-networking")]


class Page(html.parser.HTMLParser):
    """What a browser would make of it: elements with attributes, scripts and styles, words, and tables by section."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.codes, self.words, self.grids = [], {"script": [], "style": []}, "", {}
        self._code, self._section, self._cell, self._note = None, None, None, False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in self.codes:
            self._code = self.codes[tag]
            self._code.append("")
        elif tag == "section":
            self._section = self.grids.setdefault(dict(attrs)["id"], [])
        elif tag == "table":
            self._section.append([])
        elif tag == "tr":
            self._section[-1].append([])
        elif tag in {"td", "th"}:
            self._cell = ["", ""]
            self._section[-1][-1].append(self._cell)
        elif tag == "small":
            self._note = True

    def handle_endtag(self, tag):
        self._code = None if tag in self.codes else self._code
        self._cell = None if tag in {"td", "th"} else self._cell
        self._note = self._note and tag != "small"

    def handle_data(self, data):
        if self._code is not None:
            self._code[-1] += data
            return
        self.words += data.replace("\u00a0", " ")  # which only keeps a line from ending there
        if self._cell is not None:
            self._cell[self._note] += data

    def count(self, tag):
        return sum(name == tag for name, _ in self.elements)

    def grid(self, section, number=0):
        """Rows of a table below its head, as {column: (value, note)}."""
        head, *rows = self.grids[section][number]
        return [{name[0]: tuple(cell) for name, cell in zip(head, row, strict=True)} for row in rows]


@contextlib.contextmanager
def chromium():
    """A real browser; without one the tests that need it skip."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser test")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: no browser test")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *QUIET])
        yield browser
        browser.close()


def watched(browser, file, **settings):
    """The page opened, and all it said, asked for or raised."""
    page, heard = browser.new_context(**settings).new_page(), []
    page.on("console", lambda message: heard.append(("console", message.text)))
    page.on("pageerror", lambda error: heard.append(("error", str(error))))
    page.on("dialog", lambda dialog: (heard.append(("dialog", dialog.message)), dialog.dismiss()))
    page.on("request", lambda request: request.url == file.as_uri() or heard.append(("request", request.url)))
    page.goto(file.as_uri())
    return page, heard
