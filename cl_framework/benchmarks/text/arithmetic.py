"""Arithmetic as a stream of skills: operations and formats of the same sums, each an exact question (Lee et al. 2023, arXiv 2307.03381).

One token a byte; a line ends with the token that begins a text, where the released data have a line break. Additions are balanced by
the number of carries, since most random ones have many. Sine and square root are of numbers with four decimals, and so are their values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cl_framework.benchmarks.base import Benchmark, BenchmarkContext
from cl_framework.benchmarks.text.questions import question_benchmark
from cl_framework.benchmarks.text.tokens import Bytes
from cl_framework.checks import check_choice, check_range
from cl_framework.errors import ConfigurationError
from cl_framework.registry import register_benchmark
from cl_framework.rng import RandomStream
from cl_framework.slots import rank_within

# Operations add, subtract, multiply; formats as in the paper: plain, plain2, reverse, reverse2, and of sums also scratchpad, detailed.
OPERATIONS: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "add": ("+", lambda a, b: a + b),
    "subtract": ("-", lambda a, b: a - b),
    "multiply": ("*", lambda a, b: a * b),
}
PLAIN = ("plain", "plain2", "reverse", "reverse2")
SCRATCHPADS = ("scratchpad", "detailed")  # of additions of numbers with equally many digits
UNIT = 10_000  # arguments and values of functions are whole numbers of ten-thousandths: they have four decimals
FUNCTIONS: dict[str, tuple[int, int, Callable[[int], int]]] = {  # smallest and largest argument; the value, truncated towards zero
    "sin": (-15_707, 15_707, lambda x: math.trunc(UNIT * math.sin(x / UNIT))),  # -pi / 2 to pi / 2
    "sqrt": (1 * UNIT, 10 * UNIT, lambda x: math.isqrt(x * UNIT)),
}
SKILLS = (
    *(f"{operation}_{form}" for operation in OPERATIONS for form in PLAIN),
    *(f"add_{form}" for form in SCRATCHPADS),
    *FUNCTIONS,
)


@dataclass(frozen=True)
class ArithmeticOptions:
    skills: tuple[str, ...] = ("add_plain", "subtract_plain")  # tasks in order: OPERATION_FORMAT, sin or sqrt, see SKILLS
    digits: int = 2  # of the numbers at most, 1 to 4; scratchpads have exactly so many, functions four decimals
    train: int = 2000  # questions of a skill, >= 1
    test: int = 500  # >= 1

    def __post_init__(self) -> None:
        for skill in self.skills:
            check_choice("skills", skill, SKILLS)
        if len(set(self.skills)) < len(self.skills):
            raise ValueError(f"skills must differ, got {', '.join(self.skills)}")
        check_range("digits", self.digits, low=1, high=4)
        check_range("train", self.train, low=1)
        check_range("test", self.test, low=1)


@register_benchmark("arithmetic", ArithmeticOptions)
def arithmetic(options: ArithmeticOptions, context: BenchmarkContext) -> Benchmark:
    """Sums, differences, products, sines and roots as questions, plain, reversed or with a scratchpad; made up, no download."""
    if not options.skills:
        raise ConfigurationError("benchmark.skills names no skill. Name some of: " + ", ".join(SKILLS) + ".")
    tasks = []
    for skill in options.skills:
        operation, _, form = skill.partition("_")
        if skill in FUNCTIONS:
            lines = [function_line(skill, x) for x in arguments(skill, options, context.seed)]
        else:
            lines = [line(operation, form, a, b) for a, b in number_pairs(operation, form in SCRATCHPADS, options, context.seed).tolist()]
        tasks.append((skill, lines[options.test :], lines[: options.test]))
    return question_benchmark("arithmetic", tasks, Bytes(), None, "arithmetic", {})


def number_pairs(operation: str, full: bool, options: ArithmeticOptions, seed: int) -> Tensor:
    """test + train different pairs, (N, 2): the same ones for all formats of an operation; `full`: all digits of both are used.

    The counts of additions by their carries differ by at most one, among the first `test` pairs and among the rest, as far as there
    are enough. Raises ConfigurationError if there are fewer pairs than asked for.
    """
    wanted, base = options.train + options.test, 10**options.digits
    first = base // 10 if full and options.digits > 1 else 0
    numbers = base - first
    if wanted > numbers**2:
        raise ConfigurationError(
            f"arithmetic: there are {numbers**2:,} such pairs of numbers, but train and test ask for {wanted:,}. Set benchmark.train lower."
        )
    generator = RandomStream(seed, "arithmetic", operation).generator()
    if numbers**2 <= max(200_000, 4 * wanted):
        codes = torch.randperm(numbers**2, generator=generator)
    else:
        drawn = torch.randint(numbers**2, (64 * wanted,), generator=generator).unique()
        codes = drawn[torch.randperm(len(drawn), generator=generator)]
    pairs = torch.stack([codes // numbers, codes % numbers], 1) + first
    kinds = carries(pairs) if operation == "add" else torch.zeros(len(pairs), dtype=torch.int64)
    order = rank_within(kinds).argsort(stable=True)  # one of each kind, then again one of each
    rest = order[options.test :]  # may begin within such a round: of its own last one those are taken that it has fewer of
    trained = rank_within(kinds[rest]).argsort(stable=True)[: options.train].sort().values
    return pairs[torch.cat([order[: options.test], rest[trained]])]


def arguments(function: str, options: ArithmeticOptions, seed: int) -> list[int]:
    """test + train different arguments in units. Raises ConfigurationError if there are fewer than asked for."""
    first, last, _ = FUNCTIONS[function]
    wanted, there = options.train + options.test, last - first + 1
    if wanted > there:
        raise ConfigurationError(
            f"arithmetic: {function} has {there:,} arguments, but train and test ask for {wanted:,}. Set benchmark.train lower."
        )
    drawn = torch.randperm(there, generator=RandomStream(seed, "arithmetic", function).generator())[:wanted]
    return (drawn + first).tolist()


def carries(pairs: Tensor) -> Tensor:
    """How many carries the sum of each pair has, (N,): a ninth of what the digit sums lose."""
    return (digit_sum(pairs[:, 0]) + digit_sum(pairs[:, 1]) - digit_sum(pairs.sum(1))) // 9


def digit_sum(numbers: Tensor) -> Tensor:
    total = torch.zeros_like(numbers)
    while bool(numbers.any()):
        total, numbers = total + numbers % 10, numbers // 10
    return total


def line(operation: str, form: str, a: int, b: int) -> tuple[str, str]:
    """Question and answer in a format."""
    sign, function = OPERATIONS[operation]
    answer = str(function(a, b))
    if form in SCRATCHPADS:
        return f"Input:\n{a}{sign}{b}\nTarget:\n", (_detailed if form == "detailed" else _simplified)(a, b)
    if form.startswith("reverse"):
        answer = answer[::-1]
    if form in ("plain2", "reverse"):
        return f"${a}{sign}{b}=", f"{answer}$"
    return f"{a}{sign}{b}=", answer


def function_line(function: str, x: int) -> tuple[str, str]:
    """Question and answer; `x` in units."""
    return f"{function}({_decimal(x)})=", _decimal(FUNCTIONS[function][2](x))


def _decimal(value: int) -> str:
    """A number of units with its four decimals."""
    whole, rest = divmod(abs(value), UNIT)
    return f"{'-' * (value < 0)}{whole}.{rest:04d}"


def _steps(a: int, b: int) -> list[tuple[int, int, int, int, int]]:
    """Of each digit, the last one first: both digits, the carry that comes in, the digit and the carry that go out."""
    steps, carry = [], 0
    for x, y in zip(map(int, reversed(str(a))), map(int, reversed(str(b))), strict=True):
        total = x + y + carry
        steps.append((x, y, carry, total % 10, total // 10))
        carry = total // 10
    return steps


def _simplified(a: int, b: int) -> str:
    lines = [f"A->{digit} , C->{carry}" for *_, digit, carry in _steps(a, b)]
    return "\n".join(lines) + f".\n{a + b}"


def _detailed(a: int, b: int) -> str:
    def listed(digits: str) -> str:
        return "[" + ",".join(digits) + "]"

    one, other, done, carry = str(a), str(b), "", 0
    lines = ["<scratch>", *(f"{listed(number)} has {len(number)} digits." for number in (one, other))]
    for x, y, came, digit, carry in _steps(a, b):
        shown = f"{x}+{y}+{came}={x + y + came}"
        lines.append(f"{listed(one)} + {listed(other)} , A={listed(done)} , C={came} , {shown} , A->{digit} , C->{carry}")
        one, other, done = one[:-1], other[:-1], f"{digit}{done}"
    lines += [f"[] + [] , A={listed(done)} C={carry} , END", "</scratch>", " ".join(str(a + b))]
    return "\n".join(lines)
