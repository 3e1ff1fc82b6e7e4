"""A third party's detector is tried before anything is made of it: its outputs say whether it is what the recipe says.

Any picture shows whether boxes, scores and classes are what the family's are. Frames with boxes of its objects show
whether it finds them, and whether it would find more with its pixels prepared in another way.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from posekit.export.detector_head import DetectorWarning
from posekit.runtime.backends.ort import OrtSession
from posekit.runtime.crop import Image
from posekit.runtime.detection import Detection
from posekit.runtime.detector import FAMILIES, Detector, Family, iou, letterbox
from posekit.runtime.errors import BackendError, ExportError
from posekit.runtime.manifest import DetectorEntry
from posekit.runtime.sources import Frame
from posekit.runtime.tensor import shapes_fit
from posekit.runtime.yolo_decode import Candidates, Outputs

Labelled = Sequence[tuple[Frame, Sequence[Detection]]]

TRIAL_FRAMES = 20  # with a box of one of the detector's objects
FOUND_IOU = 0.5
FEW_ROWS = 16  # too few for what is said of most rows
NORMALISED = 1.5  # no box in pixels ends here, and no box of 0 to 1 goes further
CORNER_SHARE = 0.05  # of the input's sides: centres of boxes are all over it, not here
BEYOND_SHARE = 0.5  # of the input's sides: how far beyond it a centre may be
LOW_SCORE = 0.05
ANOTHER_PREPARATION = "Read it as such a family, or put the preparation that its training had into the network."
LEAST_GAIN = 5  # boxes more, of which none is lost, that are more than chance


def check_outputs_of(what: str, entry: DetectorEntry, graph: bytes, image_rgb_u8: Image) -> None:
    """ExportError for a detector whose outputs on a picture are none of its family's, with the families that they fit.
    DetectorWarning where they show nothing.
    """
    session = OrtSession(graph)
    try:
        placement = FAMILIES[entry.family].placement
        boxed = letterbox(image_rgb_u8, entry.input_wh_px, entry.letterbox_value, placement)
        outputs = session.run({"image": boxed.pixels[None]})
    finally:
        session.close()
    found = signs(entry.family, outputs, entry)
    if found:
        likely = likely_families(outputs, entry)
        raise ExportError(
            what,
            got="; ".join(found),
            expected=f"the outputs of a {entry.family} detector",
            remedy=f"Try family = {' or '.join(map(repr, likely))}."
            if likely
            else "Export it as its family's tools do.",
        )
    if not (_rows(entry.family, outputs, entry).scores > 0).any():
        sentence = (
            f"{what}: got no box with a score above 0 on a picture, expected some, however small: nothing says that it is a "
            f"{entry.family} detector. Give [calibration] frames that show its objects, and check its weights."
        )
        warnings.warn(DetectorWarning(sentence), stacklevel=2)


def signs(family: str, outputs: Outputs, entry: DetectorEntry) -> list[str]:
    """What in outputs, read as a family's, shows that they are none: rows of any score."""
    try:
        rows = _rows(family, outputs, entry)
    except BackendError as error:
        return [f"{error.what}: {error.got}"]
    return [*_score_signs(rows, len(entry.class_object_ids)), *_box_signs(rows, entry.input_wh_px)]


def _rows(family: str, outputs: Outputs, entry: DetectorEntry) -> Candidates:
    """All but those that only fill the output up: boxes of no size and no score."""
    rows = FAMILIES[family].decode(outputs, entry.input_wh_px, -np.inf)
    fills = (rows.scores == 0) & (rows.boxes[:, :2] == rows.boxes[:, 2:]).all(axis=1)
    return rows.take(~fills)


def likely_families(outputs: Outputs, entry: DetectorEntry) -> tuple[str, ...]:
    """Families whose shapes fit and whose reading shows no sign, the strictest shapes first."""
    shape = outputs["predictions"].shape
    fitting = {}
    for name, row in FAMILIES.items():
        expected = row.shapes(entry.input_wh_px, len(entry.class_object_ids)).get("predictions")
        if name != entry.family and expected and shapes_fit(shape, expected) and not signs(name, outputs, entry):
            fitting[name] = sum(isinstance(size, str) for size in expected)
    return tuple(sorted(fitting, key=lambda name: fitting[name]))


def _score_signs(rows: Candidates, class_count: int) -> list[str]:
    found = []
    if rows.scores.size and not -1e-3 <= rows.scores.min() <= rows.scores.max() <= 1 + 1e-3:
        found.append(f"scores of {rows.scores.min():.3g} to {rows.scores.max():.3g}, which are no probabilities")
    if rows.labels.size and not 0 <= rows.labels.min() <= rows.labels.max() < class_count:
        found.append(f"classes {rows.labels.min()} to {rows.labels.max()} of {class_count}")
    return found


