"""An input as Python source that can be pasted into `extra_inputs=[...]`."""

from __future__ import annotations

import dataclasses
import enum
import math
import textwrap
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.inputs.simpler import shortest
from pytest_torchexport.inputs.values import can_vary, dense
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.call import Call, bind, positional_names
from pytest_torchexport.subject.equality import identical

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_SPELLED = 64
"""A tensor of at most so many elements is spelled out."""

_EXCEPTIONS = 32
"""A larger one is spelled if all but so many elements are the same."""

_WIDTH = 100


def as_source(calls: Sequence[Call], model: Callable[..., Any], example: Call, kept: str = "") -> str:
    """The calls as a Python expression, an element of `extra_inputs`; it needs `import torch` only.

    Its tensors have the same bits, on the CPU; small ones are spelled out, larger ones where they are regular. What
    cannot be spelled in a few lines is None, with a comment that says what belongs there. A tensor that stands in two
    places is named by `:=` and stands in two places again.

    Args:
        calls: the calls; several that are the same count once, different ones become a list.
        model: the model whose `forward` names the arguments.
        example: the example, whose large tensors the comments refer to.
        kept: the file in which the values of the input are kept, for the comments.
    """
    known = dict(_leaves(model, example))
    with torch.device("cpu"), torch.no_grad():
        spelled = [_Writer(model, call, known, kept).text() for call in calls]
    if len(dict.fromkeys(spelled)) == 1:
        return spelled[0]
    return "[\n" + "".join(textwrap.indent(f"{one},\n", "    ") for one in spelled) + "]"


def _leaves(model: Callable[..., Any], call: Call) -> list[tuple[str, Any]]:
    return [pair for name, value in bind(model, call).items() for pair in containers.leaves(value, name)]


@dataclasses.dataclass
class _Part:
    """A piece of source; a comment, if it has one, ends the line that it stands on."""

    text: str
    comment: str = ""


class _Writer:
    """One call as source."""

    def __init__(self, model: Callable[..., Any], call: Call, known: dict[str, Any], kept: str) -> None:
        self.call, self.known, self.kept = call, known, kept
        self.names = positional_names(model, call)
        self.places: dict[int, int] = {}
        for _, leaf in _leaves(model, call):
            if isinstance(leaf, torch.Tensor):
                self.places[id(leaf)] = self.places.get(id(leaf), 0) + 1
        self.shared: dict[int, str] = {}

    def text(self) -> str:
        pairs = zip(self.names, self.call.args, strict=True)
        args = _joined("(", [self._value(value, name) for name, value in pairs], ")", single=True)
        if not self.call.kwargs:
            return args.text
        kwargs = self._dict(dict(self.call.kwargs), {name: name for name in self.call.kwargs})
        if not self.call.args:
            return kwargs.text
        return _joined("(", [args, kwargs], ")").text

    def _dict(self, value: dict[Any, Any], paths: dict[Any, str]) -> _Part:
        parts = []
        for key, item in value.items():
            part = self._value(item, paths[key])
            parts.append(_Part(f"{_key(key)}: {part.text}", part.comment))
        return _joined("{", parts, "}")

    def _value(self, value: Any, path: str) -> _Part:
        if isinstance(value, torch.Tensor):
            return self._tensor(value, path)
        text = _scalar(value)
        if text is not None:
            return _Part(text)
        parts = containers.children(value)
        if parts is None:
            return self._missing(value, path)
        if type(value) in (dict, OrderedDict):
            inner = self._dict(value, {key: path + step for key, (step, _) in zip(value, parts, strict=True)})
            return inner if type(value) is dict else _Part(f"__import__('collections').OrderedDict({inner.text})")
        if type(value) in (list, tuple):
            opened, closed = "[]" if isinstance(value, list) else "()"
            inside = [self._value(part, path + step) for step, part in parts]
            return _joined(opened, inside, closed, single=isinstance(value, tuple))
        if containers.is_namedtuple(value) or dataclasses.is_dataclass(value):
            fields = [(step.strip(".[]'"), self._value(part, path + step)) for step, part in parts]
            named = [_Part(f"{name}={part.text}", part.comment) for name, part in fields]
            return _joined(f"{type(value).__qualname__}(", named, ")")
        return self._missing(value, path)

    def _missing(self, value: Any, path: str) -> _Part:
        what = containers.describe(value, 60).replace("\n", " ")
        same = path in self.known and _equal(value, self.known[path])
        where = "as in the example" if same else f"kept in {self.kept}" if self.kept else "not spelled"
        return _Part("None", f"{path}: {what}, {where}")

    def _tensor(self, value: torch.Tensor, path: str) -> _Part:
        if id(value) in self.shared:
            return _Part(self.shared[id(value)])
        text = _spelled(value)
        if text is None:
            return self._missing(value, path)
        if self.places.get(id(value), 0) > 1:
            name = self.shared[id(value)] = f"shared_{len(self.shared) + 1}"
            text = f"({name} := {text})"
        return _Part(text)


