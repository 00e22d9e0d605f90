"""Shared by all tests.

pytester restores `sys.modules` after each run in this process, and a second import of torch crashes the interpreter:
what has native code or registers operators is imported before the first test. So is all of the package: a module
that is imported a second time holds other classes than the one before.
"""

from __future__ import annotations

import fnmatch
import pkgutil
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from _pytest.pytester import SysModulesSnapshot

import pytest_torchexport
from pytest_torchexport.backends import registry

if TYPE_CHECKING:
    from collections.abc import Iterator

for _module in ("numpy", "torch", "torch._dynamo", "onnx", "onnxruntime", "hypothesis"):
    import_module(_module)
for _found in pkgutil.walk_packages(pytest_torchexport.__path__, "pytest_torchexport."):
    import_module(_found.name)
import_module("torch._dynamo").list_backends()  # imports the compilers

pytest_plugins = ["pytester"]

_KEPT = ("zope", "readline", "torch", "onnx", "onnxruntime", "onnxscript", "sympy", "numpy")
"""Packages whose modules stay when pytester restores `sys.modules`: its own two, and those that know their classes."""


def _snapshot(_: pytest.Pytester) -> SysModulesSnapshot:
    """Compilers are loaded piece by piece: one that is loaded anew does not fit the others."""
    return SysModulesSnapshot(preserve=lambda name: name.partition(".")[0] in _KEPT)


setattr(pytest.Pytester, "_Pytester__take_sys_modules_snapshot", _snapshot)  # noqa: B010 the name is not ours

_THOROUGH = (
    "test_search.py::test_what_can_be_reached_is_reached[[][12]]",
    "test_search.py::test_most_is_reached_in_modules_that_the_search_was_not_built_for[[][12]]",
    "test_search.py::test_the_same_seed_gives_the_same_report[[]*equilibrium]",
    "test_search.py::test_the_same_seed_gives_the_same_report[[]*weighted-checksum]",
    "test_script.py::*[[]aoti]",
    "test_script.py::test_what_torch_export_does_not_capture_is_made_from_its_source",
    "test_ready_test.py::test_it_fails_in_the_same_way[[][!bc]*]",
    "test_ready_test.py::test_options_and_a_tolerance_stay",
    "test_refusal_table.py::*[[]aoti-*]",
    "test_localize.py::*[[]aoti]",
    "test_causes.py::*[[]aoti-*]",
    "test_torch_warnings.py::test_aoti_*",
    "test_conformance.py::test_built_in_backend_conforms[[]aoti]",
    "test_latency.py::test_every_backend_is_measured[[]aoti]",
    "test_corpus.py::test_backends_are_as_right_as_said[[]onnx-[cd]*]",
    "test_corpus.py::test_backends_are_as_right_as_said[[]compile-[cd]*]",
    "test_search.py::test_another_process_gives_the_same_report",
    "test_torch_export.py::test_aoti_takes_no_notice_of_*",
    "test_torch_export.py::test_of_an_aoti_package_only_what_is_asked_for_is_copied",
    "test_torch_export.py::test_an_unreadable_aoti_state_is_said",
    "test_transport.py::test_everything_arrives_with_xdist_and_without[[]-n2 --dist=loadgroup]",
    "test_transport.py::test_everything_arrives_with_xdist_and_without[[]-p no:xdist]",
    "test_transport.py::test_notes_of_stages_are_for_workers_only",
    "test_baseline.py::test_with_workers_only_one_process_writes",
    "test_memory.py::test_workers_share_the_memory",
    "test_progress.py::test_on_a_terminal[[]verbose]",
)
"""Tests that compile or start processes for a variant of what others cover: continuous integration has 15 minutes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that `make test` leaves to `make test-thorough`."""
    for item in items:
        if any(fnmatch.fnmatchcase(item.nodeid.rpartition("/")[2], pattern) for pattern in _THOROUGH):
            item.add_marker(pytest.mark.thorough)


# So that models which several tests share can be imported by their full names.
_ROOT = str(Path(__file__).parents[1])
if _ROOT not in sys.path:
    sys.path.append(_ROOT)


@pytest.fixture(autouse=True)
def _registered_backends() -> Iterator[None]:
    """What a test registers is gone after it: other tests list the backends."""
    before = dict(registry._registered)
    yield
    registry._registered.clear()
    registry._registered.update(before)