def _box_signs(rows: Candidates, input_wh_px: tuple[int, int]) -> list[str]:
    """At most one: the first explains the others. Of a few rows alone, only that they are of 0 to 1."""
    if not len(rows.boxes):
        return []
    boxes, sides = rows.boxes.astype(np.float64), np.array(input_wh_px)
    centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    beyond = ((centres < -BEYOND_SHARE * sides) | (centres > (1 + BEYOND_SHARE) * sides)).any(axis=1)
    at_corner = (np.abs(centres) < np.maximum(CORNER_SHARE * sides, NORMALISED)).all(axis=1)
    table = (
        (np.abs(boxes).max() <= NORMALISED, f"boxes that all end within {np.abs(boxes).max():.3g} px: of 0 to 1"),
        (beyond.mean() > 0.5, f"{beyond.mean():.0%} of the boxes far beyond the input of {sides[0]} x {sides[1]} px"),
        (at_corner.mean() > 0.99, "boxes that are all around the corner 0, 0 of the input: relative to their cells"),
        ((sizes < 0).any(axis=1).mean() > 0.5, "boxes whose right or lower edge is before the other: centre and size"),
        (
            ((sizes >= centres) & (sizes <= 1.1 * sides)).all(axis=1).mean() > 0.98,
            "boxes whose size is beyond their centre: two corners",
        ),
    )
    told = table if len(rows.boxes) >= FEW_ROWS else table[:1]
    return [sentence for holds, sentence in told if holds][:1]


def check_finds(
    what: str, entry: DetectorEntry, graph: bytes, other: Callable[[Family], bytes], labelled: Labelled
) -> None:
    """ExportError for a detector that finds nothing in TRIAL_FRAMES frames with boxes of its objects. DetectorWarning
    where there are fewer frames, and where it would find more with its pixels prepared in another way.

    other: the graph with another row's channel order and divisor.
    """
    if not labelled:
        return
    found = found_boxes(entry, graph, labelled)
    if found.all():
        return
    better = _better_preparation(entry, found, other, labelled)
    if found.any():
        if better:
            sentence = f"{what}: got {_share(found)} found, expected {better}. {ANOTHER_PREPARATION}"
            warnings.warn(DetectorWarning(sentence), stacklevel=2)
        return
    low = found_boxes(replace(entry, score_threshold=LOW_SCORE), graph, labelled)
    remedy = "Check [detector.objects], the labels and the family."
    if better:
        remedy = f"It finds {better}. {ANOTHER_PREPARATION}"
    elif low.any():
        remedy = (
            f"With score_threshold = {LOW_SCORE} it finds {low.sum()}: lower it, or train the detector on such frames."
        )
    error = ExportError(
        what, got=f"{_share(found)} found in {len(labelled)} frames", expected="some of them", remedy=remedy
    )
    if len(labelled) >= TRIAL_FRAMES:
        raise error
    warnings.warn(DetectorWarning(str(error)), stacklevel=2)


def found_boxes(entry: DetectorEntry, graph: bytes, labelled: Labelled) -> npt.NDArray[np.bool_]:
    """Per box, in order, whether a detection of its object overlaps it with FOUND_IOU."""
    detector = Detector(OrtSession(graph), entry)
    try:
        rows = []
        for frame, boxes in labelled:
            detections = detector.detect(frame.image_rgb_u8)
            rows += [_is_found(box, detections) for box in boxes]
    finally:
        detector.close()
    return np.array(rows, bool)


def _is_found(box: Detection, detections: Sequence[Detection]) -> bool:
    same = [d.box_xyxy_px for d in detections if d.object_id == box.object_id]
    if not same:
        return False
    return bool(iou(box.box_xyxy_px.astype(np.float32), np.stack(same).astype(np.float32)).max() >= FOUND_IOU)


def _better_preparation(
    entry: DetectorEntry, found: npt.NDArray[np.bool_], other: Callable[[Family], bytes], labelled: Labelled
) -> str:
    """The preparation of pixels with which most boxes more are found, "" where none gains more than chance would.

    Of boxes that one preparation alone finds, either could have it: a gain counts beyond two standard deviations.
    """
    row = FAMILIES[entry.family]
    best, sentence = 0.0, ""
    if (~found).sum() < LEAST_GAIN:
        return sentence
    for bgr, divisor in (
        (not row.bgr, row.divisor),
        (row.bgr, 256.0 - row.divisor),
        (not row.bgr, 256.0 - row.divisor),
    ):
        try:
            seen = found_boxes(entry, other(replace(row, bgr=bgr, divisor=divisor)), labelled)
        except BackendError:  # pixels that overflow the network find nothing
            continue
        gained, lost = int((seen & ~found).sum()), int((found & ~seen).sum())
        if gained - lost > max(best, 2 * (gained + lost) ** 0.5):
            order, span = "BGR" if bgr else "RGB", "0 to 1" if divisor == 255.0 else "0 to 255"
            alike = [name for name, family in FAMILIES.items() if (family.bgr, family.divisor) == (bgr, divisor)]
            whose = f", as {' and '.join(alike)} take them" if alike else ""
            best, sentence = gained - lost, f"{_share(seen)} with {order} pixels of {span}{whose}"
    return sentence


def _share(found: npt.NDArray[np.bool_]) -> str:
    return f"{found.sum()} of {found.size} boxes"


def synthetic_picture() -> Image:
    """Smooth colour noise, uint8 RGB: for a recipe that has no frames."""
    import cv2

    cells = np.random.default_rng(0).integers(0, 256, (15, 20, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(cells, (640, 480), interpolation=cv2.INTER_CUBIC), np.uint8)
