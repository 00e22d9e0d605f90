"""Counterexamples kept from one run to the next."""

from __future__ import annotations

import dataclasses
import enum
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pytest_torchexport.inputs import remember
from pytest_torchexport.subject.call import Call, bind
from pytest_torchexport.subject.equality import identical

if TYPE_CHECKING:
    from pathlib import Path


class Mode(enum.Enum):
    SUM = 1
    MEAN = 2


@dataclasses.dataclass
class Batch:
    ids: torch.Tensor
    mask: torch.Tensor | None = None


class Model(torch.nn.Module):
    def forward(
        self, x: Any, batch: Any = None, *, mode: Mode = Mode.SUM, scale: float = 1.0, flag: bool = False, hook: Any = 0
    ) -> torch.Tensor:
        return x


MODEL = Model()


def example(**kwargs: Any) -> Call:
    given = {"batch": {"ids": torch.tensor([[1, 2]]), "parts": [torch.ones(2)]}, "mode": Mode.SUM} | kwargs
    return Call((torch.zeros(2, 3),), given)


def call(*args: Any, label: str = "found", **kwargs: Any) -> Call:
    return Call(args or (torch.ones(2, 3),), example().kwargs | kwargs, "branch", label)


def stored(folder: Path, *inputs: tuple[Call, ...], key: str = "test_x") -> int:
    return remember.save(folder, key, inputs, MODEL, example())


def loaded(folder: Path, pattern: Call | None = None, model: Any = MODEL) -> remember.Remembered:
    return remember.load(folder, "test_x", model, pattern or example())


def test_a_sequence_comes_back(tmp_path: Path) -> None:
    first = call(torch.tensor([[1.0, float("nan"), -0.0]]), mode=Mode.MEAN, scale=2.5, label="x = one")
    second = call(batch={"ids": torch.tensor([[7]]), "parts": [torch.zeros(1), torch.zeros(2)]}, flag=True)
    assert stored(tmp_path, (first, second)) == 1
    found = loaded(tmp_path)
    assert found.dropped == 0
    ((one, two),) = found.inputs
    assert identical(bind(MODEL, one), bind(MODEL, first))
    assert identical(bind(MODEL, two), bind(MODEL, second))
    assert (one.kind, one.label, two.label) == ("remembered", "x = one", "found")


def test_another_key_has_other_inputs(tmp_path: Path) -> None:
    stored(tmp_path, (call(),), key="another")
    assert loaded(tmp_path) == remember.Remembered()
    assert remember.load(tmp_path / "missing", "test_x", MODEL, example()) == remember.Remembered()


def test_strides_aliases_and_gradients_come_back(tmp_path: Path) -> None:
    x = torch.arange(6.0).reshape(3, 2).t()
    pattern = example(batch=[torch.zeros(2, 3)])
    inputs = [(call(x, batch=[x]),), (call(torch.ones(2, 3, requires_grad=True), batch=[x]),)]
    remember.save(tmp_path, "test_x", inputs, MODEL, pattern)
    first, second = (one[0] for one in loaded(tmp_path, pattern).inputs)
    assert first.args[0].stride() == x.stride()
    assert first.args[0] is first.kwargs["batch"][0]
    assert second.args[0].requires_grad


def test_the_file_holds_the_values_and_not_the_examples(tmp_path: Path) -> None:
    pattern = example()
    remember.save(tmp_path, "test_x", [(pattern,)], MODEL, pattern)
    other = Call((torch.full((2, 3), 9.0),), pattern.kwargs)
    ((found,),) = loaded(tmp_path, other).inputs
    assert identical(found.args[0], torch.zeros(2, 3))


def test_a_view_does_not_bring_its_storage(tmp_path: Path) -> None:
    stored(tmp_path, (call(torch.zeros(1000, 1000)[:2, :3]),))
    (file,) = tmp_path.rglob("*.pt")
    assert file.stat().st_size < 20_000


