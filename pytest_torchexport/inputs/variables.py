"""What varies in a call: each leaf or argument with its domain, declared or derived."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.errors import UsageError
from pytest_torchexport.inputs.derive import annotated, derive, may_be_none
from pytest_torchexport.inputs.domain import Optional
from pytest_torchexport.inputs.values import as_numbers, can_vary, dense
from pytest_torchexport.inputs.whole import as_domain, fit
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.call import Call, bind, signature_of

if TYPE_CHECKING:
    from pytest_torchexport.inputs.base import Domain


def digest(value: Any) -> bytes:
    """A fingerprint of a value: its tensors by shape and content, the rest by its text."""
    found = hashlib.blake2b(digest_size=16)
    for path, leaf in containers.leaves(value):
        found.update(path.encode())
        if not can_vary(leaf):
            found.update(repr(leaf).encode())
            continue
        numbers = dense(leaf)
        found.update(f"{leaf.dtype}{tuple(numbers.shape)}".encode())
        found.update(numbers.reshape(-1).view(torch.uint8).numpy().data)
    return found.digest()


@dataclass(frozen=True, eq=False)
class Variable:
    """One thing that varies.

    Attributes:
        paths: where it stands, `x` or `batch['ids']`; several where the example passes the same tensor several times.
        example: its value in the example.
        domain: the values it may take.
        declared: whether the user declared the domain.
        numbers: the example's dense values; None if the domain gives the value as a whole or it is no tensor.
        unchanged: fingerprint of the example's value.
        largest: the example's largest value, if it holds integers.
    """

    paths: tuple[str, ...]
    example: Any
    domain: Domain
    declared: bool
    numbers: torch.Tensor | None
    unchanged: bytes
    largest: int | None

    @classmethod
    def at(cls, paths: tuple[str, ...], example: Any, domain: Domain, *, declared: bool) -> Variable:
        """The variable, with what is read from the example once."""
        numbers = dense(example) if not domain.whole and can_vary(example) else None
        unchanged = digest(example if numbers is None else numbers)
        largest = None
        if numbers is not None and numbers.numel() and not (numbers.is_floating_point() or numbers.is_complex()):
            largest = int(as_numbers(numbers).max())
        return cls(paths, example, domain, declared, numbers, unchanged, largest)

    @property
    def pattern(self) -> Any:
        """What the domain draws after: the dense values of a tensor, else the example's value."""
        return self.example if self.numbers is None else self.numbers

    def fit(self, value: Any) -> Any:
        """A value drawn for the argument as a whole, on the example's device.

        Raises:
            UsageError: it cannot stand in the example's place.
        """
        return fit(self.name, str(self.domain), value, self.example) if self.domain.whole else value

    @property
    def name(self) -> str:
        """Its first path."""
        return self.paths[0]


