"""The model as source: made again from its import path, where it is known how it was made, and given its weights."""

from __future__ import annotations

import inspect
import site
import sys
import sysconfig
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.backends.recipes import free_text
from pytest_torchexport.reproduce.spell import CannotSpell, Speller
from pytest_torchexport.reproduce.undone import undone
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.call import name_of
from pytest_torchexport.subject.equality import identical
from pytest_torchexport.subject.source import is_installed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_torchexport.reproduce.keep import Kept

LARGEST = 2**28
"""Bytes: a larger state is not kept beside the artifact."""

_SIMPLE = (bool, int, float, str, type(None), torch.dtype)


@dataclass(frozen=True)
class Construction:
    """How the model is made again.

    Attributes:
        expression: source that makes it, without its weights; None where that is not known.
        why: why not.
        name: what the model is called.
        imports: lines.
        homes: modules of the user's that have to be found, with the folder that goes onto the path; empty if it is
            there anyway.
        settings: statements on `model` that follow.
    """

    expression: str | None
    why: str
    name: str
    imports: tuple[str, ...] = ()
    homes: dict[str, str] = field(default_factory=dict)
    settings: tuple[str, ...] = ()


def construction(model: Callable[..., Any]) -> Construction:
    """How a model can be made again: by its name in a module, its constructor's arguments read from its attributes.

    It is tried, on the meta device, for the user's own classes and the layers of torch.nn: what is made has to have the
    same submodules, tensors and plain attributes.
    """
    try:
        if isinstance(model, torch.nn.Module):
            return _of_module(model)
        return _of_function(model)
    except CannotSpell as error:
        return Construction(None, str(error), name_of(model))


def _of_function(model: Callable[..., Any]) -> Construction:
    if not isinstance(model, types.FunctionType):
        msg = f"it is a {type(model).__name__}, neither a module nor a function"
        raise CannotSpell(msg)
    speller = Speller(lambda _: None)
    expression = speller.reference(model)  # type: ignore[arg-type] # it has a module and a name as a class has
    return Construction(expression, "", name_of(model), tuple(speller.imports), _homes(speller))


def _of_module(model: torch.nn.Module) -> Construction:
    speller = Speller(lambda _: None)
    expression, make = _maker(model, speller)
    try:
        with undone(_device(model)):
            made = make()
    except (Exception, SystemExit) as error:
        msg = f"its constructor raises {type(error).__name__} when it is called as the attributes tell"
        raise CannotSpell(msg) from error
    _compare(model, made)
    return Construction(
        expression, "", name_of(model), tuple(speller.imports), _homes(speller), tuple(_settings(model, made))
    )


def _device(model: torch.nn.Module) -> torch.device:
    """The accelerator on which the model is, or the CPU."""
    found = (tensor.device for tensor in (*model.parameters(), *model.buffers()))
    return next((device for device in found if device.type not in ("cpu", "meta")), torch.device("cpu"))


def _maker(model: torch.nn.Module, speller: Speller) -> tuple[str, Callable[[], torch.nn.Module]]:
    """The expression that makes a module, and the same as a function."""
    kind = type(model)
    if kind in (torch.nn.Sequential, torch.nn.ModuleList) and list(model._modules) == [
        str(index) for index in range(len(model._modules))
    ]:
        parts = [_maker(part, speller) for part in model._modules.values() if part is not None]
        texts = ", ".join(text for text, _ in parts)
        home = speller.reference(kind)
        if kind is torch.nn.Sequential:
            return f"{home}({texts})", lambda: torch.nn.Sequential(*(make() for _, make in parts))
        return f"{home}([{texts}])", lambda: torch.nn.ModuleList([make() for _, make in parts])
    if isinstance(model, (torch.jit.ScriptModule, torch.fx.GraphModule)):
        msg = f"it is a {kind.__name__}, which has no constructor of its own"
        raise CannotSpell(msg)
    if not _is_users(kind):
        # It may download weights, or enter what it makes in a registry.
        library = kind.__module__.partition(".")[0]
        msg = f"it holds a {kind.__qualname__} of the library {library}, which is not made to try"
        raise CannotSpell(msg)
    given = dict(_arguments(model, kind, speller))
    inside = ", ".join(f"{name}={text}" for name, (text, _) in given.items())
    return f"{speller.reference(kind)}({inside})", lambda: kind(**{name: make() for name, (_, make) in given.items()})


