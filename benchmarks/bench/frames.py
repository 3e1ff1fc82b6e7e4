"""Real frames for a bench: read once and held in memory, or read anew in every pass. They repeat only if that is allowed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

from posekit.runtime.errors import InputError, SourceError
from posekit.runtime.sources import Frame, Frames

OpenFrames = Callable[[], Frames]
MAX_HELD_BYTES = 1 << 29  # a small board has 4 GiB, its GPU's share included


@dataclass(frozen=True, eq=False)
class HeldFrames:
    """capture_ns: of each frame, reading and decoding it."""

    frames: tuple[Frame, ...]
    capture_ns: tuple[int, ...]

    def __getitem__(self, pass_number: int) -> Frame:
        """Begins again after the last one."""
        return self.frames[pass_number % len(self.frames)]

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def wh_px(self) -> tuple[int, int]:
        return self.frames[0].intrinsics.width_px, self.frames[0].intrinsics.height_px


def held_frames(open_frames: OpenFrames, asked: int, repeat: bool, max_bytes: int = MAX_HELD_BYTES) -> HeldFrames:
    """The first `asked` frames; if they may repeat, as many of them as there are and as fit.

    Raises SourceError for an empty source, InputError for one that has fewer and may not repeat, and for frames of
    several sizes: the latency of none of them would be the figure.
    """
    frames, capture_ns, held_bytes = list[Frame](), list[int](), 0
    for frame, duration_ns in captured(open_frames):
        held_bytes += frame.image_rgb_u8.nbytes
        if frames and held_bytes > max_bytes:
            break
        frames.append(frame)
        capture_ns.append(duration_ns)
        if len(frames) == asked:
            break
    found = HeldFrames(tuple(frames), tuple(capture_ns))
    _check(found, asked, repeat)
    return found


def captured(open_frames: OpenFrames) -> Iterator[tuple[Frame, int]]:
    """Every frame of the source with the nanoseconds that reading it took."""
    with closing(open_frames()) as frames:
        while True:
            start_ns = time.perf_counter_ns()
            frame = next(frames, None)
            if frame is None:
                return
            yield frame, time.perf_counter_ns() - start_ns


def streamed(open_frames: OpenFrames, count: int) -> Iterator[tuple[Frame, int]]:
    """`count` frames, read anew each time; the source is opened again where it ends."""
    left = count
    while left:
        before = left
        for item in captured(open_frames):
            yield item
            left -= 1
            if not left:
                return
        if left == before:
            raise _empty()


def _check(held: HeldFrames, asked: int, repeat: bool) -> None:
    if not held.frames:
        raise _empty()
    sizes = sorted({frame.image_rgb_u8.shape[1::-1] for frame in held.frames})
    if len(sizes) > 1:
        raise InputError(
            "frames of the source",
            got=f"sizes {', '.join(f'{w} x {h}' for w, h in sizes[:4])} px",
            expected="one size",
            remedy="Measure each size by itself.",
        )
    if not repeat and len(held) < asked:
        raise InputError(
            "frames of the source",
            got=f"{len(held)} that can be held",
            expected=asked,
            remedy="Let them repeat (--repeat), which the result will say, or ask for fewer (--frames).",
        )


def _empty() -> SourceError:
    return SourceError("source", got="no frame", expected="at least one", remedy="Name a source with images.")