@dataclass
class Variables:
    """Everything that varies in the example.

    Attributes:
        named: the example's arguments by name, with the defaults of those that only a declaration names.
        items: leaves and whole arguments with their domains.
        absent: paths whose value may be None instead; True for those that the user declared.
    """

    named: dict[str, Any]
    items: list[Variable] = field(default_factory=list)
    absent: dict[str, bool] = field(default_factory=dict)

    @classmethod
    def of(
        cls, model: Callable[..., Any], example: Call, declared: Mapping[str, Any] | None, seed: int, fixed: set[str]
    ) -> Variables:
        """Read the variables of the example; the leaves at the `fixed` paths are drawn elsewhere.

        Raises:
            UsageError: a declaration does not fit the example.
        """
        made = cls(bind(model, example))
        domains = made._declare(model, declared or {}, seed)
        made._collect(model, domains, fixed)
        return made

    def _declare(self, model: Callable[..., Any], declared: Any, seed: int) -> dict[str, Domain]:
        """The declared domains by the path of the leaf, or of the whole value, that they describe."""
        if not isinstance(declared, Mapping):
            msg = f"inputs is {type(declared).__name__}: pass a dict by argument name, such as {{'x': floats(0, 1)}}"
            raise UsageError(msg)
        self._add_defaults(model, declared)
        nodes = nodes_of(self.named)
        found: dict[str, Domain] = {}
        by_path = {_spelled(key): domain for key, domain in declared.items()}
        for path in sorted(by_path, key=len):  # a part comes after what holds it, and overrides it
            if path not in nodes:
                accepted = ", ".join(nodes) or "none, the example passes no argument"
                msg = f"inputs names {path!r}, which is no argument of the example. Accepted: {accepted}."
                raise UsageError(msg)
            domain = as_domain(path, by_path[path], seed)
            if isinstance(domain, Optional):
                domain.check(path, nodes[path])
                self.absent[path] = True
                domain = domain.inner
            if domain is not None:
                found.update(_placed(path, nodes[path], domain))
        return found

    def _add_defaults(self, model: Callable[..., Any], declared: Mapping[str, Any]) -> None:
        """An argument that the example leaves to its default can be declared too."""
        signature = signature_of(model)
        for name, parameter in (signature.parameters if signature else {}).items():
            if name in declared and name not in self.named and parameter.default is not inspect.Parameter.empty:
                self.named[name] = parameter.default

    def _collect(self, model: Callable[..., Any], domains: dict[str, Domain], fixed: set[str]) -> None:
        hints = annotated(model)
        nodes = nodes_of(self.named)
        whole = [path for path, domain in domains.items() if domain.whole]
        for path in whole:
            self.items.append(Variable.at((path,), nodes[path], domains[path], declared=True))
        same: dict[int, list[str]] = {}
        for name, value in self.named.items():
            for path, leaf in containers.leaves(value, name):
                if any(below(path, above) for above in whole) or path in fixed:
                    continue
                # Small Python values are shared by the interpreter, only a tensor in two places is one tensor.
                key = id(leaf) if isinstance(leaf, torch.Tensor) else -len(same) - 1
                same.setdefault(key, []).append(path)
        for paths in same.values():
            leaf = nodes[paths[0]]
            told = next((path for path in paths if path in domains), None)
            domain = domains[told] if told else derive(leaf, hints.get(paths[0]))
            if domain is not None:
                self.items.append(Variable.at(tuple(paths), leaf, domain, declared=told is not None))
        for name, value in self.named.items():
            declared = any(below(path, name) for path in domains)
            if value is not None and not declared and name in hints and may_be_none(hints[name]):
                self.absent.setdefault(name, False)


def _spelled(key: Any) -> str:
    if not isinstance(key, str):
        msg = f"inputs names {key!r}: name arguments by strings, 'x' or \"batch['ids']\""
        raise UsageError(msg)
    return key.replace('"', "'").replace(" ", "")


def nodes_of(named: Mapping[str, Any]) -> dict[str, Any]:
    """Every argument and every part of one, by path."""
    found: dict[str, Any] = {}

    def add(value: Any, path: str) -> None:
        found[path] = value
        for step, part in containers.children(value) or []:
            add(part, path + step)

    for name, value in named.items():
        add(value, name)
    return found


def below(path: str, above: str) -> bool:
    """Whether what stands at the path is the other, or a part of it."""
    return path == above or (path.startswith(above) and path[len(above)] in ".[")


def _placed(path: str, value: Any, domain: Domain) -> dict[str, Domain]:
    """The domain at the leaves that it describes."""
    if domain.whole or containers.is_leaf(value):
        domain.check(path, value)
        return {path: domain}
    below = dict(containers.leaves(value, path))
    reasons = {at: domain.mismatch(leaf) for at, leaf in below.items()}
    fitting = [at for at, reason in reasons.items() if reason is None and below[at] is not None]
    if not fitting:
        first = next(iter(reasons), path)
        msg = f"inputs[{path!r}] = {domain} fits none of the values in {path} ({', '.join(reasons) or 'it is empty'})"
        raise UsageError(msg + (f": {reasons[first]}" if reasons.get(first) else ""))
    for at in fitting:
        domain.check(at, below[at])
    return dict.fromkeys(fitting, domain)
