"""The plugin's own hooks. Implement them in the `conftest.py` of the root directory or in a plugin.

As everywhere in pytest, implementations are called last registered first: a conftest file before plugins, and the
`conftest.py` nearest to the test before the outer ones. For a `firstresult` hook, the first answer that is not None
counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_torchexport.backends.base import Backend
    from pytest_torchexport.compare.tolerance import Given
    from pytest_torchexport.outcome import Outcome


@pytest.hookspec
def pytest_torchexport_register_backends(register: Callable[[str, str | type[Backend]], None]) -> None:
    """Register backends under names of your own.

    Called once when pytest starts, before any backend's name is checked. Default: the built-in backends, and those of
    the entry-point group `pytest_torchexport.backends`. A name that is taken is replaced.

    Args:
        register: `register(name, backend)` with a class, or with `"package.module:Class"`, which is imported when the
            backend is first used.

    Example::

        def pytest_torchexport_register_backends(register):
            register("trace-again", "pytest_torchexport.backends.torchscript:Trace")
    """


@pytest.hookspec(firstresult=True)
def pytest_torchexport_tolerance(item: pytest.Item, backend: str, device: str, tolerance: Given) -> Given:
    """Return the tolerance of an item, or None to leave it.

    Called once for each item, when the test calls `export_check`. Default: what the marker says, else the ini file.

    Args:
        item: the test.
        backend: id of the backend: its name and the options that differ from their defaults.
        device: the device's name.
        tolerance: what marker or ini file say, a `Tolerance` or a dict of such by the results' names; None for the
            measured tolerance.

    Example::

        from pytest_torchexport import Tolerance

        def pytest_torchexport_tolerance(item, backend, device, tolerance):
            if device.startswith("cuda") and tolerance is None:
                return Tolerance(precision="tf32")
    """


@pytest.hookspec(firstresult=True)
def pytest_torchexport_domains(item: pytest.Item, domains: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the domains of the model's arguments by name, or None to leave them.

    Called once for each item, when the test calls `export_check`. Default: its argument `inputs`.

    Args:
        item: the test.
        domains: what the test passed as `inputs`.

    Example::

        from pytest_torchexport import integers

        def pytest_torchexport_domains(item, domains):
            if "tokens" in item.fixturenames:
                return {"input_ids": integers(0, 99), **domains}
    """


@pytest.hookspec
def pytest_torchexport_outcome(config: pytest.Config, outcome: Outcome) -> None:
    """See each outcome as it arrives.

    Called once for each marked item that ran, in the process that reports (the controller of pytest-xdist), also for
    one whose worker crashed. Default: terminal summary, JUnit properties and the files of `--export-report`.

    Args:
        config: pytest's configuration.
        outcome: what was found; `outcome.test` is the test's id.

    Example::

        def pytest_torchexport_outcome(config, outcome):
            with open("slow-exports.txt", "a") as file:
                if sum(outcome.durations.values()) >= 0:
                    print(outcome.test, outcome.verdict, file=file)
    """


@pytest.hookspec
def pytest_torchexport_machine(config: pytest.Config, machine: dict[str, Any]) -> None:
    """Add information about the machine to the reports, in place.

    Called once, before the files of `--export-report` are written, in the process that reports. Default: platform,
    processor, number of CPUs and the Python version.

    Args:
        config: pytest's configuration.
        machine: names and values that JSON can hold; other values are written as text.

    Example::

        import os

        def pytest_torchexport_machine(config, machine):
            machine["runner"] = os.environ.get("RUNNER_NAME", "local")
    """
