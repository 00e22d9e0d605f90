from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from pytest_torchexport.backends.base import ExportRequest
from pytest_torchexport.backends.compile import Compile, Compiled
from pytest_torchexport.backends.dynamic_marks import mark_dynamic
from pytest_torchexport.errors import NothingCompiled, UsageError
from pytest_torchexport.subject.call import Call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

CPU = torch.device("cpu")


class Counter(nn.Module):
    """Counts its calls in a buffer, and adds the count."""

    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count.add_(1)
        shifted: torch.Tensor = self.linear(x) + self.count
        return shifted


class Broken(nn.Module):
    """Has one graph break between two graphs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        print(end="")
        return y * 2


class Hopeless(nn.Module):
    """Dynamo cannot resume inside a try block: all of it runs in eager."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        try:
            y = x + 1
            print(end="")
        finally:
            pass
        return y


class Disabled(nn.Module):
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


class PartlyHopeless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = Hopeless()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.second(self.first(x))
        return y


def by_word(x: torch.Tensor, word: str) -> torch.Tensor:
    return x * len(word)


def early_return(x: torch.Tensor, double: bool) -> torch.Tensor:
    return x * 2 if double else x


@pytest.fixture
def compiled(tmp_path: Path) -> Iterator[Callable[..., Compiled]]:
    made: list[Compiled] = []

    def make(
        model: Callable[..., Any],
        *args: Any,
        dynamic_shapes: dict[str, Any] | None = None,
        grad: bool = False,
        **options: Any,
    ) -> Compiled:
        backend = Compile(**{"backend": "eager", **options})
        request = ExportRequest(model, Call(args), dynamic_shapes, CPU, tmp_path, grad)
        program = backend.load(backend.export(request), None, request)
        assert isinstance(program, Compiled)
        made.append(program)
        return program

    yield make
    for program in made:
        program.close()


def test_what_runs_is_the_compiled_graph(compiled: Callable[..., Compiled]) -> None:
    model = nn.Linear(3, 3)
    program = compiled(model, torch.rand(2, 3))
    x = torch.rand(2, 3)
    torch.testing.assert_close(program(x), model(x))
    assert program.details["graphs"] == 1
    assert program.details["graph_runs"] == 2, "the example at export, and this call"
    assert program.details["graph_breaks"] == program.details["recompiles"] == 0
    assert not program.not_checked


