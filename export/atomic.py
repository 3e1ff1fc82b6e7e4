"""Files that appear whole or not at all: the runtime's own way, which the engine cache uses on the device."""

from __future__ import annotations

from posekit.runtime.atomic import replacing, write_whole

__all__ = ["replacing", "write_whole"]
