"""What a gate says, and what is no gate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posekit.benchmarks.bench.figures import FIGURES, OF_SAMPLES, Figure
from posekit.benchmarks.bench.gate_text import gate_from
from posekit.runtime.errors import InputError


@pytest.mark.parametrize(
    ("text", "figure", "mode", "kind", "limit"),
    [
        ("total.p95<+5%", "total.p95", None, "ratio", 0.05),
        ("total.p95 < +5 %", "total.p95", None, "ratio", 0.05),
        ("paced:total.p99<40ms", "total.p99", "paced", "value", 40.0),
        ("pose gpu.mean<+0.5", "pose gpu.mean", None, "change", 0.5),
        ("total.p50<-10%", "total.p50", None, "ratio", -0.1),
        ("total.cov<0.05", "total.cov", None, "value", 0.05),
        ("rotation.p95<0.5deg", "rotation.p95", None, "value", 0.5),
        ("translation.p95<+2mm", "translation.p95", None, "change", 2.0),
        ("recall_add>-0.02", "recall_add", None, "change", -0.02),
        ("throughput>30Hz", "throughput", None, "value", 30.0),
        ("cold_start.total<+20%", "cold_start.total", None, "ratio", 0.2),
    ],
)
def test_a_gate_is_read(text: str, figure: str, mode: str | None, kind: str, limit: float) -> None:
    gate = gate_from(text)
    assert (gate.figure.name, gate.mode, gate.kind) == (figure, mode, kind)
    assert gate.limit == pytest.approx(limit)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no gate"),
        ("total.p95", "no gate"),
        ("total.p95<=5%", "no gate"),
        ("total.p95<+5e3ms", "no gate"),
        ("total.p95<nanms", "no gate"),
        ("total.p95<+٥%", "no gate"),
        ("total.p97<+5%", "no figure 'total.p97'"),
        ("wobble<1", "no figure 'wobble'"),
        ("total.p95>+5%", "less is better"),
        ("recall_add<0.5", "more is better"),
        ("total.p95<5%", "has a sign"),
        ("total.p95<5deg", "unit 'deg'"),
        ("throughput>-100%", "loss of everything"),
    ],
)
def test_what_is_no_gate_is_said(text: str, why: str) -> None:
    with pytest.raises(InputError) as caught:
        gate_from(text)
    assert why in str(caught.value)


@given(
    st.sampled_from([*FIGURES.values(), *(gate_from(f"total.{of}<1").figure for of in OF_SAMPLES)]),
    st.integers(0, 99),
    st.sampled_from(["", "+", "-"]),
    st.sampled_from(["", "unit", "%"]),
)
def test_every_figure_can_be_asked_for(figure: Figure, number: int, sign: str, unit: str) -> None:
    way, unit = ">" if figure.more_is_better else "<", figure.unit if unit == "unit" else unit
    text = f"{figure.name}{way}{sign}{number}{unit}"
    if unit == "%" and not sign:
        with pytest.raises(InputError):
            gate_from(text)
        return
    gate = gate_from(text)
    assert gate.limit == pytest.approx(float(sign + str(number)) / (100 if unit == "%" else 1))
    assert gate.kind == ("ratio" if unit == "%" else "change" if sign else "value")


@given(st.text(max_size=40))
def test_any_text_is_a_gate_or_an_input_error(text: str) -> None:
    try:
        gate_from(text)
    except InputError:
        return
