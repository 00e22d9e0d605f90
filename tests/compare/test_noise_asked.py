"""The noise is measured for the leaves in dispute only, and they are known before the first run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.compare import jitter, noise
from pytest_torchexport.compare.leaf import compare_leaf
from pytest_torchexport.compare.noise import RoundingNoise
from pytest_torchexport.compare.rerun import Eager
from pytest_torchexport.subject.call import Call
from pytest_torchexport.subject.run import Record, run

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import pytest

CPU = torch.device("cpu")


class Measured:
    """The noise of a function with two outputs that are far from exact, and one argument that stays as it is."""

    def __init__(self) -> None:
        self.runs = 0
        self.x = 5 + torch.rand(4, 64, generator=torch.Generator().manual_seed(0))
        self.eager = Eager(self.rerun, self.leaves)
        self.expected = self.leaves(self.rerun(None))
        self.noise = RoundingNoise(self.expected, seed=0)
        self.runs = 0

    def rerun(self, mode: AbstractContextManager[Any] | None, dtype: torch.dtype | None = None) -> Record:
        self.runs += 1
        return run(self.variances, [Call((self.x,)).place(CPU, dtype)], device=CPU, mode=mode)

    @staticmethod
    def variances(x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {way: (x * x).mean(dim) - x.mean(dim) ** 2 for way, dim in (("rows", -1), ("columns", 0))}

    @staticmethod
    def leaves(record: Record) -> dict[str, Any]:
        return {**record.outputs[0], "argument x": record.arguments[0].args[0]}

    def judge(self, path: str, off: float, *disputed: str) -> bool:
        actual = self.expected[path] + off
        leaf = compare_leaf(path, self.expected[path], actual)
        assert not leaf.agrees
        return self.noise.judge(leaf, self.expected[path], actual, self.eager, frozenset(disputed)).agrees


def test_nothing_is_held_of_a_large_leaf_that_nobody_asks_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "_SMALL", 3)
    measured = Measured()
    assert not measured.judge("rows", 1e3)
    assert "columns" not in {**measured.noise._spread, **(measured.noise._reference or {})}


def test_large_leaves_that_are_named_together_share_their_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "_SMALL", 3)
    together, apart = Measured(), Measured()
    both = ("rows", "columns")
    assert [together.judge(path, 1e3, *both) for path in both] == [False, False]
    runs = together.runs
    assert [apart.judge(path, 1e3) for path in both] == [False, False]
    assert apart.runs == 2 * runs


def test_small_leaves_share_their_runs_in_any_case() -> None:
    measured = Measured()
    assert not measured.judge("rows", 1e3)
    runs = measured.runs
    assert not measured.judge("columns", 1e3)
    assert measured.runs == runs


def test_the_opinion_does_not_depend_on_what_was_asked_before() -> None:
    for off, said in ((5e-6, True), (1e3, False)):
        alone, later = Measured(), Measured()
        later.judge("columns", 1e3)
        assert alone.judge("rows", off) is said
        assert later.judge("rows", off) is said


def test_the_default_device_of_the_user_changes_nothing() -> None:
    expected = Measured().judge("rows", 5e-6)
    jitter._uniform.cache_clear()
    jitter._signs.cache_clear()
    measured = Measured()
    torch.set_default_device("meta")
    try:
        assert measured.judge("rows", 5e-6) is expected is True
    finally:
        torch.set_default_device(None)
