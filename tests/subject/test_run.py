"""Programs run in surroundings of their own: random numbers, autograd mode, device, memory."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from pytest_torchexport import check
from pytest_torchexport.outcome import Verdict
from pytest_torchexport.subject.call import Call
from pytest_torchexport.subject.run import fixed_rng, run, storage_of

CPU = torch.device("cpu")
X = torch.tensor([0.1, 0.2, 0.3])


def test_a_call_does_not_change_a_set_or_a_byte_array_of_the_user() -> None:
    given: tuple[Any, ...] = ({1}, bytearray(b"a"))

    def writes(x: torch.Tensor, kinds: set[int], text: bytearray) -> torch.Tensor:
        kinds.add(2)
        text.append(1)
        return x * 2

    record = run(writes, [Call((X, *given))], device=CPU)
    assert record.arguments[0].args[1:] == ({1, 2}, bytearray(b"a\x01"))
    assert given == ({1}, bytearray(b"a"))


def test_clone_all_keeps_an_output_that_the_program_writes_to_later() -> None:
    memory = torch.zeros(3)

    def double(x: torch.Tensor) -> torch.Tensor:
        return torch.mul(x, 2, out=memory)

    one, other = (run(double, [Call((X,))], device=CPU, clone_all=clone_all) for clone_all in (False, True))
    memory.zero_()
    assert one.outputs[0].sum() == 0
    torch.testing.assert_close(other.outputs[0], X * 2)


def test_storage_is_shared_by_views_only() -> None:
    nested = torch.nested.nested_tensor([X, X[:1]], layout=torch.jagged)
    assert storage_of(X) == storage_of(X[1:])
    assert len({storage_of(one) for one in (X, X.clone(), X.to_sparse(), nested)}) == 4


@pytest.mark.parametrize("grad", [False, True])
def test_the_callers_inference_mode_ends_at_the_check(grad: bool) -> None:
    model = torch.nn.BatchNorm1d(3)
    with torch.inference_mode():
        outcome = check(model, (torch.ones(2, 3) * X,), backend="compile:backend=aot_eager", n_inputs=1, grad=grad)
        assert torch.is_inference_mode_enabled()
    assert outcome.verdict is Verdict.EQUIVALENT


def test_the_callers_default_device_does_not_matter() -> None:
    record = None
    with torch.device("meta"):
        record = run(lambda x: x * 2, [Call((X,))], device=CPU, parameters={}, names=["x"])
    assert record.error is None
    assert record.gradients["gradient of x"].device == CPU


def test_random_numbers_are_fixed_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw() -> tuple[float, ...]:
        return random.random(), float(np.random.rand()), torch.rand(1).item()

    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a CPU check seeds an accelerator"))
    monkeypatch.setattr(torch.mps, "manual_seed", lambda seed: pytest.fail("a CPU check seeds an accelerator"))

    def states() -> list[Any]:
        return [random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()]

    before = states()
    with fixed_rng(3, CPU):
        first = draw()
    with fixed_rng(3, CPU):
        assert draw() == first
    with fixed_rng(4, CPU):
        assert not set(draw()) & set(first)
    assert states() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_random_numbers_of_the_device_are_fixed_and_put_back() -> None:
    device = torch.device("cuda")
    before = torch.cuda.get_rng_state(device)
    with fixed_rng(3, device):
        first = torch.rand(2, device=device)
    assert torch.equal(torch.cuda.get_rng_state(device), before)
    with fixed_rng(3, device):
        assert torch.equal(torch.rand(2, device=device), first)
    with fixed_rng(4, device):
        assert not torch.equal(torch.rand(2, device=device), first)
