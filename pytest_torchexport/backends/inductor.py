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
    """Compile as on a machine that never did: no cache, in memory, on disk or in the network, knows anything."""
    from torch._functorch import config as functorch  # noqa: PLC0415 loads inductor
    from torch._inductor import config, utils  # noqa: PLC0415

    with (
        config.patch(fx_graph_remote_cache=False, autotune_remote_cache=False, bundled_autotune_remote_cache=False),
        functorch.patch(enable_remote_autograd_cache=False),
        utils.fresh_cache(),
    ):
        yield
