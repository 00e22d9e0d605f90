"""Small functions that decide, and what they decide: the truth for the tests of the observer. Standard library only.

`@takes(events, *arguments)` says what a call with these arguments decides, in order, as `source=outcome`: T or F for
conditions, `caught=T` for `except` clauses, for loops the number of iterations.
"""

# ruff: noqa: B018, C416, E701, E722, EM101, FURB110, PLC3002, PLW0120, RET503, RET505, SIM210, SIM220, TRY301
# fmt: off
# mypy: disable-error-code="redundant-expr, unreachable"

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator

CASES: list[tuple[Callable[..., Any], tuple[Any, ...], list[str]]] = []


def takes(events: str, *arguments: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def note(function: Callable[..., Any]) -> Callable[..., Any]:
        CASES.append((function, arguments, [event.strip() for event in events.split(";") if event.strip()]))
        return function

    return note


class Point:
    __match_args__ = ("x", "y")

    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y


class Loud:
    """Decides when it is asked for its truth."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __bool__(self) -> bool:
        return True if self.value > 1 else False


class Undecided:
    def __bool__(self) -> bool:
        msg = "ambiguous"
        raise ValueError(msg)


@takes("a=T; b=F", 1, 0)
@takes("a=T; b=T", 1, 1)
@takes("a=F", 0, 1)
def conjunction(a: int, b: int) -> int:
    if a and b:
        return 1
    return 0


@takes("a=F; b=T", 0, 1)
@takes("a=T", 1, 0)
@takes("a=F; b=F; c=T", 0, 0, 1)
def taken_apart(a: int, b: int, c: int = 0) -> int:
    if a or not (not b and not c):
        return 1
    return 0


@takes("a > 3=F; a < 1=F; a == 2=T", 2)
@takes("a > 3=T", 4)
def otherwise(a: int) -> str:
    if a > 3:
        return "more"
    elif a < 1:
        return "less"
    elif a == 2:
        pass
    else:
        return "other"
    return "two"


@takes("0 < a < b <= 9=T", 1, 2)
@takes("0 < a < b <= 9=F", 3, 2)
@takes("0 < a < b <= 9=F", 0, 2)
@takes("0 < a < b <= 9=F", 1, 12)
def chained(a: int, b: int) -> int:
    if 0 < a < b <= 9:
        return 1
    return 0


@takes("0 < a < b=T; a=T", 1, 2)
@takes("0 < a < b=F; a=T", 2, 1)
@takes("0 < a < b=F; a=F", 0, 1)
def chained_as_value(a: int, b: int) -> Any:
    inside = 0 < a < b
    both = (0 < a < b) and inside
    return a or both


@takes("a is None=T; b is not None=F; None is a=T", None, None)
@takes("a is None=F; b is not None=T; isinstance(a, str)=T; a is None=F", "a", 2)
def nothing(a: Any, b: Any) -> Any:
    if a is None:
        pass
    if b is not None:
        return (a is None or b is None) if isinstance(a, str) else 0
    return 1 if None is a else 2


@takes("a=T; c=T", 1, 0, 1, 1)
@takes("a=F; b=T; c=T", 0, 1, 1, 0)
@takes("a=F; b=F; d=F", 0, 0, 1, 0)
@takes("a=T; c=F; d=T", 1, 1, 0, 1)
def values(a: int, b: int, c: int, d: int) -> Any:
    return ((a or b) and c) or d or 5


@takes("a=F", 0, 1)
@takes("a=T", 1, 1)
def negated_value(a: int, b: int) -> Any:
    return (not a) and b


@takes("a > 1=T; b=F", 2, 0)
@takes("a > 1=F; b=T", 1, 2)
def ternary(a: int, b: int) -> Any:
    return [a if a > 1 else -a, b if b else 0]


@takes("c=T; a if c else b=T", 1, 0, 1)
@takes("c=F; a if c else b=F", 1, 0, 0)
def ternary_in_test(a: int, b: int, c: int) -> int:
    if a if c else b:
        return 1
    return 0


@takes("c=T; a if c else b=F", 0, 1, 1)
@takes("c=F; a if c else b=T", 0, 1, 0)
def ternary_as_operand(a: int, b: int, c: int) -> Any:
    return (a if c else b) and c


@takes("(m := a + b) > 2=T; k := m=T; (n := k - 3) is None=F", 1, 2)
@takes("(m := a + b) > 2=F", 1, 1)
def walrus(a: int, b: int) -> Any:
    if (m := a + b) > 2 and (k := m) and (n := k - 3) is None:
        return n
    return m


@takes("value.strip() .startswith( start, )=T", " ab", "a")
@takes("value.strip() .startswith( start, )=F", " ab", "b")
def method_over_lines(value: str, start: str) -> int:
    if (
        value.strip()
        .startswith(
            start,
        )
    ):
        return 1
    return 0


@takes("x > 1=F; x > 1=T; x > 1=T; xs=3", [1, 2, 3])
@takes("xs=0", [])
def loop(xs: list[int]) -> int:
    total = 0
    for x in xs:
        if x > 1:
            total += x
    return total


@takes("x > 1=F; x > 1=T; xs=2; n=T", [1, 2, 3])
@takes("x > 1=F; xs=1; n=F", [1])
@takes("xs=0; n=F", [])
def left_by_break(xs: list[int]) -> int:
    n = 0
    for x in xs:
        if x > 1:
            n = 1
            break
    else:
        n = 0
    return 1 if n else 0


@takes("x == 2=F; x == 2=T; xs=2", [1, 2, 3])
@takes("x == 2=F; xs=1", [1])
def left_by_return(xs: list[int]) -> int:
    for x in xs:
        if x == 2:
            return x
    return 0


@takes("x=F; x=T; xs=2; caught=T; n=T", [0, 1, 2])
@takes("x=F; xs=1; n=F", [0])
def left_by_exception(xs: list[int]) -> int:
    n = 0
    try:
        for x in xs:
            if x:
                raise KeyError(x)
    except KeyError:
        n = 1
    return 1 if n else 0


@takes("x=T; xs=1; n > 1=F", [1, 2])
def suppressed(xs: list[int]) -> int:
    n = 1
    with contextlib.suppress(ValueError):
        for x in xs:
            if x:
                raise ValueError
    return 1 if n > 1 else 0


@takes("y=F; ys=1; y=F; y=T; ys=2; rows=2; rows=T", [[0], [0, 1, 0], [1]])
def nested(rows: list[list[int]]) -> Any:
    for ys in rows:
        for y in ys:
            if y:
                break
        else:
            continue
        break
    return rows and not rows


@takes("n < 3=T; n < 3=T; n < 3=T; n < 3=F; n < 3=3", 0)
@takes("n < 3=F; n < 3=0", 3)
def counting(n: int) -> int:
    while n < 3:
        n += 1
    return n


@takes("xs=T; xs[-1] > 2=T; xs=T; xs[-1] > 2=T; xs=T; xs[-1] > 2=F; xs and xs[-1] > 2=2", [1, 3, 4])
@takes("xs=T; xs[-1] > 2=T; xs=F; xs and xs[-1] > 2=1", [3])
@takes("xs=F; xs and xs[-1] > 2=0", [])
def two_conditions(xs: list[int]) -> list[int]:
    while xs and xs[-1] > 2:
        xs = xs[:-1]
    return xs


@takes("n > 2=F; n % 2=T; n > 2=F; n % 2=F; n > 2=T; True=3", 0)
def endless(n: int) -> int:
    while True:
        n += 1
        if n > 2:
            break
        if n % 2:
            continue
        n += 0
    return n


@takes("n > 3=F; n > 1=F; n > 1=T; True=2; n > 3=F; n > 1=T; True=1; n > 3=T; 1=3", 0)
def endless_twice(n: int) -> int:
    while 1:
        if n > 3:
            return n
        while True:
            n += 1
            if n > 1:
                break
        n += 1


@takes("n=T; n=T; n=F; n=2; xs=1; n=T; n=F; n=1", 2, [0])
def busy(n: int, xs: list[int]) -> int:
    while n: n -= 1
    for _ in xs: n += 1
    while n: n -= 1
    return n


@takes("n > 2=F; n > 2=F; n > 2=T; not n > 2=2; n=T", 1)
@takes("n > 2=T; not n > 2=0; n=T", 4)
def while_else(n: int) -> int:
    while not n > 2:
        n += 1
    else:
        if n:
            return 1
    return 0


@takes("x > 1=F; x > 1=T; x > 1=T; xs=3", [1, 2, 3])
def filtered(xs: list[int]) -> list[int]:
    return [x for x in xs if x > 1]


@takes("x=T; y > x=F; y > x=F; y > x=T; range(x + 2)=3; x=F; xs=2", [1, 0])
def two_clauses(xs: list[int]) -> Any:
    return {(x, y) for x in xs if x for y in range(x + 2) if y > x}


@takes("r=1; r=2; rows=2", [[1], [1, 2]])
def nested_comprehensions(rows: list[list[int]]) -> Any:
    return {len(r): [q for q in r] for r in rows}


@takes("any(x > 1 for x in xs)=T; xs=2", [1, 2, 3])
@takes("xs=1; any(x > 1 for x in xs)=F", [1])
def generator_expression(xs: list[int]) -> int:
    if any(x > 1 for x in xs):
        return 1
    return 0


@takes("x=T; x=F; xs=2; double(xs)=2", [1, 0])
def generator(xs: list[int]) -> list[int]:
    def double(xs: list[int]) -> Iterator[int]:
        for x in xs:
            yield x * 2 if x else 0

    return [y for y in double(xs)]


@takes("x=T; y=T; first=1; xs=1", [1, 2])
def abandoned(xs: list[int]) -> int:
    def each() -> Iterator[int]:
        for x in xs:
            yield 1 if x else 0

    first = each()
    for y in first:
        if y:
            break
    return 0


@takes("x=T; xs=1; caught=T", [1, 2])
def thrown_into(xs: list[int]) -> str:
    def each() -> Generator[int, None, None]:
        try:
            for x in xs:
                yield 1 if x else 0
        except KeyError:
            yield 7

    generator = each()
    next(generator)
    generator.throw(KeyError)
    return ""


@takes("n > 0=T; n > 0=T; n > 0=F; range(n)=0; range(n)=1; range(n)=2", 2)
def recursive(n: int) -> int:
    total = recursive(n - 1) if n > 0 else 0
    for _ in range(n):
        total += 1
    return total


@takes("n=T; i == 0=T; n=T; i == 0=T; n=F; range(n)=1; i == 0=F; range(n)=2", 2)
def recursive_in_loop(n: int) -> int:
    if n:
        for i in range(n):
            recursive_in_loop(n - 1) if i == 0 else None
    return n


@takes("a=T; caught=T", 1)
@takes("a=F; caught=T", 0)
def handlers(a: int) -> str:
    try:
        if a:
            raise KeyError
        raise ValueError
    except (KeyError, IndexError) as error:
        return str(error)
    except OSError:
        return "os"
    except ValueError:
        return "value"


@takes("caught=T; n=T")
def bare_handler() -> int:
    n = 0
    try:
        raise OSError
    except KeyError:
        n = 1
    except:
        n = 2
    else:
        n = 3
    return 1 if n else 0


@takes("a=T; a == 5=F; caught=T; b=T; a=T", 1, 1)
@takes("a=F; a == 5=F; b=F; a=F", 0, 0)
def finally_twice(a: int, b: int) -> int:
    try:
        try:
            if a:
                raise KeyError
        finally:
            n = 1 if a == 5 else 2
    except KeyError:
        n = 3
    finally:
        if b:
            n = 4
    return n if a else 0


@takes("caught=T", 1)
def groups(a: int) -> int:
    try:
        raise ExceptionGroup("both", [KeyError(a)])
    except* KeyError:
        a = 2
    except* ValueError:
        a = 3
    return a


@takes("a=T; len(b) > 1=T", 1, [1, 2])
def asserted(a: int, b: list[int]) -> int:
    assert a, "no"
    assert len(b) > 1
    return 1


@takes("1=F; 2=T; b=T", 2, 1)
@takes("1=F; 2=T; b=F; -3=F; 'x'=F; None=F; Point(x=0)=F; True=F; Point(4)=F", 2, 0)
@takes("1=F; 2=F; -3=F; 'x'=T", "x", 0)
@takes("1=F; 2=F; -3=F; 'x'=F; None=T", None, 0)
@takes("1=F; 2=F; -3=F; 'x'=F; None=F; Point(x=0)=T; 0=T", Point(0, 1), 0)
@takes("1=F; 2=F; -3=F; 'x'=F; None=F; Point(x=0)=T; 0=F; True=F; Point(4)=T; 4=T", Point(4, 1), 0)
def matched(a: Any, b: int) -> str:
    match a:
        case 1 | 2 if b:
            return "number"
        case -3 | 'x':
            return "text"
        case None:
            return "nothing"
        case Point(x=0):
            return "origin"
        case True:
            return "yes"
        case Point(4) | [4, *_]:
            return "four"
        case _:
            return "other"


@takes("self.value > 1=T; Loud(n)=T; self.value > 1=F; Loud(n - 1)=F", 2)
def truth_that_decides(n: int) -> int:
    if Loud(n) and Loud(n - 1):
        return 1
    return 0


@takes("caught=T")
def truth_that_raises() -> int:
    try:
        if Undecided():
            return 1
    except ValueError:
        return 2
    return 0


@takes("x > 1=F; b=T", 1, 1)
def in_lambda(a: int, b: int) -> Any:
    return (lambda x: 1 if x > 1 else (b and x))(a)


@takes("point.x=F; point.x=T; [0, 2]=2", 0)
def attribute_target(a: int) -> int:
    point = Point(0, 0)
    for point.x in [0, 2]:
        a += 1 if point.x else 2
    return a


@takes("i > 1=F; i > 1=F; i > 1=T; ticks()=3; await later(n)=T; range(5)=3", 1)
def asynchronous(n: int) -> int:
    async def ticks() -> AsyncIterator[int]:
        for i in range(5):
            await asyncio.sleep(0)
            yield i

    async def main() -> int:
        async for i in ticks():
            if i > 1:
                break
        return 1 if await later(n) else 0

    async def later(n: int) -> int:
        await asyncio.sleep(0)
        return n

    return asyncio.run(main())


def decorator(function: Any) -> Any:
    def inner(*arguments: Any) -> Any:
        return function(*arguments) if arguments else None

    return inner


@takes("arguments=T; a > 0=T", 1)
@decorator
def decorated(a: int) -> int:
    if a > 0:
        return 1
    return 0


@takes("(1, 0)=2; caught=T; n=T")
def exception_in_comprehension() -> int:
    n = 0
    try:
        [1 // x for x in (1, 0)]
    except ZeroDivisionError:
        n = 1
    return 1 if n else 0


@takes("c=T; a=T; a == 9=F", 1, 0, 1)
def calls_with_decisions(a: int, b: int, c: int) -> Any:
    return max(a, 1 if c else 2, a and b, b or 5 if a == 9 else 0)


@takes("x=F; x=T; xs=2", [0, 1])
def one_liner(xs: list[int]) -> int:
    for x in xs: None if x else 1
    return 0


@takes("x=T; xs=1; n=T", [1, 2])
def break_in_finally(xs: list[int]) -> int:
    n = 0
    for x in xs:
        try:
            if x:
                break
        finally:
            n += 1
    return 1 if n else 0
