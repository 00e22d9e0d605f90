"""What users' objects are called and say does not become code of the scripts, and what is no Python is not kept."""

from __future__ import annotations

import ast
import collections
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from pytest_torchexport.backends.base import Recipe
from pytest_torchexport.backends.recipes import free_text
from pytest_torchexport.draft import Surroundings
from pytest_torchexport.reproduce.rebuild import Construction, model_source
from pytest_torchexport.reproduce.written import NotPython, write_source

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_torchexport import Outcome

engine = import_module("pytest_torchexport.check")  # the package's attribute of that name is the function

jit: Any = torch.jit

SAID = [
    'bad path C:\\Users\\new """ x',
    "two\nlines\r\nand \x0c more \u2028 of them",
    'ends with a quote "',
    'ends with a \\"',
    'starts """"""""',
    "ends with \\",
    "nul \0 and \udc80 and \u202e",
    "\\N{no such name} \\x",
]


@pytest.mark.parametrize("said", SAID)
def test_free_text_ends_neither_a_docstring_nor_a_comment(said: str) -> None:
    text = free_text(said)
    for quoted in (f'"""{text}"""', f'"""{text}\n"""', f'"""Before {text}."""'):
        (found,) = ast.parse(quoted).body
        assert isinstance(found, ast.Expr)
        assert isinstance(found.value, ast.Constant)
        assert text.isprintable()
    assert not ast.parse(f"# {text}\n").body
    text.encode()


def test_free_text_reads_as_it_was_said() -> None:
    assert ast.literal_eval(f'"""{free_text(SAID[0])}"""') == SAID[0]


def test_the_name_of_a_submodule_is_no_code() -> None:
    made = Construction(None, "a\n    open('there', 'w')\n    #.bias is another one", "M")
    (function, *_) = ast.parse(model_source(made, state=False)).body
    assert isinstance(function, ast.FunctionDef)
    assert len(function.body) == 2  # docstring and raise


@pytest.mark.parametrize("text", ["x = (", "x = 1\0", "(" * 500, 'x = """'])
def test_what_is_no_python_is_not_written(text: str, tmp_path: Path) -> None:
    with pytest.raises(NotPython, match="no Python"):
        write_source(tmp_path / "some.py", text)
    assert not (tmp_path / "some.py").exists()


class Keyed(nn.Module):
    def forward(self, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        y = next(iter(given.values())) * 2
        return y + 1 if jit.is_tracing() else y


class Plain(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if jit.is_tracing() else x


def failing(folder: Path, model: Any, args: Any) -> Outcome:
    around = Surroundings(keep_in=folder, keep="on", origin="a test")
    outcome: Outcome = engine.run(engine.Subject(model, args), engine.Policy(backend="trace", n_inputs=0), around)
    assert outcome.failed, outcome.message
    return outcome


@pytest.mark.parametrize("key", ["a-b", "x=open('ran', 'w'),y"])
def test_keys_of_arguments_are_kept_as_keys(key: str, tmp_path: Path) -> None:
    given = collections.defaultdict(None, {key: torch.rand(3)})
    outcome = failing(tmp_path / "kept", Keyed(), (given,))
    assert outcome.reproduction is not None, outcome.message
    done = subprocess.run(
        [sys.executable, outcome.reproduction], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "The difference is there." in done.stdout, done.stdout + done.stderr
    assert not (tmp_path / "ran").exists()


def test_a_script_that_is_no_python_is_not_kept_and_the_message_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytest_torchexport.backends.torchscript import _ScriptExported

    first = failing(tmp_path / "kept", Plain(), (torch.rand(3),))
    assert first.reproduction is not None
    monkeypatch.setattr(_ScriptExported, "reproduction", lambda *_: Recipe("def load(path, device:\n"))
    outcome = failing(tmp_path / "kept", Plain(), (torch.rand(3),))
    assert outcome.reproduction is None
    assert "no repro.py: what was to be written is no Python: " in outcome.message
    assert not Path(first.reproduction).exists()
    assert f"reproduce: pytest {tmp_path / 'kept' / 'test_repro.py'}" in outcome.message
