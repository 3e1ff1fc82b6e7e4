"""Detector to pose: joins crop, sessions, decoders and solvers. No options of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from math import inf, isfinite
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from posekit.runtime.backends import open_session
from posekit.runtime.bundle import Bundle
from posekit.runtime.crop import Image, check_frame
from posekit.runtime.crop_batch import CropBatch
from posekit.runtime.detection import Detection, PoseEstimate, Reason, Unposed
from posekit.runtime.detector import Detector
from posekit.runtime.errors import BackendError, BundleError, InputError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.manifest import DEFAULT_CROPS_PER_PASS, PathEntry, Precision
from posekit.runtime.one_at_a_time import OneAtATime
from posekit.runtime.paths import PATHS, Found, OpenGraph, PosePath, twin_path
from posekit.runtime.profiler import Stage, no_stage
from posekit.runtime.session import Session, twin_of

if TYPE_CHECKING:
    from typing_extensions import Self


Around = Callable[[str, Session], Session]  # name of a graph and its session -> what is run instead


def _nothing_around(name: str, session: Session) -> Session:
    return session


class PoseEstimator:
    """One bundle, one path.

    An estimator is for one thread at a time: a call while another one is running, also one from within a `stage`, is an
    InputError at once. Every other thread gets a `clone()`, which it may make itself, at any time. The same holds for
    sessions, detectors and crop batches; bundles, intrinsics, detections and estimates never change and may be used by
    any thread.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        path: str | None = None,
        backend: str = "auto",
        precision: Precision | None = None,
        stage: Stage = no_stage,
        around: Around = _nothing_around,
    ) -> None:
        """Open the sessions of a path (default: the bundle's) and of the detector, if there is one.

        precision: graphs that have this variant run it, the others fp32; None: what the backend prefers.
        around: what watches the sessions run, such as device events; by default nothing does.
        Raises BundleError for an unknown path, BankError for a foreign bank, BackendError if nothing can run it.
        """
        self.path_name = path or bundle.manifest.default_path
        entry = path_named(bundle, self.path_name)
        objects = {o.id: o for o in bundle.manifest.objects}
        self.object_ids = entry.object_ids
        self._least_scores = {int(i): rejection.threshold for i, rejection in entry.rejection.items()}
        self._most_crops = (bundle.manifest.graphs[entry.graph].crops_per_pass or DEFAULT_CROPS_PER_PASS)[-1]
        self._new_batch = partial(CropBatch, entry.crop, [objects[i] for i in entry.object_ids], self._most_crops)
        self._detector_entry = bundle.manifest.detector
        opener = graph_opener(bundle, entry, backend, precision)
        self._own(stage, around, opener, partial(PATHS[entry.kind], bundle, entry))

    def clone(self, *, stage: Stage = no_stage, around: Around = _nothing_around) -> PoseEstimator:
        """Another estimator of the same path, for another thread: with buffers of its own, banks and compiled graphs shared.

        It gives the same poses. Neither closes with the other; what they share goes with the last one. Any thread may
        clone, also while another one estimates, and the bundle may be closed. stage, around: as when opening.
        BackendError for a closed estimator, and where a backend has no room for another one.
        """
        other = copy(self)
        other._own(stage, around, lambda name: twin_of(self._opened[name]), partial(twin_path, self._path))
        return other

    def _own(
        self, stage: Stage, around: Around, open_session: OpenGraph, open_path: Callable[[OpenGraph], PosePath]
    ) -> None:
        """Make what one thread alone may have: sessions, their path and detector, buffers."""
        self._alone, self._stage, self._batch = OneAtATime("estimator"), stage, self._new_batch()
        self._opened: dict[str, Session] = {}

        def open_graph(name: str) -> Session:
            self._opened[name] = open_session(name)
            return around(name, self._opened[name])

        self._detector: Detector | None = None
        try:
            self._path = open_path(open_graph)
            self._sessions: list[Session] = [*self._path.sessions]
            if self._detector_entry:
                self._sessions.append(open_graph(self._detector_entry.graph))
                self._detector = Detector(self._sessions[-1], self._detector_entry)
        except BaseException:
            for session in self._opened.values():
                session.close()
            raise

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
        with self._alone:
            return self._detected(image_rgb_u8, intrinsics)

    def estimate(
        self, image_rgb_u8: Image, intrinsics: Intrinsics, detections: Sequence[Detection] | None = None
    ) -> list[PoseEstimate]:
        """Poses of the detected objects; objects whose pose was not found are absent.

        image_rgb_u8: (H, W, 3) RGB (use `rgb_from_bgr` for BGR frames).  detections: default, the bundle's own detector.
        """
        found = self.outcomes(image_rgb_u8, intrinsics, detections)
        return [outcome for outcome in found if isinstance(outcome, PoseEstimate)]

    def outcomes(
        self, image_rgb_u8: Image, intrinsics: Intrinsics, detections: Sequence[Detection] | None = None
    ) -> list[PoseEstimate | Unposed]:
        """What became of every detection, in their order: its pose, or why it has none. Arguments as of `estimate`."""
        with self._alone:
            check_frame(image_rgb_u8, intrinsics)
            detections = self._detected(image_rgb_u8, intrinsics) if detections is None else list(detections)
            self._check_known(detections)
            image_rgb_u8 = np.ascontiguousarray(image_rgb_u8)  # once, not per crop
            outcomes: list[PoseEstimate | Unposed] = []
            for start in range(0, len(detections), self._most_crops):
                some = detections[start : start + self._most_crops]
                outcomes += self._outcomes_of_some(image_rgb_u8, intrinsics, some)
            return outcomes

    def close(self) -> None:
        """Close all sessions; clones stay open. Twice is harmless."""
        with self._alone:
            for session in self._sessions:
                session.close()

    def _detected(self, image_rgb_u8: Image, intrinsics: Intrinsics) -> list[Detection]:
        if self._detector is None:
            raise InputError(
                "detections",
                got="none, and the bundle has no detector",
                expected="boxes",
                remedy="Give boxes (posekit run --boxes), or export with a [detector] section.",
            )
        check_frame(image_rgb_u8, intrinsics)
        found = self._detector.detect(image_rgb_u8, self._stage)
        return [d for d in found if d.object_id in self.object_ids]

    def _check_known(self, detections: Sequence[Detection]) -> None:
        strange = [type(d).__name__ for d in detections if not isinstance(d, Detection)]
        if strange:
            raise InputError(
                "detections",
                got=f"a {strange[0]}",
                expected="posekit.Detection",
                remedy="Make each: posekit.Detection(object_id, score, box_xyxy_px).",
            )
        foreign = [d.object_id for d in detections if d.object_id not in self.object_ids]
        if foreign:
            raise InputError(
                "detection",
                got=f"object id {foreign[0]}",
                expected=f"one of {list(self.object_ids)}",
                remedy=f"Path {self.path_name!r} does not know that object: filter the boxes or export it.",
            )

    def _outcomes_of_some(
        self, image_rgb_u8: Image, intrinsics: Intrinsics, detections: Sequence[Detection]
    ) -> list[PoseEstimate | Unposed]:
        with self._stage("crop"):
            uncut = self._batch.cut(image_rgb_u8, intrinsics, detections)
        found = iter(self._found())
        least = [self._least_scores.get(detection.object_id, -inf) for detection in detections]
        return [_outcome(d, uncut.get(i) or next(found), least[i]) for i, d in enumerate(detections)]

    def _found(self) -> Sequence[Found]:
        """Of every crop of the batch; a graph is not run without any."""
        return self._path.poses(self._batch, self._stage) if self._batch.crops else ()


