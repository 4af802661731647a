"""What `clu show` prints: the configuration as it will be used, the step as it will run, the schedule, and when samples come back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cl_framework.assembly import assemble, check_without, make_stack
from cl_framework.config import Experiment
from cl_framework.cost import new_and_past
from cl_framework.errors import ConfigurationError
from cl_framework.learner import Learner
from cl_framework.plan import Plan
from cl_framework.plots import check_png, png
from cl_framework.recall import recall_figure, recall_lines
from cl_framework.records import atomic_write
from cl_framework.seams import seams_of
from cl_framework.stream import Learn


def describe(experiment: Experiment, plot: Path | None = None) -> str:
    """The whole description; where data is missing it says so in place of the schedule. Trains nothing, writes nothing but the plot.

    plot: a .png file for the recall schedule. Raises ConfigurationError if the data for it is missing.
    """
    if plot is not None:
        check_png(plot)
    stack = make_stack(experiment)
    parts = ["# configuration", experiment.to_yaml().rstrip(), "", "# strategies, outermost first", *_strategies(experiment)]
    parts += ["", "# one step", stack.describe(), "", "# schedule"]
    try:
        learner = assemble(experiment)
        check_without(learner)
    except ConfigurationError as error:
        if "data.root" not in str(error) or plot is not None:
            raise
        return "\n".join([*parts, f"not known: {error}"])
    lines, plans = _schedule(learner)
    parts += [*lines, "", "# recall: what a Learn shows of its task, and after how many slots (rows of the plan) a sample comes back"]
    parts += [f"{event}: {line}" for event, plan in plans for line in recall_lines(plan, learner.training_ids(event.task))]
    if plot is not None:
        atomic_write(plot, png(recall_figure([(str(event), plan) for event, plan in plans])))
        parts += ["", f"written: {plot}"]
    return "\n".join(parts)


def _strategies(experiment: Experiment) -> list[str]:
    if not experiment.strategies:
        return ["none: plain fine-tuning"]
    lines = []
    for slot in experiment.strategies:
        traits = slot.strategy_class(slot.options).traits  # some change with the options
        claims = [
            name.replace("_", " ")
            for name in ("needs_task_id", "needs_boundaries", "reads_past_data", "stores_data")
            if getattr(traits, name)
        ]
        if traits.unlearns:
            kind = "exact" if traits.exact else "approximate"
            claims.append(f"unlearns {', '.join(sorted(traits.unlearns))} ({kind}; reads {traits.unlearning_needs})")
        seams = ", ".join(seams_of(slot.strategy_class))
        lines.append(f"{slot.slot} ({slot.name}): {seams}; {'; '.join(claims) or 'no special needs'}")
    return lines


def _schedule(learner: Learner) -> tuple[list[str], list[tuple[Learn, Plan]]]:
    """A line for each note of the benchmark and each event; and each Learn with its plan."""
    lines = [f"{name}: {text}" for name, text in learner.benchmark.notes.items()]
    plans = []
    for index, event in enumerate(learner.stream):
        position = learner.position
        position.event, position.event_index, position.phase, position.step = event, index, None, 0
        learner.new_streams()
        if not isinstance(event, Learn):
            lines.append(f"{event}: unlearn, answered by {learner.stack.unlearner_of(event).slot}")
            continue
        phase = learner.learn_phase(event)
        position.phase = phase
        plan = learner.plan_phase(phase).plan
        assert not isinstance(plan, int)
        classes = _spans(learner.benchmark.classes[event.task])
        new, past = new_and_past(plan.ids, learner.training_ids(event.task))
        replayed = f" and {past} of earlier tasks" if past else ""
        lines.append(f"{event}: classes {classes}; {new} visits{replayed} in {plan.steps} steps")
        plans.append((event, plan))
    return lines, plans


def _spans(numbers: Sequence[int]) -> str:
    """Numbers in their order, three or more in a row as the first and the last: 0-9,12,13."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)
