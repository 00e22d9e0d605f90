"""Command line and ini: declared, read and checked here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from pytest_torchexport.errors import UsageError
from pytest_torchexport.plugin import names

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

Artifacts = Literal["on", "off", "retain-on-failure"]

ARTIFACTS: tuple[Artifacts, ...] = ("on", "off", "retain-on-failure")
REPORT_SUFFIXES = (".json",)
DEFAULT_OUTPUT = "export-output"
DEFAULT_INPUTS = 10
DEFAULT_SEED = 0

_T = TypeVar("_T")


@dataclass(frozen=True)
class Option:
    """One flag and its ini twin, which has the same name without the dashes.

    Help texts begin with a capital; a single phrase has no full stop.
    """

    name: str
    metavar: str
    help: str
    repeatable: bool = False

    @property
    def flag(self) -> str:
        """`--export-backends`."""
        return f"--export-{self.name}"

    @property
    def key(self) -> str:
        """`export_backends`: name of the ini setting and of the parsed value."""
        return f"export_{self.name}"


BACKENDS = Option(
    "backends",
    "NAMES",
    "Comma-separated backends, such as trace,onnx or compile:mode=max-autotune. "
    "Select among those that a test's marker lists; a test that lists none is checked on all of them.",
    repeatable=True,
)
DEVICES = Option(
    "devices",
    "NAMES",
    f"Comma-separated devices: {', '.join(names.DEVICE_KINDS)}, cuda:1, or {names.AVAILABLE} for all that are here. "
    "Select among those that a test's marker lists; a test that lists none is checked on all of them.",
    repeatable=True,
)
DTYPES = Option(
    "dtypes",
    "NAMES",
    f"Comma-separated dtypes of floating weights and inputs: {', '.join(names.DTYPES)}. Default: as they are.",
    repeatable=True,
)
REQUIRE = Option(
    "require",
    "NAMES",
    "Comma-separated backends and devices that must be checked: what is missing or unused fails the run",
    repeatable=True,
)
INPUTS = Option("inputs", "N", f"Number of generated inputs for each check (default: {DEFAULT_INPUTS})")
SEED = Option("seed", "N", f"Seed of weights and generated inputs (default: {DEFAULT_SEED})")
ARTIFACTS_OPTION = Option(
    "artifacts",
    "WHEN",
    "Keep the exported program, the failing input and both outputs: on, off, retain-on-failure (default)",
)
OUTPUT = Option("output", "DIR", f"Directory for what is kept (default: {DEFAULT_OUTPUT})")
REPORT = Option(
    "report",
    "FILE",
    f"Write all outcomes to a file. The suffix is the format: {', '.join(REPORT_SUFFIXES)}. May be repeated.",
    repeatable=True,
)
OPTIONS = (BACKENDS, DEVICES, DTYPES, REQUIRE, INPUTS, SEED, ARTIFACTS_OPTION, OUTPUT, REPORT)


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
    artifacts: Artifacts
    output: Path
    output_given: bool
    reports: tuple[Path, ...]


def add_options(parser: pytest.Parser) -> None:
    """Declare the flags and their ini twins."""
    group = parser.getgroup("export equivalence")
    for option in OPTIONS:
        action = "append" if option.repeatable else "store"
        group.addoption(option.flag, action=action, dest=option.key, metavar=option.metavar, help=option.help)
        parser.addini(option.key, f"Default of {option.flag}", type="string", default="")


def read_settings(config: pytest.Config) -> Settings:
    """The settings of this run.

    Raises:
        UsageError: a value is not accepted; the message names where it stands and what is accepted.
    """
    artifacts = _both(config, ARTIFACTS_OPTION, _artifacts).resolve(None, "retain-on-failure")
    output = _output(config)
    return Settings(
        backends=_names(config, BACKENDS, names.check_backend),
        devices=_names(config, DEVICES, names.check_device),
        dtypes=_names(config, DTYPES, names.check_dtype),
        require=_names(config, REQUIRE, names.check_required),
        inputs=_both(config, INPUTS, lambda text: _integer(text, at_least=0)),
        seed=_both(config, SEED, lambda text: _integer(text, at_least=0)),
        artifacts=artifacts,
        output=output or config.rootpath / DEFAULT_OUTPUT,
        output_given=output is not None,
        reports=_reports(config),
    )


def _texts(config: pytest.Config, option: Option) -> list[tuple[str, str, bool]]:
    """The raw values: where each stands, its text, and whether it is from the command line."""
    given = config.getoption(option.key, default=None)
    if given is not None:
        return [(option.flag, text, True) for text in (given if option.repeatable else [given])]
    ini = config.getini(option.key)
    return [(f"ini setting {option.key}", ini, False)] if ini else []


def _both(config: pytest.Config, option: Option, parse: Callable[[str], _T]) -> Setting[_T]:
    values: dict[bool, _T] = {}
    for where, text, command_line in _texts(config, option):
        try:
            values[command_line] = parse(text)
        except UsageError as error:
            msg = f"{where}: {error}"
            raise UsageError(msg) from None
    return Setting(command_line=values.get(True), ini=values.get(False))


def _names(config: pytest.Config, option: Option, check: Callable[[str], str]) -> Setting[tuple[str, ...]]:
    found: dict[bool, tuple[str, ...]] = {}
    for where, text, command_line in _texts(config, option):
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


def _artifacts(text: str) -> Artifacts:
    for accepted in ARTIFACTS:
        if text == accepted:
            return accepted
    msg = f"{text!r} is not accepted: choose one of {', '.join(ARTIFACTS)}"
    raise UsageError(msg)


def _path(config: pytest.Config, text: str, *, command_line: bool) -> Path:
    base = config.invocation_params.dir if command_line else config.rootpath
    return base / Path(text).expanduser()


def _output(config: pytest.Config) -> Path | None:
    for where, text, command_line in _texts(config, OUTPUT):
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


def _reports(config: pytest.Config) -> tuple[Path, ...]:
    found: list[Path] = []
    for where, text, command_line in _texts(config, REPORT):
        for name in [text] if command_line else text.split():
            path = _path(config, name, command_line=command_line)
            if path.suffix.lower() not in REPORT_SUFFIXES:
                msg = f"{where}: {name!r} has no format: the suffix is one of {', '.join(REPORT_SUFFIXES)}"
                raise UsageError(msg)
            found.append(path)
    return tuple(found)
