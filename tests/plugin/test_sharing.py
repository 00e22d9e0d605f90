"""Which items share eager's results: those of one test whose models are the same, and no others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.plugin.conftest import Project

COUNTING = """
import pytest
from pytest_torchexport import reference

@pytest.fixture(scope="session", autouse=True)
def count():
    make, made = reference.make_reference, []
    def counting(*args):
        made.append(1)
        return make(*args)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "make_reference", counting)
        yield
    print(f"references made: {len(made)}")
"""

BODIES = {
    "made in each item": """
    def test_one(export_check):
        export_check(nn.GRU(3, 2).eval(), (torch.rand(2, 1, 3),))
    """,
    "one object for all": """
    @pytest.fixture(scope="module")
    def model():
        return nn.GRU(3, 2).eval()

    def test_one(export_check, model):
        export_check(model, (torch.rand(2, 1, 3),))
    """,
    "class of the test's body": """
    def test_one(export_check):
        class Local(nn.Module):
            def forward(self, x):
                return torch.tanh(x) * 2

        export_check(Local(), X)
    """,
    "hooks": """
    def test_one(export_check):
        model = linear()
        model.register_forward_hook(lambda module, args, output: output * 2)
        export_check(model, X)
    """,
}
MARK = '@pytest.mark.export_equivalent(backends=["trace", "export"], n_inputs=2)\n'


def _marked(body: str) -> str:
    return body.replace("    def test_one", f"    {MARK}    def test_one")


@pytest.mark.parametrize("case", BODIES)
def test_items_of_one_model_share(project: Project, case: str) -> None:
    project.pytester.makeconftest(COUNTING)
    project.test(_marked(BODIES[case]))
    result = project.run("-s")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*references made: 1"])


DIFFERENT = {
    "model that is changed from item to item": """
    SCALES = iter([1.0, -1.0])

    class Scaled(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale = scale

        def forward(self, x):
            return x * self.scale

    def test_one(export_check):
        export_check(Scaled(next(SCALES)), X)
    """,
    "something that cannot be seen": """
    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            self.lines = iter(["a"])

        def forward(self, x):
            return x * 2

    def test_one(export_check):
        export_check(Held(), X)
    """,
    "settings of torch": """
    FLAGS = iter(["highest", "high"])

    def test_one(export_check):
        torch.set_float32_matmul_precision(next(FLAGS))
        try:
            export_check(linear(), X)
        finally:
            torch.set_float32_matmul_precision("highest")
    """,
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_items_that_may_differ_do_not_share(project: Project, case: str) -> None:
    project.pytester.makeconftest(COUNTING)
    project.test(_marked(DIFFERENT[case]))
    result = project.run("-s")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*references made: 2"])
