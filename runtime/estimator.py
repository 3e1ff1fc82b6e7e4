"""Detector to pose: joins crop, sessions, decoders and solvers. No options of its own."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from posekit.runtime.backends import open_session
from posekit.runtime.bundle import Bundle
from posekit.runtime.crop import Image, check_frame
from posekit.runtime.crop_batch import CropBatch
from posekit.runtime.detection import Detection, PoseEstimate
from posekit.runtime.detector import Detector
from posekit.runtime.errors import BundleError, InputError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.manifest import PathEntry
from posekit.runtime.paths import PATHS
from posekit.runtime.profiler import Stage, no_stage
from posekit.runtime.session import Session

if TYPE_CHECKING:
    from typing_extensions import Self

CROPS_AT_ONCE = 16  # more detections go through in several passes


class PoseEstimator:
    """One bundle, one path, one thread at a time."""

    def __init__(
        self, bundle: Bundle, *, path: str | None = None, backend: str = "auto", stage: Stage = no_stage
    ) -> None:
        """Open the sessions of a path (default: the bundle's) and of the detector, if there is one.

        Raises BundleError for an unknown path, BankError for a foreign bank, BackendError if nothing can run it.
        """
        self.path_name = path or bundle.manifest.default_path
        entry = _path_named(bundle, self.path_name)
        objects = {o.id: o for o in bundle.manifest.objects}
        self.object_ids = entry.object_ids
        self._stage = stage
        self._batch = CropBatch(entry.crop, [objects[i] for i in entry.object_ids], CROPS_AT_ONCE)
        self._path = PATHS[entry.kind](bundle, entry, backend)
        self._sessions: list[Session] = [*self._path.sessions]
        self._detector: Detector | None = None
        detector = bundle.manifest.detector
        if detector:
            self._sessions.append(open_session(bundle, detector.graph, backend=backend))
            self._detector = Detector(self._sessions[-1], detector)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def has_detector(self) -> bool:
        return self._detector is not None

    @property
    def backends(self) -> tuple[str, ...]:
        """What really runs, one line per session."""
        return tuple(session.backend for session in self._sessions)

    def detect(self, image_rgb_u8: Image, intrinsics: Intrinsics) -> list[Detection]:
        """Objects of this path in the frame, best first. InputError when the bundle has no detector."""
        if self._detector is None:
            raise InputError(
                "detections",
                got="none, and the bundle has no detector",
                expected="boxes",
                remedy="Give boxes (posekit run --boxes), or export with a [detector] section.",
            )
        check_frame(image_rgb_u8, intrinsics)
        with self._stage("detect"):
            found = self._detector.detect(image_rgb_u8)
        return [d for d in found if d.object_id in self.object_ids]

    def estimate(
        self, image_rgb_u8: Image, intrinsics: Intrinsics, detections: Sequence[Detection] | None = None
    ) -> list[PoseEstimate]:
        """Poses of the detected objects; objects whose pose was not found are absent.

        image_rgb_u8: (H, W, 3) RGB (use `rgb_from_bgr` for BGR frames).  detections: default, the bundle's own detector.
        """
        check_frame(image_rgb_u8, intrinsics)
        if detections is None:
            detections = self.detect(image_rgb_u8, intrinsics)
        foreign = [d.object_id for d in detections if d.object_id not in self.object_ids]
        if foreign:
            raise InputError(
                "detection",
                got=f"object id {foreign[0]}",
                expected=f"one of {list(self.object_ids)}",
                remedy=f"Path {self.path_name!r} does not know that object: filter the boxes or export it.",
            )
        image_rgb_u8 = np.ascontiguousarray(image_rgb_u8)  # once, not per crop
        estimates: list[PoseEstimate] = []
        for start in range(0, len(detections), CROPS_AT_ONCE):
            estimates += self._estimate_some(image_rgb_u8, intrinsics, detections[start : start + CROPS_AT_ONCE])
        return estimates

    def close(self) -> None:
        """Close all sessions. Twice is harmless."""
        for session in self._sessions:
            session.close()

    def _estimate_some(
        self, image_rgb_u8: Image, intrinsics: Intrinsics, detections: Sequence[Detection]
    ) -> list[PoseEstimate]:
        with self._stage("crop"):
            self._batch.cut(image_rgb_u8, intrinsics, detections)
        found = self._path.poses(self._batch, detections, intrinsics.undistorted(), self._stage)
        return [
            PoseEstimate(detection.object_id, result[1], result[0], detection)
            for detection, result in zip(detections, found, strict=True)
            if result is not None
        ]


def _path_named(bundle: Bundle, name: str) -> PathEntry:
    if name not in bundle.manifest.paths:
        raise BundleError(
            f"path {name!r}",
            got="no such path",
            expected=f"one of {', '.join(bundle.manifest.paths)}",
            remedy="Name one.",
        )
    return bundle.manifest.paths[name]
