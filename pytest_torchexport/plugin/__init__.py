"""The pytest side, loaded at every start of pytest: hooks only, neither torch nor numpy.

Each hook hands over to the module that holds the idea. Nothing happens because the plugin is installed: only a marked
test, a test that requests `export_check`, or an option makes it act.
"""

from __future__ import annotations

import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchexport.backends.registry import backend_names, register_backend
from pytest_torchexport.errors import UsageError
from pytest_torchexport.plugin import hookspecs, marker, matrix, options, running, transport
from pytest_torchexport.plugin.fixture import export_cell, export_check
from pytest_torchexport.plugin.names import DEVICE_KINDS
from pytest_torchexport.plugin.reporting import Reporter
from pytest_torchexport.plugin.stash import RUN, Run

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["export_cell", "export_check"]


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
    config.addinivalue_line("markers", marker.DESCRIPTION)
    # Backends of entry points get their mark when a test uses them: looking for them costs milliseconds at each start.
    for name in backend_names(third_party=False):
        config.addinivalue_line("markers", matrix.mark_line("backend", name))
    for kind in DEVICE_KINDS:
        config.addinivalue_line("markers", matrix.mark_line("device", kind))
    try:
        settings = options.read_settings(config)
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None
    run = config.stash[RUN] = _new_run(config, settings)
    if run.worker is not None:
        return
    config.pluginmanager.register(Reporter(config, run), "torchexport-reporter")
    if hasattr(config.hook, "pytest_configure_node"):
        config.pluginmanager.register(transport.XdistHooks(run), "torchexport-xdist")


def _new_run(config: pytest.Config, settings: options.Settings) -> Run:
    told = getattr(config, "workerinput", None)
    if told is None:
        # Only a name: the folder is made by the first worker that has something to note.
        stages = Path(tempfile.gettempdir()) / f"pytest-torchexport-{secrets.token_hex(8)}"
        return Run(settings, None, stages, output_is_ours=not settings.output.exists())
    mine = told[transport.WORKERINPUT]
    return Run(settings, told["workerid"], Path(mine["stages"]), output_is_ours=mine["output_is_ours"])


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove what this run left outside its output directory."""
    run = config.stash.get(RUN, None)
    if run is not None:
        transport.remove_notes(run)


# --- collection ---


@pytest.hookimpl(trylast=True)  # behind the user's parameters: items of one model stand together and share its results
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make an item for each backend and device of a test that requests `export_check`."""
    try:
        matrix.generate(metafunc, metafunc.config.stash[RUN].settings)
    except UsageError as error:
        raise pytest.Collector.CollectError(str(error)) from None


@pytest.hookimpl(tryfirst=True)  # before -k, -m and --lf deselect
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Stop if the selection leaves no test a backend."""
    # The error of a worker would not reach the user: there, the controller fails the run at its end.
    if config.stash[RUN].worker is None:
        problem = matrix.nothing_selected([transport.cell_of(item) for item in items])
        if problem:
            raise pytest.UsageError(problem)


# --- one item ---


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Seed the random number generators before the fixtures run."""
    running.begin(item)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Keep fixtures that several items share from changing the random numbers of the first of them."""
    with running.unseen(request.config, fixturedef.scope):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a marked test that passes without a check."""
    result = yield
    running.require_one_call(item)
    return result


@pytest.hookimpl(wrapper=True, trylast=True)  # the innermost: nothing else draws between the seeding and the test
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Seed the random number generators before the test's body."""
    running.before_body(pyfuncitem)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach the outcome to the test's report."""
    running.conclude(item, call)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, Any, Any]:
    """Restore the random number generators and release what the next item does not share."""
    try:
        return (yield)
    finally:
        running.end(item, nextitem)
