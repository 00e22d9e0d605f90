"""The pytest side, loaded at every start of pytest: hooks only, neither torch nor numpy.

Each hook hands over to the module that holds the idea, and loads it only then. Nothing happens because the plugin is
installed: only a marked test, a test that requests `export_check`, or an option makes it act.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchexport.backends.item_names import DEVICE_KINDS
from pytest_torchexport.backends.registry import backend_names, register_backend
from pytest_torchexport.errors import UsageError
from pytest_torchexport.plugin import hookspecs, marks, options
from pytest_torchexport.plugin.fixture import export_cell, export_check
from pytest_torchexport.plugin.reporting import Reporter, XdistHooks
from pytest_torchexport.plugin.stash import RUN, Run

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

__all__ = ["export_cell", "export_check"]

# ruff: noqa: PLC0415 - what a hook needs is loaded when it has something to do


# --- start and end of the run ---


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the `--export-` flags and their ini twins."""
    options.add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare the plugin's own hooks."""
    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    """Check the options, register the marks, make the state of this run."""
    config.hook.pytest_torchexport_register_backends(register=register_backend)
    config.addinivalue_line("markers", marks.DESCRIPTION)
    # Backends of entry points get their mark when a test uses them: looking for them costs milliseconds at each start.
    for name in backend_names(third_party=False):
        config.addinivalue_line("markers", marks.mark_line("backend", name))
    for kind in DEVICE_KINDS:
        config.addinivalue_line("markers", marks.mark_line("device", kind))
    run = config.stash[RUN] = Run(config)
    if options.any_given(config):
        try:
            if run.settings.baseline is not None and run.worker is None:
                from pytest_torchexport.plugin.baseline import Baseline

                run.baseline = Baseline(*run.settings.baseline)
        except UsageError as error:
            raise pytest.UsageError(str(error)) from None
    if run.worker is not None:
        return
    config.pluginmanager.register(Reporter(config, run), "torchexport-reporter")
    # Registered where pytest-xdist is, because pytest rejects hooks that it does not know.
    if hasattr(config.hook, "pytest_configure_node"):
        config.pluginmanager.register(XdistHooks(run), "torchexport-xdist")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the notes of workers, in the process that chose their folder."""
    run = config.stash.get(RUN, None)
    if run is not None and run.worker is None:
        shutil.rmtree(run.stages, ignore_errors=True)


# --- collection ---


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what earlier failures left in the output directory, unless it is asked for."""
    if collection_path.name != "test_repro.py":
        return None
    from pytest_torchexport.plugin.output import was_left_behind

    return was_left_behind(collection_path, config) or None


@pytest.hookimpl(trylast=True)  # behind the user's parameters: items of one model stand together and share its results
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make an item for each backend and device of a test that requests `export_check`."""
    if marks.PARAMETER not in metafunc.fixturenames and not marks.is_marked(metafunc.definition):
        return
    from pytest_torchexport.plugin import matrix

    try:
        matrix.generate(metafunc, metafunc.config.stash[RUN].settings)
    except UsageError as error:
        raise pytest.Collector.CollectError(str(error)) from None


@pytest.hookimpl(tryfirst=True)  # before -k, -m and --lf deselect
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Stop if the selection leaves no test a backend."""
    # The error of a worker would not reach the user: there, the controller fails the run at its end.
    if config.stash[RUN].worker is not None or not any(marks.is_marked(item) for item in items):
        return
    from pytest_torchexport.plugin import matrix, transport

    problem = matrix.nothing_selected(transport.cell_of(item) for item in items)
    if problem:
        raise pytest.UsageError(problem)


# --- one item ---


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Seed the random number generators before the fixtures run."""
    if marks.is_marked(item):
        from pytest_torchexport.plugin import running

        running.begin(item)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Keep fixtures that several items share from changing the random numbers of the first of them."""
    if fixturedef.scope == "function" or not request.config.stash[RUN].seeded:
        return (yield)
    from pytest_torchexport.plugin import running

    with running.unseen():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a marked test that passes without a check."""
    result = yield
    if marks.is_marked(item):
        from pytest_torchexport.plugin import running

        running.require_one_call(item)
    return result


@pytest.hookimpl(wrapper=True, trylast=True)  # the innermost: nothing else draws between the seeding and the test
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Seed the random number generators before the test's body."""
    if marks.is_marked(pyfuncitem):
        from pytest_torchexport.plugin import running

        running.before_body(pyfuncitem)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach the outcome to the test's report."""
    if marks.is_marked(item):
        from pytest_torchexport.plugin import running

        running.conclude(item, call)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """Restore the random number generators and release what the next item does not share."""
    try:
        return (yield)
    finally:
        if marks.is_marked(item):
            from pytest_torchexport.plugin import running

            running.end(item, nextitem)
