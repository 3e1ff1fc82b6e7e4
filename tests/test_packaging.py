"""What pyproject.toml says about the folders agrees with what is in them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS: dict[str, str] = SETUPTOOLS["package-dir"]
# Scripts of the repository, and what they found.
NOT_SHIPPED = {ROOT / "benchmarks" / name for name in ("studies", "peers", "suites", "results")}


def shipped(folder: str) -> list[Path]:
    """Files, compiled ones aside."""
    files = [file for file in (ROOT / folder).rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    return [file for file in files if not NOT_SHIPPED.intersection(file.parents)]


def test_every_package_is_listed() -> None:
    """A package that is not listed works in an editable install and is missing from the wheel."""
    found = set()
    for package, folder in FOLDERS.items():
        for file in shipped(folder):
            found.add(".".join([package, *file.parent.relative_to(ROOT / folder).parts]))
    assert found == set(SETUPTOOLS["packages"])


def test_every_data_file_is_shipped() -> None:
    for package, folder in FOLDERS.items():
        for file in shipped(folder):
            if file.suffix != ".py":
                owner = ".".join([package, *file.parent.relative_to(ROOT / folder).parts])
                assert any(file.match(pattern) for pattern in SETUPTOOLS["package-data"].get(owner, [])), file


def test_typing_links() -> None:
    """.typing/posekit is the package as type checkers see it: every file of sdk/ and the other folders."""
    links = ROOT / ".typing" / "posekit"
    want = {p.name: p for p in (ROOT / "sdk").iterdir() if p.name != "__pycache__"}
    want |= {package.split(".")[1]: ROOT / folder for package, folder in FOLDERS.items() if "." in package}
    assert {p.name: p.resolve() for p in links.iterdir() if p.name != "__pycache__"} == want


@pytest.mark.parametrize(
    "word", ["utils", "helpers", "misc", "common", "manager", "handler", "process", "data", "info"]
)
def test_no_attic(word: str) -> None:
    for folder in FOLDERS.values():
        names = {p.stem for p in (ROOT / folder).rglob("*.py")} | {
            p.name for p in (ROOT / folder).rglob("*") if p.is_dir()
        }
        assert word not in names
