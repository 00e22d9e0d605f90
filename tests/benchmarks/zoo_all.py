"""The whole zoo: importing this enters every architecture."""

from __future__ import annotations

from tests.benchmarks import zoo_sequences, zoo_tables, zoo_vision
from tests.benchmarks.zoo import ZOO, Made, build

__all__ = ["ZOO", "Made", "build", "zoo_sequences", "zoo_tables", "zoo_vision"]
