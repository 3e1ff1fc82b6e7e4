"""The CI recipe, run here as GitHub runs it: every step of the composite action as plain bash, one after the other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import toy_recipe
import typer
import yaml  # type: ignore[import-untyped]

from posekit.cli import app

ROOT = Path(__file__).resolve().parents[2]
ACTION = ROOT / ".github" / "actions" / "verify" / "action.yml"
WORKFLOW = ROOT / ".github" / "workflows" / "posekit.yml"
BASH = ["bash", "--noprofile", "--norc", "-eo", "pipefail"]  # what GitHub starts for `shell: bash`
EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")
NEEDS_NETWORK = "install"


def loaded(path: Path) -> dict[str, Any]:
    found = yaml.safe_load(path.read_text())
    assert isinstance(found, dict)
    return found


STEPS: list[dict[str, Any]] = loaded(ACTION)["runs"]["steps"]
JOB: dict[str, Any] = loaded(WORKFLOW)["jobs"]["verify"]
COMMANDS = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def posekit_commands(script: str) -> set[str]:
    return set(re.findall(r"(?:^|[\s/])posekit ([a-z]+) ", script))


@dataclass
class Job:
    """A runner's job: an action's steps in turn, as GitHub decides whether each is run.

    codes: step -> exit code, of those that were run.   output: step -> what it printed.
    """

    folder: Path
    inputs: Mapping[str, str]
    codes: dict[str, int] = field(default_factory=dict)
    output: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return any(self.codes.values())

    @property
    def summary(self) -> str:
        return (self.folder / "summary.md").read_text()

    def run(self, *only: str) -> Job:
        """only: ids of steps; by default every one that needs no network."""
        for step in STEPS:
            wanted = step["id"] in only if only else step["id"] != NEEDS_NETWORK
            if wanted and self._runs(step.get("if")):
                self._run(step)
        return self

    def _runs(self, condition: str | None) -> bool:
        """The conditions that the action uses."""
        rules = {None: not self.failed, "always()": True}
        for name in ("baseline", "install"):
            rules[f"inputs.{name} != ''"] = not self.failed and self._input(name) != ""
        return rules[condition]

    def _run(self, step: Mapping[str, Any]) -> None:
        missing = posekit_commands(step["run"]) - COMMANDS
        if missing:
            pytest.skip(f"step {step['id']}: no command posekit {' '.join(missing)}")
        values = {name: EXPRESSION.sub(self._evaluated, text) for name, text in step["env"].items()}
        paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {
            **os.environ,
            **values,
            "PATH": paths,
            "PYTHONPATH": str(self.folder),
            "GITHUB_STEP_SUMMARY": str(self.folder / "summary.md"),
            "OMP_NUM_THREADS": "1",
        }
        script = self.folder / f"{step['id']}.sh"
        script.write_text(step["run"])
        done = subprocess.run(
            [*BASH, str(script)],
            check=False,
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        self.codes[step["id"]], self.output[step["id"]] = done.returncode, done.stdout + done.stderr

    def _evaluated(self, found: re.Match[str]) -> str:
        context, _, name = found[1].partition(".")
        assert context == "inputs", f"{found[0]} is more than an input"
        return self._input(name)

    def _input(self, name: str) -> str:
        return str(self.inputs.get(name, loaded(ACTION)["inputs"][name].get("default", "")))


TRUNK = 'trunk = ["trunk"]\n'  # of fp16, which a recipe of fp32 alone has no use for
INPUTS = {
    "recipe": "toy.toml",
    "frames": "recording",
    "verify-options": "--max-crops 40",
    "bench-options": "--boxes gt --frames 20",
    "runs": "1",
    "on-invalid": "warn",  # the machine that tests run on is shared
    "install": "",
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The whole action on a toy recipe of fp32 alone, without a baseline."""
    folder = tmp_path_factory.mktemp("ci")
    with toy_recipe.write_workshop(folder) as recipe:
        recipe.write_text(recipe.read_text().partition("[precision]")[0].replace(TRUNK, ""))
    return Job(folder, INPUTS).run()


def test_every_step_exports_verifies_measures_and_says_so(done: Job) -> None:
    assert done.codes == dict.fromkeys(("export", "verify", "bench", "summary"), 0), done.output
    out = done.folder / "posekit-ci"
    assert (out / "new.posekit").is_file()
    assert (out / "verification" / "verification.json").is_file()
    assert sorted(path.parent.name for path in out.glob("bench/*/result.json")) == ["run1"]
    assert (out / "report.html").stat().st_size > 1000
    assert "No comparison.md" in done.summary
    for page in (out / "report.md", out / "verification" / "verification.md"):
        assert page.read_text() in done.summary


