"""Make pixels.json: the SHA-256 of every picture of tests/pixel_cases.py, and of the picture that they are made from.

Not part of the tests: run once, by hand, on one machine; the tests then ask every other for the same bytes.
Usage: PYTHONPATH=tests python tests/golden/make_pixel_goldens.py
"""

import hashlib
import json
import platform
from pathlib import Path

import cv2
import numpy as np
from pixel_cases import cases, picture


def main() -> None:
    provenance = {
        "script": "tests/golden/make_pixel_goldens.py",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "picture_640x480_sha256": hashlib.sha256(picture(640, 480).tobytes()).hexdigest(),
    }
    sha256 = {name: hashlib.sha256(made().tobytes()).hexdigest() for name, made in cases().items()}
    text = json.dumps({"provenance": provenance, "sha256": sha256}, indent=1)
    Path(__file__).with_name("pixels.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
