"""`test_repro.py`: a test that checks the model on the failing input, as the test did in which it failed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.backends.base import options_of
from pytest_torchexport.backends.recipes import free_text
from pytest_torchexport.reproduce import rebuild, script, standalone
from pytest_torchexport.reproduce.example import example_keys
from pytest_torchexport.reproduce.spell import CannotSpell, Speller
from pytest_torchexport.reproduce.written import NotPython, write_source
from pytest_torchexport.subject.equality import identical

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_torchexport.backends.base import Backend
    from pytest_torchexport.plan import Plan, Policy
    from pytest_torchexport.reproduce.keep import Kept
    from pytest_torchexport.subject.call import Call
    from pytest_torchexport.trials import Trial

NAME = "test_repro.py"


@dataclass(frozen=True)
class Ready:
    """What the test is made of: the outcome's first line, the check, the input; none where the export is refused."""

    title: str
    plan: Plan
    policy: Policy
    backend: Backend
    trial: Trial | None


def write(ready: Ready, kept: Kept) -> dict[str, Any]:
    """Write `test_repro.py`, the example in `example.npz`, and the model's state in `state.npz`.

    Args:
        ready: what the test is made of.
        kept: the folder, with the group `input` if there is a failing input.

    Returns:
        Which fields of the outcome change: a line of the message.
    """
    (kept.folder / NAME).unlink(missing_ok=True)  # of an earlier run
    plan, trial = ready.plan, ready.trial
    if trial is not None and len(trial.calls) > 1 and not _all_equal(plan, trial.calls):
        return {"message": f"no {NAME}: a test gives one call, and repeats it"}
    speller = Speller(example_keys(plan, trial.calls if trial is not None else (), kept))
    try:
        call, marker = _call(ready, speller), _marker(ready, speller)
        imports = rebuild.imports_of(speller)
    except CannotSpell as error:
        return {"message": f"no {NAME}: the check needs {error}"}
    made = rebuild.construction(plan.model)
    state = rebuild.keep_state(plan.model, kept)
    try:
        write_source(kept.folder / NAME, _source(ready, imports, call, marker, made, state=state))
    except NotPython as error:
        return {"message": f"no {NAME}: {error}"}
    if (kept.folder / script.NAME).exists():
        return {}
    line = f"reproduce: pytest {kept.folder / NAME}"
    return {"message": line if made.expression else f"{line} (fill in how the model is made: {made.why})"}


def _all_equal(plan: Plan, calls: Iterable[Call]) -> bool:
    first, *others = (plan.names(call) for call in calls)
    return all(identical(first, other) for other in others)


# --- the source -----------------------------------------------------------------------------------------------------


def _source(ready: Ready, imports: str, call: str, marker: str, made: rebuild.Construction, *, state: bool) -> str:
    machinery = "\n\n".join(
        inspect.getsource(part) for part in (standalone.Kept, standalone.Archives, standalone._strided)
    )
    return f'''"""{free_text(ready.title)}

The same check on the input that failed, to be run with pytest.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pytest_torchexport
{rebuild.imports(made)}{imports}
HERE = Path(__file__).resolve().parent

{rebuild.model_source(made, state=state)}

@pytest.mark.export_equivalent({marker})
def test_repro(export_check):
    kept = Archives(HERE)
    model = make_model()
    restore(model, HERE)
    export_check({call})


# --- the kept tensors -------------------------------------------------------------------------------------------------


{machinery}'''


def _call(ready: Ready, speller: Speller) -> str:
    plan, trial = ready.plan, ready.trial
    arguments = ["model", speller.spell(plan.example.args)]
    if plan.example.kwargs:
        arguments.append(speller.spell(dict(plan.example.kwargs)))
    if plan.dynamic_shapes is not None:
        arguments.append(f"dynamic_shapes={_shapes(plan.dynamic_shapes)}")
    if trial is not None and trial.kind != "example":
        call = trial.calls[0]
        arguments.append(f"extra_inputs=[({speller.spell(call.args)}, {speller.spell(dict(call.kwargs))})]")
    if trial is not None and len(trial.calls) > 1:
        arguments.append(f"calls={len(trial.calls)}")
    return ", ".join(arguments)


def _shapes(spec: Any) -> str:
    """`dynamic_shapes` as source.

    Raises:
        CannotSpell: it holds what no source gives back.
    """
    if isinstance(spec, Mapping):
        if not all(type(key) in (str, int) for key in spec):
            msg = "dynamic_shapes with keys that are neither names nor dims"
            raise CannotSpell(msg)
        return "{" + ", ".join(f"{key!r}: {_shapes(part)}" for key, part in spec.items()) + "}"
    if type(spec) in (list, tuple):
        inside = "".join(f"{_shapes(part)}, " for part in spec)
        return f"[{inside}]" if isinstance(spec, list) else f"({inside})"
    if spec is None or type(spec) in (int, bool):
        return repr(spec)
    dim = torch.export.Dim
    for name in ("AUTO", "DYNAMIC", "STATIC"):
        if spec is getattr(dim, name):
            return f"torch.export.Dim.{name}"
    bounds = "".join(
        f", {bound}={value}"
        for bound in ("min", "max")
        if isinstance(value := getattr(spec, bound, None), int) and 0 < value < 2**31
    )
    if type(spec) is dim:
        return f"torch.export.Dim({spec.__name__!r}{bounds})"
    if isinstance(spec, type(dim.AUTO)):
        return f"torch.export.Dim.{spec.type.name}({bounds.removeprefix(', ')})"
    msg = f"dynamic_shapes with {spec!r}"
    raise CannotSpell(msg)


def _marker(ready: Ready, speller: Speller) -> str:
    policy = ready.policy
    given = {
        "backends": f"[{_backend(ready.backend, speller)}]",
        "devices": repr([str(policy.device)]),
        "dtypes": repr([policy.dtype]) if policy.dtype else "",
        "tolerance": _tolerance(policy.tolerance),
        "n_inputs": "0",
        "branches": repr("off" if policy.branches == "off" else "observe"),
        "seed": str(policy.seed) if policy.seed else "",
        "grad": "True" if policy.grad else "",
    }
    return ", ".join(f"{name}={text}" for name, text in given.items() if text)


def _backend(backend: Backend, speller: Speller) -> str:
    """The backend as it stands on a marker: by its name, or as an object where it has options."""
    options = {one.name: getattr(backend, one.name) for one in options_of(type(backend))}
    built_in = type(backend).__module__.partition(".")[0] == "pytest_torchexport"
    if backend.id == backend.name and built_in:
        return repr(backend.name)
    changed = {name: value for name, value in options.items() if value != getattr(type(backend), name, None)}
    made = f"pytest_torchexport.{type(backend).__qualname__}" if built_in else speller.reference(type(backend))
    return f"{made}({', '.join(f'{name}={_option(value, speller)}' for name, value in changed.items())})"


def _option(value: Any, speller: Speller) -> str:
    return speller.spell(dict(value) if isinstance(value, Mapping) else value)


def _tolerance(tolerance: Any) -> str:
    if tolerance is None:
        return ""
    if isinstance(tolerance, Mapping):
        return "{" + ", ".join(f"{name!r}: {_tolerance(one)}" for name, one in tolerance.items()) + "}"
    return f"pytest_torchexport.{tolerance!r}"
