"""What `export_check` does in a test, and what a test has to do with it."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from tests.plugin.conftest import Project


def test_a_pass_returns_the_outcome(project: Project) -> None:
    project.test("""
    @pytest.mark.export_equivalent(backends="trace", n_inputs=3)
    def test_one(export_check):
        outcome = export_check(linear(), X)
        assert outcome.verdict == "equivalent"
        assert outcome.test == "test_models.py::test_one[trace-cpu]"
        assert len(outcome.inputs) == 4
    """)
    project.run().assert_outcomes(passed=1)


def test_a_failure_shows_the_users_line_and_the_message_only(project: Project) -> None:
    project.test("""
    @pytest.mark.export_equivalent(backends="trace")
    def test_gate(export_check):
        export_check(Gate().eval(), X)
    """)
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            ">       export_check(Gate().eval(), X)",
            "E       pytest_torchexport.NotEquivalent: Gate on trace*mismatch: baked branch*",
        ]
    )
    result.stdout.no_fnmatch_line("*pytest_torchexport/*.py*")
    assert project.outcomes()["test_gate[trace-cpu]"]["result"] == "failed"


def test_other_verdicts(project: Project) -> None:
    project.test("""
    class Unscriptable(nn.Module):
        def forward(self, x):
            return x + len({**{1: 2}})

    @pytest.mark.export_equivalent(backends="script")
    def test_refused(export_check):
        export_check(Unscriptable().eval(), X)

    @pytest.mark.export_equivalent(backends="trace")
    def test_invalid(export_check):
        export_check(nn.Dropout().train(), X)
    """)
    result = project.run()
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["E *pytest_torchexport.NotEquivalent: *", "E *pytest_torchexport.ReferenceInvalid: *"])
    assert [one["verdict"] for one in project.outcomes().values()] == ["refused", "invalid"]


def test_a_wrong_call_is_told_in_the_users_words(project: Project) -> None:
    project.test("""
    @pytest.mark.export_equivalent(backends="trace")
    def test_wrong(export_check):
        export_check(nn.Linear, X)
    """)
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([">       export_check(nn.Linear, X)", "E *UsageError: *class Linear*pass Linear()*"])
    result.stdout.no_fnmatch_line("*pytest_torchexport/*.py*")
    wrong = project.outcomes()["test_wrong[trace-cpu]"]
    assert (wrong["verdict"], wrong["result"]) == ("invalid", "failed")
    assert "pass Linear()" in wrong["message"]


def test_every_marked_test_has_to_check_something(project: Project) -> None:
    project.test("""
    mark = pytest.mark.export_equivalent(backends="trace")

    @mark
    def test_never_calls(export_check): ...
    @mark
    def test_never_requests(): ...
    @mark
    class TestUnittest(__import__("unittest").TestCase):
        def test_method(self): ...
    @mark
    def test_exports_only(export_check):
        export_check.export(linear(), X)
    def test_unmarked(): ...
    """)
    result = project.run()
    result.assert_outcomes(failed=4, passed=1)
    message = "*is marked export_equivalent and checked nothing: request the fixture export_check and call*"
    result.stdout.fnmatch_lines([message] * 4)
    assert {one["verdict"] for one in project.outcomes().values()} == {"invalid"}


def test_two_checks_in_one_test(project: Project) -> None:
    project.test("""
    @pytest.mark.export_equivalent(backends="trace")
    def test_twice(export_check):
        export_check(linear(), X)
        export_check(linear(), X)

    @pytest.mark.export_equivalent(backends="trace")
    def test_swallowed(export_check):
        export_check(linear(), X)
        try:
            export_check(linear(), X)
        except BaseException:
            pass
    """)
    result = project.run()
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*called export_check 2 times: one test checks one model*"] * 2)


def test_a_test_that_ends_itself(project: Project) -> None:
    project.test("""
    @pytest.mark.export_equivalent(backends="trace")
    class TestEnds:
        def test_skips(self, export_check):
            pytest.skip("not today")
        def test_raises(self, export_check):
            raise ValueError("own mistake")
        def test_asserts_afterwards(self, export_check):
            export_check(linear(), X)
            assert 1 == 2
        @pytest.mark.skip(reason="by mark")
        def test_skipped_by_mark(self, export_check): ...
        @pytest.mark.xfail(reason="by hand")
        def test_expected(self, export_check):
            raise ValueError
        def test_fixture_raises(self, export_check, broken): ...

    @pytest.fixture
    def broken():
        raise RuntimeError("no data")
    """)
    project.run().assert_outcomes(failed=2, skipped=2, xfailed=1, errors=1)
    found = {
        test.removeprefix("TestEnds::test_").removesuffix("[trace-cpu]"): (one["verdict"], one["result"])
        for test, one in project.outcomes().items()
    }
    assert found == {
        "skips": ("skipped", "skipped"),
        "raises": ("invalid", "failed"),
        "asserts_afterwards": ("equivalent", "failed"),
        "skipped_by_mark": ("skipped", "skipped"),
        "expected": ("invalid", "xfailed"),
        "fixture_raises": ("invalid", "error"),
    }
    messages = {one["message"].splitlines()[0] for one in project.outcomes().values()}
    assert {"not today", "by mark", "ValueError: own mistake", "RuntimeError: no data"} <= messages
    assert all(one["not_checked"] for one in project.outcomes().values() if one["verdict"] in ("skipped", "invalid"))


def test_requested_too_late(project: Project) -> None:
    project.test("""
    def test_late(request):
        request.getfixturevalue("export_check")
    """)
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*name it among the test's arguments*"])


def test_an_overridden_fixture(project: Project) -> None:
    project.conftest("""
    import pytest

    @pytest.fixture
    def export_check(export_check):
        return lambda model: export_check(model.eval(), (__import__("torch").ones(4, 3),))
    """)
    project.test("""
    @pytest.mark.export_equivalent(backends="trace")
    def test_one(export_check):
        export_check(linear())
    """)
    project.run().assert_outcomes(passed=1)


def test_export_gives_the_program(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(project.path))  # other processes use the machine's
    project.test("""
    import pathlib, tempfile

    @pytest.mark.export_equivalent(backends="trace")
    def test_one(export_check):
        model = linear()
        before = set(pathlib.Path(tempfile.gettempdir()).glob("torchexport-*"))
        program = export_check.export(model, X)
        assert torch.equal(program(*X), model(*X))
        export_check(model, X)
        global made
        made = set(pathlib.Path(tempfile.gettempdir()).glob("torchexport-*")) - before
        assert made

    def test_nothing_stays_behind():
        assert not any(folder.exists() for folder in made)
    """)
    project.run().assert_outcomes(passed=2)


def test_all_items_of_a_test_see_the_same_random_numbers(project: Project) -> None:
    project.test("""
    import random
    import numpy as np

    @pytest.fixture(scope="module")
    def drawn_once():
        return torch.rand(100)

    @pytest.fixture
    def model():
        return nn.Linear(3, 2).eval()

    def draw():
        return [torch.rand(1).item(), float(np.random.rand()), random.random()]

    seen = []

    @pytest.mark.export_equivalent(backends=["trace", "script"], n_inputs=1)
    @pytest.mark.parametrize("size", [1, 2])
    def test_model(size, model, drawn_once, export_check):
        seen.append([model.weight.tolist(), *draw()])
        export_check(model, X)

    def test_the_draws():
        assert len(seen) == 4
        assert seen[0] == seen[1] and seen[2] == seen[3]
        assert seen[0] != seen[2]
    """)
    project.run().assert_outcomes(passed=5)
    project.test(
        """
        @pytest.mark.export_equivalent(backends="trace", n_inputs=1)
        def test_model(export_check):
            print("DRAWN", torch.rand(1).item())
            export_check(linear(), X)
        """
    )
    drawn = {
        str(next(line for line in project.run("-s", *seed).outlines if "DRAWN" in line))
        for seed in ((), ("--export-seed=0",), ("--export-seed=1",))
    }
    assert len(drawn) == 2, "the seed decides, and its default is 0"


def test_random_generators_are_restored(project: Project) -> None:
    project.test("""
    import random
    import numpy as np

    def states():
        return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]

    def test_before():
        global before
        before = states()

    @pytest.mark.export_equivalent(backends="trace")
    def test_model(export_check):
        assert states() != before
        export_check(linear(), X)

    def test_after():
        assert states() == before
    """)
    project.run().assert_outcomes(passed=3)


def test_references_are_shared_and_released(project: Project) -> None:
    project.conftest("""
    import pytest
    from pytest_torchexport.plugin.stash import RUN

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(item):
        result = yield
        item.config.stash.setdefault(KEY, []).append(sorted(item.config.stash[RUN].references))
        return result

    KEY = pytest.StashKey()

    def pytest_terminal_summary(terminalreporter, config):
        for held in config.stash[KEY]:
            terminalreporter.write_line(f"HELD {held}")
    """)
    project.test("""
    runs = []

    class Counted(nn.Module):
        def forward(self, x):
            if not torch.jit.is_scripting() and not torch.jit.is_tracing():
                runs.append(1)
            return x * 2

    @pytest.mark.export_equivalent(backends=["export", "trace"], n_inputs=2)
    @pytest.mark.parametrize("size", [1, 2])
    def test_model(size, export_check):
        before = len(runs)
        export_check(Counted().eval(), X)
        print("RUNS", len(runs) - before)
    """)
    result = project.run("-s", "--export-backends=trace,export")
    result.assert_outcomes(passed=4)
    held = [line for line in result.outlines if line.startswith("HELD")]
    origin = "test_models.py::test_model"
    assert held == [f"HELD ['{origin}[1]']", "HELD []", f"HELD ['{origin}[2]']", "HELD []"]
    runs = [int(line.rpartition("RUNS")[2]) for line in result.outlines if "RUNS" in line]
    assert runs[1] < runs[0], "the second backend takes eager's results from the first"


def test_memory_of_an_accelerator_is_freed_after_a_failure(project: Project) -> None:
    project.conftest("""
    import pytest
    from pytest_torchexport.plugin import isolation

    @pytest.fixture(autouse=True, scope="session")
    def pretend(request):
        patch = pytest.MonkeyPatch()
        patch.setattr(isolation, "on_accelerator", lambda cell: True)
        patch.setattr(isolation, "release_memory", lambda: print("RELEASED"))
        yield
        patch.undo()
    """)
    project.test("""
    mark = pytest.mark.export_equivalent(backends="trace", n_inputs=0)

    @mark
    def test_1_passes(export_check):
        print("BODY 1")
        export_check(linear(), X)
    @mark
    def test_2_fails(export_check):
        print("BODY 2")
        export_check(nn.Dropout().train(), X)
    @mark
    def test_3_passes(export_check):
        print("BODY 3")
        export_check(linear(), X)
    @mark
    def test_4_passes(export_check):
        print("BODY 4")
        export_check(linear(), X)
    """)
    result = project.run("-s", "-p", "no:terminal")
    said = [word for line in result.outlines for word in ("RELEASED", "BODY") if word in line]
    # Once when the failed test ends, once when pytest has let go of its frames.
    assert said == ["BODY", "BODY", "RELEASED", "RELEASED", "BODY", "BODY"]


def test_tests_of_other_plugins_are_left_alone(project: Project) -> None:
    project.test("""
    def test_rng_is_not_touched():
        state = torch.get_rng_state()
        assert torch.equal(state, torch.get_rng_state())
    """)
    result = project.pytester.runpytest_inprocess("-v")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*export equivalence*")
    assert sorted(path.name for path in project.path.iterdir() if path.name != "__pycache__") == [
        "test_models.py",
        "tox.ini",
    ]
