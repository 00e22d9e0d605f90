"""The same with the plugin: run by pytest."""

from __future__ import annotations

from typing import Any

import models
import pytest


@pytest.mark.export_equivalent(backends=list(models.BACKENDS), n_inputs=models.N_INPUTS)
@pytest.mark.parametrize("name", list(models.MODELS))
def test_model(name: str, export_check: Any) -> None:
    model, args = models.MODELS[name]()
    export_check(model, args)
