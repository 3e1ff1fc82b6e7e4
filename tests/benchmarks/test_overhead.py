"""The study of posekit's own cost per frame: its parts add up, and what it calls a crop of 128 px is one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from recordings import write_recording
from toy_bundles import constant_graph, write_toy_bundle

from posekit.benchmarks.studies import overhead
from posekit.benchmarks.studies.machine import this_machine
from posekit.benchmarks.studies.overhead_result import Case, Result, markdown
from posekit.benchmarks.studies.precision_result import Run
from posekit.runtime.bundle import Bundle
from posekit.runtime.errors import InputError
from posekit.runtime.manifest import DetectorEntry
from posekit.runtime.records import plain_from, record_from
from posekit.runtime.sources import Frame, frames_from
from posekit.runtime.tensor import TensorSpec

WH_PX = (64, 48)
FOUND = {"boxes": np.array([[8.0, 8, 40, 40], [20, 4, 60, 30]]), "scores": np.full(2, 0.9), "labels": np.zeros(2, int)}


@pytest.fixture
def frames(tmp_path: Path) -> list[Frame]:
    return list(frames_from(write_recording(tmp_path / "recording", 4)))


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    """A toy whose detector finds two objects in every frame."""
    image = TensorSpec("image", "uint8", ("batch", WH_PX[1], WH_PX[0], 3))
    path = write_toy_bundle(
        tmp_path / "toy.posekit", replaced={"detector": constant_graph("detector", (image,), **FOUND)}
    )
    with Bundle(path) as opened:
        entry = DetectorEntry("detector", "posekit", WH_PX, 114, (1,), 0.3, 1.0)
        opened.manifest = replace(opened.manifest, detector=entry)
        yield opened


def test_parts_of_a_frame_add_up_and_every_path_is_a_case(bundle: Bundle, frames: list[Frame]) -> None:
    cases = list(overhead.measured(bundle, frames, 6, lambda stage, done, total: None))
    assert [case.name.partition(",")[0] for case in cases] == ["regressor", "bank", "epnp", "720p", "720p"]
    for case in cases:
        assert len(case.total_us) == len(case.overhead_us) == len(case.floor_us) == 6
        assert min(case.overhead_us) > 0
        assert min(case.floor_us) > 0
        assert case.crops_per_frame == (8 if case.name.startswith("720p") else 2)
        assert (max(case.solver_us) > 0) == (case.name.startswith("epnp"))


def test_large_crops_are_cut_from_large_frames(
    bundle: Bundle, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    warp = cv2.warpAffine

    def watched(image: np.ndarray, *arguments: object, **options: object) -> np.ndarray:
        seen.add((image.shape[:2], arguments[1]))
        return warp(image, *arguments, **options)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(cv2, "warpAffine", watched)
    list(overhead.measured(bundle, frames, 1, lambda stage, done, total: None))
    assert seen == {((120, 160), (32, 32)), ((720, 1280), (128, 128))}


def test_a_bundle_without_a_detector_or_a_regressor_is_refused(bundle: Bundle, frames: list[Frame]) -> None:
    manifest = bundle.manifest
    only = {name: path for name, path in manifest.paths.items() if path.kind != "regressor"}
    for changed in (replace(manifest, detector=None), replace(manifest, paths=only)):
        bundle.manifest = changed
        with pytest.raises(InputError):
            list(overhead.measured(bundle, frames, 1, lambda stage, done, total: None))


def test_the_table_says_what_the_file_says() -> None:
    case = Case("toy", 2.0, (1000, 1200, 1100), (600, 700, 600), (100, 100, 100), (50, 60, 70))
    run = Run("2026-01-01T00:00:00+00:00", "abc", "a command", 3.0, 2.0, True)
    result = Result(this_machine(), run, (case,))
    assert case.overhead_us == (300, 400, 400)
    text = markdown(result)
    assert "| toy | 2.0 | 1.100 | 0.600 | 0.100 | 0.400 | 0.060 | 0.340 | 36.4% |" in text
    assert "The machine was busy: load 3 before." in text
    assert record_from(Result, json.loads(json.dumps(plain_from(result)))) == result


def test_too_few_passes_are_refused() -> None:
    with pytest.raises(InputError, match="--passes"):
        overhead.requested(["toy.posekit", "frames", "--passes", "3"])