def _is_users(kind: type) -> bool:
    """Whether a class may be made to try it: a layer of torch.nn, or of code under development."""
    home = kind.__module__
    if home.partition(".")[0] == "torch":
        return home.startswith("torch.nn.")
    file = getattr(sys.modules.get(home), "__file__", None)
    return bool(file) and not is_installed(str(Path(str(file)).resolve()))


def _arguments(
    model: torch.nn.Module, kind: type, speller: Speller
) -> Iterator[tuple[str, tuple[str, Callable[[], Any]]]]:
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        value = getattr(model, name, getattr(model, f"_{name}", _ABSENT))
        if isinstance(parameter.default, bool) and not isinstance(value, bool) and value is not _ABSENT:
            value = value is not None  # bias=True makes a parameter
        if isinstance(value, torch.nn.Module):
            yield name, _maker(value, speller)
        elif _is_simple(value):
            if not identical(value, parameter.default):
                yield name, (speller.spell(value), lambda value=value: value)  # type: ignore[misc]
        elif parameter.default is parameter.empty:
            msg = f"its constructor takes {name!r}, which no attribute of that name tells"
            raise CannotSpell(msg)


_ABSENT = object()


def _is_simple(value: Any) -> bool:
    if type(value) in (list, tuple):
        return all(map(_is_simple, value))
    return type(value) in _SIMPLE


def _compare(model: torch.nn.Module, made: torch.nn.Module) -> None:
    """Raise unless what was made is the model but for the values of its tensors."""
    ours, theirs = dict(model.named_modules()), dict(made.named_modules())
    if [(name, type(part)) for name, part in ours.items()] != [(name, type(part)) for name, part in theirs.items()]:
        msg = "its constructor makes other submodules when it is called as the attributes tell"
        raise CannotSpell(msg)
    for name, part in ours.items():
        one, other = _attributes(part), _attributes(theirs[name])
        for attribute in one.keys() | other.keys():
            if attribute not in one or attribute not in other or not _alike(one[attribute], other[attribute]):
                where = f"{name}.{attribute}" if name else attribute
                msg = f"{where} is another one when its constructor is called as the attributes tell"
                raise CannotSpell(msg)


