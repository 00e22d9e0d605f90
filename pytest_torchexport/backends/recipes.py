"""Source by which a script without this package loads a saved program: `load`, `state`, `parameters`.

It is read by people: it does what a user would do, and no more.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


def free_text(text: str) -> str:
    """A text that may say anything, as it may stand in a docstring or a comment: one line that ends neither of them."""
    # Split first: a line break is no character that has to be seen.
    line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in " ".join(text.split()))
    return re.sub(r'"(?="|$)', r"\"", line.replace("\\", "\\\\"))


def torchscript(*, optimize: bool, profiling: bool) -> str:
    """The source that loads a TorchScript file.

    Args:
        optimize: run `torch.jit.optimize_for_inference` on it.
        profiling: whether the executor profiles the first calls.
    """
    made = "torch.jit.load(path, map_location=device)"
    made = f"torch.jit.optimize_for_inference({made})" if optimize else made
    setting = "" if profiling else "    torch._C._jit_set_profiling_mode(False)\n"
    return f'''
def load(path, device):
    """The TorchScript program."""
{setting}    return {made}
'''


def torch_export(module: torch.nn.Module) -> tuple[str, tuple[str, ...]]:
    """The source that loads a file of torch.export, and what it needs besides.

    Args:
        module: the loaded program.
    """
    imports, needs = classes(module)
    source = f'''{imports}
def load(path, device):
    """The program that torch.export saved."""
    return torch.export.load(path).module()
'''
    return source, needs


def module_state(prefix: str) -> str:
    """The source that reads state and parameters of a program which is a module.

    Args:
        prefix: what its names have in front of the user's, with a dot; or nothing.
    """
    name = f"({prefix!r} + name)" if prefix else "name"
    stripped = f"name.removeprefix({prefix!r})" if prefix else "name"
    return f'''

def state(program, name):
    """An entry of the program's state."""
    owner, _, attribute = {name}.rpartition(".")
    return getattr(dict(program.named_modules())[owner], attribute)


def parameters(program):
    """The program's parameters by the model's names."""
    return {{{stripped}: parameter for name, parameter in program.named_parameters()}}
'''


def classes(module: torch.nn.Module) -> tuple[str, tuple[str, ...]]:
    """Imports of the classes that the program's arguments and outputs are made of, and what they are.

    torch.export does not load a file with classes that were not registered before, which their modules do.
    """
    found: dict[str, set[str]] = {}
    for spec in (getattr(module, "_in_spec", None), getattr(module, "_out_spec", None)):
        for kind in _kinds(spec):
            home = str(getattr(kind, "__module__", "builtins"))
            if home.partition(".")[0] not in ("builtins", "collections", "torch") and _is_module(home):
                found.setdefault(home, set()).add(kind.__qualname__)
    listed = {home: free_text(", ".join(sorted(names))) for home, names in found.items()}
    imports = "".join(f"import {home}  # registers {names}\n" for home, names in listed.items())
    needs = tuple(f"{home} (the file holds objects of {names})" for home, names in listed.items())
    return imports, needs


def _is_module(home: str) -> bool:
    return all(part.isidentifier() and not keyword.iskeyword(part) for part in home.split("."))


def _kinds(spec: Any) -> Iterator[type]:
    if spec is None:
        return
    if isinstance(spec.type, type):
        yield spec.type
        if isinstance(spec.context, type):  # of a named tuple, the class
            yield spec.context
    for child in spec.children():
        yield from _kinds(child)


def aoti(names: list[str], index: int) -> str:
    """The source that loads an AOTInductor package.

    Args:
        names: of the buffers that the library is given from outside, so that they can be read.
        index: of the device; -1 for none.
    """
    if not names:
        return f'''
def load(path, device):
    """The AOTInductor package."""
    return torch._inductor.aoti_load_package(path, device_index={index})
'''
    return f'''
import tempfile
import zipfile

_state = {{}}


def load(path, device):
    """The AOTInductor package; it is given its buffers, since it does not show those of its own."""
    program = torch._inductor.aoti_load_package(path, device_index={index})
    _state.update(buffers(path, torch.device(device)))
    program.load_constants(_state, check_full_update=False, user_managed=True)
    return program


def buffers(path, device):
    """Copies of the buffers inside of the package."""
    container = getattr(torch._C._aoti, f"AOTIModelContainerRunner{{device.type.capitalize()}}")
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as package:
        package.extractall(folder)
        (library,) = Path(folder).rglob("*.so")
        options = () if device.type == "cpu" else (str(device), str(library.parent))
        runner = container(str(library), 1, *options)
        held = runner.extract_constants_map(False)
        return {{name: held[name].clone() for name in {names!r}}}
'''


def named_state(prefix: str) -> str:
    """The source that reads the state which `aoti` keeps; `prefix` as in `module_state`."""
    name = f"{prefix!r} + name" if prefix else "name"
    return f'''

def state(program, name):
    """An entry of the program's state."""
    return _state[{name}]
'''


def compiled(made: str) -> str:
    """What makes a source of `torch_export` one that compiles the program; `made` is an expression with `model`."""
    return f'''

def load(path, device):
    """The model as torch.export captured it, compiled as in the check."""
    model = torch.export.load(path).module()
    return {made}


def state(program, name):
    """An entry of the program's state."""
    owner, _, attribute = name.rpartition(".")
    return getattr(program._orig_mod.get_submodule(owner), attribute)


def parameters(program):
    """The program's parameters."""
    return dict(program._orig_mod.named_parameters())
'''


_DEFAULTS = {"backend": "inductor", "mode": None, "dynamic": None, "fullgraph": False, "options": None}


def compiling(options: Mapping[str, Any]) -> str:
    """`torch.compile(model, ...)` with the options that differ from its own defaults."""
    # A default of None and a given False are not the same: dynamic=False compiles for one size only.
    given = "".join(
        f", {name}={dict(value) if isinstance(value, Mapping) else value!r}"
        for name, value in options.items()
        if value != _DEFAULTS[name]
    )
    return f"torch.compile(model{given})"
