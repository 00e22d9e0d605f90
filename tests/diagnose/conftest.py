"""Puts the repository's root on the path, so that the models can be imported as `tests.diagnose.refusal_models`."""

from __future__ import annotations

import sys
from pathlib import Path

_ROOT = str(Path(__file__).parents[2])
if _ROOT not in sys.path:
    sys.path.append(_ROOT)
