"""The real crops of a recipe: those that variants are made on (ranges, overflow, the search for int8), and those that they
are judged on. No frame is both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from posekit.calibration.feeds import CalibrationSource, CropFeeds, ImageFeeds, recorded_frames
from posekit.calibration.fitness import Fitness, fitness_of
from posekit.export.recipe import CropsRecipe, ExportRecipe
from posekit.export.verify.samples import Sample, samples_from
from posekit.export.viewsphere import viewsphere
from posekit.runtime.boxes import TRUE_BOXES, Boxes, boxes_from
from posekit.runtime.camera_file import intrinsics_from_file
from posekit.runtime.crop import CropPreset
from posekit.runtime.detection import Detection
from posekit.runtime.engines.options import profile_from_histogram
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.manifest import DEFAULT_CROPS_PER_PASS, DetectorEntry, ObjectEntry
from posekit.runtime.sources import Frame, Frames
from posekit.runtime.tensor import TensorSpec

CALIBRATION, VERIFICATION = 0, 1  # even frames, odd frames
SEARCH_CROPS = 96  # at most: every candidate of a search runs them all
COVERAGE_VIEWS = 42  # directions, 20 degrees apart, that calibration crops are counted over


@dataclass(frozen=True, eq=False)
class CalibrationCrops:
    """What one graph is calibrated on, and how fit it is."""

    feeds: CalibrationSource
    fitness: Fitness

    @staticmethod
    def of(feeds: CalibrationSource) -> CalibrationCrops:
        """Read once and measured."""
        ids = [entry.id for entry in feeds.objects] if isinstance(feeds, CropFeeds) else []
        return CalibrationCrops(feeds, fitness_of(feeds, viewsphere(COVERAGE_VIEWS), ids))


def verification_samples(recipe: ExportRecipe, object_ids: set[int]) -> list[Sample]:
    """The crops that variants are compared on: the recipe's own, or those frames that are not calibrated on."""
    entry = recipe.verification or recipe.calibration
    assert entry is not None  # the recipe's cross-check
    boxes = _boxes(recipe, entry, VERIFICATION)
    source = str(recipe.resolve(entry.source))
    return samples_from(source, boxes, _intrinsics(recipe, entry), object_ids, entry.max_crops)


def search_samples(recipe: ExportRecipe, object_ids: set[int]) -> list[Sample]:
    """The crops on which it is chosen what may be int8: of the frames that are calibrated on, none that is verified on."""
    entry = recipe.calibration
    assert entry is not None  # the recipe's cross-check
    boxes = _boxes(recipe, entry, CALIBRATION)
    most = min(entry.max_crops, SEARCH_CROPS)
    return samples_from(str(recipe.resolve(entry.source)), boxes, _intrinsics(recipe, entry), object_ids, most)


def calibration_crops(
    recipe: ExportRecipe, objects: Sequence[ObjectEntry], crop: CropPreset, inputs: tuple[TensorSpec, ...]
) -> CropFeeds:
    """What one graph is calibrated on. objects: of its path.  inputs: of the graph."""
    entry = recipe.calibration
    assert entry is not None  # the recipe's cross-check
    frames = recorded_frames(recipe.resolve(entry.source), _intrinsics(recipe, entry))
    boxes = _boxes(recipe, entry, CALIBRATION)
    return CropFeeds(frames, boxes, objects, crop, inputs, entry.max_crops)


def calibration_images(recipe: ExportRecipe, detector: DetectorEntry, inputs: tuple[TensorSpec, ...]) -> ImageFeeds:
    """What the detector is calibrated on: whole frames, letterboxed."""
    entry = recipe.calibration
    assert entry is not None  # the recipe's cross-check
    every = recorded_frames(recipe.resolve(entry.source), _intrinsics(recipe, entry))
    mine = every if not _one_source(recipe) else lambda: Frames(_of_calibration(every()), None)
    return ImageFeeds(mine, detector, inputs, entry.max_crops)


def labelled_frames(recipe: ExportRecipe, most: int) -> list[tuple[Frame, list[Detection]]]:
    """At most so many frames of those that are calibrated on, spread evenly, with the boxes in them."""
    return _spread(recipe, most, None, 2 if _one_source(recipe) else 1)


def frames_with(recipe: ExportRecipe, object_ids: Collection[int], most: int) -> list[tuple[Frame, list[Detection]]]:
    """At most so many frames of the calibration's that show one of the objects, spread evenly, with the boxes of these."""
    return _spread(recipe, most, object_ids, 1)


def _spread(
    recipe: ExportRecipe, most: int, object_ids: Collection[int] | None, every: int
) -> list[tuple[Frame, list[Detection]]]:
    """object_ids: frames without any of these are passed over.  every: the calibration's are every so many frames."""
    entry = recipe.calibration
    assert entry is not None  # the recipe's cross-check
    boxes = _boxes(recipe, entry, None)
    frames = recorded_frames(recipe.resolve(entry.source), _intrinsics(recipe, entry))()
    step = every * max(1, (frames.count or most) // (every * most))
    found: list[tuple[Frame, list[Detection]]] = []
    try:
        for frame in frames:
            if frame.index % step != CALIBRATION:
                continue
            shown = [box for box in boxes(frame) if object_ids is None or box.object_id in object_ids]
            if shown or object_ids is None:
                found.append((frame, shown))
            if len(found) == 2 * most:  # more only where the source does not know how many it has
                break
    finally:
        frames.close()
    chosen = np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int)
    return [found[index] for index in chosen]


def measured_crops_per_pass(recipe: ExportRecipe, object_ids: Collection[int]) -> tuple[int, int, int]:
    """Fewest, usual and most boxes of these objects per frame of the calibration's source.

    EngineError for frames without any; more than the runtime passes at once count as that many.
    """
    entry = recipe.calibration
    assert entry is not None  # the recipe's cross-check
    boxes = _boxes(recipe, entry, None)
    frames = recorded_frames(recipe.resolve(entry.source), _intrinsics(recipe, entry))()
    try:
        counts = Counter(sum(box.object_id in object_ids for box in boxes(frame)) for frame in frames)
    finally:
        frames.close()
    most = DEFAULT_CROPS_PER_PASS[-1]
    seen = profile_from_histogram(counts)
    return seen.min, min(seen.opt, most), min(seen.max, most)


def _of_calibration(frames: Frames) -> Iterator[Frame]:
    try:
        yield from (frame for frame in frames if frame.index % 2 == CALIBRATION)
    finally:
        frames.close()


def _boxes(recipe: ExportRecipe, entry: CropsRecipe, half: int | None) -> Boxes:
    """half: only of even or odd frames where one source is for both, so that nothing is verified on what it was made on."""
    boxes = boxes_from(entry.boxes if entry.boxes in TRUE_BOXES else str(recipe.resolve(entry.boxes)))
    if half is None or not _one_source(recipe):
        return boxes
    return lambda frame: boxes(frame) if frame.index % 2 == half else []


def _one_source(recipe: ExportRecipe) -> bool:
    """Whether variants are made and judged on frames of the same recording."""
    sources = {recipe.resolve(entry.source).resolve() for entry in (recipe.calibration, recipe.verification) if entry}
    return len(sources) == 1


def _intrinsics(recipe: ExportRecipe, entry: CropsRecipe) -> Intrinsics | None:
    return intrinsics_from_file(recipe.resolve(entry.camera)) if entry.camera else None
