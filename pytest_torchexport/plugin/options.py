"""Command line and ini: what is declared at each start of pytest. `settings` reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_torchexport.backends.item_names import DEVICE_KINDS, DTYPE_NAMES

if TYPE_CHECKING:
    import pytest

AVAILABLE = "available"
"""Stands for every device that the machine has."""
REPORT_SUFFIXES = (".json", ".html", ".md")
"""Those of `report.formats`, which is not loaded at a start of pytest."""
DEFAULT_OUTPUT = "export-output"
DEFAULT_INPUTS = 10
DEFAULT_SEED = 0
BRANCH_MODES = ("search", "observe", "off")
DEFAULT_BRANCHES = "search"
DEFAULT_SEARCH_BUDGET = 400
LATENCY_MODES = ("off", "report", "enforce")
DEFAULT_LATENCY = "enforce"


class Option:
    """One flag and its ini twin, which has the same name with underscores.

    Help texts begin with a capital; a single phrase has no full stop. (Not a dataclass: making one takes a millisecond
    of each start of pytest.)
    """

    def __init__(self, name: str, metavar: str, text: str, *, repeatable: bool = False) -> None:
        self.flag = f"--export-{name}"
        self.key = f"export_{name.replace('-', '_')}"
        self.metavar = metavar
        self.help = text
        self.repeatable = repeatable


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
    f"Comma-separated devices: {', '.join(DEVICE_KINDS)}, cuda:1, or {AVAILABLE} for all that are here. "
    "Select among those that a test's marker lists; a test that lists none is checked on all of them.",
    repeatable=True,
)
DTYPES = Option(
    "dtypes",
    "NAMES",
    f"Comma-separated dtypes of floating weights and inputs: {', '.join(DTYPE_NAMES)}. Default: as they are.",
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
BRANCHES = Option(
    "branches",
    "MODE",
    f"Branches that the example does not take: {', '.join(BRANCH_MODES)} (default: {DEFAULT_BRANCHES})",
)
SEARCH_BUDGET = Option(
    "search-budget",
    "N",
    "Runs of the eager module that the branch search of a test may use "
    f"(default: {DEFAULT_SEARCH_BUDGET}, fewer for a large one)",
)
USER_CODE = Option(
    "user-code",
    "NAMES",
    "Comma-separated packages or globs of files whose branches count as well, such as my_kernels or src/*.py; "
    "-timm leaves a package out. Default: all but Python, torch and the exporters.",
    repeatable=True,
)
LATENCY = Option(
    "latency",
    "MODE",
    f"Time and memory of exported programs: {', '.join(LATENCY_MODES)} (default: {DEFAULT_LATENCY}). enforce measures "
    "what has a budget, and an excess fails; report measures every check, and no excess fails; off measures nothing.",
)
ARTIFACTS = Option(
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
BASELINE = Option(
    "baseline",
    "FILE",
    "Compare the ratios to eager's time with those that an earlier run on this machine wrote to the file; add new ones",
)
TOLERANCE = "export_tolerance"
TOLERANCE_HELP = "Tolerances by backend, device and dtype, one a line: onnx: k=10, cuda: precision=tf32, *-float16: k=8"
BUDGET = "export_budget"
BUDGET_HELP = (
    "Latency budgets by backend, device and dtype, one a line: compile: 1.2x, *-cuda: median=5ms first_call=2s"
)
OPTIONS = (
    *(BACKENDS, DEVICES, DTYPES, REQUIRE),
    *(INPUTS, SEED, BRANCHES, SEARCH_BUDGET, USER_CODE, LATENCY),
    *(ARTIFACTS, OUTPUT, REPORT, BASELINE),
)


def add_options(parser: pytest.Parser) -> None:
    """Declare the flags and their ini twins."""
    group = parser.getgroup("export equivalence")
    for option in OPTIONS:
        action = "append" if option.repeatable else "store"
        group.addoption(option.flag, action=action, dest=option.key, metavar=option.metavar, help=option.help)
        parser.addini(option.key, f"Default of {option.flag}", type="string", default="")
    parser.addini(TOLERANCE, TOLERANCE_HELP, type="linelist", default=[])
    parser.addini(BUDGET, BUDGET_HELP, type="linelist", default=[])


def texts(config: pytest.Config, option: Option) -> list[tuple[str, str, bool]]:
    """The raw values of an option: where each stands, its text, and whether it is from the command line."""
    given = config.getoption(option.key, default=None)
    if given is not None:
        return [(option.flag, text, True) for text in (given if option.repeatable else [given])]
    ini = config.getini(option.key)
    return [(f"ini setting {option.key}", ini, False)] if ini else []


def any_given(config: pytest.Config) -> bool:
    """Whether the user set any of the options."""
    return any(texts(config, option) for option in OPTIONS) or any(map(config.getini, (TOLERANCE, BUDGET)))
