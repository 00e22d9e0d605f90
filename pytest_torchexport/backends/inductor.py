"""What inductor needs on this machine, for torch.compile and AOTInductor."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


def missing_compiler() -> str | None:
    """Why inductor cannot compile here, with the remedy; None if it finds a C++ compiler."""
    from torch._inductor import config  # noqa: PLC0415 loads inductor

    named: Any = config.cpp.cxx
    candidates = [*(named if isinstance(named, (tuple, list)) else [named]), "g++", "clang++", "c++", "cl"]
    if any(one and shutil.which(str(one)) for one in candidates):
        return None
    return (
        "torch's inductor needs a C++ compiler and none is on the PATH: install one (Debian and Ubuntu: "
        "apt install g++; macOS: xcode-select --install), or name one in the environment variable CXX"
    )


@contextlib.contextmanager
def from_nothing() -> Iterator[None]:
    """Compile as on a machine that never did: neither a cache on disk nor one in memory has anything from before."""
    from torch._inductor import config, utils  # noqa: PLC0415 loads inductor

    # The first is for graphs and kernels by their content, the second for the compiled C++ and Triton sources.
    with config.patch(force_disable_caches=True), utils.fresh_cache():
        yield
