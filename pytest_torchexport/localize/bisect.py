"""Which submodule a compiler gets wrong where no operator shows it: each is compiled alone, on eager's inputs."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.backends.base import Backend, ExportRequest
from pytest_torchexport.backends.quiet import quiet
from pytest_torchexport.eager import eager_run
from pytest_torchexport.localize.sketch import sketch, tells_something
from pytest_torchexport.outcome import Divergence
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.call import Call
from pytest_torchexport.subject.run import fixed_rng

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_torchexport.diagnose.case import Case
    from pytest_torchexport.localize.matching import Matcher

_SECONDS = 60.0
"""After so long no further submodule is compiled."""


@dataclass
class _Part:
    """A submodule, with its first call in eager."""

    path: str
    module: torch.nn.Module
    call: Call | None = None


@dataclass
class Bisection:
    """A search for the submodule at fault.

    Args:
        case: the failing input.
        backend: compiles the submodules.
        matcher: knows eager's values.
        cap: the most numbers of a value that are compared.
    """

    case: Case
    backend: Backend
    matcher: Matcher
    cap: int
    end: float = field(default_factory=lambda: time.monotonic() + _SECONDS, init=False)

    def find(self) -> Divergence | None:
        """The innermost submodule that differs from eager when it is compiled alone; None if none of them does."""
        model = self.case.plan.model
        if not isinstance(model, torch.nn.Module):
            return None
        found, inside = "", model
        while (part := self._first_wrong(inside, found)) is not None:
            found, inside = part.path, part.module
        if not found:
            return None
        note = (
            f"each operator of it is right by itself: {self.backend.name} runs those of {found} together, and which of "
            "them goes wrong there cannot be seen from outside"
        )
        return Divergence(module=found, note=note)

    def _first_wrong(self, module: torch.nn.Module, path: str) -> _Part | None:
        parts = [_Part(f"{path}.{name}" if path else name, child) for name, child in module.named_children()]
        for part in self._called(parts):
            if time.monotonic() > self.end:
                return None
            if self._differs(part):
                return part
        return None

    def _called(self, parts: list[_Part]) -> list[_Part]:
        """The parts in the order in which eager calls them, with their arguments."""
        order: list[_Part] = []

        def keep(part: _Part) -> Callable[..., None]:
            def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                if part.call is None:
                    part.call = Call(args, kwargs).clone()
                    order.append(part)

            return hook

        case = self.case

        def watched(*args: Any, **kwargs: Any) -> Any:
            # Set here: a run of eager begins with the hooks that the model had.
            with ExitStack() as hooks:
                for part in parts:
                    hooks.callback(part.module.register_forward_pre_hook(keep(part), with_kwargs=True).remove)
                return case.plan.model(*args, **kwargs)

        eager_run(case.plan, case.snapshot, case.reference, case.trial.calls[:1], program=watched)
        return order

    def _differs(self, part: _Part) -> bool:
        case, call = self.case, part.call
        assert call is not None
        grad = torch.set_grad_enabled(case.reference.needs_grad_mode)
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode(mode=False), grad, quiet():
            request = ExportRequest(part.module, call.clone(), None, case.plan.device, Path(folder))
            try:
                made = self.backend.export(request)
                case.snapshot.restore()
                program = self.backend.load(made, self.backend.save(made, request.directory), request)
                mine = call.clone()
                with fixed_rng(case.plan.seed, case.plan.device):
                    output = program(*mine.args, **mine.kwargs)
                given = [tensor.detach().clone() for _, tensor in containers.tensors(output)]
                program.close()
            except Exception:  # noqa: BLE001 a submodule that cannot be compiled alone is not known to be wrong
                return False
            finally:
                case.snapshot.restore()
        return any(
            tells_something(tensor) and not self.matcher.find(tensor.numel(), sketch(tensor, self.cap))[0]
            for tensor in given
        )
