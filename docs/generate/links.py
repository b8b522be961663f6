"""Check that every link inside the built site leads to a file and, if it names one, to an anchor in it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sphinx.errors import SphinxError


def connect(app: Any) -> None:
    """Let a build fail if it has dead links, after all extensions have written what they write."""
    app.connect("build-finished", _check, priority=900)


def _check(app: Any, failure: Exception | None) -> None:
    if failure is None and app.builder.name == "html" and (found := dead(Path(app.outdir))):
        raise SphinxError(f"{len(found)} dead links:\n" + "\n".join(found))


def dead(site: Path) -> list[str]:
    """Return "page: link" of every relative link in ``site`` that leads nowhere."""
    site = site.resolve()
    pages = {path: _Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}
    found = []
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = pages[target].anchors if target in pages else None
            if not target.exists() or (parts.fragment and anchors and unquote(parts.fragment) not in anchors):
                found.append(f"{path.relative_to(site)}: {link}")
    return found


class _Page(HTMLParser):
    """Links and anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.anchors |= {told["id"]} if told.get("id") else set()
        self.links |= {told[name] for name in ("href", "src") if told.get(name)}
