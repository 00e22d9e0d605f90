"""The source by which a script makes or loads a program says all that differs from the defaults."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest

from pytest_torchexport.backends import recipes

PLAIN: dict[str, Any] = {"backend": "inductor", "mode": None, "dynamic": None, "fullgraph": False, "options": None}


@pytest.mark.parametrize(
    ("options", "made"),
    [
        ({}, "torch.compile(model)"),
        ({"dynamic": False}, "torch.compile(model, dynamic=False)"),
        ({"dynamic": True, "fullgraph": True}, "torch.compile(model, dynamic=True, fullgraph=True)"),
        ({"options": MappingProxyType({"a": 1})}, "torch.compile(model, options={'a': 1})"),
        ({"backend": "eager", "options": {"a": 1}}, "torch.compile(model, backend='eager', options={'a': 1})"),
    ],
)
def test_options_that_are_no_defaults_are_in_the_source(options: dict[str, Any], made: str) -> None:
    assert recipes.compiling(PLAIN | options) == made
