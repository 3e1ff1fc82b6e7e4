"""Where caches are: one folder per kind, all of them safe to delete."""

from __future__ import annotations

import os
from pathlib import Path

from posekit.runtime.errors import EngineError


def cache_folder(kind: str) -> Path:
    """POSEKIT_CACHE/KIND, else XDG_CACHE_HOME/posekit/KIND, else ~/.cache/posekit/KIND. EngineError without a home."""
    own, shared = os.environ.get("POSEKIT_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
    if own:
        return Path(own) / kind
    try:
        base = Path(shared) if os.path.isabs(shared) else Path.home() / ".cache"
    except RuntimeError as error:
        raise EngineError(
            "engine cache", got="no home folder", expected="a place for engines", remedy="Set POSEKIT_CACHE."
        ) from error
    return base / "posekit" / kind
