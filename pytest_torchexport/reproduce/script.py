"""`repro.py`: a script that loads a kept artifact, runs it on the kept input, and shows how it differs from eager."""

from __future__ import annotations

import inspect
import json
import logging
import re
import subprocess
import sys
import warnings
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.backends.base import Recipe
from pytest_torchexport.backends.quiet import quiet
from pytest_torchexport.backends.recipes import free_text
from pytest_torchexport.compare import any_order
from pytest_torchexport.compare.records import named_leaves
from pytest_torchexport.reproduce import rebuild, standalone
from pytest_torchexport.reproduce.example import example_keys
from pytest_torchexport.reproduce.keep import Kept, Leaves
from pytest_torchexport.reproduce.spell import CannotSpell, Speller
from pytest_torchexport.reproduce.written import NotPython, write_source
from pytest_torchexport.subject import containers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from pytest_torchexport.backends.base import Exported
    from pytest_torchexport.compare.tolerance import Tolerance
    from pytest_torchexport.diagnose.cause import Finding
    from pytest_torchexport.outcome import Leaf
    from pytest_torchexport.plan import Plan
    from pytest_torchexport.subject.call import Call
    from pytest_torchexport.trials import Trial

NAME = "repro.py"
_PATIENCE = 300.0
"""Seconds after which a script that is tried is ended; what it would have shown is then not known."""


@dataclass(frozen=True)
class Shown:
    """The failure that is shown.

    Attributes:
        title: the message's first line.
        plan: the test's.
        exported: the program, closed.
        structure: what the program keeps of eager's containers.
        trial: the input, and what eager did on it.
        finding: what differs on it.
        grad: whether autograd was on.
        start: the state that eager starts from, by name.
    """

    title: str
    plan: Plan
    exported: Exported
    structure: str
    trial: Trial
    finding: Finding
    grad: bool
    start: Mapping[str, Any]

    @property
    def calls(self) -> tuple[Call, ...]:
        """The failing input."""
        return self.trial.calls

    def differing(self, *kinds: str) -> dict[str, Leaf]:
        """What differs besides outputs, by the leaf's path; kinds are `argument`, `state` and `gradient`."""
        return {
            leaf.path: leaf
            for leaf in self.finding.leaves
            if re.sub(r"^call \d+ ", "", leaf.path).partition(" ")[0] in kinds
        }


def eager_leaves(shown: Shown) -> Leaves:
    """What is kept of eager: its outputs, and beside them what else differs, under the names of the comparison."""
    record = shown.trial.record
    leaves = Leaves(containers.leaves(record.outputs))
    beside = shown.differing("argument", "state", "gradient")
    if beside and record.error is None:
        known = named_leaves(record, len(shown.calls), shown.start, shown.plan.names)
        leaves += [(path, known[path]) for path in beside if path in known]
    return leaves


def write(shown: Shown, kept: Kept) -> dict[str, Any]:
    """Write `repro.py` beside what is kept.

    Args:
        shown: the failure.
        kept: the folder, with the groups `input` and `eager`.

    Returns:
        Which fields of the outcome change.
    """
    (kept.folder / NAME).unlink(missing_ok=True)  # of an earlier run
    try:
        return _written(shown, kept)
    except CannotSpell as error:
        return {"message": f"no {NAME}: the input holds {error}"}
    except NotPython as error:
        return {"message": f"no {NAME}: {error}"}


def _written(shown: Shown, kept: Kept) -> dict[str, Any]:
    with _hushed():
        recipe = shown.exported.reproduction(shown.calls, kept.folder)
    if recipe is None:
        return {}
    if recipe.model and not recipe.file:
        return _on_the_model(shown, kept, recipe, recipe.note)
    script = kept.folder / NAME
    text = _source(shown, kept, recipe)
    kept.finish()
    write_source(script, text)
    note = recipe.note
    if recipe.model:
        survives = _shows(script, shown)
        if survives is False:
            return _on_the_model(shown, kept, recipe, "the difference does not survive in a captured form")
        note = "" if survives else "it could not be tried whether the difference survives in the captured form"
    return {"reproduction": str(script), "message": _line(script, note)}


