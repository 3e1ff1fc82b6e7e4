"""`posekit verify`: a bundle's variants against fp32 on real crops, with the report in a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from posekit.export.verify.figures import evidence_of
from posekit.export.verify.gates import MIN_FRAMES, MIN_JUDGED, Gates
from posekit.export.verify.report import json_from_verification, markdown_from_verification, write_reports
from posekit.export.verify.samples import Sample, samples_from
from posekit.export.verify.verify import Verification, verify_bundle
from posekit.runtime.boxes import boxes_from
from posekit.runtime.bundle import Bundle
from posekit.runtime.camera_file import intrinsics_from_file
from posekit.runtime.errors import CalibrationError, InputError

JSON_REPORT, MARKDOWN_REPORT = "verification.json", "verification.md"


@dataclass(frozen=True)
class VerifyRequest:
    """What `posekit verify` was asked. gates: "name=limit" each, over the defaults.   backends: none for all at hand."""

    bundle: Path
    source: str
    boxes: str = "gt"
    camera: Path | None = None
    max_crops: int = 256
    backends: tuple[str, ...] = ()
    gates: tuple[str, ...] = ()
    reports: Path | None = None

    @property
    def written(self) -> tuple[Path, ...]:
        """Files of the report."""
        return (self.reports / JSON_REPORT, self.reports / MARKDOWN_REPORT) if self.reports else ()


def run_verification(request: VerifyRequest, progress: Callable[[str, int, int], None]) -> Verification:
    """Verify and write the reports. Raises InputError for a gate that is none, CalibrationError for too
    few boxes to judge on, and what reading and running raise."""
    gates = gates_from(request.gates)
    intrinsics = intrinsics_from_file(request.camera) if request.camera else None
    with Bundle(request.bundle) as bundle:
        ids = {entry.id for entry in bundle.manifest.objects}
        samples = samples_from(request.source, boxes_from(request.boxes), intrinsics, ids, request.max_crops)
        check_evidence(samples, request.source)
        found = verify_bundle(bundle, samples, gates, progress, request.backends or None)
    if request.reports:
        texts = {JSON_REPORT: json_from_verification(found), MARKDOWN_REPORT: markdown_from_verification(found)}
        write_reports(request.reports, {name: text.encode() for name, text in texts.items()})
    return found


def check_evidence(samples: Sequence[Sample], source: str) -> None:
    """CalibrationError, before anything runs, for a recording that leaves every gate undecided."""
    shown = evidence_of(samples)
    if shown.n < MIN_JUDGED or shown.frames < MIN_FRAMES:
        raise CalibrationError(
            f"verification on {source}",
            got=f"{shown.n} boxes of the bundle's objects in {shown.frames} frames that differ",
            expected=f"at least {MIN_JUDGED} whose poses stand firm, in {MIN_FRAMES} frames; twice as many are good",
            remedy="Give more frames, or boxes of these objects; `posekit demo --variants` writes such a recording.",
        )


def gates_from(settings: Sequence[str]) -> Gates:
    """ "rotation_p95_deg=0.5" each; "name=none" leaves a gate out."""
    known = {field.name for field in fields(Gates)}
    limits: dict[str, float | None] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        try:
            limits[name] = None if value == "none" else float(value)
        except ValueError:
            limits[name] = -1.0
        limit = limits[name]
        if name not in known or not (limit is None or limit >= 0):
            raise InputError(
                f"gate {setting!r}",
                got="no gate" if name not in known else "no limit",
                expected=f"NAME=LIMIT with one of {', '.join(sorted(known))}",
                remedy="Correct --gate.",
            )
    return replace(Gates(), **limits)
