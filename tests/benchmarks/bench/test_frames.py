"""Frames are real, as many as asked, and repeat only where that is allowed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from toy_lanes import toy_frame

from posekit.benchmarks.bench.frames import held_frames, streamed
from posekit.runtime.errors import InputError, SourceError
from posekit.runtime.sources import Frames

FRAME_BYTES = 12 * 16 * 3


def source(count: int, size: tuple[int, int] = (12, 16)) -> Callable[[], Frames]:
    return lambda: Frames((toy_frame(i, size) for i in range(count)), count)


@pytest.mark.parametrize("repeat", [False, True])
def test_no_more_frames_are_held_than_asked(repeat: bool) -> None:
    held = held_frames(source(9), 4, repeat)
    assert [frame.index for frame in held.frames] == [0, 1, 2, 3]
    assert len(held.capture_ns) == 4
    assert all(ns > 0 for ns in held.capture_ns)


def test_a_source_with_fewer_frames_is_refused_unless_they_may_repeat() -> None:
    with pytest.raises(InputError, match=r"got 3 that can be held, expected 10\. .*--repeat"):
        held_frames(source(3), 10, repeat=False)
    held = held_frames(source(3), 10, repeat=True)
    assert [held[n].index for n in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_memory_is_bounded_and_what_does_not_fit_is_repeated_by_leave_alone() -> None:
    assert len(held_frames(source(9), 9, repeat=True, max_bytes=4 * FRAME_BYTES)) == 4
    with pytest.raises(InputError, match="got 4 that can be held"):
        held_frames(source(9), 9, repeat=False, max_bytes=4 * FRAME_BYTES)


def test_one_frame_is_held_however_large_it_is() -> None:
    assert len(held_frames(source(9), 9, repeat=True, max_bytes=1)) == 1


def test_frames_of_two_sizes_are_refused() -> None:
    frames = [toy_frame(0), toy_frame(1, (20, 16))]
    with pytest.raises(InputError, match="16 x 12, 16 x 20 px"):
        held_frames(lambda: Frames(iter(frames), 2), 2, repeat=False)


@pytest.mark.parametrize("repeat", [False, True])
def test_an_empty_source_is_refused(repeat: bool) -> None:
    with pytest.raises(SourceError, match="no frame"):
        held_frames(source(0), 3, repeat)
    with pytest.raises(SourceError, match="no frame"):
        next(streamed(source(0), 3))


def test_a_stream_opens_its_source_again_and_closes_it() -> None:
    opened: list[Frames] = []

    def open_frames() -> Frames:
        opened.append(source(3)())
        return opened[-1]

    assert [frame.index for frame, _ in streamed(open_frames, 7)] == [0, 1, 2, 0, 1, 2, 0]
    assert len(opened) == 3
    assert all(next(frames, None) is None for frames in opened)