def _line(script: Path, note: str = "") -> str:
    return f"reproduce: python {script}" + (f"\n  ({note})" if note else "")


def _on_the_model(shown: Shown, kept: Kept, recipe: Recipe, why: str) -> dict[str, Any]:
    """The script for a difference that only the model itself shows: it makes the model from its own source."""
    if recipe.file:
        (kept.folder / recipe.file).unlink(missing_ok=True)
    note = f"{why}, so the script makes the model from its source"
    made = rebuild.construction(shown.plan.model)
    state = rebuild.keep_state(shown.plan.model, kept)
    speller = Speller(example_keys(shown.plan, shown.calls, kept))
    example = speller.spell((shown.plan.example.args, dict(shown.plan.example.kwargs)))
    source = rebuild.imports(made) + rebuild.imports_of(speller) + rebuild.model_source(made, state=state)
    source += f'''

def example(kept):
    """What the check compiled the model for in the first place."""
    return {example}


def load(path, device):
    """The model, compiled as in the check."""
    model = make_model().to(device)
    restore(model, HERE)
    program = {recipe.model}
    args, kwargs = example(Archives(HERE, DEVICE))
    program(*args, **kwargs)
    restore(model, HERE)
    return program


def state(program, name):
    """An entry of the model's state."""
    owner, _, attribute = name.rpartition(".")
    return getattr(program._orig_mod.get_submodule(owner), attribute)


def parameters(program):
    """The model's parameters."""
    return dict(program._orig_mod.named_parameters())
'''
    if made.expression is None:
        note += f": fill in make_model() ({made.why})"
    needs = tuple(f"{home} (the model's source)" for home in made.homes)
    own = Recipe(source, needs=needs, note=note)
    script = kept.folder / NAME
    kept.finish()
    write_source(script, _source(shown, kept, own))
    if made.expression is not None and _shows(script, shown) is False:
        note += ". It did not show when the script was tried"
    return {"reproduction": str(script), "message": _line(script, note)}


@contextmanager
def _hushed() -> Iterator[None]:
    """Exporters and compilers that are tried say nothing: what they would say is no news of the check."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _shows(script: Path, shown: Shown) -> bool | None:
    """Whether the script shows the difference, in the way that the check did; None if it cannot be run.

    It is run as a person would run it, in a process of its own: it leaves nothing behind in this one.
    """
    try:
        done = subprocess.run(  # noqa: S603 what was just written
            [sys.executable, str(script)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if (standalone.THERE if done.returncode else standalone.GONE) not in done.stdout:
        return None  # it did not come to its end
    raises = "the program raises" in done.stdout
    return bool(done.returncode) and raises == (shown.finding.raised is not None)


# --- the script -----------------------------------------------------------------------------------------------------


def _source(shown: Shown, kept: Kept, recipe: Recipe) -> str:
    spelled, imports, homes = _calls(shown, kept, recipe)
    expected, also = _expected(shown, kept)
    recipe = replace(recipe, needs=(*recipe.needs, *(f"{home} (classes of the input)" for home in homes)))
    artifact = recipe.file or (kept.artifact.relative_to(kept.folder).as_posix() if kept.artifact is not None else "")
    calls = "".join(_function(f"call_{n}", text, what="input", index=n) for n, text in enumerate(spelled, 1))
    eager = "".join(_function(f"eager_{n}", text, what="eager", index=n) for n, text in enumerate(expected, 1))
    machinery, body = _machinery()
    text = "\n".join(
        [
            _docstring(shown, recipe, artifact),
            "import sys",
            machinery,
            *dict.fromkeys((*imports, *also)),
            "HERE = Path(__file__).resolve().parent",
            f"DEVICE = {str(shown.plan.device)!r}",
            "",
            recipe.source,
            calls,
            eager,
            "\n# --- how it is run and compared " + "-" * 86 + "\n\n",
            body,
            *([_ordering()] if _unordered(shown) else []),
            _main(shown, kept, recipe, artifact, len(spelled), len(expected)),
        ]
    )
    return re.sub(r"\n{4,}", "\n\n\n", text)


def _docstring(shown: Shown, recipe: Recipe, artifact: str) -> str:
    needs = ["torch", "numpy", *recipe.needs]
    loads = f"Loads {free_text(artifact)}, runs" if artifact else "Runs"
    note = f"\n\nNote: {free_text(recipe.note)}." if recipe.note else ""
    return (
        f'"""{free_text(shown.title)}\n\n'
        f"{loads} it on the failing input (input.npz), and compares with what eager gave (eager.npz).\n"
        f"Exit code 1 while the difference is there, 0 when it is gone.\n\n"
        f'Needs {free_text(", ".join(needs))}.{note}\n"""\n\nfrom __future__ import annotations\n'
    )


