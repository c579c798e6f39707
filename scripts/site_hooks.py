"""What the site does with links to files of the repository that are no page of it: it names them."""

from __future__ import annotations

import posixpath
import re
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)#:]+)(#[^)]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The page with every link that leads out of the documents written as the file's name."""
    here = posixpath.dirname(page.file.src_uri)

    def named(found: re.Match[str]) -> str:
        to = posixpath.normpath(posixpath.join("docs", here, found[2]))
        return found[0] if to.startswith("docs/") else f"{found[1]} (`{to}` in the repository)"

    return LINK.sub(named, markdown)
