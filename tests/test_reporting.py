"""Every number on the page comes from the rows, no text on it can act, and it asks nothing of anyone."""

import base64
import dataclasses
import hashlib
import html.parser
import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
from simulated import study

from holdfast import laws, planning, reporting
from holdfast.errors import FitError
from holdfast.stats import Estimate, rounded

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMIUM_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
COMMANDS = ["holdfast sweep study.yaml", "holdfast report runs --max-forgetting 0.5"]
PROVENANCE = {"versions": {"torch": "2.13.0"}, "threads": 2, "fingerprints": {"wikipedia": "sha256:0f"}}

PAYLOADS = (
    "</script><script>alert(1)</script>",
    "</SCRIPT ><svg/onload=alert(1)>",
    '"><img src=x onerror=alert(1)>',
    "'><img src=x onerror=alert(1)>",
    "<img src='http://holdfast.invalid/leak.png'>",
    "<!--<script>",
    "--><b>",
    "<!--",
    "]]><b>",
    "</title><h1>",
    "</style><style>*{display:none}</style>",
    "</pre></bdi></table>",
    "</noscript><iframe src=javascript:alert(1)>",
    "<a href=javascript:alert(1)>x</a>",
    "javascript:alert(1)",
    "<math><mi//xlink:href='data:x,<script>alert(1)</script>'>",
    "<meta http-equiv=refresh content='0;url=http://holdfast.invalid/'>",
    "<base href=http://holdfast.invalid/>",
    "<link rel=stylesheet href=http://holdfast.invalid/x.css>",
    "<form action=http://holdfast.invalid/><input autofocus onfocus=alert(1)>",
    "{{ 7 * 7 }}{% include '/etc/passwd' %}",
    "${alert(1)}`${alert(1)}`",
    "\\u003cscript\\u003ealert(1)\\u003c/script\\u003e",
    "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &#60;b&#62;",
    "a\u2028alert(1)\u2029b",
    "0.1 \u202e9.0\u202c \u2066x\u2069 \u200f",
    "\x00\x1b[2J\x1b]0;x\x07\x85\r\n",
    "[bold red]markup[/bold red]",
    "lone \ud800 surrogate",
    "\U0001f9a6 \u05d0\u05d1 \u0639\u0631\u0628 e\u0301",
)


class Page(html.parser.HTMLParser):
    """What a browser would make of it: elements, their attributes, and the words of each table row and section."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.grids, self.words = [], {}, {}, ""
        self._open, self._section, self._cell, self._note = [], None, None, False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in {"script", "style"}:
            self.texts[len(self.elements) - 1] = ""
        if tag == "section":
            self._section = dict(attrs)["id"]
        if tag == "table":
            self.grids.setdefault(self._section, []).append([])
        if tag == "tr":
            self.grids[self._section][-1].append([])
        if tag in {"td", "th"}:
            self.grids[self._section][-1][-1].append(["", ""])
            self._cell = self.grids[self._section][-1][-1][-1]
        self._note = self._note or (tag == "small")

    def handle_endtag(self, tag):
        if tag in {"td", "th"}:
            self._cell = None
        if tag == "small":
            self._note = False

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] in {"script", "style"} and len(self.elements) - 1 in self.texts:
            self.texts[len(self.elements) - 1] += data
            return
        self.words += data
        if self._cell is not None:
            self._cell[self._note] += data

    def count(self, tag):
        return sum(name == tag for name, _ in self.elements)

    def grid(self, section, number=0):
        """Rows of a table below its head, as {column: (value, note)}."""
        head, *rows = self.grids[section][number]
        return [{name[0]: tuple(cell) for name, cell in zip(head, row, strict=True)} for row in rows]


def failed(run="f" * 12, state="failed", reason="out of memory at step 3", **about):
    return (
        {**study(ranks=(8,), seeds=(0,)).iloc[0].to_dict(), "run": run, "state": state, "reason": reason}
        | {name: math.nan for name in ("step", "nll", "kl_base_tuned")}
        | about
    )


def with_failures(table, *failures):
    return pd.concat([table, pd.DataFrame(failures)], ignore_index=True)