def _machinery() -> tuple[str, str]:
    """The imports of the module that is copied into the script, and the rest of it."""
    _, _, rest = inspect.getsource(standalone).partition("from __future__ import annotations\n")
    imports, start, body = rest.partition("class Kept:")
    return imports.strip("\n") + "\n", start + body.rstrip()


def _ordering() -> str:
    """By what the check itself puts results in order."""
    start = "_MOST = "
    return f"\n\nplain = _plain\n{start}" + inspect.getsource(any_order).partition(start)[2].rstrip()


def _rules(shown: Shown) -> dict[str, Tolerance]:
    """The tolerance of each output."""
    outputs, several = shown.trial.record.outputs, len(shown.calls) > 1
    roots = [f"call {index} output" if several else "output" for index in range(1, len(outputs) + 1)]
    paths = [path for root, output in zip(roots, outputs, strict=True) for path, _ in containers.leaves(output, root)]
    return {path: shown.plan.rules.of_result(path) for path in paths}


def _unordered(shown: Shown) -> dict[str, int]:
    return {path: rule.dim for path, rule in _rules(shown).items() if rule.compare == "set"}


def _function(name: str, text: str, *, what: str, index: int) -> str:
    said = f"Arguments of call {index}." if what == "input" else f"What eager returns in call {index}."
    archive = "kept" if what == "input" else "eager"
    return f'\n\ndef {name}({archive}):\n    """{said}"""\n    return {text}\n'


def _calls(shown: Shown, kept: Kept, recipe: Recipe) -> tuple[list[str], list[str], list[str]]:
    """The calls of the program as source, the imports that they need, and the user's modules among these."""
    named = [shown.plan.names(call) for call in shown.calls]
    speller = Speller(_by_id(kept, "input", containers.leaves(named)), plain=recipe.plain)
    texts = []
    for call in shown.calls:
        args, kwargs = call.args, dict(call.kwargs)
        texts.append(speller.spell(recipe.arrange(args, kwargs) if recipe.arrange is not None else (args, kwargs)))
    return texts, rebuild.imports_of(speller).splitlines(), list(speller.homes)


def _expected(shown: Shown, kept: Kept) -> tuple[list[str], list[str]]:
    outputs = shown.trial.record.outputs
    speller = Speller(_by_id(kept, "eager", containers.leaves(outputs)), archive="eager", named=True)
    return [speller.spell(output) for output in outputs], list(speller.imports)


def _by_id(kept: Kept, group: str, leaves: Iterable[tuple[str, Any]]) -> Any:
    keys = kept.keys[group]
    at = {id(leaf): (keys[path], leaf) for path, leaf in leaves if path in keys}
    return lambda value: at[id(value)][0] if id(value) in at else None


def _main(shown: Shown, kept: Kept, recipe: Recipe, artifact: str, calls: int, outputs: int) -> str:
    facts = dict(_facts(shown, kept, recipe))
    lines = "".join(f"        {name}={value},\n" for name, value in facts.items())
    path = f"str(HERE / {artifact!r})" if artifact else "None"
    finish = "" if "def finish(" not in recipe.source else "    finish()\n"
    return f'''

def main():
    """Run and compare."""
    what = Check(
        folder=HERE,
        program=lambda: load({path}, DEVICE),
        calls=[{", ".join(f"call_{index}" for index in range(1, calls + 1))}],
        expected=[{", ".join(f"eager_{index}" for index in range(1, outputs + 1))}],
{lines}        device=DEVICE,
    )
    differs = check(what)
{finish}    return differs


if __name__ == "__main__":
    sys.exit(main())
'''


