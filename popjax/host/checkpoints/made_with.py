"""A hint at what made a checkpoint that does not fit, from the ``config.json`` of its run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from popjax.host import provenance


def made_with(path: Path) -> str:
    """Return a hint naming the commit, device and packages with which a checkpoint was made, as far as they
    differ from the present ones; empty if none differs or its run recorded none."""
    try:
        config = json.loads((path.parent.parent / "config.json").read_text(encoding="utf-8"))
        commit, device = config.get("git_commit"), config.get("device")
        versions: dict[str, Any] = dict(config.get("versions") or {})
    except (OSError, ValueError, AttributeError):
        return ""
    here = provenance.versions()
    packages = [
        f"{name} {version} instead of {here.get(name, 'none')}"
        for name, version in versions.items()
        if here.get(name) != version
    ]
    elsewhere = device and _kind(device) != _kind(provenance.device_name())
    differing = [*packages, *([f"device {device}"] if elsewhere else [])]
    if commit and commit != provenance.git_commit():
        differing.insert(0, f"commit {commit}")
    if not differing:
        return ""
    *first, last = differing
    told = f"{', '.join(first)} and {last}" if first else last
    return f"; its run was made with {told}: use {'these' if first else 'this'} to continue"


def _kind(device: str) -> str:
    """Return a device without the number of its threads, which changes no shape."""
    return device.partition(" (")[0]
