"""Symmetries of an object: the transforms that leave it looking the same. NumPy only.

Semantics of BOP's models_info: a list of discrete transforms, and axes about which any angle is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from posekit.runtime.errors import InputError
from posekit.runtime.pose import Array, Pose, rotation_from_rotvec

DEFAULT_STEP_RAD = 0.02  # about 315 steps a turn: BOP's default of 1 % of the diameter along the arc
MM_PER_M = 1000.0


@dataclass(frozen=True, eq=False)
class Symmetries:
    """discrete: (4, 4) transforms in metres, without the identity.

    continuous: (axis (3,) unit, offset_m (3,) a point on the axis) pairs.
    """

    discrete: tuple[Array, ...] = ()
    continuous: tuple[tuple[Array, Array], ...] = ()

    def __post_init__(self) -> None:
        discrete = tuple(Pose.from_matrix(m).as_matrix() for m in self.discrete)
        continuous = tuple((_unit_axis(axis), _vector(offset)) for axis, offset in self.continuous)
        object.__setattr__(self, "discrete", discrete)
        object.__setattr__(self, "continuous", continuous)

    @property
    def is_trivial(self) -> bool:
        return not self.discrete and not self.continuous

    def transforms(self, max_angle_step_rad: float = DEFAULT_STEP_RAD, n_steps: int | None = None) -> Array:
        """(S, 4, 4): identity first, then the rest of (identity and discrete) x (discretised continuous).

        A turn about a continuous axis is cut into `n_steps` angles, or into the fewest that are no wider than
        `max_angle_step_rad`.
        """
        steps = n_steps if n_steps is not None else int(np.ceil(2 * np.pi / max_angle_step_rad - 1e-9))
        if steps < 1:
            raise InputError("symmetry steps", got=steps, expected="at least 1", remedy="Pass a positive step.")
        turns = [np.eye(4)]
        for axis, offset_m in self.continuous:
            turns += [_turn(axis, offset_m, 2 * np.pi * k / steps) for k in range(1, steps)]
        return np.stack([turn @ flip for flip in (np.eye(4), *self.discrete) for turn in turns])


def symmetries_from_bop(entry: Mapping[str, Any]) -> Symmetries:
    """Read one object of BOP's models_info.json: 16 numbers per discrete symmetry, millimetres become metres."""
    try:
        discrete = []
        for numbers in entry.get("symmetries_discrete", ()):
            matrix = np.asarray(numbers, dtype=np.float64).reshape(4, 4).copy()
            matrix[:3, 3] /= MM_PER_M
            discrete.append(matrix)
        continuous = tuple(
            (np.asarray(row["axis"], dtype=np.float64), np.asarray(row["offset"], dtype=np.float64) / MM_PER_M)
            for row in entry.get("symmetries_continuous", ())
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            "symmetries of models_info",
            got=f"{type(error).__name__}: {error}",
            expected='16 numbers per "symmetries_discrete", "axis" and "offset" per "symmetries_continuous"',
            remedy="Correct models_info.json (BOP format).",
        ) from error
    return Symmetries(tuple(discrete), continuous)


def bop_from_symmetries(symmetries: Symmetries) -> dict[str, Any]:
    """The inverse of `symmetries_from_bop`; keys without entries are left out."""
    scale = np.ones((4, 4))
    scale[:3, 3] = MM_PER_M
    entry: dict[str, Any] = {}
    if symmetries.discrete:
        entry["symmetries_discrete"] = [(m * scale).ravel().tolist() for m in symmetries.discrete]
    if symmetries.continuous:
        entry["symmetries_continuous"] = [
            {"axis": axis.tolist(), "offset": (offset * MM_PER_M).tolist()} for axis, offset in symmetries.continuous
        ]
    return entry


def _turn(axis: Array, offset_m: Array, angle_rad: float) -> Array:
    """Rotation by an angle about the line through offset_m along axis, (4, 4)."""
    R = rotation_from_rotvec(axis * angle_rad)
    return Pose(R, offset_m - R @ offset_m).as_matrix()


def _vector(value: npt.ArrayLike) -> Array:
    vector = np.asarray(value, dtype=np.float64)
    if vector.shape != (3,) or not np.isfinite(vector).all():
        raise InputError("symmetry axis", got=vector.tolist(), expected="three finite numbers", remedy="Correct it.")
    return vector


def _unit_axis(value: npt.ArrayLike) -> Array:
    axis = _vector(value)
    length = float(np.linalg.norm(axis))
    if length < 1e-9:
        raise InputError("symmetry axis", got="length zero", expected="a direction", remedy="Correct it.")
    return axis / length
