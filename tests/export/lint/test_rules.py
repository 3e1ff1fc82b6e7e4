"""Each rule finds its fault and nothing else, in the right place, and is silent about the twin without it."""

from __future__ import annotations

import pytest
from lint_cases import CASES, Case

from posekit.export.lint import ALL, RULES, lint

IDS = [case.rule for case in CASES]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_rule_finds_its_fault_alone(case: Case) -> None:
    findings = lint(case.bad(), case.targets or ALL)
    assert [f.rule for f in findings if f.rule not in case.beside] == [case.rule], findings
    finding = next(f for f in findings if f.rule == case.rule)
    assert finding.node == case.at
    assert case.got in finding.got
    assert finding.what
    assert finding.expected
    assert finding.remedy.endswith(".")


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_rule_is_silent_about_the_good_twin(case: Case) -> None:
    assert lint(case.good(), case.targets or ALL) == ()


def test_every_rule_has_its_case() -> None:
    beside = {"external-data-missing"}  # needs a folder: test_files.py
    assert {rule.id for rule in RULES} == set(IDS) | beside
    assert len({rule.id for rule in RULES}) == len(RULES)
