"""Inputs of a test that failed in earlier runs: under which name they are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_torchexport.inputs import remember
from pytest_torchexport.subject import containers

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_torchexport.plan import Plan
    from pytest_torchexport.subject.call import Call


@dataclass(frozen=True)
class Memory:
    """Inputs of one test that failed in earlier runs.

    Args:
        folder: where they are kept.
        origin: id of the test function.
    """

    folder: Path
    origin: str

    def load(self, plan: Plan) -> remember.Remembered:
        """What is kept for the plan's model and example."""
        return remember.load(self.folder, self._key(plan), plan.model, plan.example)

    def save(self, plan: Plan, calls: tuple[Call, ...]) -> None:
        """Keep an input for later runs."""
        remember.save(self.folder, self._key(plan), [calls], plan.model, plan.example)

    def _key(self, plan: Plan) -> str:
        """The same in every run as long as test, class and the kinds of arguments are."""
        model = plan.model if hasattr(plan.model, "__qualname__") else type(plan.model)
        leaves = [pair for name, value in plan.names(plan.example).items() for pair in containers.leaves(value, name)]
        kinds = [f"{path}: {getattr(leaf, 'dtype', type(leaf).__qualname__)}" for path, leaf in leaves]
        named = f"{model.__module__}.{getattr(model, '__qualname__', '')}"
        return "\n".join([self.origin, named, str(plan.dtype), *kinds])
