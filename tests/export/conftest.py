"""Fixtures of the training tests: one small view bank for all, and few backgrounds, which are costly to draw."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from small_views import render_small_views

from posekit.export.reference import compose
from posekit.export.reference.compose import Views


@pytest.fixture(scope="session")
def small_views_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bank") / "views"
    render_small_views(folder)
    return folder


@pytest.fixture(scope="session")
def few_backgrounds() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compose, "BACKGROUNDS", 4)
        compose._background_pool.cache_clear()
        yield
    compose._background_pool.cache_clear()


@pytest.fixture(scope="session")
def small_views(small_views_folder: Path, few_backgrounds: None) -> Views:
    return Views.read(small_views_folder)