def _attributes(module: torch.nn.Module) -> dict[str, Any]:
    own = {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training"}
    return {**own, **module._parameters, **module._buffers}


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and one.is_floating_point() == other.is_floating_point()
    if _is_simple(one) or _is_simple(other):
        return identical(one, other)
    parts = containers.children(one)
    if parts is None or containers.children(other) is None:
        return type(one) is type(other)
    theirs = containers.children(other) or []
    return len(parts) == len(theirs) and all(_alike(a, b) for (_, a), (_, b) in zip(parts, theirs, strict=True))


def _settings(model: torch.nn.Module, made: torch.nn.Module) -> Iterator[str]:
    """What was set after the model was made: its mode, its dtype, which parameters take gradients."""
    modes = {name: part.training for name, part in model.named_modules()}
    if not any(modes.values()):
        yield "model.eval()"
    else:
        yield from (f"model.get_submodule({name!r}).training = False" for name, mode in modes.items() if not mode)
    ours, theirs = dict(model.named_parameters()), dict(made.named_parameters())
    dtypes = {one.dtype for one in (*model.parameters(), *model.buffers()) if one.is_floating_point()}
    if len(dtypes) == 1 and any(ours[name].dtype != theirs[name].dtype for name in ours):
        yield f"model.to({dtypes.pop()})"
    for name, parameter in ours.items():
        if parameter.requires_grad != theirs[name].requires_grad:
            yield f"model.get_parameter({name!r}).requires_grad_({parameter.requires_grad})"


# --- where modules are found ----------------------------------------------------------------------------------------


def _homes(speller: Speller) -> dict[str, str]:
    return {home: _folder(home) for home in speller.homes}


def _folder(home: str) -> str:
    """The folder on the path in which a module is found; empty for an installed one.

    Raises:
        CannotSpell: its file does not lie where its name says.
    """
    file = getattr(sys.modules.get(home), "__file__", None)
    if not file:
        msg = f"the module {home} has no file"
        raise CannotSpell(msg)
    path = Path(file).resolve()
    steps = [*home.split("."), *(["__init__"] if path.stem == "__init__" else [])]
    if list(path.with_suffix("").parts[-len(steps) :]) != steps:
        msg = f"the module {home}, which is in {path}"
        raise CannotSpell(msg)
    folder = path.parents[len(steps) - 1]
    installed = {*site.getsitepackages(), site.getusersitepackages(), *sysconfig.get_paths().values()}
    return "" if str(folder) in {str(Path(one).resolve()) for one in installed} else str(folder)


def imports(made: Construction) -> str:
    """The import lines of the construction, with what they need on the path."""
    return "".join(f"{line}\n" for line in (*_on_the_path(made.homes), *made.imports))


def imports_of(speller: Speller) -> str:
    """The import lines of what a speller wrote, with what they need on the path.

    Raises:
        CannotSpell: a module's file does not lie where its name says.
    """
    return "".join(f"{line}\n" for line in (*_on_the_path(_homes(speller)), *speller.imports))


def _on_the_path(homes: dict[str, str]) -> Iterator[str]:
    for folder in dict.fromkeys(filter(None, homes.values())):
        found = [home for home, where in homes.items() if where == folder]
        yield f"sys.path.insert(0, {folder!r})  # for {', '.join(found)}"


# --- the state ------------------------------------------------------------------------------------------------------


def keep_state(model: Callable[..., Any], kept: Kept) -> bool:
    """Write parameters, buffers and tensor attributes of a model's modules to `state.npz`.

    Returns:
        Whether they are there: not for a function, and not where they are too large.
    """
    if not isinstance(model, torch.nn.Module):
        return False
    if "state" in kept.keys:
        return bool(kept.keys["state"])
    found = dict(_tensors(model))
    if not found or sum(tensor.nbytes for tensor in found.values() if tensor.layout is torch.strided) > LARGEST:
        return False
    kept.add("state", found.items())
    return len(kept.keys["state"]) == len(found)


def _tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for prefix, module in model.named_modules():
        for name, value in {**vars(module), **module._parameters, **module._buffers}.items():
            if isinstance(value, torch.Tensor):
                yield f"{prefix}.{name}" if prefix else name, value


def model_source(made: Construction, *, state: bool) -> str:
    """Source of `make_model()` and `restore(model, folder)`.

    Args:
        made: the construction.
        state: whether the archive `state` is there.
    """
    if made.expression is None:
        hint = f"Make the model here, a {made.name}: {made.why}."
        body = f'    # {free_text(hint)}\n    raise SystemExit("{NOT_FILLED_IN}")\n'
    else:
        body = f"    model = {made.expression}\n"
        body += "".join(f"    {line}\n" for line in made.settings) + "    return model\n"
    return f'''

def make_model():
    """The model{" without its weights" if state else ""}."""
{body}
{_RESTORE if state else _NOTHING}'''


NOT_FILLED_IN = "make_model() in this file has to be filled in"

_RESTORE = '''
def restore(model, folder):
    """Give the model its weights, buffers and other tensors."""
    kept = Kept(folder, "state")
    with torch.no_grad():
        for name in kept.names():
            owner, _, attribute = name.rpartition(".")
            getattr(model.get_submodule(owner), attribute).copy_(kept(name))
'''
_NOTHING = '''
def restore(model, folder):
    """Nothing is kept of the model: it has no tensors of its own, or they are too large."""
'''
