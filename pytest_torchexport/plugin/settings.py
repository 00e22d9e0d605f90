"""What command line and ini say, read and checked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from pytest_torchexport.errors import UsageError
from pytest_torchexport.plugin import names, options
from pytest_torchexport.plugin.budgets import read_budgets
from pytest_torchexport.plugin.options import (
    BRANCH_MODES,
    DEFAULT_OUTPUT,
    LATENCY_MODES,
    OUTPUT,
    REPORT,
    REPORT_SUFFIXES,
    Option,
    texts,
)
from pytest_torchexport.plugin.tolerances import read_tolerances

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pytest

    from pytest_torchexport.plugin.budgets import ByItem as Budgets
    from pytest_torchexport.plugin.tolerances import ByItem as Tolerances

Artifacts = Literal["on", "off", "retain-on-failure"]
ARTIFACTS: tuple[Artifacts, ...] = ("on", "off", "retain-on-failure")

_T = TypeVar("_T")
_S = TypeVar("_S", bound=str)


@dataclass(frozen=True)
class Setting(Generic[_T]):
    """A value from the command line and from the ini file; None where it is not set."""

    command_line: _T | None = None
    ini: _T | None = None

    def resolve(self, marker: _T | None, default: _T) -> _T:
        """Command line, then marker, then ini, then default."""
        for value in (self.command_line, marker, self.ini):
            if value is not None:
                return value
        return default


@dataclass(frozen=True)
class Settings:
    """What command line and ini say, checked."""

    backends: Setting[tuple[str, ...]]
    devices: Setting[tuple[str, ...]]
    dtypes: Setting[tuple[str, ...]]
    require: Setting[tuple[str, ...]]
    inputs: Setting[int]
    seed: Setting[int]
    branches: Setting[str]
    search_budget: Setting[int | None]
    user_code: Setting[tuple[str, ...]]
    latency: Setting[str]
    tolerances: Tolerances
    budgets: Budgets
    artifacts: Artifacts
    output: Path
    reports: tuple[Path, ...]
    baseline: tuple[Path, str] | None


def read_settings(config: pytest.Config) -> Settings:
    """The settings of this run.

    Raises:
        UsageError: a value is not accepted; the message names where it stands and what is accepted.
    """
    artifacts = _both(config, options.ARTIFACTS, lambda text: _choice(text, ARTIFACTS))
    output = _output(config)
    reports = _reports(config)
    return Settings(
        backends=_names(config, options.BACKENDS, names.check_backend),
        devices=_names(config, options.DEVICES, names.check_device),
        dtypes=_names(config, options.DTYPES, names.check_dtype),
        require=_names(config, options.REQUIRE, names.check_required),
        inputs=_both(config, options.INPUTS, lambda text: _integer(text, at_least=0)),
        seed=_both(config, options.SEED, lambda text: _integer(text, at_least=0)),
        branches=_both(config, options.BRANCHES, lambda text: _choice(text, BRANCH_MODES)),
        search_budget=_both(config, options.SEARCH_BUDGET, lambda text: _integer(text, at_least=0)),
        user_code=_names(config, options.USER_CODE, names.check_code),
        latency=_both(config, options.LATENCY, lambda text: _choice(text, LATENCY_MODES)),
        tolerances=read_tolerances(config),
        budgets=read_budgets(config),
        artifacts=artifacts.resolve(None, "retain-on-failure"),
        output=output or config.rootpath / DEFAULT_OUTPUT,
        reports=reports,
        baseline=_baseline(config, reports),
    )


def _both(config: pytest.Config, option: Option, parse: Callable[[str], _T]) -> Setting[_T]:
    values: dict[bool, _T] = {}
    for where, text, command_line in texts(config, option):
        try:
            values[command_line] = parse(text)
        except UsageError as error:
            msg = f"{where}: {error}"
            raise UsageError(msg) from None
    return Setting(command_line=values.get(True), ini=values.get(False))


def _names(config: pytest.Config, option: Option, check: Callable[[str], str]) -> Setting[tuple[str, ...]]:
    found: dict[bool, tuple[str, ...]] = {}
    for where, text, command_line in texts(config, option):
        try:
            entries = tuple(check(entry) for entry in names.split_list(text))
        except UsageError as error:
            msg = f"{where}: {error}"
            raise UsageError(msg) from None
        if not entries:
            msg = f"{where}: the list is empty; give one name or more, or leave it out"
            raise UsageError(msg)
        found[command_line] = found.get(command_line, ()) + entries
    return Setting(command_line=found.get(True), ini=found.get(False))


def _integer(text: str, *, at_least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = at_least - 1
    if value < at_least:
        msg = f"{text!r} is not accepted: give an integer of {at_least} or more"
        raise UsageError(msg)
    return value


def _choice(text: str, accepted: Iterable[_S]) -> _S:
    for one in accepted:
        if text == one:
            return one
    msg = f"{text!r} is not accepted: choose one of {', '.join(accepted)}"
    raise UsageError(msg)


def _path(config: pytest.Config, text: str, *, command_line: bool) -> Path:
    base = config.invocation_params.dir if command_line else config.rootpath
    return base / Path(text).expanduser()


def _output(config: pytest.Config) -> Path | None:
    for where, text, command_line in texts(config, OUTPUT):
        path = _path(config, text, command_line=command_line)
        problem = not_writable(path)
        if problem:
            msg = f"{where}: {problem}; give a directory that can be written"
            raise UsageError(msg)
        return path
    return None


def not_writable(directory: Path) -> str | None:
    """Why the directory cannot be written or made; None if it can. Makes nothing."""
    existing = directory
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        return f"{existing} is not a directory"
    return None if os.access(existing, os.W_OK | os.X_OK) else f"{existing} cannot be written"


def _baseline(config: pytest.Config, reports: tuple[Path, ...]) -> tuple[Path, str] | None:
    """The file, and where it is named."""
    for where, text, command_line in texts(config, options.BASELINE):
        path = _path(config, text, command_line=command_line)
        if path.resolve() in [report.resolve() for report in reports]:
            msg = f"{where}: {text!r} is the file of a report too, which would overwrite it; give another one"
            raise UsageError(msg)
        return path, where
    return None


def _reports(config: pytest.Config) -> tuple[Path, ...]:
    found: list[Path] = []
    for where, text, command_line in texts(config, REPORT):
        for name in [text] if command_line else text.split():
            path = _path(config, name, command_line=command_line)
            if path.suffix.lower() not in REPORT_SUFFIXES:
                msg = f"{where}: {name!r} has no format: the suffix is one of {', '.join(REPORT_SUFFIXES)}"
                raise UsageError(msg)
            _writable_format(where, path)
            found.append(path)
    return tuple(found)


def _writable_format(where: str, path: Path) -> None:
    """Say at the start what a report needs: at the end, the run would have been for nothing."""
    from pytest_torchexport.report.formats import missing  # noqa: PLC0415 - only runs that write a report load it

    problem = missing(path.suffix.lower())
    if problem:
        msg = f"{where}: {path.name!r}: {problem}"
        raise UsageError(msg)
