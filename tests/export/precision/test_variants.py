"""From a recipe to fp16 and int8 files that hold their gates; a gate that is missed leaves no bundle."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from toy_recipe import FRAMES, RECIPE, write_workshop

from posekit.calibration.qdq import quantised_nodes
from posekit.export.pipeline import ExportReport, export_recipe
from posekit.export.precision.search import STRAINS
from posekit.export.recipe import recipe_from_toml
from posekit.export.verify.verify import Verification, verify_bundle
from posekit.runtime.backends import BACKENDS, SMALLEST_FIRST, variants_offered
from posekit.runtime.bundle import Bundle
from posekit.runtime.errors import CalibrationError, GateError
from posekit.runtime.manifest import Manifest, Precision

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with write_workshop(tmp_path_factory.mktemp("workshop")) as recipe:
        yield recipe.parent


def export(workshop: Path, out: Path, old: str = "", new: str = "") -> ExportReport:
    assert old in RECIPE
    recipe = workshop / f"{out.stem}.toml"
    recipe.write_text(RECIPE.replace(old, new) if old else RECIPE)
    return export_recipe(recipe_from_toml(recipe), out)


@pytest.fixture(scope="module")
def report(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    return export(workshop, tmp_path_factory.mktemp("out") / "toy.posekit")


def graph(report: ExportReport, precision: str) -> onnx.ModelProto:
    with Bundle(report.path) as bundle:
        entry = bundle.manifest.graphs["guess.pose"]
        return onnx.load_from_string(bytes(bundle.read(entry.variants[precision])))  # type: ignore[index]


def test_the_bundle_has_all_three_files_each_what_it_says(report: ExportReport) -> None:
    types = {
        precision: {onnx.TensorProto.DataType.Name(t.data_type) for t in graph(report, precision).graph.initializer}
        for precision in ("fp32", "fp16", "int8")
    }
    assert "FLOAT16" not in types["fp32"]
    assert "FLOAT16" in types["fp16"]
    assert "INT8" in types["int8"]
    assert set(quantised_nodes(graph(report, "int8"))) >= {"network.trunk.0.0/Conv", "network.trunk.0.2/Conv"}


def test_every_variant_was_verified_on_every_backend_at_hand(report: ExportReport) -> None:
    assert report.verification is not None
    assert report.verification.passed
    seen = {(v.precision, v.backend) for v in report.verification.verdicts}
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8")
    assert seen == {(p, b) for p in precisions for b in ("onnxruntime", "openvino") if BACKENDS[b].runs(p)}
    assert all(v.trained and v.figures.n == FRAMES // 2 for v in report.verification.verdicts)


def test_the_reports_are_in_the_bundle(report: ExportReport) -> None:
    with Bundle(report.path) as bundle:
        members = bundle.manifest.reports
        assert set(members) == {"parity", "precision", "pareto", "pareto_plot", "verification"}
        read = {name: bytes(bundle.read(member)) for name, member in members.items()}
    assert read["pareto_plot"].startswith(b"\x89PNG")
    assert json.loads(read["verification"])["passed"] is True
    (entry,) = json.loads(read["precision"])
    assert {row["block"] for row in entry["int8"]["search"]["sensitivities"]} == {"network.trunk.0", "network.trunk.1"}
    assert entry["overflow"]["crops"] == FRAMES // 2
    assert "calibration" not in entry["int8"]  # it names a place of this machine
    assert not any(os.environ["POSEKIT_CACHE"].encode() in content for content in read.values())


def test_a_repeated_export_gives_the_same_bytes_and_makes_nothing(
    report: ExportReport, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pipeline.onnx_from_network", "precision.variants.onnx_from_network", "verify.reference.observe"):
        monkeypatch.setattr(f"posekit.export.{name}", None)
    again = export(workshop, tmp_path / "toy.posekit")
    assert again.made == ()
    assert set(again.found) == {*report.made, *report.found}
    assert again.path.read_bytes() == report.path.read_bytes()


def untimed(manifest: Manifest) -> Manifest:
    """Without what follows from latencies."""
    graphs = {name: replace(entry, held_back={}) for name, entry in manifest.graphs.items()}
    return replace(manifest, files={}, graphs=graphs)


def test_without_the_cache_graphs_and_manifest_are_the_same_but_for_latencies(
    report: ExportReport, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSEKIT_CACHE", str(tmp_path / "cache"))
    again = export(workshop, tmp_path / "toy.posekit")
    assert again.found == ()
    timed = {report.manifest.reports[name] for name in ("precision", "pareto", "pareto_plot")}
    for one, other in ((report.manifest, again.manifest), (again.manifest, report.manifest)):
        assert {name: entry for name, entry in one.files.items() if name not in timed} == {
            name: entry for name, entry in other.files.items() if name not in timed
        }
        assert untimed(one) == untimed(other)


def test_another_gate_is_judged_on_the_figures_that_are_kept(
    report: ExportReport, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search goes another way, and what it finds there is measured; what was measured is not measured again."""
    wider = 'source = "recording"\n[gates]\ntranslation_p95_of_diameter = 0.5\n'
    again = export(workshop, tmp_path / "wider.posekit", 'source = "recording"\n', wider)
    assert {name for name in again.made if not name.startswith("verify ")} <= {"measure guess.pose"}
    assert again.found.count("measure guess.pose") >= 5