def _outcome(detection: Detection, found: Found, least_score: float) -> PoseEstimate | Unposed:
    """least_score: of an answer; what scores less is none."""
    if isinstance(found, Reason):
        return Unposed(detection, found)
    if not isfinite(found.score):
        return Unposed(detection, Reason.OUTPUT_NOT_FINITE)
    if found.score < least_score:
        return Unposed(detection, Reason.SCORE_BELOW_THRESHOLD)
    return PoseEstimate(detection.object_id, found.score, found.cam_from_obj, detection, found.alternative)


def graph_opener(bundle: Bundle, entry: PathEntry, backend: str, precision: Precision | None) -> OpenGraph:
    """How the graphs of a path are opened. BackendError for a precision that none of the path's graphs has."""
    graphs = bundle.manifest.graphs
    own = [name for name in (entry.graph, entry.matcher) if name]
    if precision and not any(precision in graphs[name].variants for name in own):
        raise BackendError(
            f"precision {precision}",
            got=f"{', '.join(graphs[entry.graph].variants)} of {entry.graph}",
            expected=f"a variant {precision}",
            remedy="Export the bundle with it, or leave the precision out.",
        )

    def open_graph(name: str) -> Session:
        wanted = precision if precision is None or precision in graphs[name].variants else "fp32"
        return open_session(bundle, name, backend=backend, precision=wanted)

    return open_graph


def path_named(bundle: Bundle, name: str) -> PathEntry:
    if name not in bundle.manifest.paths:
        raise BundleError(
            f"path {name!r}",
            got="no such path",
            expected=f"one of {', '.join(bundle.manifest.paths)}",
            remedy="Name one.",
        )
    return bundle.manifest.paths[name]
