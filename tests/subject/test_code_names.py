"""Whose code a file is, by the names that a user gives."""

from __future__ import annotations

import sys
from pathlib import Path

import jinja2
import pytest
import torch

from pytest_torchexport.errors import UsageError
from pytest_torchexport.subject.source import is_users, user_code

HERE = str(Path(__file__).absolute())


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package `modellib` with a module and an inner package."""
    folder = tmp_path / "site-packages" / "modellib"
    (folder / "layers").mkdir(parents=True)
    for name in ("__init__.py", "heads.py", "layers/__init__.py", "layers/norm.py"):
        (folder / name).touch()
    (tmp_path / "site-packages" / "modellib_single.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    return folder


def test_without_entries_it_is_the_default() -> None:
    assert user_code(()) is is_users


@pytest.mark.parametrize(
    ("entries", "heads", "norm"),
    [
        ((), True, True),
        (("-modellib",), False, False),
        (("-modellib", "modellib.layers"), False, True),
        (("modellib.layers", "-modellib"), False, False),
        (("-modellib.heads",), False, True),
        (("-modellib.head",), True, True),
        (("-model",), True, True),
        (("-modellib_single",), True, True),
        (("-*/heads.py",), False, True),
        (("-modellib/*",), False, False),
        (("-modellib/layers",), True, False),
        (("-layers/norm.py",), True, False),
        (("-not_installed_anywhere", "-not_installed_anywhere.inner"), True, True),
    ],
)
def test_entries(package: Path, entries: tuple[str, ...], heads: bool, norm: bool) -> None:
    fits = user_code(entries)
    assert fits(str(package / "heads.py")) is heads
    assert fits(str(package / "layers" / "norm.py")) is norm
    assert fits(HERE) is True, "others stay as they are"
    assert fits(torch.__file__) is False
    assert fits("<string>") is False


def test_a_single_module(package: Path) -> None:
    assert user_code(["-modellib_single"])(str(package.parent / "modellib_single.py")) is False


def test_machinery_can_be_added() -> None:
    assert jinja2.__file__ is not None
    assert is_users(jinja2.__file__) is False
    assert user_code(["jinja2"])(jinja2.__file__) is True


def test_names_are_found_without_importing(package: Path) -> None:
    user_code(["-modellib.layers"])(str(package / "layers" / "norm.py"))
    assert not [name for name in sys.modules if name.startswith("modellib")]


@pytest.mark.parametrize("entry", ["", "-", "a b", "timm-layers", "1st", "a..b"])
def test_what_is_neither_name_nor_glob(entry: str) -> None:
    with pytest.raises(UsageError, match=r"user_code holds .*: give the name of a package"):
        user_code([entry])
