"""TorchScript's attributes are read, and set to what they were."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_torchexport.subject import script_attributes as under_test
from pytest_torchexport.subject.state import Snapshot, parameters, read, script_attributes, write_script_attributes

X = torch.tensor([0.1, 0.2])


Attribute: Any = torch.jit.Attribute  # mypy would take the attributes for objects of this class


class Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.seen = [1]
        self.cache = Attribute({"k": torch.zeros(2)}, dict[str, Tensor])
        self.last = Attribute(None, Tensor | None)
        self.linear: Any = nn.Linear(2, 2)
        self.total: Any
        self.register_buffer("total", torch.zeros(2))
        self.plain = torch.zeros(2)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.seen.append(self.count)
        self.cache["k"] = self.cache["k"] + x
        self.last = x
        self.total.add_(x)
        self.plain = self.plain + x
        y: Tensor = self.linear(x) + self.count
        return y


def scripted() -> Any:
    return torch.jit.script(nn.Sequential(Keeps()))


def loaded() -> Any:
    file = io.BytesIO()
    torch.jit.save(scripted(), file)
    file.seek(0)
    return torch.jit.load(file)  # type: ignore[no-untyped-call]


STATE = {"0.count", "0.seen[0]", "0.cache['k']", "0.last", "0.total", "0.plain"}
CHANGED = STATE - {"0.seen[0]"} | {"0.seen[1]"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("make", [scripted, loaded])
class TestScript:
    def test_state_is_read_and_restored(self, make: Any) -> None:
        model = make()
        assert read(model).keys() >= STATE
        snapshot = Snapshot(model)
        for _ in range(2):
            first = model(X)
            assert snapshot.changes().keys() >= CHANGED
            snapshot.restore()
            assert snapshot.changes() == {}
        torch.testing.assert_close(model(X), first)

    def test_attributes_are_written_as_copies(self, make: Any) -> None:
        model = make()
        before = script_attributes(model)
        model(X)
        kept = {name: value for name, value in before.items() if name == "0.cache"}
        write_script_attributes(model, kept)
        script_attributes(model)["0.cache"]["k"].add_(1)
        assert kept["0.cache"]["k"].sum() == 0

    def test_parameters_are_no_attributes(self, make: Any) -> None:
        model = make()
        assert not [name for name in script_attributes(model) if name.endswith(("weight", "bias"))]
        assert set(parameters(model)) == {"0.linear.weight", "0.linear.bias"}

    def test_names_are_looked_up_once(self, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        model = make()
        calls: list[object] = []
        find = under_test._attribute_names

        def counted(*args: Any) -> Any:
            calls.append(args)
            return find(*args)

        monkeypatch.setattr(under_test, "_attribute_names", counted)
        for _ in range(3):
            script_attributes(model)
            read(model)
        assert len(calls) == len(list(model.modules()))