def _joined(opened: str, parts: list[_Part], closed: str, *, single: bool = False) -> _Part:
    """The parts between brackets: on one line if they fit and none has a comment, else one on each line."""
    line = ", ".join(part.text for part in parts)
    comma = "," if single and len(parts) == 1 else ""
    if not any(part.comment or "\n" in part.text for part in parts) and len(line) < _WIDTH - 2:
        return _Part(f"{opened}{line}{comma}{closed}")
    lines = []
    for part in parts:
        text = part.text if "\n" in part.text or len(part.text) < _WIDTH else _wrapped(part.text)
        lines.append(textwrap.indent(text, "    ") + "," + (f"  # {part.comment}" if part.comment else ""))
    return _Part("\n".join([opened, *lines, closed]))


def _wrapped(text: str) -> str:
    """The source broken into lines between the numbers that it lists."""
    return "\n    ".join(textwrap.wrap(text, _WIDTH - 8, break_long_words=False, break_on_hyphens=False))


def _equal(value: Any, known: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value is known or (isinstance(known, torch.Tensor) and identical(value, known))
    return value is known


def _key(key: Any) -> str:
    return _scalar(key) or repr(key)


def _scalar(value: Any) -> str | None:
    """A Python value; None if it is no plain one."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    if type(value) in (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.layout):
        return repr(value)
    return f"torch.device('{value}')" if isinstance(value, torch.device) else None


# --- tensors --------------------------------------------------------------------------------------------------------


def _spelled(tensor: torch.Tensor) -> str | None:
    """An expression for the tensor; None if it takes more than a few lines."""
    if not can_vary(tensor) or tensor.layout is not torch.strided or tensor.dtype.itemsize > 16:
        return None
    if tensor.dtype.is_floating_point and tensor.dtype not in _FLOATS:
        return None
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    text = _laid_out(plain)
    return f"{text}.requires_grad_()" if text is not None and tensor.requires_grad else text


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _laid_out(tensor: torch.Tensor) -> str | None:
    """With the tensor's strides, where they are those of a permuted or an expanded tensor."""
    if not tensor.is_contiguous() and tensor.numel():
        single = dense(tensor)
        if single.shape != tensor.shape:
            text = _content(single)
            return None if text is None else f"{text}.expand({_sizes(tensor)})"
        strides = tensor.stride()
        order = sorted(range(tensor.dim()), key=lambda dim: -strides[dim])
        packed = tensor.permute(order)
        if packed.is_contiguous():
            text = _content(packed)
            back = ", ".join(str(order.index(dim)) for dim in range(tensor.dim()))
            return None if text is None else f"{text}.permute({back})"
    return _content(tensor.contiguous())


def _content(tensor: torch.Tensor) -> str | None:
    flat = tensor.reshape(-1)
    if not flat.numel():
        return f"torch.zeros({_shape(tensor)}{_dtype(tensor, inferred=False)})"
    if (flat.numel() > 4 or tensor.dim() > 1) and _all_equal(flat):
        return _full(tensor, flat[:1])
    if flat.numel() <= _SPELLED and (flat.numel() <= 16 or _exceptions(flat) is None):
        return _listed(tensor)
    return _ramp(tensor) or _sparse(tensor) or _repeated(tensor)


def _all_equal(flat: torch.Tensor) -> bool:
    return _same_bits(flat, flat[:1].expand(flat.shape).contiguous())


def _listed(tensor: torch.Tensor) -> str:
    def lists(part: torch.Tensor) -> str:
        if not part.dim():
            return _number(part)
        return f"[{', '.join(lists(one) for one in part)}]"

    return f"torch.tensor({lists(tensor)}{_dtype(tensor, inferred=True)})"


def _full(tensor: torch.Tensor, fill: torch.Tensor) -> str:
    number = _number(fill[0])
    name = {"0.0": "zeros", "1.0": "ones", "0": "zeros", "1": "ones"}.get(number)
    if name and tensor.dtype is not torch.bool and not tensor.is_complex():
        return f"torch.{name}({_shape(tensor)}{_dtype(tensor, inferred=False)})"
    return f"torch.full({_shape(tensor)}, {number}{_dtype(tensor, inferred=True)})"


def _ramp(tensor: torch.Tensor) -> str | None:
    """Integers that count up or down."""
    flat = tensor.reshape(-1)
    if flat.dtype is not torch.int64:
        return None
    start, step = int(flat[0]), int(flat[1]) - int(flat[0])
    stop = start + step * len(flat)
    if not step or abs(stop) >= 2**62 or not torch.equal(flat, torch.arange(start, stop, step)):
        return None
    bounds = f"{stop}" if (start, step) == (0, 1) else f"{start}, {stop}" + (f", {step}" if step != 1 else "")
    return f"torch.arange({bounds})" + (f".reshape({_sizes(tensor)})" if tensor.dim() != 1 else "")


def _exceptions(flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The most frequent value, and the places of the few others; None if they are many."""
    if flat.is_complex():
        return None
    bits = _bits(flat)
    common, first = bits.mode()
    places = (bits != common).nonzero().reshape(-1)
    if len(places) > min(_EXCEPTIONS, len(flat) // 4):
        return None
    return flat[first].reshape(1), places


def _sparse(tensor: torch.Tensor) -> str | None:
    """One value everywhere but in a few places."""
    flat = tensor.reshape(-1)
    found = _exceptions(flat)
    if found is None:
        return None
    fill, places = found
    values = _listed(flat[places])
    text = f"{_full(flat, fill)}.scatter(0, torch.tensor({places.tolist()}), {values})"
    return text + (f".reshape({_sizes(tensor)})" if tensor.dim() != 1 else "")


def _repeated(tensor: torch.Tensor) -> str | None:
    """A small tensor repeated along dimensions."""
    base, times = tensor, [1] * tensor.dim()
    for dim, size in enumerate(tensor.shape):
        first = base.narrow(dim, 0, 1)
        if size > 1 and _same_bits(base.contiguous(), first.expand(base.shape).contiguous()):
            base, times[dim] = first, size
    if base.numel() > _SPELLED or base.numel() == tensor.numel():
        return None
    return f"{_listed(base)}.repeat({', '.join(map(str, times))})"


def _number(value: torch.Tensor) -> str:
    """A single element, the shortest decimal that gives the same bits."""
    if value.is_complex():
        real, imaginary = torch.view_as_real(value)
        return f"complex({_number(real)}, {_number(imaginary)})"
    if not value.is_floating_point():
        return repr(value.item())
    number = float(value)
    if math.isnan(number):
        return "torch.nan"
    if math.isinf(number):
        return "torch.inf" if number > 0 else "-torch.inf"
    return repr(shortest(value))


def _shape(tensor: torch.Tensor) -> str:
    return f"({tensor.shape[0]},)" if tensor.dim() == 1 else f"({_sizes(tensor)})"


def _sizes(tensor: torch.Tensor) -> str:
    return ", ".join(map(str, tensor.shape))


def _dtype(tensor: torch.Tensor, *, inferred: bool) -> str:
    """`, dtype=...` unless it is the default one, or `inferred` from flags and Python integers."""
    told = tensor.dtype is torch.get_default_dtype() or (inferred and tensor.dtype in (torch.bool, torch.int64))
    return "" if told else f", dtype={tensor.dtype}"


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bits of each element, as integers; every NaN has the same ones."""
    plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    plain = plain.detach().contiguous()
    bits = plain.view(_WHOLE[plain.dtype.itemsize]).long()
    return torch.where(plain.isnan(), -1, bits) if plain.is_floating_point() else bits


_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(_bits(one), _bits(other))
