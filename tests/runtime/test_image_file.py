"""Image files: complete, upright, 8-bit colour, or refused by name; nothing is decoded halfway."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import H, W, picture, save

from posekit.runtime.errors import SourceError
from posekit.runtime.image_file import read_image


def test_float_images_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "odd.tif", picture().astype(np.float32))
    with pytest.raises(SourceError, match="float32, 3 channels"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_cut_off_image_is_refused(tmp_path: Path, suffix: str, share: float, capfd: Any) -> None:
    whole = save(tmp_path / f"whole.{suffix}", picture()).read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(SourceError, match=rf"cut\.{suffix}"):
        read_image(path)
    assert "WARN" not in capfd.readouterr().err


def test_a_flipped_bit_in_a_png_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", picture())
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(SourceError, match="checksum"):
        read_image(path)


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe1", b"BM", b"II*\0"]))
def test_noise_never_decodes_and_never_crashes(tmp_path_factory: Any, noise: bytes, start: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.png"
    path.write_bytes(start + noise)
    with pytest.raises(SourceError):
        read_image(path)


def exif(orientation: int, order: str) -> bytes:
    def number(n: int, size: int) -> bytes:
        return n.to_bytes(size, "little" if order == "II" else "big")

    row = number(0x0112, 2) + number(3, 2) + number(1, 4) + number(orientation, 2) + b"\0\0"
    tiff = order.encode() + number(42, 2) + number(8, 4) + number(1, 2) + row + number(0, 4)
    body = b"Exif\0\0" + tiff
    return b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body


@pytest.mark.parametrize("order", ["II", "MM"])
def test_a_turned_photograph_is_refused_and_an_upright_one_read(tmp_path: Path, order: str) -> None:
    jpeg = save(tmp_path / "a.jpg", picture()).read_bytes()
    (tmp_path / "up.jpg").write_bytes(jpeg[:2] + exif(1, order) + jpeg[2:])
    (tmp_path / "turned.jpg").write_bytes(jpeg[:2] + exif(6, order) + jpeg[2:])
    assert read_image(tmp_path / "up.jpg").shape == (H, W, 3)
    with pytest.raises(SourceError, match="orientation 6"):
        read_image(tmp_path / "turned.jpg")
