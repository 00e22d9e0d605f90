"""The attributes of TorchScript modules, which Python's `vars` does not show: read and write them by name."""

from __future__ import annotations

import re
import weakref
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.subject import containers
from pytest_torchexport.subject.equality import identical

if TYPE_CHECKING:
    from collections.abc import Mapping

_READABLE = (torch.Tensor, bool, int, float, str, list, dict, tuple, complex, type(None))

_names: weakref.WeakKeyDictionary[torch.nn.Module, tuple[str, ...]] = weakref.WeakKeyDictionary()
"""The attribute names of a module, which are fixed when it is compiled or loaded, and slow to find."""


def script_attributes(module: torch.jit.ScriptModule) -> dict[str, Any]:
    """The attributes of a TorchScript module and its submodules, parameters left out, by qualified name.

    Tensors are live; lists and dicts are copies, TorchScript hands out nothing else.
    """
    return {
        f"{prefix}.{name}" if prefix else name: value
        for prefix, part in module.named_modules()
        for name, value in own_attributes(part).items()
    }


def own_attributes(module: torch.nn.Module) -> dict[str, Any]:
    """Those of one TorchScript module without its submodules; none for another kind of module."""
    handle: Any = getattr(module, "_c", None)
    if handle is None:
        return {}
    if module not in _names:
        _names[module] = _attribute_names(handle, {name for name, _ in module.named_parameters(recurse=False)})
    found = {name: handle.getattr(name) for name in _names[module]}
    return {name: value for name, value in found.items() if isinstance(value, _READABLE)}


def _attribute_names(handle: Any, parameters: set[str]) -> tuple[str, ...]:
    # A loaded module lists its attributes nowhere but in its dump; `attrs=False` leaves out the elements of tensors.
    text = handle.dump_to_str(code=False, attrs=False, params=False)
    block = re.search(r"^  attributes \{\n(.*?)^  \}", text, re.MULTILINE | re.DOTALL)
    names = re.findall(r"^    (\w+) = ", block.group(1), re.MULTILINE) if block else []
    skip = {"training", "_is_full_backward_hook", *parameters}
    return tuple(name for name in names if name not in skip and handle.hasattr(name))


def write_script_attributes(module: torch.jit.ScriptModule, values: Mapping[str, Any]) -> None:
    """Set attributes that `script_attributes` returned earlier, to copies; those that have the value are left."""
    for prefix, part in module.named_modules():
        for name, now in own_attributes(part).items():
            path = f"{prefix}.{name}" if prefix else name
            if path in values and not identical(now, values[path]):
                # A copy: the program may write to it in place, and the values are needed again.
                part._c.setattr(name, containers.clone(values[path]))
