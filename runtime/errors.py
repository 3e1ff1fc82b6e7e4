"""The one exception tree. Every message has three clauses: what, got versus expected, what to do."""

from __future__ import annotations


class PosekitError(Exception):
    """Root of all errors posekit raises on purpose.

    `what` names the thing that is wrong, `got` and `expected` say how, `remedy` says what to do about it.
    """

    def __init__(self, what: str, *, got: object, expected: object, remedy: str) -> None:
        self.what, self.got, self.expected, self.remedy = what, str(got), str(expected), remedy
        super().__init__(f"{what}: got {got}, expected {expected}. {remedy}")


class InputError(PosekitError):
    """A frame, box, camera, pose or other value handed to the runtime is not usable."""


class SpecError(PosekitError):
    """A tensor does not fit the graph that it is fed to."""


class BundleError(PosekitError):
    """A bundle is damaged, incomplete, or of another format."""


class BankError(PosekitError):
    """A template bank is damaged or belongs to another embedder."""


class BackendError(PosekitError):
    """An inference backend is missing or cannot run this graph."""


class SourceError(PosekitError):
    """An image, folder, video or data set cannot be read."""


class OutputError(PosekitError):
    """A result cannot be written; nothing already written was lost."""


class RecipeError(PosekitError):
    """An export recipe is malformed."""


class CheckpointError(PosekitError):
    """A checkpoint is unsafe, unreadable, or does not fit its network."""


class MeshError(PosekitError):
    """An object model is unreadable, degenerate, or in an unlikely unit."""


class ExportError(PosekitError):
    """A graph could not be exported or failed a check after export."""


class ParityError(ExportError):
    """An exported graph does not give the numbers its source gives."""


class PrecisionError(ExportError):
    """A graph cannot be put into a lower precision, or is not in the precision it claims."""


class CalibrationError(PosekitError):
    """Calibration data that would give wrong ranges: too little, random, all alike, or prepared in another way."""


class EngineError(BackendError):
    """An engine cannot be built, or not be loaded here."""


class ClockError(PosekitError):
    """A clock that no duration can be taken from: it goes backwards, stands still, or its steps are too coarse."""


class GateError(PosekitError):
    """A variant costs more than the recipe allows; nothing was promoted."""
