"""What head a third party's detector file has, told by its metadata, inputs and outputs; what no family reads is refused.

Metadata are those that Ultralytics writes: task, head, names, stride, imgsz (height, width), end2end, description.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posekit.runtime.errors import ExportError

if TYPE_CHECKING:
    import onnx

Dims = Sequence[int | str]

MASK_COEFFICIENTS = 32  # of Ultralytics' segmentation heads
BOX_COLUMNS = 6  # of a row that needs no suppression: box, score, class

# Tasks that no family reads -> what their rows are.
OTHER_TASKS: dict[str, str] = {
    "classify": "a class per image and no boxes",
    "segment": "boxes with mask coefficients",
    "pose": "boxes with keypoints",
    "obb": "boxes with an angle",
    "semantic": "a class per pixel and no boxes",
    "depth": "a depth per pixel and no boxes",
}
# Inputs beside the image -> whose they are.
OTHER_INPUTS: dict[str, str] = {
    "orig_target_sizes": "RT-DETR, RT-DETRv2, D-FINE or DEIM with its post-processing inside",
    "scale_factor": "a PaddleDetection network with its post-processing inside",
    "im_shape": "a PaddleDetection network with its post-processing inside",
    "pixel_mask": "DETR as Hugging Face exports it",
}


class DetectorWarning(UserWarning):
    """A detector that finds less than its network could."""


def _numbers(dims: Dims) -> tuple[int, ...]:
    """Sizes; -1 for those that are not known."""
    return tuple(size if isinstance(size, int) else -1 for size in dims)


def _pose(columns: int) -> bool:
    return columns > 0 and (columns % 3 == 0 or columns % 2 == 0)


# Heads by the shape of their output and the number of classes: those of YOLOv8's kind, (1, 4 + classes + more, cells), and
# those that need no suppression, (1, rows, 6 + more).
OTHER_SHAPES: tuple[tuple[str, Callable[[tuple[int, ...], int], bool]], ...] = (
    ("a classifier", lambda s, classes: len(s) == 2 and s[1] == classes),
    ("a segmentation head", lambda s, n: len(s) == 3 and (s[1] - 4 - n == MASK_COEFFICIENTS or s[2] == 38)),
    ("an oriented-box head (OBB)", lambda s, n: len(s) == 3 and (s[1] - 4 - n == 1 or s[2] == BOX_COLUMNS + 1)),
    ("a yolov8 head with its axes swapped", lambda s, n: len(s) == 3 and s[2] == 4 + n and s[1] > s[2]),
    ("a yolov8 head", lambda s, n: len(s) == 3 and s[1] == 4 + n),
    ("a yolo-end2end or rtdetr head", lambda s, n: len(s) == 3 and s[2] == BOX_COLUMNS),
    (
        "a pose head, or one with another number of classes",
        lambda s, n: len(s) == 3 and (_pose(s[1] - 4 - n) if s[1] < s[2] else _pose(s[2] - BOX_COLUMNS)),
    ),
)


def likely_head(outputs: Sequence[Dims], class_count: int) -> str:
    """What outputs of these shapes are, "" where no row says so."""
    for dims in outputs:
        for name, fits in OTHER_SHAPES:
            if fits(_numbers(dims), class_count):
                return name
    return ""


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    return {row.key: row.value for row in model.metadata_props}


def check_inputs(path: Path | str, names: Sequence[str]) -> None:
    """ExportError for a network with post-processing inside that asks for more than the image."""
    for name in names:
        if name in OTHER_INPUTS:
            raise ExportError(
                f"detector {path}",
                got=f"an input {name!r}: {OTHER_INPUTS[name]}",
                expected="a network whose only input is the image",
                remedy="Export the network without its post-processor; RT-DETR exported by Ultralytics is read as rtdetr.",
            )


def check_pair(path: Path | str, outputs: Mapping[str, Dims]) -> None:
    """ExportError for boxes and class scores in two outputs."""
    shapes = {name: _numbers(dims) for name, dims in outputs.items()}
    boxes = [name for name, s in shapes.items() if len(s) == 3 and s[2] == 4]
    for box in boxes:
        scores = [n for n, s in shapes.items() if n != box and len(s) == 3 and s[1] == shapes[box][1]]
        if scores:
            raise ExportError(
                f"detector {path}",
                got=f"boxes {box!r} and class scores {scores[0]!r} in two outputs, as DETR, RF-DETR, RT-DETR, D-FINE (logits, "
                "centre boxes of 0 to 1) and YOLO-NAS have",
                expected="one output of predictions",
                remedy="Put sigmoid(scores) behind the boxes along the last axis, in the network, and export that with family "
                '"rtdetr-per-class" (its pixels are divided by 255 and not normalised).',
            )


def check_metadata(
    path: Path | str, rows: Mapping[str, str], family: str, class_count: int, input_wh_px: tuple[int, int]
) -> None:
    """ExportError for a file whose metadata say that it is something else than the recipe does. DetectorWarning for an
    input of another size than it was exported for.
    """
    what = f"detector {path}"
    task = rows.get("task", "detect")
    if task != "detect":
        raise ExportError(
            what,
            got=f"a network of task {task!r}: {OTHER_TASKS.get(task, 'unknown')}",
            expected="task 'detect'",
            remedy="Export the detection network of that kind and size.",
        )
    said = families_said(rows)
    if said and family not in said:
        raise ExportError(
            what,
            got=f"family {family!r} for {_described(rows)}",
            expected=f"family {' or '.join(map(repr, said))}",
            remedy=f"Write family = {said[0]!r} in the recipe.",
        )
    names = _literal(rows, "names")
    if isinstance(names, dict | list) and len(names) != class_count:
        raise ExportError(
            what,
            got=f"{class_count} labels for {_described(rows)}",
            expected=f"{len(names)}, as its metadata name",
            remedy="Give the labels of this network, or leave them out: the file has its own.",
        )
    stride = _literal(rows, "stride")
    if isinstance(stride, int) and stride > 0 and any(side % stride for side in input_wh_px):
        raise ExportError(
            what,
            got=f"an input of {input_wh_px[0]} x {input_wh_px[1]}",
            expected=f"sides that are multiples of its stride, {stride}",
            remedy="Choose another input_wh_px.",
        )
    size = _size_said(rows)
    if size is not None and size != input_wh_px:
        warnings.warn(
            DetectorWarning(
                f"{what}: got an input of {input_wh_px[0]} x {input_wh_px[1]}, expected {size[0]} x {size[1]}, for which it "
                "was exported. Compare what it finds with both."
            ),
            stacklevel=2,
        )


def families_said(rows: Mapping[str, str]) -> tuple[str, ...]:
    """Families that read what the metadata describe, the likeliest first; () where they do not say."""
    described = f"{rows.get('head', '')} {rows.get('description', '')}".lower()
    if "rtdetr" in described or "rt-detr" in described:
        # `head` is younger than the rows of one score and class each.
        return ("rtdetr", "rtdetr-per-class") if "head" in rows else ("rtdetr-per-class", "rtdetr")
    if rows.get("author") != "Ultralytics" or "task" not in rows:
        return ()
    return ("yolo-end2end", "yolov8") if rows.get("end2end") == "True" else ("yolov8", "yolo-end2end")


def _size_said(rows: Mapping[str, str]) -> tuple[int, int] | None:
    """Width and height that the network was exported for, None where the metadata do not say."""
    size = _literal(rows, "imgsz")
    if isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(side, int) for side in size):
        return size[1], size[0]
    return None


def _described(rows: Mapping[str, str]) -> str:
    head = f", head {rows['head']}" if "head" in rows else ""
    return f"{rows.get('description') or 'a network'}{head}"[:160]


def _literal(rows: Mapping[str, str], key: str) -> Any:
    """A value that is written as a Python literal; None for none."""
    try:
        return ast.literal_eval(rows[key])
    except (KeyError, ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
