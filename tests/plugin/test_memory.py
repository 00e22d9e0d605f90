"""Inputs that failed are remembered in pytest's cache, and replayed first in the next run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.plugin.conftest import Project

TESTS = """
class Rare(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 100 else x - 1

@pytest.mark.export_equivalent(backends=["trace", "script"], n_inputs=4)
def test_rare(export_check):
    export_check(Rare().eval(), X)
"""
PASSES = TESTS.replace("x + 1 if x.sum() > 100 else x - 1", "x - 1")


@pytest.fixture
def cached(project: Project) -> Project:
    """A project whose runs have a cache."""
    project.pytester.makeini("[pytest]\naddopts = --strict-markers\nfilterwarnings = error\n")
    project.test(TESTS)
    return project


def kinds(project: Project) -> dict[str, list[str]]:
    """The kinds of the inputs of the last run, by item, each once and in order."""
    return {
        name: list(dict.fromkeys(one["kind"] for one in outcome["inputs"]))
        for name, outcome in project.outcomes().items()
    }


def kept(project: Project) -> list[Path]:
    return sorted((project.path / ".pytest_cache").rglob("torchexport/*/*.pt"))


def trace(project: Project) -> dict[str, Any]:
    return project.outcomes()["test_rare[trace-cpu]"]


def test_a_failing_input_is_replayed_first(cached: Project) -> None:
    cached.run().assert_outcomes(failed=1, passed=1)
    assert all("remembered" not in found for found in kinds(cached).values())
    first, files = trace(cached), kept(cached)
    assert len(files) == 1
    cached.run().assert_outcomes(failed=1, passed=1)
    assert {name: found[:2] for name, found in kinds(cached).items()} == {
        "test_rare[trace-cpu]": ["example", "remembered"],
        "test_rare[script-cpu]": ["example", "remembered"],
    }
    second = trace(cached)
    assert second["paste"] == first["paste"], "what was simple is shown again"
    assert "input: remembered: " in second["message"]
    assert second["branches"]["by_kind"]["remembered"] == 1
    cached.run()
    assert trace(cached)["message"] == second["message"], "labels do not grow"
    assert kept(cached) == files


def test_it_stays_when_nothing_fails_any_more(cached: Project) -> None:
    cached.run()
    cached.test(PASSES)
    cached.run().assert_outcomes(passed=2)
    assert trace(cached)["inputs_by_kind"]["remembered"] == 1
    assert len(kept(cached)) == 1


def test_clearing_the_cache_forgets(cached: Project) -> None:
    cached.run()
    cached.run("--cache-clear")
    assert "remembered" not in trace(cached)["inputs_by_kind"]


def test_without_a_cache_nothing_is_remembered(cached: Project) -> None:
    for _ in range(2):
        cached.run("-p", "no:cacheprovider").assert_outcomes(failed=1, passed=1)
        assert "remembered" not in trace(cached)["inputs_by_kind"]
    assert not (cached.path / ".pytest_cache").exists()


def test_workers_share_the_memory(cached: Project) -> None:
    pytest.importorskip("xdist")
    cached.run_apart("-n2").assert_outcomes(failed=1, passed=1)
    cached.run_apart("-n2").assert_outcomes(failed=1, passed=1)
    assert {name: found[:2] for name, found in kinds(cached).items()} == {
        "test_rare[trace-cpu]": ["example", "remembered"],
        "test_rare[script-cpu]": ["example", "remembered"],
    }


def test_inputs_of_another_test_are_not_replayed(cached: Project) -> None:
    cached.run()
    cached.test(TESTS.replace("test_rare", "test_other"))
    cached.run("-k", "trace")
    assert "remembered" not in cached.outcomes()["test_other[trace-cpu]"]["inputs_by_kind"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("X)", "X, assume=lambda x: bool(x.max() < 5))"), "remembered: assume"),
        (("X)", "(torch.ones(2, 3),))"), "remembered: no longer an input of the model"),
        (("return x + 1 if", "assert x.max() < 5\n        return x + 1 if"), "remembered: eager raises"),
    ],
)
def test_what_is_no_input_any_more_is_counted(cached: Project, change: tuple[str, str], why: str) -> None:
    cached.run()
    cached.test(TESTS.replace(*change))
    cached.run("-k", "trace")
    outcome = trace(cached)
    assert outcome["dropped"][why] == 1
    assert "remembered" not in outcome["inputs_by_kind"]


def test_the_users_own_inputs_are_not_remembered(cached: Project) -> None:
    cached.test(TESTS.replace("X)", "X, extra_inputs=[(torch.full((4, 3), 50.0),)])"))
    cached.run().assert_outcomes(failed=1, passed=1)
    assert not kept(cached)
