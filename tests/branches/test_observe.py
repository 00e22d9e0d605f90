"""The observer of decisions: what it sees, against known truths and against an independent oracle."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from pytest_torchexport.branches.observe import Observer
from pytest_torchexport.branches.sites import Kind, Site, source_of


def load(name: str) -> Any:
    """A module of this folder."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


deciding = load("deciding")
oracle = load("oracle")


def shown(event: tuple[Site, bool | int]) -> str:
    site, outcome = event
    source = source_of(site.file)
    assert source is not None
    text = "caught" if site.kind is Kind.EXCEPTION else source.text(site)
    return f"{text}={('F', 'T')[outcome] if site.kind is not Kind.LOOP else outcome}"


def observed(function: Any, *arguments: Any, file: str = deciding.__file__) -> list[tuple[Site, bool | int]]:
    observer = Observer(lambda name: name == file)
    with observer:
        function(*arguments)
    assert observer.error is None
    return observer.events


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    deciding.CASES,
    ids=[f"{getattr(function, '__name__', '')}-{n}" for n, (function, _, _) in enumerate(deciding.CASES)],
)
def test_known_truths(function: Any, arguments: tuple[Any, ...], expected: list[str]) -> None:
    assert [shown(event) for event in observed(function, *arguments)] == expected


def asserting(a: int, b: list[int]) -> int:
    """pytest rewrites its assertions: this is a test file."""
    assert a > 1 and not (b and b[0] == 7), "no"  # noqa: PT018
    assert 0 < a < 9 or b[0]
    assert any(x or a for x in b)
    return 1 if a else 0


def test_rewritten_assertions_are_not_taken_for_something_else() -> None:
    seen = [shown(event) for event in observed(asserting, 2, [3, 4], file=__file__)]
    plain = ["a > 1=T", "b=T", "b[0] == 7=F", "0 < a < 9=T", "x=T", "any(x or a for x in b)=T", "a=T", "b=1"]
    left = iter(plain)
    assert all(event in left for event in seen), seen
    assert seen[-2:] == ["a=T", "b=1"]


ORACLE = oracle.Oracle(deciding.__file__)
REWRITTEN = ORACLE.module("deciding")
UNSEEN = ("matched", "exception_in_comprehension")
"""By the oracle: patterns, and when a comprehension is over that an exception ends."""


@pytest.mark.parametrize("number", [n for n, case in enumerate(deciding.CASES) if case[0].__name__ not in UNSEEN])
def test_agrees_with_the_oracle_on_the_cases(number: int) -> None:
    function, arguments, _ = deciding.CASES[number]
    seen = observed(function, *arguments)
    ORACLE.start()
    REWRITTEN.CASES[number][0](*REWRITTEN.CASES[number][1])
    assert [shown(event) for event in seen] == [shown(event) for event in ORACLE.finish()]


TEXT = "The quick (brown) fox -- can't jump 32.3 feet, right?  " * 4
NESTED = {"a": [1, 2.5, None, True, "x\n"], "b": {"c": [], "d": {"e": float("inf")}}, 3: ("y",)}


def parse_arguments(argparse: Any) -> None:
    parser = argparse.ArgumentParser(prog="p", description="about " * 30)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("-v", "--verbose", action="count", default=0)
    group.add_argument("--quiet", action="store_true")
    parser.add_argument("--number", type=int, choices=range(9), metavar="N")
    parser.add_argument("rest", nargs="*")
    parser.parse_args(["-vv", "--num", "3", "x", "y"])
    parser.parse_known_args(["--quiet", "--other=2", "--", "z"])
    parser.format_help()


def compute(statistics: Any) -> None:
    data = [1, 2.5, 3, 3, 8]
    for name in ("mean", "median", "median_grouped", "mode", "multimode", "stdev", "pvariance", "harmonic_mean"):
        getattr(statistics, name)(data)
    statistics.quantiles(data, n=7, method="inclusive")
    statistics.NormalDist(1, 2).overlap(statistics.NormalDist(2, 1))
    statistics.linear_regression(data, [2, 5, 6, 7, 9])


def compile_patterns(parser: Any) -> None:
    for pattern in (r"(?P<a>x|yz)*?[^a-f\d]{2,5}(?=b)(?P=a)", r"(?i:a+)b?|c(?!d)$", r"(?x) a # no", r"[]\w-]+\1{"):
        with contextlib.suppress(Exception):
            parser.parse(pattern)


def read_json(decoder: Any) -> None:
    text = '{"a": [1, 2.5e3, null, true, "x\\n\\u00e9"], "b": {"c": [], "d": {"e": -Infinity}}}'
    scan = load_stdlib("json.scanner").py_make_scanner(decoder.JSONDecoder())
    scan(text, 0)
    for wrong in ('{"a" 1}', "[1 2]", '"\\x"', '{"a": 1,}'):
        with contextlib.suppress(ValueError, StopIteration):
            decoder.JSONArray((wrong, 1), scan)
            decoder.JSONObject((wrong, 1), False, scan, None, None)
    with contextlib.suppress(ValueError):
        decoder.py_scanstring("a\\u12", 0)


def write_json(encoder: Any) -> None:
    encoder.c_make_encoder = None
    for options in ({}, {"indent": 2, "sort_keys": False}, {"skipkeys": True, "ensure_ascii": False}):
        "".join(encoder.JSONEncoder(**options).iterencode(NESTED))
    with contextlib.suppress(TypeError):
        encoder.JSONEncoder().encode({"a": object()})


