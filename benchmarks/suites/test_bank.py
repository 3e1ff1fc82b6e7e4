"""Loading a template bank of the reference's size: parsed and checked, not copied."""

from __future__ import annotations

from pytest_benchmark.fixture import BenchmarkFixture

from posekit.runtime.bank import bank_from_bytes


def test_load_and_check(benchmark: BenchmarkFixture, bank_member: bytes) -> None:
    bank = benchmark(bank_from_bytes, bank_member, "a bank")
    assert bank.matched["templates"].shape == (36, 16, 162 * 36)
