"""README is true: its commands exist, its links lead somewhere, its Python runs on the demo's bundle format."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import posekit
from posekit.cli import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_every_command_exists() -> None:
    import typer

    group = typer.main.get_command(app)
    names = set(group.commands)  # type: ignore[attr-defined]
    used = set(re.findall(r"^(?:\.venv/bin/)?posekit ([a-z]+)", "\n".join(blocks("sh")), re.MULTILINE))
    assert used
    assert used <= names


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z]+)", "\n".join(blocks("sh")), re.MULTILINE)) <= targets


@pytest.mark.parametrize("code", blocks("python"))
def test_python_names_are_public(code: str) -> None:
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "posekit":
            assert node.attr in posekit.__all__


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", README):
        assert (ROOT / target).exists(), target
