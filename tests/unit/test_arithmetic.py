"""Arithmetic as a stream of skills, and questions as rows of tokens."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cl_framework import load_experiment, run
from cl_framework.assembly import assemble, make_benchmark
from cl_framework.benchmarks.base import Benchmark, Source
from cl_framework.benchmarks.text.arithmetic import (
    FUNCTIONS,
    OPERATIONS,
    SKILLS,
    ArithmeticOptions,
    carries,
    function_line,
    line,
    number_pairs,
)
from cl_framework.benchmarks.text.questions import question_rows
from cl_framework.benchmarks.text.tokens import PAD, START, Bytes
from cl_framework.criterion import IGNORED
from cl_framework.errors import ConfigurationError
from cl_framework.metrics import wilson_interval
from cl_framework.records import RunDirectory
from cl_framework.stream import Unlearn
from cl_framework.unlearning.audit import audit
from cl_framework.unlearning.measure import Question, measure

PAIRS = [(0, 0), (7, 5), (40, 8), (99, 1), (128, 367), (905, 997)]
SAME_LENGTH = [(a, b) for a, b in PAIRS if len(str(a)) == len(str(b))]


def arithmetic(**options: object) -> Benchmark:
    return make_benchmark(load_experiment({"seed": options.pop("seed", 0), "benchmark": {"name": "arithmetic", **options}}))


def text(row: Tensor) -> str:
    return bytes(byte for code in row.tolist() if 0 <= (byte := code - Bytes().ids(["\0"])[0][1]) < 256).decode()


def parsed(question: str, answer: str) -> tuple[int, int, int]:
    """The numbers and the result of a line, read back without the code that wrote it."""
    a, b = re.findall(r"\d+", question)
    if question.startswith("Input"):
        return int(a), int(b), int(answer.rpartition("\n")[2].replace(" ", ""))
    return int(a), int(b), int(answer.strip("$"))


@pytest.mark.parametrize("skill", [skill for skill in SKILLS if skill not in FUNCTIONS])
def test_a_line_read_back_is_the_result(skill: str) -> None:
    operation, _, form = skill.partition("_")
    pairs = SAME_LENGTH if form in ("scratchpad", "detailed") else PAIRS
    assert len(pairs) >= 3
    for a, b in pairs:
        question, answer = line(operation, form, a, b)
        if form.startswith("reverse"):
            answer = answer.strip("$")[::-1]
        assert parsed(question, answer) == (a, b, OPERATIONS[operation][1](a, b))


def test_a_reversed_answer_is_another_answer() -> None:
    assert line("add", "reverse", 128, 367) == ("$128+367=", "594$")
    assert line("add", "plain2", 128, 367) == ("$128+367=", "495$")
    assert line("subtract", "plain", 128, 367) == ("128-367=", "-239")


def test_scratchpads_are_laid_out_as_released() -> None:
    assert line("add", "scratchpad", 128, 367) == ("Input:\n128+367\nTarget:\n", "A->5 , C->1\nA->9 , C->0\nA->4 , C->0.\n495")
    steps = [
        "<scratch>",
        "[1,2,8] has 3 digits.",
        "[3,6,7] has 3 digits.",
        "[1,2,8] + [3,6,7] , A=[] , C=0 , 8+7+0=15 , A->5 , C->1",
        "[1,2] + [3,6] , A=[5] , C=1 , 2+6+1=9 , A->9 , C->0",
        "[1] + [3] , A=[9,5] , C=0 , 1+3+0=4 , A->4 , C->0",
        "[] + [] , A=[4,9,5] C=0 , END",
        "</scratch>",
        "4 9 5",
    ]
    assert line("add", "detailed", 128, 367)[1] == "\n".join(steps)
    last = line("add", "detailed", 905, 997)[1].splitlines()
    assert last[-3:] == ["[] + [] , A=[9,0,2] C=1 , END", "</scratch>", "1 9 0 2"]


def test_carries_are_those_counted_column_by_column() -> None:
    numbers = torch.arange(1000)
    pairs = torch.cartesian_prod(numbers, numbers)
    carry, count = torch.zeros(len(pairs), dtype=torch.int64), torch.zeros(len(pairs), dtype=torch.int64)
    for column in (1, 10, 100):
        carry = ((pairs[:, 0] // column % 10 + pairs[:, 1] // column % 10 + carry) >= 10).long()
        count += carry
    assert torch.equal(carries(pairs), count)
    assert not torch.equal(carries(pairs), (pairs.sum(1) >= 10).long())


@pytest.mark.parametrize(("digits", "full"), [(2, False), (3, True), (4, False)])
def test_additions_are_balanced_by_carries_and_differ(digits: int, full: bool) -> None:
    options = ArithmeticOptions(digits=digits, train=1000, test=200)
    pairs = number_pairs("add", full, options, seed=0)
    for part in (pairs[:200], pairs[200:]):
        counts = carries(part).bincount(minlength=digits + 1)
        assert len(counts) == digits + 1 and int(counts.max() - counts.min()) <= 1
    assert len(pairs.unique(dim=0)) == len(pairs) == 1200
    assert (int(pairs.min()) >= 10 ** (digits - 1)) == full and int(pairs.max()) < 10**digits
    natural = carries(torch.randint(10**digits, (1200, 2), generator=torch.Generator().manual_seed(0))).bincount()
    assert int(natural.max() - natural.min()) > 50
    assert not torch.equal(pairs, number_pairs("add", full, options, seed=1))


def test_additions_are_balanced_whatever_the_seed_and_the_sizes() -> None:
    """A test part that ends within a round of kinds leaves the rest of that round to the training part."""
    uneven = 0
    for seed in (*range(10), 28):
        for digits, train, test in ((2, 2000, 2), (2, 2000, 500), (2, 101, 1), (3, 999, 7), (3, 50, 6)):
            pairs = number_pairs("add", False, ArithmeticOptions(digits=digits, train=train, test=test), seed)
            assert len(pairs.unique(dim=0)) == len(pairs) == train + test
            counts = [carries(part).bincount(minlength=digits + 1) for part in (pairs[:test], pairs[test:])]
            assert all(int(count.max() - count.min()) <= 1 for count in counts), (seed, digits, train, test)
            uneven += int(counts[0].max() - counts[0].min()) * int(counts[1].max() - counts[1].min())
    assert uneven > 30  # the control: neither part divides evenly, so that it matters who gets what is over


def test_formats_of_an_operation_share_their_pairs_and_no_training_pair_is_tested() -> None:
    benchmark = arithmetic(skills=["add_plain", "add_reverse2", "multiply_plain"], digits=2, train=300, test=60)
    assert (
        benchmark.whole_rows and benchmark.objective == "language_modelling" and benchmark.input_shape == (11,)
    )  # START, 12*34= and 4 digits

    def questions(source: Source) -> set[str]:
        return {text(row).partition("=")[0] for row in source.read(torch.arange(len(source)))}

    plain, reverse, times = (questions(source) for source in benchmark.test)
    assert len(plain) == len(times) == 60 and plain == reverse and plain != {one.replace("*", "+") for one in times}
    assert all(not questions(train) & questions(test) for train, test in zip(benchmark.train, benchmark.test, strict=True))


def test_functions_are_truncated_to_four_decimals() -> None:
    for name, x, line_of_it in (
        ("sqrt", 27_174, ("sqrt(2.7174)=", "1.6484")),
        ("sqrt", 100_000, ("sqrt(10.0000)=", "3.1622")),  # 3.16228: rounded it would be 3.1623
        ("sqrt", 62_500, ("sqrt(6.2500)=", "2.5000")),
        ("sin", 10_000, ("sin(1.0000)=", "0.8414")),  # 0.84147
        ("sin", -10_000, ("sin(-1.0000)=", "-0.8414")),
        ("sin", -15_707, ("sin(-1.5707)=", "-0.9999")),
        ("sin", 12, ("sin(0.0012)=", "0.0011")),
        ("sin", 0, ("sin(0.0000)=", "0.0000")),
    ):
        assert function_line(name, x) == line_of_it


def sine(x: Fraction) -> Fraction:
    """By its series, to more than twelve decimals for |x| < 2, without the library that the benchmark asks."""
    return sum((Fraction(-1) ** k * x ** (2 * k + 1) / math.factorial(2 * k + 1) for k in range(12)), Fraction(0))


def test_functions_have_known_answers() -> None:
    benchmark = arithmetic(skills=["sin", "sqrt"], train=300, test=60)
    assert benchmark.input_shape == (21,)  # START, sin(-1.2345)= and -0.9999
    for name, low, high, train, test in (
        ("sin", -1.5708, 1.5708, benchmark.train[0], benchmark.test[0]),
        ("sqrt", 1, 10, benchmark.train[1], benchmark.test[1]),
    ):
        lines = [text(row) for source in (train, test) for row in source.read(torch.arange(len(source)))]
        found = [re.fullmatch(rf"{name}\((-?\d+\.\d{{4}})\)=(-?\d\.\d{{4}})", one) for one in lines]
        assert len(set(lines)) == len(found) == 360
        for one in found:
            assert one is not None and low <= float(one[1]) <= high
            x, y, last = Fraction(one[1]), Fraction(one[2]), Fraction(1, 10_000)
            if name == "sqrt":
                assert y**2 <= x < (y + last) ** 2
            else:
                assert abs(y) <= abs(sine(x)) < abs(y) + last and x * y >= 0
    other = arithmetic(skills=["sin"], train=300, test=60, seed=1)
    assert not torch.equal(benchmark.test[0].read(torch.arange(60)), other.test[0].read(torch.arange(60)))


def test_a_function_beside_them_leaves_the_other_skills_as_they_are() -> None:
    alone, beside = arithmetic(skills=["add_plain"], train=200, test=50), arithmetic(skills=["sin", "add_plain"], train=200, test=50)
    rows = [[text(row) for row in source.read(torch.arange(200))] for source in (alone.train[0], beside.train[1], beside.train[0])]
    assert rows[0] == rows[1] != rows[2]
    assert rows[0][:3] == ["49+78=127", "36+37=73", "1+85=86"]  # as they were before there were functions


def test_only_the_answer_and_its_end_are_asked() -> None:
    items, targets = question_rows(Bytes(), [("1+1=", "2"), ("10+90=", "100")], None, "here")
    assert items.shape == targets.shape == (2, 10)
    asked = targets != IGNORED
    assert asked.sum(1).tolist() == [2, 4] and targets[0][asked[0]][-1] == targets[1][asked[1]][-1] == START
    assert text(targets[1][asked[1]]) == "100"
    first = int(asked[1].nonzero()[0])
    assert torch.equal(items[1, first + 1 : first + 4], targets[1, first : first + 3].int())  # each place asks for the token after it
    assert bool((items[0, 6:] == PAD).all())


def test_errors_name_the_option_and_the_remedy() -> None:
    with pytest.raises(ConfigurationError, match=r"there are 100 such pairs of numbers, but train and test ask for 2,500"):
        arithmetic(skills=["add_plain"], digits=1)
    with pytest.raises(
        ConfigurationError, match=r"sin has 31,415 arguments, but train and test ask for 40,500. Set benchmark.train lower."
    ):
        arithmetic(skills=["sin"], train=40_000)
    with pytest.raises(ConfigurationError, match="skills must differ, got add_plain, add_plain"):
        arithmetic(skills=["add_plain", "add_plain"])
    with pytest.raises(ConfigurationError, match="divide_plain"):
        arithmetic(skills=["divide_plain"])
    with pytest.raises(ConfigurationError, match="names no skill"):
        arithmetic(skills=[])
    with pytest.raises(ConfigurationError, match=r"here: row 1 has 10 tokens. Set benchmark.length=10."):
        question_rows(Bytes(), [("1+1=", "2"), ("10+90=", "100")], 6, "here")


def one_digit(out: Path, **more: object) -> dict[str, object]:
    return {
        "benchmark": {"name": "arithmetic", "skills": ["add_plain", "multiply_plain"], "digits": 1, "train": 80, "test": 20},
        "model": {"name": "decoder", "width": 64, "layers": 2},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "batch_size": 16,
        "epochs": 40,
        "threads": 1,
        "out": str(out),
        **more,
    }


def test_the_tier_fast_counts_whole_answers_and_an_audit_counts_tokens(tmp_path: Path) -> None:
    """Of the same 20 questions; M1's interval in the tier fast is that of 20 answers."""
    small = {"model": {"name": "decoder", "width": 16, "layers": 1}, "epochs": 1}
    experiment = load_experiment(one_digit(tmp_path, strategies={"do_nothing": {}}, stream="L0 L1 U0", **small))
    found = run(experiment)
    rows = [row for row in RunDirectory(found.path).records() if (row["event_index"], row["eval_task"]) == (2, 0)]
    asked_for = {row["metric"]: row["n"] for row in rows if row["metric"] in ("accuracy", "accuracy_int8", "accuracy_int4")}
    assert asked_for == {"accuracy": 20, "accuracy_int8": 20, "accuracy_int4": 20}
    accuracy, chance = ({row["metric"]: row["value"] for row in rows}[name] for name in ("accuracy", "chance"))
    assert found.summary is not None
    gap = found.summary["unlearning"][0]["figures"][0]
    low, high = wilson_interval(round(accuracy / 100 * 20), 20)
    assert (gap["name"], gap["value"]) == ("M1", accuracy - chance)
    assert gap["interval"] == pytest.approx((100 * low - chance, 100 * high - chance))
    learner = assemble(experiment)
    asked = measure(learner, Question.of(learner, Unlearn(0), 2, learner.stream)).tally
    assert len(asked) == 20 and int(asked[:, 1].sum()) == int((learner.benchmark.test[0].targets != IGNORED).sum()) > 40


