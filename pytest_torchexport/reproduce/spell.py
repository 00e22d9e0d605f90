"""Values as Python source in which tensors are read from an archive."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import keyword
import math
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pytest_torchexport.subject import containers

if TYPE_CHECKING:
    from collections.abc import Callable


class CannotSpell(Exception):
    """A value that no source gives back; the message says which."""


_PLAIN = (bool, int, str, bytes, type(None), torch.dtype, torch.layout, torch.memory_format)


@dataclass
class Speller:
    """Writes values as source.

    Attributes:
        key: of a tensor or an array, where it is in the archive; None if it is not there.
        archive: what the archive is called in the source.
        plain: named tuples are written as tuples.
        named: classes of the user's are written as `Named(name, parts)`, for a script that cannot import them.
        imports: the import lines that the source needs.
        homes: modules outside of torch and Python's own library among them, with the classes' names.
    """

    key: Callable[[Any], str | None]
    archive: str = "kept"
    plain: bool = False
    named: bool = False
    imports: dict[str, None] = field(default_factory=dict)
    homes: dict[str, set[str]] = field(default_factory=dict)

    def spell(self, value: Any, above: frozenset[int] = frozenset()) -> str:
        """The value as an expression.

        Raises:
            CannotSpell: it holds what no source gives back.
        """
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        scalar = self._scalar(value)
        if scalar is not None:
            return scalar
        if id(value) in above:
            msg = f"a {type(value).__name__} that holds itself"
            raise CannotSpell(msg)
        above |= {id(value)}
        parts = containers.children(value)
        if type(value) in (list, tuple, dict, OrderedDict, deque):
            return self._builtin(value, above)
        if parts is None:
            msg = f"a {type(value).__qualname__}, {containers.describe(value, 60)}"
            raise CannotSpell(msg)
        inside = [(step, self.spell(part, above)) for step, part in parts]
        if self.named:
            return self._named(value, inside)
        if containers.is_namedtuple(value) and self.plain:
            return _tuple([text for _, text in inside])
        return self._of_class(value, inside)

    def _scalar(self, value: Any) -> str | None:
        if isinstance(value, enum.Enum):
            return self._member(value)
        if type(value) is float:
            return repr(value) if math.isfinite(value) else f"float('{value}')"
        if type(value) is complex:
            return f"complex({self._scalar(value.real)}, {self._scalar(value.imag)})"
        if type(value) in _PLAIN:
            return repr(value)
        if isinstance(value, (torch.device, torch.Size)):
            return f"torch.Size({list(value)})" if isinstance(value, torch.Size) else f"torch.device('{value}')"
        key = self.key(value) if isinstance(value, np.ndarray) else None
        if key is not None:
            return f"{self.archive}.array({key!r})"
        return _number(value) if isinstance(value, np.generic) else None

    def _member(self, value: enum.Enum) -> str:
        kind, name = type(value), value.name
        home = self.reference(kind)
        if kind.__members__.get(name) is not value:  # several flags at once
            return f"{home}({self.spell(value.value)})"
        return f"{home}.{name}" if _is_name(name) else f"{home}[{name!r}]"

    def _tensor(self, value: torch.Tensor) -> str:
        key = self.key(value)
        if key is None or value.is_quantized or value.is_nested or type(value) not in _TENSORS:
            msg = f"a tensor that no archive holds, {containers.describe(value, 60)}"
            raise CannotSpell(msg)
        options = ""
        if value.layout is not torch.strided:
            options += f", layout={value.layout}"
        elif self.archive != "eager" and _is_laid_out(value):
            options += f", strides={tuple(value.stride())}"
        if value.requires_grad:
            options += ", grad=True"
        return f"{self.archive}({key!r}{options})"

    def _builtin(self, value: Any, above: frozenset[int]) -> str:
        if isinstance(value, dict):
            pairs = [f"{self.spell(key)}: {self.spell(part, above)}" for key, part in value.items()]
            text = "{" + ", ".join(pairs) + "}"
            return text if type(value) is dict else f"{self._import('collections')}.OrderedDict({text})"
        parts = [self.spell(part, above) for part in value]
        if isinstance(value, tuple):
            return _tuple(parts)
        text = f"[{', '.join(parts)}]"
        if isinstance(value, list):
            return text
        longest = "" if value.maxlen is None else f", maxlen={value.maxlen}"
        return f"{self._import('collections')}.deque({text}{longest})"

    def _named(self, value: Any, inside: list[tuple[str, str]]) -> str:
        mapping = isinstance(value, Mapping)
        parts = ", ".join(f"{step!r}: {text}" for step, text in inside)
        return f"Named({type(value).__name__!r}, {{{parts}}}{', mapping=True' if mapping else ''})"

    def _of_class(self, value: Any, inside: list[tuple[str, str]]) -> str:
        kind = type(value)
        made, texts = self.reference(kind), [text for _, text in inside]
        if isinstance(value, Mapping):
            return self._mapping(value, made, texts)
        if hasattr(kind, "n_sequence_fields"):  # a named tuple of torch, which takes a sequence
            return f"{made}({_tuple(texts)})"
        if not containers.is_namedtuple(value) and not dataclasses.is_dataclass(value):
            msg = f"an object of {kind.__qualname__}"
            raise CannotSpell(msg)
        names = [step.removeprefix(".") for step, _ in inside]
        if not all(map(_is_name, names)) or not _takes(kind, **dict.fromkeys(names)):
            msg = f"a {kind.__qualname__}, whose constructor does not take its fields"
            raise CannotSpell(msg)
        return f"{made}({', '.join(f'{name}={text}' for name, text in zip(names, texts, strict=True))})"

    def _mapping(self, value: Mapping[Any, Any], made: str, texts: list[str]) -> str:
        """The keys are the user's, and need be no names."""
        pairs = zip(map(self.spell, value), texts, strict=True)
        text = "{" + ", ".join(f"{key}: {part}" for key, part in pairs) + "}"
        kind: Any = type(value)
        if isinstance(value, defaultdict):
            factory = None if value.default_factory is None else self.reference(value.default_factory)  # type: ignore[arg-type]
            return f"{made}({factory}, {text})"
        # A mapping that is a dataclass would take a dict for its first field.
        if not dataclasses.is_dataclass(kind) and _takes(kind, {}):
            return f"{made}({text})"
        if all(isinstance(key, str) for key in value) and _takes(kind, **dict.fromkeys(value)):
            return f"{made}(**{text})"
        msg = f"a {kind.__qualname__}, whose constructor takes neither a dict nor its keys"
        raise CannotSpell(msg)

    def reference(self, kind: type) -> str:
        """The class by its name, which is imported.

        Raises:
            CannotSpell: it is no attribute of a module.
        """
        home, name = str(getattr(kind, "__module__", None)), str(getattr(kind, "__qualname__", type(kind).__qualname__))
        found: Any = sys.modules.get(home)
        for part in name.split("."):
            found = getattr(found, part, None)
        # A class that is made at run time may have any name.
        if found is not kind or home == "__main__" or not all(map(_is_name, f"{home}.{name}".split("."))):
            msg = f"the class {name}, which cannot be imported from {home}"
            raise CannotSpell(msg)
        if home.partition(".")[0] not in {"torch", *sys.stdlib_module_names}:
            self.homes.setdefault(home, set()).add(name)
        return name if home == "builtins" else f"{self._import(home)}.{name}"

    def _import(self, module: str) -> str:
        self.imports[f"import {module}"] = None
        return module