def test_records_and_opaque_objects_are_the_examples(tmp_path: Path) -> None:
    hook = lambda value: value  # noqa: E731 - something that no file holds
    pattern = example(batch=Batch(torch.tensor([1]), torch.tensor([True])), hook=hook)
    kept = Call(pattern.args, pattern.kwargs | {"batch": Batch(torch.tensor([5]), None)})
    assert remember.save(tmp_path, "test_x", [(kept,)], MODEL, pattern) == 1
    ((found,),) = loaded(tmp_path, pattern).inputs
    assert found.kwargs["hook"] is hook
    assert identical(found.kwargs["batch"], Batch(torch.tensor([5]), None))


def test_what_no_file_holds_is_not_kept(tmp_path: Path) -> None:
    assert stored(tmp_path, (call(hook=lambda value: value),), (call(),)) == 1
    assert len(loaded(tmp_path).inputs) == 1


def test_a_large_input_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remember, "_LARGEST", 100)
    assert stored(tmp_path, (call(torch.zeros(50)),)) == 0


def test_arguments_may_be_left_out(tmp_path: Path) -> None:
    pattern = Call((torch.zeros(2, 3), {"ids": torch.tensor([1])}), {"flag": True})
    kept = Call((torch.ones(2, 3),))
    remember.save(tmp_path, "test_x", [(kept,)], MODEL, pattern)
    ((found,),) = loaded(tmp_path, pattern).inputs
    assert len(found.args) == 1
    assert not found.kwargs


class Renamed(torch.nn.Module):
    def forward(self, image: Any, batch: Any = None, *, mode: Mode = Mode.SUM) -> Any:
        return image


MISFITS = {
    "another dtype": (MODEL, Call((torch.zeros(2, 3, dtype=torch.float64),), example().kwargs)),
    "another rank": (MODEL, Call((torch.zeros(2),), example().kwargs)),
    "no tensor": (MODEL, Call((1.0,), example().kwargs)),
    "another key": (MODEL, example(batch={"tokens": torch.tensor([1]), "parts": [torch.ones(2)]})),
    "another type": (MODEL, example(mode="sum")),
    "another name": (Renamed(), example()),
}


@pytest.mark.parametrize(("model", "pattern"), MISFITS.values(), ids=list(MISFITS))
def test_what_no_longer_fits_is_dropped_and_counted(tmp_path: Path, model: Any, pattern: Call) -> None:
    stored(tmp_path, (call(),))
    assert loaded(tmp_path).dropped == 0
    found = loaded(tmp_path, pattern, model)
    assert (found.inputs, found.dropped) == ((), 1)


def test_damaged_files_are_dropped_and_counted(tmp_path: Path) -> None:
    stored(tmp_path, (call(),), (call(torch.zeros(4, 3)),), (call(torch.zeros(5, 3)),))
    files = sorted(tmp_path.rglob("*.pt"))
    files[0].write_bytes(b"nothing")
    torch.save({"schema": 99}, files[1])
    found = loaded(tmp_path)
    assert len(found.inputs) == 1
    assert found.dropped == 2


class Maker:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_no_code_is_run_from_a_file(tmp_path: Path) -> None:
    stored(tmp_path, (call(),))
    (file,) = tmp_path.rglob("*.pt")
    made = tmp_path / "made"
    torch.save({"schema": 1, "calls": [Maker(made)]}, file)
    assert loaded(tmp_path).dropped == 1
    assert not made.exists()


def test_the_latest_five_are_kept(tmp_path: Path) -> None:
    for size in range(1, 7):
        stored(tmp_path, (call(torch.zeros(size, 3)),))
    stored(tmp_path, (call(torch.zeros(2, 3)),))
    assert [one.args[0].shape[0] for (one,) in loaded(tmp_path).inputs] == [2, 6, 5, 4, 3]


def test_those_saved_together_keep_their_order(tmp_path: Path) -> None:
    stored(tmp_path, *((call(torch.zeros(size, 3)),) for size in (3, 1, 2)))
    assert [one.args[0].shape[0] for (one,) in loaded(tmp_path).inputs] == [3, 1, 2]


def test_workers_may_write_at_the_same_time(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda size: stored(tmp_path, (call(torch.zeros(size % 3, 3)),)), range(24)))
    found = loaded(tmp_path)
    assert sorted(one.args[0].shape[0] for (one,) in found.inputs) == [0, 1, 2]
    assert found.dropped == 0
    assert not list(tmp_path.rglob("*.part"))


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert stored(file / "folder", (call(),)) == 0
