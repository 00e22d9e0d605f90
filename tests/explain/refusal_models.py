# mypy: ignore-errors
# ruff: noqa: C416, E731, PLW0603
"""Models that exporters refuse, each with the same model after what the message advises.

The refused line carries the comment `HERE`. Plain annotations: TorchScript reads them.
"""

import copy
import dataclasses
import math
import time
import warnings

import numpy as np
import torch
from torch import nn


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:  # HERE
            return x + 1
        return x - 1


class BranchCond(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))


class BranchWhere(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x.sum() > 0, x + 1, x - 1)


def branch(x: torch.Tensor) -> torch.Tensor:
    if x.sum() > 0:
        return x + 1
    return x - 1


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    branch = torch.jit.script(branch)


class BranchScripted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return branch(x)


class While(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while x.sum() < 100:  # HERE
            x = x * 2
        return x


class WhileLoop(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.while_loop(lambda x: x.sum() < 100, lambda x: (x * 2,), (x,))[0]


class Assertion(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.min() > 0, "positive"  # HERE
        return x.log()


class AssertionOutside(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.log()


class Item(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = int(x.sum().item())  # HERE
        return x[:n].sum(0)


class ItemMask(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(x.shape[0])[:, None] < x.sum()
        return (x * rows).sum(0)


class Float(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * float(x.max())  # HERE


class FloatTensor(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.max()


class MathSqrt(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * math.sqrt(x.sum())  # HERE


class TorchSqrt(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sqrt(x.sum())


class Numpy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.sin(x.detach().numpy()))  # HERE


class NumpyTorch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x)


class Deepcopy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return copy.deepcopy(x) + 1  # HERE


class Clone(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone() + 1


@dataclasses.dataclass
class Pair:
    a: torch.Tensor
    b: torch.Tensor


class Box:
    def __init__(self, x) -> None:
        self.x = x


class Boxed(nn.Module):
    def forward(self, x: torch.Tensor):
        return Box(x + 1)  # HERE


class PairOut(nn.Module):
    def forward(self, x: torch.Tensor):
        return Pair(x + 1, x)  # HERE


class PairIn(nn.Module):
    def forward(self, p):  # HERE
        return p.a + p.b


class TupleIn(nn.Module):
    def forward(self, p):
        return p[0] + p[1]


class TupleOut(nn.Module):
    def forward(self, x: torch.Tensor):
        return x + 1, x


class DictOut(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"a": x + 1}  # HERE


class NestedOut(nn.Module):
    def forward(self, x: torch.Tensor):
        return {"a": x + 1, "b": (x, x)}  # HERE


class FlatOut(nn.Module):
    def forward(self, x: torch.Tensor):
        return x + 1, (x, x)


class StringOut(nn.Module):
    def forward(self, x: torch.Tensor):
        return x + 1, "done"  # HERE


class IntOut(nn.Module):
    def forward(self, x: torch.Tensor):
        return x + 1, 3  # HERE


class NoneOut(nn.Module):
    def forward(self, x: torch.Tensor):
        return x + 1, None  # HERE


class OneOut(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


class NothingOut(nn.Module):
    def forward(self, x: torch.Tensor):  # HERE
        x.add_(1)


class Fixed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(4, 3) + 1  # HERE


class Inferred(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, 3) + 1


class Sizes(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.shape[0] > 5 else x  # HERE


class Equal(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y  # HERE


class Bessel(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x)  # HERE


class Svd(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svd(x)[1]  # HERE


class Sparse(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * 2).sin().to_sparse().to_dense()  # HERE


class Fft(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.fft(x).abs()  # HERE


class Quantile(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.quantile(x, 0.5)  # HERE


class Area(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(x[None, None], size=(3, 2), mode="area")  # HERE


class Cdist(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cdist(x, x)  # HERE


class Distances(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x[:, None] - x[None]).square().sum(-1).sqrt()


class GridSample(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.grid_sample(x[None, None], torch.zeros(1, 2, 2, 2), align_corners=False)  # HERE


@torch.library.custom_op("refusal_models::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@torch.library.custom_op("refusal_models::thrice", mutates_args=())
def thrice(x: torch.Tensor) -> torch.Tensor:
    return x * 3


@torch.library.register_fake("refusal_models::thrice")
def _(x):
    return torch.empty_like(x)


class CustomOp(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return twice(x)  # HERE


class CustomOpKnown(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return thrice(x)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x

    @staticmethod
    def backward(ctx, g):
        return g


class Autograd(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Square.apply(x)  # HERE


class AutogradPlain(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x if torch.jit.is_tracing() or torch.jit.is_scripting() else Square.apply(x)


class ListOfLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(3, 3)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)  # HERE
        return x


class ListOfLayersScripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(3, 3)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:  # HERE
            x = layer(x)
        return x


class ModuleList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.jit.script(nn.Linear(3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)  # HERE


class Unscripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class Hook(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.handle = self.layer.register_full_backward_hook(lambda module, before, after: None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)  # HERE


class HookRemoved(Hook):
    def __init__(self) -> None:
        super().__init__()
        self.handle.remove()


class KeywordOnly(nn.Module):
    def forward(self, x: torch.Tensor, *, scale: float = 2.0) -> torch.Tensor:  # HERE
        return x * scale


class Positional(nn.Module):
    def forward(self, x: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
        return x * scale


class Print(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print(end="")  # HERE
        return x + 1


class Warn(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        warnings.warn("old", stacklevel=1)  # HERE
        return x + 1


class Sleep(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0)  # HERE
        return x + 1


class Seed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)  # HERE
        return x + 1


@torch.compiler.disable
def disabled(x):
    return x + 1


class Disabled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return disabled(x * 2).sin()  # HERE


class Gradient(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.detach().requires_grad_()
        return torch.autograd.grad((y * y).sum(), y)[0]  # HERE


class GradientFunction(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.func.grad(lambda y: (y * y).sum())(x)


# --- what TorchScript's compiler refuses ---


class Yield(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([row for row in self.rows(x)])

    def rows(self, x: torch.Tensor):
        for i in range(3):
            yield x[i]  # HERE


class Rows(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.rows(x))

    def rows(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x[i] for i in range(3)]


class Lambda(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = lambda x: x + 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f(x)  # HERE


class LambdaInside(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        f = lambda y: y + 1  # HERE
        return f(x)


def plus_one(x: torch.Tensor) -> torch.Tensor:
    return x + 1


class Def(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = plus_one

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f(x)


class Inner(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def inner(y):  # HERE
            return y + 1

        return inner(x)


class VarArgs(nn.Module):
    def forward(self, *xs: torch.Tensor) -> torch.Tensor:  # HERE
        return xs[0] + 1


class KwArgs(nn.Module):
    def forward(self, x: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:  # HERE
        return x + 1


class NoAnnotation(nn.Module):
    def forward(self, x, n=2):  # HERE
        return x.repeat(n, 1)


class Annotation(nn.Module):
    def forward(self, x, n: int = 2):
        return x.repeat(n, 1)


class NoneDefault(nn.Module):
    def forward(self, x: torch.Tensor, mask=None):  # HERE
        if mask is not None:
            x = x * mask
        return x + 1


class OptionalDefault(nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None):
        if mask is not None:
            x = x * mask
        return x + 1


COUNT = 0


class Global(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        global COUNT  # HERE
        COUNT += 1
        return x * 2


class Count(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return x * 2


class NewAttribute(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = x * 2  # HERE
        return x + self.last


class MadeAttribute(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = torch.zeros(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = x * 2
        return x + self.last


class Parent(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(x)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class Super(Parent):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1  # HERE


class NamedMethod(Parent):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(x) + 1


class Try(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        try:  # HERE
            return x + 1
        except RuntimeError:
            return x


class Set(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        s = {1, 2}  # HERE
        return x + len(s)


class ListForSet(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        s = [1, 2]
        return x + len(s)


class FormatSpec(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        name = f"{x.shape[0]:>3}"  # HERE
        return x + len(name)


class NoFormatSpec(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        name = f"{x.shape[0]}"
        return x + len(name)


class IsInstance(nn.Module):
    def forward(self, x):
        if isinstance(x, np.ndarray):  # HERE
            return torch.as_tensor(x)
        return x + 1


class Index(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3) for _ in range(2)])

    def forward(self, x: torch.Tensor, k: int = 1) -> torch.Tensor:
        return self.layers[k](x)  # HERE


class Enumerate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3) for _ in range(2)])

    def forward(self, x: torch.Tensor, k: int = 1) -> torch.Tensor:
        for i, layer in enumerate(self.layers):
            if i == k:
                x = layer(x)
        return x


class Options(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.options = {"scale": 2, "name": "x"}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.options["scale"]  # HERE


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = {"scale": 2, "name": "x"}["scale"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


class Unpacked(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        more = {"dim": 1}
        return x.sum(**more)  # HERE


class WrittenOut(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(dim=1)


class Tolist(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sizes = x.sum(1).long().tolist()  # HERE
        return x + len(sizes)


class TolistTyped(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sizes: list[int] = x.sum(1).long().tolist()
        return x + len(sizes)