def test_a_missed_gate_leaves_no_bundle_but_a_report(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a noise floor, float16 cannot hold a gate of zero."""
    monkeypatch.setattr("posekit.export.verify.reference.FLOOR_GREY_LEVELS", 0)
    out = tmp_path / "missed.posekit"
    out.write_bytes(b"PK\3\4 an older bundle")
    gates = 'source = "recording"\n[gates]\ntranslation_p95_of_diameter = 0\n'
    with pytest.raises(GateError, match="translation_p95_of_diameter"):
        export(workshop, out, 'source = "recording"\n', gates)
    assert out.read_bytes() == b"PK\3\4 an older bundle"
    reports = tmp_path / "missed.posekit.reports"
    assert json.loads((reports / "verification.json").read_text())["passed"] is False
    assert "MISSED" in (reports / "verification.md").read_text()


@pytest.mark.parametrize(("misses", "left"), [(1, 0.5), (9, None)])
def test_an_int8_that_misses_on_other_crops_is_made_again_with_more_to_spare_or_left_out(
    misses: int, left: float | None, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = []

    def unlucky(*given: Any, **options: Any) -> Verification:
        found = verify_bundle(*given, **options)
        judged.append(found)
        if len(judged) > misses:
            return found
        spoilt = [replace(gate, verdict="missed") for gate in found.verdicts[0].gates]
        verdicts = [
            replace(v, gates=tuple(spoilt), binding=True) if v.precision == "int8" else v for v in found.verdicts
        ]
        return replace(found, verdicts=tuple(verdicts))

    monkeypatch.setattr("posekit.export.pipeline.verify_bundle", unlucky)
    made = export(workshop, tmp_path / "unlucky.posekit")
    (graph,) = made.variants
    assert graph.int8 is not None
    if left is None:
        assert graph.int8.search.chosen is None
        assert "on other crops as well" in graph.refused["int8"]
        assert set(made.manifest.graphs["guess.pose"].variants) == {"fp32", "fp16"}
        assert len(judged) == len(STRAINS)
    else:
        assert graph.int8.search.tried[-1].most_strain == left
        assert len(judged) == misses + 1


def test_a_variant_that_cannot_be_made_costs_itself(workshop: Path, tmp_path: Path) -> None:
    """Every value of this trunk is beyond float16; a tanh behind it brings it back."""
    from safetensors.torch import load_file, save_file

    weights = load_file(workshop / "guess.safetensors")
    save_file(
        {k: w * (1e9 if k == "trunk.0.0.weight" else 1) for k, w in weights.items()}, workshop / "loud.safetensors"
    )
    rest = RECIPE[RECIPE.index("guess.safetensors") :]
    gates = "[gates]\nadd_recall_min = 0  # its distances are not those of the recording\n"
    report = export(workshop, tmp_path / "loud.posekit", rest, rest.replace("guess", "loud", 1) + gates)
    (entry,) = report.variants
    assert "network.trunk.0.0" in entry.refused["fp16"]
    assert "nothing is left" in entry.refused["fp16"]
    assert set(report.manifest.graphs["guess.pose"].variants) == {"fp32", "int8"}
    assert "INT8" in {onnx.TensorProto.DataType.Name(t.data_type) for t in graph(report, "int8").graph.initializer}
    with Bundle(report.path) as bundle:
        told = bytes(bundle.read(bundle.manifest.reports["pareto"])).decode()
    assert f"guess.pose fp16 was not made: {entry.refused['fp16']}" in told


@pytest.mark.parametrize("faster", [True, False])
def test_int8_that_is_not_worth_it_is_never_the_default(
    faster: bool, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posekit.export.precision.int8._verdict", lambda *_: (faster, "3 of 3 blocks, slower."))
    report = export(workshop, tmp_path / "toy.posekit")
    entry = report.manifest.graphs["guess.pose"]
    assert set(entry.variants) == {"fp32", "fp16", "int8"}
    assert entry.held_back == ({} if faster else {"int8": "3 of 3 blocks, slower."})
    assert variants_offered(entry, SMALLEST_FIRST)[0] == ("int8" if faster else "fp16")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('source = "recording"', 'source = "recording"\nmax_crops = 20', "at least 32"),
    ],
)
def test_unfit_crops_are_refused(old: str, new: str, message: str, workshop: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=message):
        export(workshop, tmp_path / "unfit.posekit", old, new)
    assert list(tmp_path.iterdir()) == []
