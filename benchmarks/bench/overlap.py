"""Frames in several lanes at once: pipelined, and as many per second as there can be."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from queue import SimpleQueue
from threading import Event, Lock, Thread

from posekit.benchmarks.bench.frames import HeldFrames, OpenFrames, streamed
from posekit.benchmarks.bench.lane import CAPTURE, Lane, Passed
from posekit.benchmarks.bench.modes import NS_PER_S, Extent
from posekit.runtime.sources import Frame

LANES = 2  # one frame's networks, the other's everything else
Source = Iterator[tuple[Frame, int | None]]  # with the nanoseconds that reading it took, None for one held in memory


def pipelined(lanes: Sequence[Lane], open_frames: OpenFrames, frames: int) -> Iterator[Passed]:
    """Reading and preparing the next frame while this one's networks run. The lanes share one lock for their networks."""
    return in_lanes(lanes, streamed(open_frames, frames))


def offline(lanes: Sequence[Lane], frames: HeldFrames, extent: Extent) -> Iterator[Passed]:
    """All frames are there at the start, and whichever lane is free takes the next one."""
    return in_lanes(lanes, _all_there(frames, extent))


def in_lanes(lanes: Sequence[Lane], source: Source) -> Iterator[Passed]:
    """Every frame of the source through one of the lanes, in the order in which they are done.

    Raises what the source or the first lane that fails raises, after the others have finished their frames.
    """
    results: SimpleQueue[Passed | BaseException | None] = SimpleQueue()
    turn, stop = Lock(), Event()

    def work(lane: Lane) -> None:
        try:
            while not stop.is_set():
                with turn:
                    item = next(source, None)
                if item is None:
                    break
                passed = lane.run(item[0])
                captured = {} if item[1] is None else {CAPTURE: item[1]}
                results.put(replace(passed, host_ns=captured | passed.host_ns))
        except BaseException as error:  # noqa: BLE001 (raised again where the results are taken)
            results.put(error)
        finally:
            results.put(None)

    with _threads([Thread(target=work, args=(lane,), daemon=True) for lane in lanes], stop):
        running = len(lanes)
        while running:
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            if result is None:
                running -= 1
            else:
                yield result


@contextmanager
def _threads(threads: Sequence[Thread], stop: Event) -> Iterator[None]:
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _all_there(frames: HeldFrames, extent: Extent) -> Source:
    start_ns, n = time.perf_counter_ns(), 0
    while n < extent.frames or time.perf_counter_ns() - start_ns < extent.seconds * NS_PER_S:
        yield frames[n], None
        n += 1