def with_baseline(done: Job, tmp_path: Path, gates: str, options: str = "--allow bundle --allow invalid") -> Job:
    """Compare and summarise what was measured, with itself as the baseline."""
    shutil.copytree(done.folder / "posekit-ci", tmp_path / "posekit-ci")
    shutil.copytree(done.folder / "posekit-ci" / "bench", tmp_path / "baseline")
    inputs = {**INPUTS, "baseline": "baseline", "gates": gates, "compare-options": options}
    return Job(tmp_path, inputs).run("compare", "summary")


def test_a_gate_that_holds_passes_and_is_in_the_summary(done: Job, tmp_path: Path) -> None:
    job = with_baseline(done, tmp_path, "total.p50<99999999ms\n\ntotal.p95<99999999ms\n")
    assert job.codes == {"compare": 0, "summary": 0}, job.output
    assert (tmp_path / "posekit-ci" / "comparison.md").read_text() in job.summary
    assert "compare: held" in job.summary


def test_a_missed_gate_fails_the_job_and_is_in_the_summary(done: Job, tmp_path: Path) -> None:
    job = with_baseline(done, tmp_path, "total.p50<0.000001ms")
    assert job.codes == {"compare": 1, "summary": 0}, job.output
    assert "compare: missed" in job.summary


def test_what_a_caller_writes_is_never_a_command(done: Job, tmp_path: Path) -> None:
    job = with_baseline(done, tmp_path, 'total.p50<1ms"; touch harm; "\n$(touch harm)\n`touch harm`')
    assert job.codes["compare"] == 2
    assert not (tmp_path / "harm").exists()


def test_a_step_that_fails_stops_the_job_but_not_its_summary(tmp_path: Path) -> None:
    job = Job(tmp_path, {**INPUTS, "recipe": "missing.toml"}).run()
    assert job.codes == {"export": 2, "summary": 0}, job.output
    assert "missing.toml" in job.output["export"]
    assert "No report.md" in job.summary


@pytest.mark.parametrize(
    ("code", "evidence", "on_invalid", "expected"),
    [(2, True, "warn", 0), (2, True, "fail", 2), (2, False, "warn", 2), (3, True, "warn", 3)],
)
def test_only_an_invalid_run_is_forgiven_and_only_where_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, evidence: bool, on_invalid: str, expected: int
) -> None:
    """A stand-in for posekit that ends as it does for an INVALID run."""
    stand_in = tmp_path / "bin" / "posekit"
    stand_in.parent.mkdir()
    left = 'mkdir -p "$5" && touch "$5/result.json"\n' if evidence else ""
    stand_in.write_text(f"#!/bin/bash\n{left}exit {code}\n")
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    job = Job(tmp_path, {**INPUTS, "on-invalid": on_invalid, "runs": "2"}).run("bench")
    assert job.codes == {"bench": expected}, job.output
    assert job.output["bench"].count("::warning::") == (2 if expected == 0 else 0)


# What is written in the two files.


def scripts() -> list[tuple[str, str]]:
    steps = [(f"action {step['id']}", step["run"]) for step in STEPS]
    return steps + [(f"workflow {step['name']}", step["run"]) for step in JOB["steps"] if "run" in step]


@pytest.mark.parametrize(("name", "script"), scripts(), ids=[name for name, _ in scripts()])
def test_scripts_are_plain_bash_without_expressions(name: str, script: str) -> None:
    """An expression inside a script is pasted into it before bash reads it."""
    assert not EXPRESSION.search(script)
    assert posekit_commands(script) <= COMMANDS
    done = subprocess.run([*BASH, "-n", "-c", script], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_action_gets_the_inputs_that_it_knows_and_needs() -> None:
    (step,) = [step for step in JOB["steps"] if step.get("uses", "").startswith("./")]
    assert (ROOT / step["uses"] / "action.yml").samefile(ACTION)
    known = loaded(ACTION)["inputs"]
    assert set(step["with"]) <= set(known)
    assert {name for name, entry in known.items() if entry.get("required")} <= set(step["with"])
    used = {name for text in EXPRESSION.findall(ACTION.read_text()) for name in [text.removeprefix("inputs.")]}
    used |= set(re.findall(r"if: inputs\.([a-z-]+)", ACTION.read_text()))
    assert used == set(known), "every input is used, and nothing else"


def test_the_action_installs_the_posekit_that_it_is_part_of() -> None:
    (install,) = [step["run"] for step in STEPS if step["id"] == NEEDS_NETWORK]
    up = re.search(r"\$GITHUB_ACTION_PATH((?:/\.\.)+)\[", install)
    assert up
    assert ((ACTION.parent / up[1].lstrip("/")).resolve() / "pyproject.toml").is_file()


def test_the_workflow_has_few_rights_and_an_end() -> None:
    assert loaded(WORKFLOW)["permissions"] == {"contents": "read"}
    assert JOB["timeout-minutes"] <= 60
    assert all(re.search(r"@v\d+$", step["uses"]) for step in JOB["steps"] if "@" in step.get("uses", ""))