def split_shell(shlex: Any) -> None:
    for text in ('a \'b c\' "d\\"e" f#g', "x>y && z;w", "a\\ b ''"):
        shlex.split(text, comments=True)
        list(shlex.shlex(text, punctuation_chars=True))
    with contextlib.suppress(ValueError):
        shlex.split("'open")


def configure(configparser: Any) -> None:
    parser = configparser.ConfigParser(allow_no_value=True)
    parser.read_string("[a]\nx = 1\nw = 2\n y\n# c\nz: %(x)s\n[b]\nempty\n\n[DEFAULT]\nq=2\n")
    parser.get("a", "z"), parser.getboolean("a", "x"), dict(parser["b"])
    for wrong in ("x=1", "[a]\n[a]", "[a]\nx=%(nope)s"):
        with contextlib.suppress(configparser.Error, AttributeError):
            parser.read_string(wrong)
            parser.get("a", "x")


def parse_html(parser: Any) -> None:
    reader = parser.HTMLParser()
    reader.feed("<!DOCTYPE x><p class='a' b>x &amp; &#62;<br/><!-- c --><script>if (a<b)</script></p <i>&bogus")
    reader.close()


def compare_texts(difflib: Any) -> None:
    one, two = TEXT.split(), TEXT.replace("fox", "dog").split()[3:]
    list(difflib.unified_diff(one, two, n=1)), list(difflib.ndiff(one[:9], two[:9]))
    difflib.get_close_matches("appel", ["ape", "apple", "peach"]), difflib.SequenceMatcher(None, one, two).ratio()
    list(difflib.context_diff(one, two))


def calculate(decimal: Any) -> None:
    number = decimal.Decimal("123.456")
    number.sqrt(), number.ln(), number**3, number / 7, number.quantize(decimal.Decimal("0.01")), str(-number)
    format(number, "+012,.3e"), decimal.Decimal("NaN").is_nan(), number % 5, number.to_integral_value()


def heap(heapq: Any) -> None:
    heapq.heapify(data := [5, 2, 8, 1, 9, 3]), heapq.heappush(data, 4), heapq.heapreplace(data, 7)
    heapq.nlargest(3, data), heapq.nsmallest(2, data, key=abs), list(heapq.merge([1, 4], [2, 3], [0]))


STDLIB: dict[str, Any] = {
    "textwrap": lambda m: (
        m.wrap(TEXT, 20),
        m.shorten(TEXT, 30),
        m.fill(TEXT, 9, max_lines=3),
        m.dedent("  a\n   b\n"),
    ),
    "argparse": parse_arguments,
    "statistics": compute,
    "re._parser": compile_patterns,
    "json.decoder": read_json,
    "json.encoder": write_json,
    "shlex": split_shell,
    "configparser": configure,
    "html.parser": parse_html,
    "difflib": compare_texts,
    "_pydecimal": calculate,
    "heapq": heap,
    "fractions": lambda m: (m.Fraction("3.7") ** 2, m.Fraction(0.1).limit_denominator(9), m.Fraction(7, 2) // 1),
    "pprint": lambda m: m.pformat({**NESTED, "z": [list(range(40)), TEXT]}, width=40, compact=True),
    "fnmatch": lambda m: (m.translate("a*[!b-d]?[x"), m.filter(["ab", "b"], "a*")),
    "string": lambda m: (
        m.Formatter().format("{0!r:>{1}} {a[x]}", 1, 9, a={"x": 2}),
        m.Template("$a $$ ${b}").safe_substitute(a=1),
    ),
    "tokenize": lambda m: list(m.tokenize(iter([b"def f(a):\n", b"  return a + 1  # x\n", b""]).__next__)),
    "copy": lambda m: (m.deepcopy(NESTED), m.copy([1, 2])),
    "ast": lambda m: m.unparse(m.parse("def f(a, *b, c=1):\n  return [x for x in a if not (x and c) < 3] or {**d}")),
    "urllib.parse": lambda m: (
        m.urljoin("http://a/b/../c?d#e", "../x;y?z"),
        m.parse_qs("a=1&b=%20&&c"),
        m.quote("é /"),
    ),
    "csv": lambda m: (m.Sniffer().sniff("a;b;c\n1;'2';3\n4;5;6\n"), m.Sniffer().has_header("a,b\n1,2\n3,4\n")),
    "colorsys": lambda m: [m.hsv_to_rgb(*m.rgb_to_hsv(r, 0.5, 0.2)) + m.rgb_to_hls(0.1, r, 0.3) for r in (0, 0.4, 0.9)],
    "graphlib": lambda m: list(m.TopologicalSorter({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}}).static_order()),
    "calendar": lambda m: m.TextCalendar().formatyear(2024, m=2),
    "getopt": lambda m: m.gnu_getopt(["-a", "x", "--long=3", "-b2", "y"], "ab:", ["long="]),
    "locale": lambda m: m.format_string("%.2f %5d", (1234.5, 7), grouping=True),
}


def load_stdlib(name: str) -> Any:
    return importlib.import_module(name)


@pytest.mark.parametrize("name", STDLIB)
def test_agrees_with_the_oracle_on_the_standard_library(name: str) -> None:
    file = load_stdlib(name).__file__
    other = oracle.Oracle(file)
    exercise = STDLIB[name]
    original = oracle.executed(name, compile("".join(oracle.open_lines(file)), file, "exec"), {})
    rewritten = other.module(name)
    for module in (original, rewritten):
        exercise(module)  # fills caches
    seen = observed(exercise, original, file=file)
    other.start()
    exercise(rewritten)
    told = other.finish()
    places = {shown(event).rpartition("=")[0] for event in told}
    assert len(places) > 3
    assert [(site.line, shown((site, o))) for site, o in seen] == [(site.line, shown((site, o))) for site, o in told]
