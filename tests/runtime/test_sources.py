"""Frames: what comes in is 8-bit RGB of the camera's size, in order, or a sentence that names the frame."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from pictures import H, W, picture, save

from posekit.runtime.errors import InputError, PosekitError, SourceError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.sources import frames_from

CAMERA = Intrinsics(np.array([[60.0, 0, 31.5], [0, 60, 23.5], [0, 0, 1]]), W, H)


def video(path: Path, n_frames: int, fourcc: str = "MJPG") -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*fourcc), 30, (W, H))
    if not writer.isOpened():
        pytest.skip(f"this OpenCV writes no {fourcc}")
    for i in range(n_frames):
        writer.write(picture(i * 8)[..., ::-1].copy())
    writer.release()
    return path


def test_an_image_comes_in_as_rgb(tmp_path: Path) -> None:
    frames = frames_from(save(tmp_path / "a.png", picture(7)), CAMERA)
    assert frames.count == 1
    (frame,) = frames
    np.testing.assert_array_equal(frame.image_rgb_u8, picture(7))
    assert (frame.name, frame.index, frame.im_id, frame.truth) == ("a.png", 0, 0, None)


def test_a_folder_is_read_in_natural_order_and_ignores_other_files(tmp_path: Path) -> None:
    for n in (10, 2, 1):
        save(tmp_path / f"img{n}.png", picture(n))
    (tmp_path / "notes.txt").write_text("no image")
    frames = frames_from(tmp_path, CAMERA)
    assert frames.count == 3
    seen = [(f.name, int(f.image_rgb_u8[0, 0, 2]), f.index) for f in frames]
    assert seen == [("img1.png", 1, 0), ("img2.png", 2, 1), ("img10.png", 10, 2)]


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (picture()[..., 0], "uint8, 1 channel,"),
        (picture().astype(np.uint16), "uint16, 3 channels"),
        (np.dstack([picture(), np.full((H, W), 255, np.uint8)]), "uint8, 4 channels"),
    ],
)
def test_other_than_8_bit_colour_is_refused(tmp_path: Path, pixels: npt.NDArray[Any], message: str) -> None:
    path = save(tmp_path / "odd.png", pixels)
    with pytest.raises(SourceError, match=message) as caught:
        next(frames_from(path, CAMERA))
    assert "odd.png" in str(caught.value)


def test_another_size_than_the_intrinsics_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "1.png", picture())
    save(tmp_path / "2.png", picture()[:, :40])
    frames = frames_from(tmp_path, CAMERA)
    next(frames)
    with pytest.raises(InputError, match=r"2\.png: got 40 x 48 px, expected 64 x 48 px"):
        next(frames)


def test_a_folder_that_may_not_be_looked_into_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    save(tmp_path / "1.png", picture())
    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(SourceError, match="Permission denied"):
        frames_from(tmp_path, CAMERA)
    with pytest.raises(SourceError, match="nothing there"):
        frames_from("x" * 5000, CAMERA)


def test_what_is_no_source_says_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nothing there"):
        frames_from(tmp_path / "absent", CAMERA)
    with pytest.raises(SourceError, match="no image"):
        frames_from(tmp_path, CAMERA)
    with pytest.raises(InputError, match="no intrinsics"):
        frames_from(save(tmp_path / "a.png", picture()))
    (tmp_path / "b.mp4").write_bytes(b"junk" * 100)
    with pytest.raises(SourceError, match=r"b\.mp4"):
        frames_from(tmp_path / "b.mp4", CAMERA)


def test_a_video_gives_every_frame_with_its_time(tmp_path: Path) -> None:
    frames = frames_from(video(tmp_path / "clip.avi", 12), CAMERA)
    assert frames.count == 12
    seen = list(frames)
    assert [f.name for f in seen][:2] == ["clip.avi#000000", "clip.avi#000001"]
    np.testing.assert_allclose([f.time_s or 0.0 for f in seen], np.arange(12) / 30, atol=2e-3)
    for i, frame in enumerate(seen):  # colours survive in RGB order, within what JPEG keeps
        assert np.abs(frame.image_rgb_u8.astype(int) - picture(i * 8)).mean() < 6


@pytest.mark.parametrize(("name", "fourcc"), [("cut.avi", "MJPG"), ("cut.mkv", "mp4v")])
def test_a_video_that_ends_early_gives_what_it_has_and_then_says_so(
    tmp_path: Path, name: str, fourcc: str, capfd: Any
) -> None:
    whole = video(tmp_path / f"whole.{name[-3:]}", 20, fourcc).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * 0.6)])
    frames, seen = frames_from(tmp_path / name, CAMERA), list[int]()
    with pytest.raises(SourceError, match="then no more that decode, expected 20 frames"):
        seen.extend(frame.index for frame in frames)
    assert capfd.readouterr().err == ""


def test_frames_before_the_damage_are_given(tmp_path: Path) -> None:
    whole = video(tmp_path / "whole.avi", 20).read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: int(len(whole) * 0.6)])
    frames = frames_from(tmp_path / "cut.avi", CAMERA)
    given_first = [next(frames).index for _ in range(5)]
    assert given_first == list(range(5))


def test_a_video_of_another_size_is_refused_by_frame(tmp_path: Path) -> None:
    small = Intrinsics(CAMERA.K, W // 2, H)
    with pytest.raises(InputError, match=r"clip\.avi#000000"):
        next(frames_from(video(tmp_path / "clip.avi", 3), small))


def test_a_turned_video_is_refused(tmp_path: Path) -> None:
    path = video(tmp_path / "clip.mp4", 3, "mp4v")
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40  # ISO 14496-12, 8.3.2, version 0
    quarter_turn = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]
    content[matrix : matrix + 36] = b"".join(n.to_bytes(4, "big", signed=True) for n in quarter_turn)
    path.write_bytes(content)
    with pytest.raises(SourceError, match="turned by"):
        frames_from(path, CAMERA)


def test_a_camera_that_is_not_there_is_named(capfd: Any) -> None:
    with pytest.raises(SourceError, match="camera 97"):
        frames_from("97", CAMERA)
    assert capfd.readouterr().err == ""


class FakeCapture:
    """A camera that gives three frames and then fails."""

    def __init__(self, number: int) -> None:
        self.left, self.released, self.settings = 3, False, dict[int, float]()

    def isOpened(self) -> bool:
        return True

    def set(self, key: int, value: float) -> None:
        self.settings[key] = value

    def read(self) -> tuple[bool, Any]:
        self.left -= 1
        return (True, picture()[..., ::-1].copy()) if self.left >= 0 else (False, None)

    def release(self) -> None:
        self.released = True


def test_a_camera_runs_until_it_fails_or_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    captures: list[FakeCapture] = []

    def opened(number: int) -> FakeCapture:
        captures.append(FakeCapture(number))
        return captures[-1]

    monkeypatch.setattr(cv2, "VideoCapture", opened)
    frames = frames_from("0", CAMERA)
    assert frames.count is None
    assert captures[0].settings == {cv2.CAP_PROP_FRAME_WIDTH: W, cv2.CAP_PROP_FRAME_HEIGHT: H}
    first = next(frames)
    np.testing.assert_array_equal(first.image_rgb_u8, picture())
    assert first.time_s is not None
    assert first.time_s >= 0
    with pytest.raises(SourceError, match="no frame after 3"):
        list(frames)
    assert captures[0].released
    again = frames_from("0", CAMERA)
    next(again)
    again.close()
    assert captures[1].released


def test_the_environment_is_left_as_it_was(tmp_path: Path) -> None:
    log: Any = getattr(cv2.utils, "logging", cv2)
    level = log.getLogLevel()
    with pytest.raises(PosekitError):
        frames_from(tmp_path / "absent.mp4", CAMERA)
    list(frames_from(video(tmp_path / "clip.avi", 2), CAMERA))
    assert "OPENCV_FFMPEG_LOGLEVEL" not in os.environ
    assert log.getLogLevel() == level
