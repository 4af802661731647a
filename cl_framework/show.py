"""What `clu show` prints: the configuration as it will be used, the step as it will run, the schedule."""

from __future__ import annotations

from cl_framework.assembly import make_stack
from cl_framework.config import Experiment
from cl_framework.errors import ConfigurationError
from cl_framework.strategy import seams_of


def describe(experiment: Experiment) -> str:
    """The whole description; where data is missing it says so in place of the schedule. Trains nothing, writes nothing."""
    stack = make_stack(experiment)
    parts = ["# configuration", experiment.to_yaml().rstrip(), "", "# strategies, outermost first", *_strategies(experiment)]
    parts += ["", "# one step", stack.describe(), "", "# schedule", *_schedule(experiment)]
    return "\n".join(parts)


def _strategies(experiment: Experiment) -> list[str]:
    if not experiment.strategies:
        return ["none: plain fine-tuning"]
    lines = []
    for slot in experiment.strategies:
        traits = slot.strategy_class.traits
        claims = [
            name.replace("_", " ")
            for name in ("needs_task_id", "needs_boundaries", "reads_past_data", "stores_data")
            if getattr(traits, name)
        ]
        if traits.unlearns:
            claims.append(f"unlearns {', '.join(sorted(traits.unlearns))} ({'exact' if traits.exact else 'approximate'})")
        seams = ", ".join(seams_of(slot.strategy_class))
        lines.append(f"{slot.slot} ({slot.name}): {seams}; {'; '.join(claims) or 'no special needs'}")
    return lines


def _schedule(experiment: Experiment) -> list[str]:
    from cl_framework.assembly import assemble
    from cl_framework.stream import Learn

    try:
        learner = assemble(experiment)
    except ConfigurationError as error:
        if "data.root" not in str(error):
            raise
        return [f"not known: {error}"]
    lines = [f"{name}: {text}" for name, text in learner.benchmark.notes.items()]
    for index, event in enumerate(learner.stream):
        position = learner.position
        position.event, position.event_index, position.phase, position.step = event, index, None, 0
        if not isinstance(event, Learn):
            lines.append(f"{event}: unlearn, answered by {learner.stack.unlearner_of(event).slot}")
            continue
        phase = learner.learn_phase(event)
        position.phase = phase
        plan = learner.plan_phase(phase).plan
        assert not isinstance(plan, int)
        classes = ",".join(map(str, learner.benchmark.classes[event.task]))
        lines.append(f"{event}: classes {classes}; {plan.visits} visits in {plan.steps} steps")
    return lines
