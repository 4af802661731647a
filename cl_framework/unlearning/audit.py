"""`clu audit RUN_DIR`: every request of a finished run, measured against models that never saw the data.

The run is lived through again in memory, and must meet the digests in its deletion record: so what is measured is that run. Beside it
stand oracles under the run's seed and further ones (`oracle`), asked the same questions (`measure`), and compared (`verdicts`).
Result: RUN_DIR/audit/<tier>.json and splits.json, sealed in the deletion record.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cl_framework.assembly import assemble, make_benchmark, torch_as_configured
from cl_framework.benchmarks.base import Benchmark
from cl_framework.config import Experiment, load_experiment
from cl_framework.digests import digest_of
from cl_framework.errors import ConfigurationError
from cl_framework.learner import Learner
from cl_framework.records import Row, RunDirectory, atomic_write
from cl_framework.stream import Stream, Unlearn
from cl_framework.unlearning.ancestry import unlike
from cl_framework.unlearning.deletion import AUDITED, DeletionLog, check_complete, file_digest, unlearned_in
from cl_framework.unlearning.fast import FAIL, INCONCLUSIVE, NOT_RUN, PASS, Figure, Recorded, artefacts, samples_of_answer, spill
from cl_framework.unlearning.measure import RELEARNING_STEPS, Measured, Question
from cl_framework.unlearning.oracle import Learned, Oracles, Trained, live_again
from cl_framework.unlearning.verdicts import Later, Models, as_json, exact_claim, figures, is_known, is_unlearned, relearning_gap
from cl_framework.unlearning.watch import Seen, Watch

STANDARD, FULL = "standard", "full"
TIERS = (STANDARD, FULL)
SLOWER = 2.0  # times the suffix's seconds: a machine that others use too can slow down a request, or speed up its oracle, so much
ORACLES = "oracles"  # the folder of kept states, beside the experiments


def check_counts(seeds: int | None, orders: int | None) -> None:
    """Raise ConfigurationError for too few oracles, or orders, to be audited beside; None is whatever is the default."""
    for name, count, least in (("seeds", seeds, 1), ("orders", orders, 2)):
        if count is not None and count < least:
            raise ConfigurationError(f"--{name} must be {least} or more, got {count}.")


def audit(
    path: Path,
    tier: str = STANDARD,
    seeds: int = 3,
    overrides: Sequence[str] = (),
    *,
    orders: int = 3,
    made: set[Path] | None = None,
    keep_learned: bool = False,
    benchmark: Benchmark | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Audit a finished run, write the result into it, and return it.

    seeds: oracles a request, the run's own seed first; orders: of the events before a request, the run's own first (tier full);
    made: see `Oracles`: an empty set trains all oracles anew; keep_learned: see `Learned`.

    Raises ConfigurationError if there is nothing to audit, FrameworkError if the run gives other bits here.
    """
    if tier not in TIERS:
        raise ConfigurationError(f"there is no tier {tier!r}; tiers: fast, {', '.join(TIERS)}.")
    check_counts(seeds, orders)
    started = time.monotonic()
    directory, experiment = finished(path, overrides)
    with directory.lock(), torch_as_configured(experiment):
        benchmark = benchmark or make_benchmark(experiment)
        learner = assemble(experiment, benchmark)
        stream = learner.stream
        log = DeletionLog(directory.path / "deletion")
        asked = [Question.of(learner, event, index, stream) for index, event in enumerate(stream) if isinstance(event, Unlearn)]
        exact = {question.index for question in asked if learner.is_exact(question.event)}
        oracles = Oracles(experiment, benchmark, experiment.run.seed, Path(experiment.run.out) / ORACLES, made)
        own = Watch(asked, stream, exact, oracles.measurements, of_run=True, keeps_before=keep_learned)
        own.untrained(learner)
        tell(f"living through {directory.path} again: {len(stream)} events")
        learned = live_through(experiment, benchmark, log, oracles, own, tell)
        seeds_of_oracles = [experiment.run.seed + number for number in range(seeds)]
        watched = [oracle_watch(experiment, benchmark, asked, stream, exact, seed, made, tell) for seed in seeds_of_oracles]
        result = {
            "format": 1,
            "tier": tier,
            "oracle_seeds": seeds_of_oracles,
            "oracle_states": [row for watch in watched for row in watch.states],
            "learned": learned,
            "measurements_kept": sorted({*oracles.measurements.taken, *(name for watch in watched for name in watch.measurements.taken)}),
            **identity(directory, experiment, learner),
            "requests": [
                entry(directory, learner, question, own.seen[question.index], [one.seen[question.index] for one in watched], tier == FULL)
                for question in asked
            ],
        }
        if tier == FULL:
            from cl_framework.unlearning.orders import add_path_dependence

            add_path_dependence(result, experiment, benchmark, orders, Path(experiment.run.out) / ORACLES, tell)
        if any(watch.kept_know for watch in watched):
            folder = Path(experiment.run.out) / ORACLES
            tell(f"{folder} keeps models that know what a later request unlearned, so that further audits need not train them.")
            tell(f"When no audit is to come, remove them: rm -r {shlex.quote(str(folder))}")
        result["seconds"] = time.monotonic() - started
        write(directory, log, result, asked)
    return result