def test_a_wrong_compiler_shows(compiled: Callable[..., Compiled]) -> None:
    """The planted fault: a Dynamo backend that negates what the graph returns."""

    @torch._dynamo.register_backend(name="negating")
    def negating(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        return lambda *args: tuple(-one for one in graph(*args))

    x = torch.rand(3)
    assert torch.equal(compiled(torch.sin, x, backend="negating")(x), -torch.sin(x))


def test_the_module_itself_is_untouched(compiled: Callable[..., Compiled]) -> None:
    model = Counter()
    attributes = set(vars(model))
    program = compiled(model, torch.rand(2, 3))
    assert program.shares_module
    assert set(vars(model)) == attributes
    assert model._compiled_call_impl is None
    program(torch.rand(2, 3))
    assert model.count.item() == 2, "the export's run and the call's"
    named, parameters = dict(model.named_parameters()), program.parameters()
    assert parameters.keys() == named.keys()
    assert all(parameters[name] is named[name] for name in named)


def test_gradients(compiled: Callable[..., Compiled]) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    x = torch.rand(2, 3)
    program = compiled(model, x, backend="aot_eager", grad=True)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    wanted = torch.autograd.grad(model(theirs).sum(), [theirs, *model.parameters()])
    got = torch.autograd.grad(program(ours).sum(), [ours, *program.parameters().values()])
    torch.testing.assert_close(got, wanted)
    assert program.details["graphs"] == 1, "the export compiled for inputs with gradients"


def test_a_graph_break_is_counted_and_named(compiled: Callable[..., Compiled]) -> None:
    program = compiled(Broken(), torch.rand(3))
    program(torch.rand(3))
    assert program.details["graphs"] == 2
    assert program.details["graph_breaks"] == 1
    (reason,) = program.details["graph_break_reasons"]
    line = Broken.forward.__code__.co_firstlineno + 2
    assert f"{__file__}:{line}" in reason
    (entry,) = program.not_checked
    assert entry.what == "1 graph break"
    assert f"{__file__}:{line}" in entry.why


def test_a_function_that_ran_in_eager_is_named(compiled: Callable[..., Compiled]) -> None:
    program = compiled(PartlyHopeless(), torch.rand(2, 3))
    program(torch.rand(2, 3))
    (entry,) = program.not_checked
    assert "the whole function forward" in entry.why


def test_fullgraph_refuses_a_break(compiled: Callable[..., Compiled]) -> None:
    with pytest.raises(Exception, match="print"):
        compiled(Broken(), torch.rand(3), fullgraph=True)


@pytest.mark.parametrize("model", [Hopeless(), Disabled(), nn.Identity()], ids=lambda model: type(model).__name__)
def test_a_model_of_which_nothing_was_compiled(compiled: Callable[..., Compiled], model: nn.Module) -> None:
    program = compiled(model, torch.rand(3))
    for _ in range(2):
        with pytest.raises(NothingCompiled, match=type(model).__name__):
            program(torch.rand(3))
    assert program.details["graphs"] == 0


def test_why_nothing_was_compiled_names_the_line(compiled: Callable[..., Compiled]) -> None:
    program = compiled(Hopeless(), torch.rand(3))
    with pytest.raises(NothingCompiled) as caught:
        program(torch.rand(3))
    assert f"{__file__}:{Hopeless.forward.__code__.co_firstlineno + 3}" in str(caught.value)
    assert caught.value.location is not None
    assert caught.value.location.source == 'print(end="")'


def test_the_call_that_hits_the_recompile_limit(compiled: Callable[..., Compiled]) -> None:
    words = ["a" * n for n in range(1, 7)]
    x = torch.rand(3)
    program = compiled(by_word, x, words[0], recompile_limit=3)
    for word in words[:3]:
        assert torch.equal(program(x, word), by_word(x, word))
    for word in words[3:]:
        with pytest.raises(NothingCompiled, match=r"limit of 3 .*by_word.*recompile_limit=12"):
            program(x, word)
    assert torch.equal(program(x, words[0]), by_word(x, words[0])), "what is compiled still runs"
    assert program.details["recompiles"] == 2
    assert program.details["recompile_reasons"][0] == "word == 'a'"


def test_torchs_own_limit_is_seen_too(compiled: Callable[..., Compiled]) -> None:
    program = compiled(by_word, torch.rand(3), "")
    limit = torch._dynamo.config.recompile_limit
    for n in range(limit):
        program(torch.rand(3), "a" * n)
    with pytest.raises(NothingCompiled, match=f"limit of {limit}"):
        program(torch.rand(3), "a" * limit)


def test_a_path_without_operations_is_said_but_no_failure(compiled: Callable[..., Compiled]) -> None:
    program = compiled(early_return, torch.rand(3), True)
    x = torch.rand(3)
    for _ in range(2):
        assert program(x, False) is x
    assert [entry.what for entry in program.not_checked] == ["2 calls"]


def test_stance_and_suppressed_errors_do_not_turn_it_into_eager(compiled: Callable[..., Compiled]) -> None:
    x = torch.rand(3)
    with torch.compiler.set_stance("force_eager"):
        program = compiled(torch.sin, x)
        program(x)
    assert program.details["graph_runs"] == 2

    @torch._dynamo.register_backend(name="failing")
    def failing(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        msg = "no such instruction"
        raise NotImplementedError(msg)

    with torch._dynamo.config.patch(suppress_errors=True), pytest.raises(Exception, match="no such instruction"):
        compiled(torch.sin, x, backend="failing")


def test_switched_off_is_said(compiled: Callable[..., Compiled], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    program = compiled(torch.sin, torch.rand(3))
    with pytest.raises(NothingCompiled, match="TORCHDYNAMO_DISABLE"):
        program(torch.rand(3))


def _runs(program: Compiled, sizes: Iterable[int]) -> dict[str, Any]:
    for size in sizes:
        program(torch.rand(size, 3))
    return program.details


def test_declared_dims_are_dynamic_from_the_start(compiled: Callable[..., Compiled]) -> None:
    shapes = {"input": {0: torch.export.Dim("batch")}}
    sizes = (4, 7, 11)
    x = torch.rand(5, 3)
    assert _runs(compiled(nn.Linear(3, 3), x, dynamic_shapes=shapes), sizes)["graphs"] == 1
    assert _runs(compiled(nn.Linear(3, 3), x), sizes)["graphs"] == 2, "torch generalises at the second size"
    assert _runs(compiled(nn.Linear(3, 3), x, dynamic_shapes=shapes, dynamic=False), sizes)["graphs"] == 4


class Growing(nn.Module):
    """Another Python value in each call: nothing that was compiled before fits."""

    def __init__(self) -> None:
        super().__init__()
        self.word = ""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.word += "a"
        return x * len(self.word)


class Half(nn.Module):
    """Two compiled functions, of which only the inner one meets the recompile limit."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Growing()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        print(end="")
        y = y + 1
        z: torch.Tensor = self.inner(y)
        print(end="")
        return z


@pytest.mark.parametrize("model", [Growing(), Half()], ids=lambda model: type(model).__name__)
def test_a_bound_call_that_falls_back_to_eager_is_no_time(compiled: Callable[..., Compiled], model: nn.Module) -> None:
    bound = compiled(model, torch.rand(3)).bound_call(torch.rand(3))

    def calls() -> None:
        for _ in range(2 * torch._dynamo.config.recompile_limit):
            bound()

    with pytest.raises(NothingCompiled, match="limit of 8"):
        calls()


@pytest.mark.parametrize("model", [Hopeless(), Disabled(), nn.Identity()], ids=lambda model: type(model).__name__)
def test_a_bound_call_of_which_nothing_was_compiled(compiled: Callable[..., Compiled], model: nn.Module) -> None:
    program = compiled(model, torch.rand(3))
    with pytest.raises(NothingCompiled, match=type(model).__name__):
        program.bound_call(torch.rand(3))()


def test_a_bound_call_whose_code_is_dropped_compiles_again(compiled: Callable[..., Compiled]) -> None:
    program = compiled(torch.sin, torch.rand(3))
    x = torch.rand(3)
    bound = program.bound_call(x)
    bound()
    torch._dynamo.reset()
    for _ in range(3):
        assert torch.equal(bound(), torch.sin(x))


def test_a_bound_call_under_a_stance_of_the_users_is_compiled(compiled: Callable[..., Compiled]) -> None:
    program = compiled(torch.sin, torch.rand(3))
    with torch.compiler.set_stance("force_eager"):
        bound = program.bound_call(torch.rand(3))
        bound()
        bound()
    assert program.details["graph_runs"] == 3


def test_a_bound_call_under_a_later_stance_is_no_time(compiled: Callable[..., Compiled]) -> None:
    bound = compiled(torch.sin, torch.rand(3)).bound_call(torch.rand(3))
    bound()
    with torch.compiler.set_stance("force_eager"), pytest.raises(NothingCompiled, match="ran in eager"):
        bound()
    bound()


def test_a_bound_call_on_a_path_without_operations(compiled: Callable[..., Compiled]) -> None:
    program = compiled(early_return, torch.rand(3), True)
    x = torch.rand(3)
    bound = program.bound_call(x, False)
    assert bound() is bound() is x


def test_the_dims_of_a_bound_call_are_dynamic(compiled: Callable[..., Compiled]) -> None:
    shapes = {"input": {0: torch.export.Dim("batch")}}
    program = compiled(nn.Linear(3, 3), torch.rand(5, 3), dynamic_shapes=shapes)
    anew = Compile(backend="eager").load_anew(program, None, program._request)
    assert isinstance(anew, Compiled)
    anew.bound_call(torch.rand(5, 3))()
    anew.bound_call(torch.rand(7, 3))()
    assert anew._counting.graphs == 1


def test_what_is_loaded_anew_has_compiled_nothing(compiled: Callable[..., Compiled]) -> None:
    program = compiled(torch.sin, torch.rand(3))
    program.close()
    anew = Compile(backend="eager").load_anew(program, None, program._request)
    assert isinstance(anew, Compiled)
    assert anew._counting.graphs == 0
    anew.bound_call(torch.rand(3))()
    assert anew._counting.graphs == 1


def test_the_caches_are_there_again_where_it_cannot_be_loaded_anew(
    compiled: Callable[..., Compiled], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, before = compiled(torch.sin, torch.rand(3)), os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setattr(torch, "compile", lambda *_args, **_kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        Compile().load_anew(program, None, program._request)
    assert os.environ.get("TORCHINDUCTOR_CACHE_DIR") == before
    del caught  # as long as the error is kept, what was half made is too


def test_a_bound_call_is_watched_only_while_something_is_compiled(
    compiled: Callable[..., Compiled], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = compiled(torch.sin, torch.rand(3))
    program.bound_call(torch.rand(3))()
    monkeypatch.setattr(program, "_run", None)
    for _ in range(2):
        program.bound_call(torch.rand(3))()


class Block(nn.Module):
    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * self.factor
        print(end="")
        return y.relu()


def by_parts(x: torch.Tensor, word: str) -> torch.Tensor:
    y = x + 1
    print(end="")
    return y * len(word)


@pytest.mark.parametrize(
    ("model", "inputs", "recompiles"),
    [
        (nn.Linear(3, 3), [(torch.rand(2, 3),), (torch.rand(2, 3),)], 0),
        (nn.Linear(3, 3), [(torch.rand(2, 3),), (torch.rand(4, 3),), (torch.rand(5, 3),)], 1),
        (nn.Linear(3, 3), [(torch.rand(2, 3),), (torch.rand(4, 3),), (torch.rand(1, 3),)], 2),
        (Broken(), [(torch.rand(2),), (torch.rand(3),), (torch.rand(4),)], 1),
        (nn.Sequential(Block(1), Block(2), Block(3)), [(torch.rand(2),), (torch.rand(2),)], 0),
        (by_parts, [(torch.rand(2), word) for word in ("", "a", "aa", "a")], 2),
    ],
    ids=["the same", "another size", "the size 1", "a graph break", "a function for each layer", "behind a break"],
)
def test_recompiles_are_what_other_inputs_than_the_example_cost(
    compiled: Callable[..., Compiled], model: Any, inputs: list[tuple[Any, ...]], recompiles: int
) -> None:
    program = compiled(model, *inputs[0])
    for args in inputs:
        program(*args)
    assert program.recompiles == program.details["recompiles"] == recompiles
    assert len(program.details["recompile_reasons"]) == recompiles


def test_marks_follow_the_containers() -> None:
    dim = torch.export.Dim("n")
    x, y, z, w = (torch.rand(4, 5) for _ in range(4))
    shapes = {
        "pair": (None, {1: dim}),
        "named": {"z": (dim, torch.export.Dim.STATIC)},
        "w": (None, torch.export.Dim.AUTO),
    }
    mark_dynamic({"pair": (x, y), "named": {"z": z}, "w": w}, shapes)
    none: set[int] = set()
    marked = [getattr(t, "_dynamo_weak_dynamic_indices", none) for t in (x, y, z, w)]
    assert marked == [set(), {1}, {0}, {1}]


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="'max-autotune'"):
        Compile(mode="fast")
    with pytest.raises(UsageError, match="aot_eager"):
        Compile(backend="nvfuserr").unavailable(CPU)
    with pytest.raises(UsageError, match="exclude each other"):
        Compile(mode="max-autotune", options={"max_autotune": True})
    with pytest.raises(UsageError, match="belongs to"):
        Compile(mode="max-autotune", backend="eager")
    with pytest.raises(UsageError, match="recompile_limit"):
        Compile(recompile_limit=0)
    assert Compile(mode="max-autotune", fullgraph=True).id == "compile:mode=max-autotune,fullgraph=true"


def test_a_missing_compiler_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert Compile().unavailable(CPU) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    reason = Compile().unavailable(CPU)
    assert reason is not None
    assert "g++" in reason
    assert Compile(backend="eager").unavailable(CPU) is None


@pytest.mark.slow
def test_inductor_with_options(compiled: Callable[..., Compiled]) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval()
    x = torch.rand(2, 3)
    with torch.no_grad():
        program = compiled(model, x, backend="inductor", options={"epilogue_fusion": True})
        torch.testing.assert_close(program(x), model(x))
    assert program.details["graphs"] == 1


def test_an_unknown_inductor_option_is_refused(compiled: Callable[..., Compiled]) -> None:
    with pytest.raises(RuntimeError, match="no_such_option"):
        compiled(torch.sin, torch.rand(3), backend="inductor", options={"no_such_option": True})
