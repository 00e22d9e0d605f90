"""A digest of everything that decides what a model computes, so that equal models share eager's results."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pytest_torchexport.subject import objects
from pytest_torchexport.subject.ingredients import EXACT, Ingredients, Opaque, ingredients, without_notes

_TENSORS = (torch.Tensor, torch.nn.Parameter)


@dataclass(frozen=True)
class Fingerprint:
    """A digest; two are equal if the digests are.

    Attributes:
        digest: hex digits.
        held: the objects that are known by their identity. While the fingerprint is kept, no other object can get it.
    """

    digest: str
    held: tuple[object, ...] = field(compare=False, repr=False, default=())


def fingerprint(model: object, *extra: Any) -> Fingerprint | None:
    """A digest of everything that decides what the model computes: code, parameters, buffers, attributes.

    What is not looked at: the rest of the process. That is what a function reads from modules that are not the user's,
    what other functions that it calls read, and torch's own settings.

    Args:
        model: the user's module or function.
        extra: further values (the example's arguments) that go into the digest.

    Returns:
        The fingerprint; None if something that the model holds cannot be digested, so that no two models may be taken
        for equal.
    """
    digest = _Digest()
    try:
        for value in (model, *extra):
            digest.add(value)
    except (Opaque, RecursionError):
        return None
    return digest.fingerprint()


class _Digest:
    """A digest in the making; it knows which objects it has seen, so that sharing and cycles count too."""

    def __init__(self) -> None:
        self._hash = hashlib.sha1(usedforsecurity=False)
        self._seen: dict[int, tuple[int, Any]] = {}
        self._storages: dict[int, int] = {}
        self._held: dict[int, object] = {}

    def fingerprint(self) -> Fingerprint:
        return Fingerprint(self._hash.hexdigest(), tuple(self._held.values()))

    def add(self, value: Any) -> None:
        """Feed a value into the digest."""
        if type(value) in EXACT:
            self._say(f"{type(value).__name__}:{value!r}")
        elif isinstance(value, (tuple, frozenset)):
            self._take_apart(value)  # Python shares equal constants as it likes
        elif id(value) in self._seen:
            self._say(f"again:{self._seen[id(value)][0]}")
        else:
            self._seen[id(value)] = (len(self._seen), value)
            if isinstance(value, torch.Tensor):
                self._add_tensor(value)
            elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
                self._say(f"{value.dtype}{value.shape}{value.strides}")
                self._hash.update(value.tobytes())
                self._add_all(Ingredients("array", (type(value), objects.attributes(value))))
            else:
                self._take_apart(value)

    def _say(self, text: str) -> None:
        self._hash.update(f"{len(text)}:{text};".encode(errors="surrogatepass"))

    def _take_apart(self, value: Any) -> None:
        self._add_all(ingredients(value))

    def _add_all(self, found: Ingredients) -> None:
        self._say(f"{found.words}({len(found.parts)})")
        for one in found.identities:
            self._identify(one)
        for part in found.parts:
            self.add(part)
        for part in found.optional:
            known = len(self._seen)
            try:
                self.add(part)
            except Opaque:
                # What was not taken apart to its end has not been seen: elsewhere it is as opaque as here.
                for one in list(self._seen)[known:]:
                    del self._seen[one]
                self._identify(part)

    def _identify(self, one: object) -> None:
        self._held[id(one)] = one
        self._say(f"id:{id(one)}")

    def _add_tensor(self, given: torch.Tensor) -> None:
        kind, tensor = type(given), given.detach()
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
            raise Opaque
        if kind not in _TENSORS:
            # What such a class holds beside its numbers is known where it is an ordinary class with attributes.
            if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__ or not objects.is_users_class(kind):
                raise Opaque
            tensor = tensor.as_subclass(torch.Tensor)
        storage = self._storages.setdefault(tensor.untyped_storage().data_ptr(), len(self._storages))
        shape = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset())
        self._say(f"{tensor.dtype}{shape}{tensor.device}{given.requires_grad}{storage}")
        hooks = [hook for name in _HOOKS for hook in (getattr(given, name, None) or {}).values()]
        self._add_all(Ingredients("tensor", (kind, without_notes(vars(given)), hooks)))
        if tensor.numel():
            bits = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
            self._hash.update(bits.cpu().numpy().data)


_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
"""Functions that a tensor calls when its gradient is known."""
