"""A small view bank, rendered as the large one is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from posekit.export.reference.views import write_views

VIEWS = 8  # per object
CLUTTER_COUNT, CLUTTER_VIEWS = 2, 3


def render_small_views(folder: Path, advance: Callable[[str, int, int], None] = lambda name, done, total: None) -> None:
    """Always the same bytes."""
    write_views(folder, VIEWS, 3, advance, clutter_count=CLUTTER_COUNT, clutter_views=CLUTTER_VIEWS)