def _facts(shown: Shown, kept: Kept, recipe: Recipe) -> Iterator[tuple[str, str]]:
    """What else the check is made of, as source by the names of `Check`."""
    # What is allowed is an error against float64, from which eager itself is off as well.
    failed = {
        leaf.path: (tuple(leaf.index), _number(leaf.allowed + leaf.eager_error))
        for leaf in shown.finding.leaves
        if leaf.elements
    }
    rows = "".join(f"            {path!r}: ({index!r}, {allowed}),\n" for path, (index, allowed) in failed.items())
    yield "failed", "{\n" + rows + "        }" if rows else "{}"
    yield "structure", repr(str(shown.structure))
    ignored = tuple(path for path, rule in _rules(shown).items() if rule.compare == "ignore")
    if ignored:
        yield "ignored", repr(ignored)
    if _unordered(shown):
        yield "any_order", repr(_unordered(shown))
        yield "in_order", any_order.in_order_of.__name__
    yield "seed", str(shown.plan.seed)
    yield "grad", str(shown.grad)
    if shown.trial.record.error is not None:
        error = shown.trial.record.error
        yield "raises", repr(f"{type(error).__name__}: {error}"[:500])
    changed = "".join(f"{path!r}: {place}, " for path, place in _changed(shown, kept))
    if changed:
        yield "changed", "{" + changed + "}"
    states = "".join(f"{path!r}: {text}, " for path, text in _states(shown, kept))
    if states and "def state(" in recipe.source:
        yield "state", "state"
    if states:
        yield "states", "{" + states + "}"
    gradients = {path: kept.keys["eager"][path] for path in shown.differing("gradient") if path in kept.keys["eager"]}
    if gradients:
        yield "gradients", repr(gradients)
        names = {path.partition(" ")[0]: key for path, key in _last_call(shown, kept).items()}
        yield "inputs", repr({name: key for name, key in names.items() if f"gradient of {name}" in gradients})
        if "def parameters(" in recipe.source:
            yield "parameters", "parameters"


def _number(value: float) -> str:
    return json.dumps(value) if value == value and abs(value) != float("inf") else f"float('{value}')"  # noqa: PLR0124


def _changed(shown: Shown, kept: Kept) -> Iterator[tuple[str, tuple[int, str, str]]]:
    """The arguments that eager leaves otherwise than the program does: call, key of the argument, key of the value."""
    for path in shown.differing("argument"):
        index = int(path.split()[1]) - 1 if path.startswith("call ") else 0
        name = path.partition("argument ")[2]
        leaves = dict(_leaf_paths(shown, index))
        inside = next((inner for full, inner in leaves.items() if full == name), None)
        key = kept.keys["input"].get(inside or "")
        if key is not None and path in kept.keys["eager"]:
            yield path, (index, key, kept.keys["eager"][path])


def _leaf_paths(shown: Shown, index: int) -> Iterator[tuple[str, str]]:
    """A call's leaves: their path by the argument's name, and their path in the group `input`."""
    for name, value in shown.plan.names(shown.calls[index]).items():
        for path, _ in containers.leaves(value):
            yield name + path, f"[{index}][{name!r}]{path}"


def _last_call(shown: Shown, kept: Kept) -> dict[str, str]:
    paths = dict(_leaf_paths(shown, len(shown.calls) - 1))
    return {name: kept.keys["input"][inside] for name, inside in paths.items() if inside in kept.keys["input"]}


def _states(shown: Shown, kept: Kept) -> Iterator[tuple[str, str]]:
    state = {**shown.start, **shown.trial.record.state}
    for path in shown.differing("state"):
        value = state.get(path.removeprefix("state "))
        if path in kept.keys["eager"] and isinstance(value, torch.Tensor):
            yield path, f"lambda eager: eager({kept.keys['eager'][path]!r})"
        elif path.removeprefix("state ") in state:
            with suppress(CannotSpell):
                yield path, f"lambda eager: {Speller(lambda _: None).spell(value)}"
