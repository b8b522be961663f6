"""Pages and parts of pages that are made from the package and from the files of results."""

from __future__ import annotations

import shutil
from pathlib import Path

from generate import api, results, settings, speed, tasks

ROOT = Path(__file__).parents[2]


def everything(docs: Path) -> None:
    """Write all generated Markdown below ``docs/generated``, and the notebooks beside the tutorials.

    What has not changed is left alone, so that Sphinx reads only what has.
    """
    pages = {f"api/{name}": text for name, text in api.pages().items()}
    parts = settings.parts() | tasks.parts(ROOT) | results.parts(ROOT) | speed.parts(ROOT)
    pages |= {f"parts/{name}": text for name, text in parts.items()}
    folder = docs / "generated"
    for old in set(folder.rglob("*.md")) - {folder / f"{name}.md" for name in pages}:
        old.unlink()
    for name, text in pages.items():
        _write(folder / f"{name}.md", text.rstrip() + "\n")
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        target = docs / "tutorials" / notebook.name
        if not target.exists() or target.read_bytes() != notebook.read_bytes():
            shutil.copyfile(notebook, target)


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
