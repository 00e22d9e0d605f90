"""Programs that are wrong in ways that once looked like rounding, or like nothing at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from torch import nn

from pytest_torchexport import Backend, Cause, Exported, ExportRequest, Verdict, check, sampled_from

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Runs(Exported):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)


class Fake(Backend):
    """Runs a function in place of an exported program."""

    name: ClassVar[str] = "fake"

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def export(self, request: ExportRequest) -> Any:
        return None

    def load(self, program: Any, path: Path | None, request: ExportRequest) -> Exported:
        return Runs(self._function)


class Temperature(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if t == 1.0:
            return x.argmax(-1)
        return (x / t).argmin(-1)


class Offset(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * 100 if t == 1.0 else x * 100 + 0.05


class Masked(nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if (mask == 1).all():
            return x.softmax(-1)
        return nn.functional.normalize(x * mask, dim=-1)


class Overflow(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p = x.exp() / x.exp().sum(-1, keepdim=True)
        return p if x.max() > 80 else torch.nan_to_num(p, nan=0.123)


def rows() -> torch.Tensor:
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(3))


def spike() -> torch.Tensor:
    x = torch.zeros(4, 4)
    x[0, 0] = 95.0
    return x


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model", "example", "extra"),
    [
        (Temperature(), (rows(), torch.tensor(0.7)), (rows(), torch.tensor(1.0))),
        (Offset(), (rows(), torch.tensor(0.7)), (rows(), torch.tensor(1.0))),
        (Masked(), (rows(), torch.tensor([1.0, 1.0, 0.0, 1.0])), (rows(), torch.ones(4))),
        (Overflow(), (rows(),), (spike(),)),
    ],
    ids=["discrete", "small", "mask", "overflow"],
)
def test_another_branch_is_not_rounding(model: nn.Module, example: Any, extra: Any) -> None:
    """A jittered or a float64 run that takes the other branch explains nothing."""
    with torch.no_grad():
        traced = torch.jit.trace(model, example, check_trace=False)  # type: ignore[no-untyped-call]
        assert not torch.equal(traced(*extra), model(*extra))
    outcome = check(model, example, extra_inputs=[extra], n_inputs=0)
    assert outcome.verdict is Verdict.MISMATCH, outcome.message
    assert outcome.cause is Cause.BAKED_BRANCH


def test_a_domain_that_holds_the_threshold() -> None:
    outcome = check(Temperature(), (rows(), torch.tensor(0.7)), inputs={"t": sampled_from([0.7, 1.0, 2.0])})
    assert outcome.cause is Cause.BAKED_BRANCH


def test_statistics_of_a_batch_norm_in_training_mode_are_judged() -> None:
    """A cumulative average divides by the number of batches, which a trace holds as a constant."""
    model = nn.BatchNorm1d(4, momentum=None)
    assert check(model, (rows(),)).verdict is Verdict.MISMATCH
    assert check(model, (rows(),), backend="script").verdict is Verdict.EQUIVALENT


def test_a_list_that_grows_is_a_lost_mutation() -> None:
    class Appends(nn.Module):
        def forward(self, x: torch.Tensor, seen: list[torch.Tensor]) -> torch.Tensor:
            seen.append(x * 2)
            return seen[0] + x

    outcome = check(Appends(), (rows(), [rows()]), backend="export")
    assert (outcome.verdict, outcome.cause) == (Verdict.MISMATCH, Cause.LOST_MUTATION)


def test_a_workspace_that_eager_writes_to_again() -> None:
    """What eager returned first must not become what it, or the program, wrote there later."""
    workspace = torch.zeros(16, 4)

    def eager(x: torch.Tensor) -> torch.Tensor:
        return torch.mul(x, 2, out=workspace)

    assert check(eager, (rows(),), backend=Fake(lambda x: x * 3)).verdict is Verdict.MISMATCH
    assert check(eager, (rows(),), backend=Fake(lambda x: x * 2)).verdict is Verdict.EQUIVALENT
    shared = Fake(lambda x: torch.mul(x, 3, out=workspace))
    assert check(eager, (rows(),), backend=shared).verdict is Verdict.MISMATCH


def test_eager_that_drifts_is_not_rounding() -> None:
    calls = iter(range(10**6))

    def eager(x: torch.Tensor) -> torch.Tensor:
        return x + 1e-3 * (next(calls) if x.max() > 3 else 0)

    outcome = check(eager, (rows().clamp(-1, 1),), backend=Fake(lambda x: x + 4e-4 * (x.max() > 3)))
    assert outcome.verdict is Verdict.INVALID, outcome.message
    assert "not deterministic" in outcome.message


def test_a_program_that_writes_the_user_s_weights() -> None:
    model = nn.Linear(4, 4)

    def program(x: torch.Tensor) -> torch.Tensor:
        out = nn.functional.linear(x, model.weight, model.bias)
        model.weight.data.mul_(1 + 1e-7)
        return out

    outcome = check(model, (rows(),), backend=Fake(program))
    assert (outcome.verdict, outcome.cause) == (Verdict.MISMATCH, Cause.LOST_STATE)
    assert "'weight'" in outcome.message


def test_forward_that_writes_its_weights_on_some_inputs() -> None:
    class Writes(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.max() > 5:
                self.weight.data.mul_(1.1)
            return super().forward(x)

    outcome = check(Writes(4, 4), (rows().clamp(-1, 1),))
    assert outcome.verdict is Verdict.INVALID
    assert "'weight'" in outcome.message


class Flag(nn.Module):
    def forward(self, x: torch.Tensor, flag: bool) -> torch.Tensor:
        return x if flag else -x


@pytest.mark.parametrize("backend", ["trace", "export"])
def test_a_declared_call_that_the_program_cannot_take(backend: str) -> None:
    outcome = check(Flag(), (rows(), True), backend=backend, extra_inputs=[(rows(), False)])
    assert (outcome.verdict, outcome.cause) == (Verdict.MISMATCH, Cause.BAKED_VALUE)


class Guarded(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > 16:
            message = "too many rows"
            raise ValueError(message)
        return x * 2


def test_both_have_to_raise_on_a_declared_call() -> None:
    many = (torch.cat([rows(), rows()]),)
    outcome = check(Guarded(), (rows(),), extra_inputs=[many])
    assert (outcome.verdict, outcome.cause) == (Verdict.MISMATCH, Cause.BAKED_BRANCH)
    assert "too many rows" in outcome.message
    outcome = check(Guarded(), (rows(),), backend=Fake(lambda x: x * 2), extra_inputs=[many])
    assert (outcome.verdict, outcome.cause) == (Verdict.MISMATCH, Cause.EXCEPTION)
    outcome = check(Guarded(), (rows(),), backend="compile:backend=eager", extra_inputs=[many])
    assert outcome.verdict is Verdict.EQUIVALENT, outcome.message
    assert any("too many rows" in entry.why for entry in outcome.not_checked)


def test_nothing_to_compare_is_no_pass() -> None:
    class Stores(nn.Module):
        def forward(self, x: torch.Tensor) -> None:
            self.last = x * 2

    outcome = check(Stores(), (rows(),), backend=Fake(lambda x: None))
    assert outcome.verdict is Verdict.INVALID, outcome.message


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last: torch.Tensor | None = None
        self.n = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.last is not None:
            return x + self.last
        if x.max() > 3:
            self.last = x * 1
        return x


def test_state_that_changes_off_the_example_only() -> None:
    outcome = check(Remembers(), (rows().clamp(-1, 1),))
    assert (outcome.verdict, outcome.cause) == (Verdict.MISMATCH, Cause.LOST_STATE)


def test_state_is_seen_without_generated_inputs() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.n += 1
            return x * self.n

    assert check(Counts(), (rows(),), n_inputs=0).cause is Cause.LOST_STATE


def test_a_list_that_compiled_code_does_not_append_to() -> None:
    class History(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.history: list[int] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not torch.compiler.is_compiling():
                self.history.append(1)
            return x * 2

    assert check(History(), (rows(),), backend="compile:backend=eager").cause is Cause.LOST_STATE


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_wrong_row_of_a_mask_does_not_hide_in_rounding(dtype: str) -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(3, 5, 3, padding=1)

    class Mask(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mask: torch.Tensor = self.conv(x).argmax(1)
            if torch._C._is_tracing():
                return torch.cat([mask[:, :-1], torch.zeros_like(mask[:, -1:])], 1)
            return mask

    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    outcome = check(Mask(), (x,), dtype=dtype, n_inputs=0)
    assert (outcome.verdict, outcome.cause) == (Verdict.MISMATCH, Cause.NUMERIC)


def test_parameters_of_every_dtype() -> None:
    for dtype in (torch.complex64, torch.uint16, torch.float8_e4m3fn, torch.bool):
        module = nn.Module()
        module.weight = nn.Parameter(torch.ones(4).to(dtype), requires_grad=False)
        weight = module.weight

        def scaled(x: torch.Tensor, weight: torch.Tensor = weight) -> torch.Tensor:
            return x * weight.real.to(torch.float32) if weight.is_complex() else x * weight.to(torch.float32)

        module.forward = scaled
        assert check(module, (rows(),)).verdict is Verdict.EQUIVALENT


@pytest.mark.parametrize("backend", ["onnx", "onnx-torchscript"])
def test_ties_have_no_order(backend: str) -> None:
    class Best(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            values, indices = x.relu().topk(3)
            return values, indices

    assert check(Best(), (rows(),), backend=backend).verdict is Verdict.EQUIVALENT
    wrong = Fake(lambda x: (x.relu().topk(3)[0], x.topk(3, largest=False)[1]))
    assert check(Best(), (rows(),), backend=wrong).verdict is Verdict.MISMATCH