def finished(path: Path, overrides: Sequence[str]) -> tuple[RunDirectory, Experiment]:
    """A finished run with an Unlearn, whole in its deletion record, and its experiment; overrides may change no numbers."""
    directory = RunDirectory(path)
    if directory.status == "absent":
        raise ConfigurationError(f"{path} is no run directory (it has no config.yaml).")
    if directory.status != "done":
        raise ConfigurationError(f"{path} is {directory.status}: only a finished run can be audited. Finish it with `clu resume {path}`.")
    if not unlearned_in(directory.events(whole=True)):
        raise ConfigurationError(f"{path}: no Unlearn is done in this run, so there is nothing to audit.")
    experiment = load_experiment(directory.config, overrides)
    if not directory.path.name.startswith(experiment.fingerprint[:8]):
        asked = f"{' '.join(overrides)} asks for" if overrides else "its config.yaml says now, or than this version makes of it"
        raise ConfigurationError(f"{path} was run under another configuration than {asked}. Undo that.")
    check_complete(directory)
    return directory, experiment


def live_through(
    experiment: Experiment, benchmark: Benchmark, log: DeletionLog, oracles: Oracles, own: Watch, tell: Callable[[str], None]
) -> Row:
    """The run itself, looked at by its own watch; how many of its first events were not lived through again, and the state they led to."""
    first = own.questions[0].index
    states = {index: row["state_after"] for index, row in log.done().items()}
    learned = Learned(oracles, first, log.requested()[first]["state_before"], own.keeps_before)
    kept = len(own.stream) - live_again(experiment, benchmark, states, own.at, learned)
    if kept:
        tell(f"{kept} of them were kept, and are not run again")
    elif own.keeps_before and oracles.learned(first) is None:
        tell("nothing that was learned is kept of this run: a strategy of it goes back to earlier states")
    return {"events_kept": kept, "state": learned.digest}


def oracle_watch(
    experiment: Experiment,
    benchmark: Benchmark,
    asked: Sequence[Question],
    stream: Stream,
    exact: Collection[int],
    seed: int,
    made: set[Path] | None,
    tell: Callable[[str], None],
) -> Watch:
    """The same questions to the oracles under one seed."""
    oracles = Oracles(experiment, benchmark, seed, Path(experiment.run.out) / ORACLES, made)
    claims = exact if seed == experiment.run.seed else ()  # a claim is of the run's own seed
    watch = Watch(asked, stream, claims, oracles.measurements, of_run=False)
    trained = 0
    for index in range(len(stream)):
        if not any(watch.open(question, index) for question in asked):
            continue
        cost = oracles.after(index)
        trained += cost.new_events
        state = digest_of(oracles.learner.state_dict())
        watch.states.append({"seed": seed, "event_index": index, "state": state, "kept": not cost.new_events})
        watch.at(index, oracles.learner)
        if index in watch.seen:
            watch.seen[index].trained = cost
    watch.kept_know = oracles.know_unlearned()
    tell(f"oracles of seed {seed}: {trained} {'event' if trained == 1 else 'events'} trained, besides what was kept")
    return watch


def identity(directory: RunDirectory, experiment: Experiment, learner: Learner) -> Row:
    return {
        "experiment": experiment.run.experiment,
        "fingerprint": directory.path.name.partition("-s")[0],
        "benchmark": learner.benchmark.name,
        "scenario": learner.run.scenario,
        "stream": str(learner.stream),
        "strategies": [slot.slot for slot in experiment.strategies],
        "seed": experiment.run.seed,
    }


def entry(directory: RunDirectory, learner: Learner, question: Question, own: Seen, oracles: Sequence[Seen], ensemble: bool) -> Row:
    """One request with its figures, those of controls in its place, and the curves behind them.

    ensemble: whether the oracles of other seeds calibrate an attack of their own.
    """
    first, *others = oracles
    oracle, rest = after(first), [after(one) for one in others]
    assert own.before is not None
    models = Models(after(own), own.before, oracle, rest, ensemble, own.untrained_probe)
    later = Later(own.later, first.later, [one.later for one in others])
    mine = [with_put_back(figure, own.put_back, question) for figure in figures(question, models, later)]
    cost = efficiency(directory.events()[question.index], first.trained)
    kept_apart = sorted({*unlike(own.kept, first.kept), *unlike(first.kept, own.kept)})
    residual = learner.benchmark.residual(learner.forgotten(question.event).ids)
    mine.append(exact_claim(models, learner.is_exact(question.event), kept_apart, residual))
    mine += [spill_of(directory, learner, question, first.recorded), shadow(directory, question), with_moved(cost, own.moved)]
    row = {
        "event_index": question.index,
        "event": str(question.event),
        "task": question.event.task,
        "granularity": question.event.granularity,
        "strategy": learner.stack.unlearner_of(question.event).slot,
        "unlearned": is_unlearned(mine),
        "figures": as_json(mine),
        "before_figures": as_json(figures(question, replace(models, unlearned=own.before), Later((), ()))),
        "relearning": {
            "steps": list(RELEARNING_STEPS),
            "unlearned": list(models.unlearned.relearning),
            "oracle": list(oracle.relearning),
            "before": list(models.before.relearning),
            "never_seen": list(own.never_seen),
        },
        "later": {"unlearned": [one.accuracy for one in own.later], "oracle": [one.accuracy for one in first.later]},
        "retained": {
            "unlearned": models.unlearned.retained_accuracy,
            "oracle": oracle.retained_accuracy,
            "before": models.before.retained_accuracy,
        },
    }
    if own.never_seen:  # the control beside M4: how fast a task is learned that was never learned
        row["never_seen_figures"] = as_json(
            [relearning_gap(replace(models, unlearned=replace(models.unlearned, relearning=own.never_seen)))]
        )
    if rest:  # the first of them in the place of the unlearned model: what two models that never saw the data differ by
        left = [one.later for one in others[1:]]  # its own floor is what the others differ by
        elsewhere = figures(
            question, replace(models, unlearned=rest[0], others=rest[1:]), replace(later, unlearned=others[0].later, others=left)
        )
        row["oracle_figures"] = as_json(elsewhere)
    return row