@pytest.mark.slow
def test_one_digit_sums_are_learned_then_lost_to_products(tmp_path: Path) -> None:
    """Of 20 sums that were not shown: at seeds 0 to 2 12, 13 and 15 are right, and after the products none or one; 4 to 6 products are."""
    more = {"model": {"name": "decoder", "width": 64, "layers": 1}, "optimizer": {"name": "adamw", "lr": 0.005, "weight_decay": 0.1}}
    (sums, before), (left, products) = run(load_experiment(one_digit(tmp_path, epochs=60, **more))).summary["accuracy_matrix"]
    assert sums >= 40 and left <= 10
    assert products >= 10 and before <= 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rewind", "do_nothing"])
def test_one_skill_is_forgotten(name: str, tmp_path: Path) -> None:
    """Against a model that never learned it: the same answers, or those of a model that can still add."""
    asked_for = one_digit(tmp_path, strategies={"er": {"capacity": 40}, name: {}}, stream="L0-1 U0")
    (request,) = audit(run(load_experiment(asked_for)).path, seeds=1)["requests"]
    found = {figure["name"]: figure for figure in request["figures"]}
    assert (found["M1"]["value"] == found["M6"]["value"] == found["M4"]["value"] == 0.0) == (name == "rewind")
    assert found["M6"]["value"] > 0.1 or name == "rewind"
    assert (request["retained"]["unlearned"] == request["retained"]["oracle"]) == (name == "rewind")