_TENSORS = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


def _number(value: np.generic[Any]) -> str | None:
    """A number, text or date of numpy's; None for one that Python has no kind for (a longdouble, a record)."""
    if type(value).__module__ != "numpy":
        return None
    if value.dtype.kind in "mM":
        return f"np.int64({int(value.view('int64'))}).view({value.dtype.str!r})"
    item = value.item()
    if type(item) is float and not math.isfinite(item):
        text = f"float('{item}')"
    elif type(item) is complex:
        text = f"complex('{item}')"
    elif type(item) in (bool, int, float, str, bytes):
        text = repr(item)
    else:
        return None
    return f"np.dtype({value.dtype.kind if value.dtype.kind in 'US' else value.dtype.name!r}).type({text})"


def _is_name(text: str) -> bool:
    return text.isidentifier() and not keyword.iskeyword(text)


def _takes(kind: type, /, *args: Any, **kwargs: Any) -> bool:
    """Whether a class can be called like this, as far as its signature tells; a class of C's has none."""
    try:
        inspect.signature(kind).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def _tuple(parts: list[str]) -> str:
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"


def _is_laid_out(tensor: torch.Tensor) -> bool:
    """Whether the strides are of a kind of their own that can be made again: permuted or expanded, not overlapping."""
    if tensor.is_contiguous() or not tensor.numel():
        return False
    order = sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if s and n > 1)
    reach = 0
    for stride, size in order:
        if stride <= reach:
            return False
        reach += stride * (size - 1)
    return True
