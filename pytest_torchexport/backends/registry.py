"""Backends by name. Built-ins and third parties go the same way; a class is imported when it is first used.

Standard library only, so that names can be listed and checked without importing torch.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from pytest_torchexport.errors import UsageError

if TYPE_CHECKING:
    from pytest_torchexport.backends.base import Backend

ENTRY_POINT_GROUP = "pytest_torchexport.backends"

DEFAULT_BACKENDS = ("trace", "script", "compile", "onnx")
"""What a test is checked on when neither marker, command line nor ini names backends."""

_HOME = "pytest_torchexport.backends."
_registered: dict[str, str | type[Backend]] = {
    "trace": _HOME + "torchscript:Trace",
    "script": _HOME + "torchscript:Script",
    "compile": _HOME + "compile:Compile",
    "export": _HOME + "torch_export:Export",
    "aoti": _HOME + "aoti:Aoti",
    "onnx": _HOME + "onnx:Onnx",
    "onnx-torchscript": _HOME + "onnx_torchscript:OnnxTorchScript",
}


def register_backend(name: str, backend: str | type[Backend]) -> None:
    """Add a backend, or replace one of the same name.

    Args:
        name: its name in markers, on the command line and in test ids: letters, digits, `-` and `_`.
        backend: a subclass of `Backend`, or where to import it from, `"package.module:Class"`.

    Raises:
        UsageError: the name has other characters.
    """
    if not name.replace("-", "").replace("_", "").isalnum():
        msg = f"backend name {name!r}: use letters, digits, '-' and '_' only, the name becomes part of test ids"
        raise UsageError(msg)
    _registered[name] = backend


@cache
def _from_entry_points() -> dict[str, str]:
    return {entry.name: entry.value for entry in entry_points(group=ENTRY_POINT_GROUP)}


def backend_names(*, third_party: bool = True) -> list[str]:
    """Every known name: the built-in ones in their order, then registered ones, then those of entry points.

    Args:
        third_party: whether to look for entry points, which reads a file of each installed distribution.
    """
    return list(_registered | (dict(_from_entry_points()) if third_party else {}))


def backend_class(name: str) -> type[Backend]:
    """The class behind a name.

    Raises:
        UsageError: no backend has the name, or its class cannot be imported.
    """
    target = _registered.get(name) or _from_entry_points().get(name)
    if target is None:
        raise UsageError(unknown("backend", name, backend_names()))
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    try:
        found: type[Backend] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        msg = f"backend {name!r} cannot be imported from {target!r}: {error}"
        raise UsageError(msg) from error
    return found


def split_spec(spec: str) -> tuple[str, dict[str, str]]:
    """The name and the options of the string form `"compile:mode=max-autotune,fullgraph=true"`.

    Raises:
        UsageError: no backend has the name, or an option has no value.
    """
    name, _, rest = spec.partition(":")
    if name not in backend_names():
        raise UsageError(unknown("backend", name, backend_names()))
    options: dict[str, str] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            msg = f"backend {spec!r}: option {part!r} has no value; write {name}:{part}=VALUE"
            raise UsageError(msg)
        options[key.strip()] = value.strip()
    return name, options


def make_backend(spec: str | Backend) -> Backend:
    """The backend that a name, a string with options, or an instance stands for.

    Raises:
        UsageError: unknown name, unknown option or a value that the option does not accept.
    """
    if isinstance(spec, type):
        msg = f"backend {spec.__name__} is a class: pass an instance, {spec.__name__}()"
        raise UsageError(msg)
    if not isinstance(spec, str):
        if hasattr(spec, "export") and hasattr(spec, "load"):
            return spec
        msg = f"{spec!r} is not a backend: give a name ({', '.join(backend_names())}) or an instance such as Compile()"
        raise UsageError(msg)
    name, texts = split_spec(spec)
    cls = backend_class(name)
    from pytest_torchexport.backends.base import options_of  # noqa: PLC0415 - pytest loads this module at each start

    options = [option.name for option in options_of(cls)]
    for key in texts:
        if key not in options:
            raise UsageError(unknown(f"option of backend {name!r}", key, options))
    return cls(**{key: _parse(text) for key, text in texts.items()})


def _parse(text: str) -> Any:
    if text.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def unknown(what: str, name: str, accepted: list[str]) -> str:
    """The message for a name that is not one of the accepted ones, with the nearest of them."""
    import difflib  # noqa: PLC0415 - only for errors, and pytest loads this module at each start

    near = difflib.get_close_matches(name, accepted, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {name!r}.{hint} Accepted: {', '.join(accepted) or 'none'}."