def after(seen: Seen) -> Measured:
    assert seen.after is not None
    return seen.after


def with_put_back(figure: Figure, accuracy: float | None, question: Question) -> Figure:
    """M1 must hold with the old embedding put back as well: a key that was thrown away unlearns nothing."""
    if figure.name != "M1" or accuracy is None:
        return figure
    details = {**figure.details, "old_embedding_put_back": accuracy}
    assert figure.bound is not None
    hidden = is_known(accuracy, len(question.pool), question.chance) or accuracy - figure.details["oracle"] > figure.bound
    if figure.verdict not in (PASS, INCONCLUSIVE) or not hidden:
        return replace(figure, details=details)
    return replace(figure, verdict=FAIL, why=f"with its old embedding put back it is at {accuracy:.1f} percent", details=details)


def with_moved(figure: Figure, share: float | None) -> Figure:
    """M12 says how far the weights went, too: what noise of equal norm needs."""
    return figure if share is None else replace(figure, details={**figure.details, "moved": share})


def spill_of(directory: RunDirectory, learner: Learner, question: Question, oracle: Sequence[Row]) -> Figure:
    """M2; and beside it what is lost where the oracle, of which these are the rows, takes the place of the model before."""

    def lost(rows: Sequence[Row]) -> Figure:
        return spill(Recorded.of(rows, learner.run.scenario), learner.stream, question.index)

    records = directory.records()
    figure, theirs = lost(records), lost([*records, *oracle]).value
    return figure if figure.value is None or theirs is None else replace(figure, details={"oracle": theirs})


def shadow(directory: RunDirectory, question: Question) -> Figure:
    """M11."""
    return artefacts(DeletionLog(directory.path / "deletion").done().get(question.index))


def efficiency(row: Mapping[str, Any], oracle: Trained | None) -> Figure:
    """M12: seconds of the request over those of training the suffix again without the data, from the request's row in events.jsonl.

    Seconds are of the whole answer; of rows from before that was clocked, of training steps alone. Judged by samples, which do not depend
    on the machine, and by seconds, which do: up to `SLOWER` it says nothing.
    """
    seconds, counted = row.get("answer_seconds", row["train_seconds"]), samples_of_answer(row)
    details = {"seconds": seconds, **counted, "stored_bytes": row["stored_bytes"] or 0}
    details["peak_rss_mib"] = row["peak_rss_mib"]  # of the run's process up to here
    if oracle is None or not oracle.suffix_seconds:
        why = "the oracle has trained nothing of its own, or what it cost is not on record"
        return Figure("M12", None, NOT_RUN, why, details=details)
    whole = {"whole_seconds": oracle.seconds, "whole_samples": oracle.samples}
    details |= {"oracle_seconds": oracle.suffix_seconds} | {name: value for name, value in whole.items() if value is not None}
    details["oracle_samples"] = oracle.suffix_samples
    share = seconds / oracle.suffix_seconds
    too_much = counted["samples"] > oracle.suffix_samples or share > SLOWER
    verdict = FAIL if too_much else PASS if share <= 1 else INCONCLUSIVE
    why = f"of the seconds of training the suffix, at most 1 (above {SLOWER:g} it fails), with no more samples"
    return Figure("M12", share, verdict, why, bound=1.0, details=details)


# --- files ---


def write(directory: RunDirectory, log: DeletionLog, result: Mapping[str, Any], asked: Sequence[Question]) -> Path:
    """The result and the splits, and their digests in the deletion record."""
    path = directory.path / "audit" / f"{result['tier']}.json"
    splits = {str(one.index): {name: places.tolist() for name, places in one.splits.items()} for one in asked}
    atomic_write(path.with_name("splits.json"), json.dumps(splits) + "\n")
    atomic_write(path, json.dumps(result, indent=1, allow_nan=False) + "\n")
    for name in (path.name, "splits.json"):
        log.append(AUDITED, {"file": f"audit/{name}", "sha256": file_digest(path.with_name(name)), "event_index": -1, "event": "audit"})
    return path
