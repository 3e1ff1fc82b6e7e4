"""A plan opens, or one sentence says why not: nothing crashes, whatever the bytes are."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_engines import compiled, rtx_only, toy_graph

from posekit.runtime.engines.api import missing, tensorrt_module, version_of
from posekit.runtime.engines.plan import HEADER_BYTES, VERSION_AT, header_of, plan_refusal
from posekit.runtime.errors import EngineError

NO_DRIVER = not Path("/dev/nvidiactl").exists()


@pytest.fixture(scope="module")
def plan() -> bytes:
    return compiled(toy_graph("fp32")).plan


@rtx_only
def test_the_header_says_who_wrote_it_and_how_long_it_is(plan: bytes) -> None:
    header = header_of(plan)
    assert header.flavour == "rtx"
    assert header.size == len(plan)
    assert header.version == version_of(tensorrt_module("rtx"))


@pytest.mark.parametrize("content", [b"", b"vtrt", b"PK\x03\x04" + bytes(100), b"{}" * 50, b"trtv" + bytes(60)])
def test_what_is_no_plan_is_called_that(content: bytes) -> None:
    with pytest.raises(EngineError, match=r"plan: got \d+ bytes beginning .*not a plan"):
        header_of(content)


@rtx_only
@settings(max_examples=30)
@given(st.data())
def test_a_truncated_plan_is_told_its_size(plan: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(HEADER_BYTES, len(plan) - 1))
    assert f"got {cut} bytes, expected {len(plan)} bytes" in str(plan_refusal("rtx", plan[:cut]))
    assert f"expected {len(plan)} bytes" in str(plan_refusal("rtx", plan + bytes(8)))


@rtx_only
def test_a_plan_of_another_version_is_told_both(plan: bytes) -> None:
    old = bytearray(plan)
    old[VERSION_AT : VERSION_AT + 3] = bytes((1, 2, 9))
    assert "written by TensorRT-RTX 1.2.9" in str(plan_refusal("rtx", bytes(old)))
    assert "Build it again here" in str(plan_refusal("rtx", bytes(old)))


@rtx_only
def test_a_plan_of_the_other_flavour_is_told_so(plan: bytes) -> None:
    assert "a plan of TensorRT, expected one of TensorRT-RTX" in str(plan_refusal("rtx", b"ftrt" + plan[4:]))


@rtx_only
@pytest.mark.skipif(not NO_DRIVER, reason="there is a driver")
def test_without_a_driver_a_good_plan_is_refused_for_that(plan: bytes) -> None:
    refusal = plan_refusal("rtx", plan)
    assert refusal is not None
    assert "cudaError 35" in refusal.got
    assert "no NVIDIA driver, or it is older" in refusal.remedy


@rtx_only
@settings(max_examples=50)
@given(st.data())
def test_damage_anywhere_never_crashes(plan: bytes, data: st.DataObject) -> None:
    damaged = bytearray(plan)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, 4 * HEADER_BYTES))] ^= data.draw(st.integers(1, 255))
    assert isinstance(plan_refusal("rtx", bytes(damaged)), EngineError) or not NO_DRIVER


@pytest.mark.skipif(missing("tensorrt") is None, reason="TensorRT is installed")
def test_without_tensorrt_no_plan_opens() -> None:
    assert "No module named 'tensorrt'" in str(plan_refusal("tensorrt", b"ftrt" + bytes(100)))
