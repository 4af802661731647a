"""What is measured of one model for one request, the same for the unlearned model, oracles, and the one before. It changes nothing.

Models are asked in evaluation mode and, where they are trained or rounded, as deep copies. A figure compares two such measurements:
see `verdicts`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cl_framework.calls import evaluation_mode, run_model
from cl_framework.criterion import asked
from cl_framework.digests import digest_of
from cl_framework.evaluation import candidates, evenly
from cl_framework.inputs import each
from cl_framework.learner import Learner
from cl_framework.models.freezing import take_up_training
from cl_framework.optimizers import build_optimizer
from cl_framework.rng import RandomStream, global_randomness_kept
from cl_framework.strategy import Rows
from cl_framework.stream import Stream, TaskId, Unlearn
from cl_framework.unlearning.attacks import SCORES, auc, membership_scores, tpr_at_fpr
from cl_framework.unlearning.probes import linear_probe, nearest_neighbours
from cl_framework.unlearning.quantization import roundings
from cl_framework.unlearning.recall_of_answers import Recalled, cut_behind, recalled

MOST = 1000  # samples asked about in each role, evenly chosen; all where there are fewer
FEWEST_TEXTS = 24  # of texts as many as have `MOST` places to answer, but so many at least
MOST_TEXTS = 200  # of texts in a membership attack, where a whole text is a sample
RELEARNING_STEPS = (*range(17), *range(20, 65, 4))  # after how many steps accuracy is measured
PER_CLASS = 4  # samples of each class in a step of relearning
_SURE = -100.0  # the least log-probability that is told apart: classes that a strategy rules out have none


# --- samples ---


@dataclass(frozen=True)
class Samples:
    """Training samples by id, or test samples of a task by their row; and the classes among which answers to them are chosen."""

    task: TaskId | None  # None: training samples
    places: Tensor  # (N,) ids or rows
    columns: Tensor  # (K,) classes, ascending

    def __len__(self) -> int:
        return len(self.places)

    def part(self, first: int, stride: int) -> Samples:
        """Every `stride`-th of them, from the one at `first`."""
        return replace(self, places=self.places[first::stride].contiguous())

    def evenly(self, most: int) -> Samples:
        return replace(self, places=self.places[evenly(len(self.places), most)])

    def read(self, learner: Learner, places: Tensor | None = None) -> Rows:
        """All of them, or some (M,), with inputs as in evaluation."""
        where = self.places if places is None else places
        if self.task is None:
            rows = learner.read(where)
            rows.host_tasks = learner.benchmark.locate(where)[0]
        else:
            source = learner.benchmark.test[self.task]
            items = each(lambda part: part.to(learner.device), source.read(where))
            targets = source.targets[where].to(learner.device)
            tasks = torch.full((len(where),), self.task)
            rows = Rows(items, targets, torch.full((len(where),), -1), tasks.to(learner.device), host_tasks=tasks)
            rows.inputs = learner.benchmark.transform(items, None)
        rows.tasks_readable = learner.stack.reads_tasks
        return rows

    @property
    def chance(self) -> float:
        """Percent of right answers of one who picks among the candidates."""
        return 100.0 / len(self.columns)

    def labels(self, learner: Learner) -> Tensor:
        """(N,) global labels, on the host; (N, L) of texts."""
        if self.task is None:
            return learner.benchmark.read_targets(self.places)
        return learner.benchmark.test[self.task].targets[self.places]

    def targets(self, learner: Learner) -> Tensor:
        """(N,) global labels, on the host; of texts those of all places that ask, one text after another."""
        labels = self.labels(learner)
        return labels if labels.ndim == 1 else labels[asked(labels)]


def places_left(learner: Learner, task: TaskId, gone: Sequence[int]) -> Tensor:
    """Rows of the test split of a task whose class is none of these; all of texts, which have none."""
    targets = learner.benchmark.test[task].targets
    if targets.ndim == 2 or not gone:
        return torch.arange(len(targets))
    return (~torch.isin(targets, torch.tensor(gone))).nonzero().flatten()


def without_copies(learner: Learner, samples: Samples, others: Samples) -> Samples:
    """Those texts that are none of the others: some benchmarks (TOFU, RWKU) test a task on what it is taught."""

    def contents(part: Samples) -> list[bytes]:
        rows = part.read(learner)
        items = rows.items.values() if isinstance(rows.items, dict) else (rows.items,)
        return [row.tobytes() for row in torch.cat([*items, rows.targets], 1).cpu().numpy()]

    known = set(contents(others))
    left = [content not in known for content in contents(samples)]
    return replace(samples, places=samples.places[torch.tensor(left, dtype=torch.bool)])


@dataclass(frozen=True)
class Question:
    """A request and the samples on which models are compared because of it.

    The pool of what was unlearned is never used twice in one figure: its thirds serve relearning, the training of probes, and the test
    of both. For a task or classes the pool is the test split, on which nothing is trained but where a benchmark asks what it taught (TOFU,
    RWKU); for samples it is these themselves.
    """

    event: Unlearn
    index: int
    live: tuple[TaskId, ...]  # after the event
    own: Tensor  # (K,) bool: which of the pool's columns are classes of what was unlearned
    forgotten: Tensor  # (F,) ids of all that was unlearned
    members: Samples  # training samples that were unlearned
    others: Samples  # test samples of the same classes; of texts none that the task was taught
    pool: Samples
    probed: Samples  # the pool; for classes all test samples of the task, among which features may tell them
    retained: tuple[Samples, ...]  # test samples of each retained task, but of classes that are gone; the request's own task last
    questions: tuple[Samples, ...] = ()  # of answers that count as a whole: all of what the pool is part of, then all of each retained part

    @classmethod
    def of(cls, learner: Learner, event: Unlearn, index: int, stream: Stream) -> Question:
        """Of an event at `index` of the run's own stream; the learner is one whose data and scenario are the run's."""
        benchmark, live, gone = learner.benchmark, stream.learned_after[index], stream.classes_gone[index]

        def columns(task: TaskId) -> Tensor:
            return candidates(learner, learner.run.scenario, task, live).nonzero().flatten()

        labels = torch.tensor(event.classes or benchmark.classes[event.task])
        targets, among = benchmark.test[event.task].targets, columns(event.task)
        texts = targets.ndim == 2
        most = max(FEWEST_TEXTS, MOST // targets.shape[1]) if texts else MOST
        of_labels = torch.ones(len(targets), dtype=torch.bool) if texts else torch.isin(targets, labels)
        others = Samples(event.task, of_labels.nonzero().flatten(), among)
        members = Samples(None, learner.forgotten(event).ids, among)
        kept = [Samples(task, places_left(learner, task, gone.get(task, ())), columns(task)) for task in live]
        if texts and event.granularity == "sample":
            kept = [without_copies(learner, samples, members) for samples in kept]
        retained = sorted((samples for samples in kept if len(samples)), key=lambda samples: samples.task == event.task)
        share = max(FEWEST_TEXTS if texts else 1, most // max(1, len(retained)))
        asked_about = members if event.granularity == "sample" else others
        pool = asked_about.evenly(3 * most)
        if texts:
            others = without_copies(learner, others, Samples(None, benchmark.ids_of(event.task), among))
        attacked = MOST_TEXTS if texts else MOST
        return cls(
            event,
            index,
            live,
            torch.isin(among, labels),
            members.places,
            members.evenly(attacked),
            others.evenly(attacked),
            pool,
            Samples(event.task, torch.arange(len(targets)), among).evenly(3 * most) if event.granularity == "class" else pool,
            tuple(samples.evenly(share) for samples in retained),
            tuple(samples.evenly(MOST) for samples in (asked_about, *retained)) if benchmark.whole_rows else (),
        )

    @property
    def chance(self) -> float:
        """Percent of right answers of one who picks among the candidates."""
        return self.pool.chance

    @property
    def to_relearn(self) -> Samples:
        return self.pool.part(0, 3)

    @property
    def splits(self) -> dict[str, Tensor]:
        """Which samples serve what: ids of training samples, rows of the test split of the request's task."""
        probed = {"probe_train": self.probed.part(1, 3).places, "probe_test": self.probed.part(2, 3).places}
        return {"relearning": self.to_relearn.places, "relearning_test": self.to_test.places, **probed}

    @property
    def to_test(self) -> Samples:
        return self.pool.part(2, 3)


# --- measurements ---


@dataclass(frozen=True)
class Glance:
    """What is looked at after every later event as well."""

    accuracy: float  # on the pool, percent; of texts of tokens, also where records count whole answers
    linear_probe: float | None  # percent; None where the model has no features


@dataclass(frozen=True)
class Measured:
    """All that is measured of one model for one request. Accuracies in percent, of texts of tokens."""

    digest: str  # of weights and statistics
    glance: Glance
    retained_accuracy: float | None
    pool: Tensor  # (N, K) log-probabilities over the candidates
    tally: Tensor  # (M, 2) of each sample of the pool: how many of its answers are right, and how many it asks for (of texts one a token)
    retained: tuple[Tensor, ...]  # (M, K) of each retained part
    attack: dict[str, tuple[float, float]]  # score -> AUC, TPR at 1 % FPR
    likelihoods: tuple[Tensor, Tensor] | None  # log-probability of the right answer of each member (N,) and other (M,); None without these
    relearning: tuple[float, ...]  # accuracy after RELEARNING_STEPS
    neighbours: float | None
    quantized: dict[str, tuple[float, float | None]]  # rounding -> accuracy on the pool, on what is retained; empty where others answer
    recalled: Recalled | None = None  # of questions whose answer counts as a whole


def measure(learner: Learner, question: Question) -> Measured:
    """Everything, of the learner as it stands."""
    pool = answers(learner, question.pool)[1]
    retained = _retained(learner, question)
    quantized = {}
    for name in roundings(learner.model) if learner.stack.predictor is None else ():  # what answers must be what is rounded
        right = _percent(answers(learner, question.pool)[1], question.pool, learner)
        quantized[name] = (right, _percent_retained(_retained(learner, question), question, learner))
    probes = _probe(learner, question)
    return Measured(
        digest_of(learner.model.state_dict()),
        Glance(_percent(pool, question.pool, learner), probes[0]),
        _percent_retained(retained, question, learner),
        pool,
        _tally(pool, question.pool, learner),
        tuple(retained),
        *_attack(learner, question),
        relearning(learner, question),
        probes[1],
        quantized,
        recalled(learner, question),
    )


def glance(learner: Learner, question: Question) -> Glance:
    """Accuracy and a freshly fitted probe."""
    pool = answers(learner, question.pool)[1]
    return Glance(_percent(pool, question.pool, learner), _probe(learner, question)[0])


def answers(learner: Learner, samples: Samples) -> tuple[Tensor | None, Tensor]:
    """Features (N, D), None if there are none, and log-probabilities (N, K) over some classes, in float64 on the host.

    Of texts the rows are the places that ask, one text after another.
    """
    features, parts = [], []
    model, predict = learner.model, learner.stack.predictor
    with torch.no_grad(), evaluation_mode(model), global_randomness_kept(learner.device):
        for rows in _batches(learner, samples):
            own, scores = run_model(model, rows)
            if predict is not None:
                scores = predict(own, scores, rows)
            if own is not None:
                features.append(own[asked(rows.targets)].cpu() if own.ndim == 3 else own.cpu())
            parts.append(_log_probabilities(scores, rows, samples).cpu())
    answered = torch.cat(parts) if parts else torch.empty(0, len(samples.columns), dtype=torch.float64)
    return (torch.cat(features) if features else None), answered


def _log_probabilities(scores: Tensor, rows: Rows, samples: Samples) -> Tensor:
    """Log-probabilities (N, K) over the candidates, from logits (B, C), or (B, C, L) of which each place that asks is a row."""
    flat = scores if scores.ndim == 2 else scores.transpose(1, 2)[asked(rows.targets)]
    return flat[:, samples.columns.to(scores.device)].double().log_softmax(1).clamp(min=_SURE)


def _batches(learner: Learner, samples: Samples) -> Iterator[Rows]:
    size, texts = learner.run.evaluation_batch_size, learner.benchmark.objective == "language_modelling"
    if texts:
        size = max(1, size // learner.benchmark.input_shape[0])  # a text has as many answers as places
    for places in samples.places.split(size):
        rows = samples.read(learner, places)
        if texts:
            cut_behind(rows)
        yield rows


def _retained(learner: Learner, question: Question) -> list[Tensor]:
    return [answers(learner, samples)[1] for samples in question.retained]


def _percent(answered: Tensor, samples: Samples, learner: Learner) -> float:
    right, count = _tally(answered, samples, learner).sum(0).tolist()
    return 100.0 * (right / count)


def _tally(answered: Tensor, samples: Samples, learner: Learner) -> Tensor:
    """(N, 2) of each sample: right answers, and answers asked for."""
    labels = samples.labels(learner)
    hits = samples.columns[answered.argmax(1)] == samples.targets(learner)
    wanted = asked(labels)
    right = torch.zeros_like(wanted).masked_scatter(wanted, hits)
    return torch.stack([right.view(len(labels), -1).sum(1), wanted.view(len(labels), -1).sum(1)], 1)


def _percent_retained(answered: Sequence[Tensor], question: Question, learner: Learner) -> float | None:
    """The mean over retained tasks."""
    values = [_percent(part, samples, learner) for part, samples in zip(answered, question.retained, strict=True)]
    return sum(values) / len(values) if values else None


def _probe(learner: Learner, question: Question) -> tuple[float | None, float | None]:
    """A linear probe and nearest neighbours, from the second third of what is probed to its last; none of texts, which have no class."""
    if learner.benchmark.objective == "language_modelling":
        return None, None
    features, labels = answers(learner, question.probed)[0], question.probed.targets(learner)
    train, test = (slice(first, None, 3) for first in (1, 2))
    if features is None or not bool(features.isfinite().all()) or len(labels[train].unique()) < 2 or not len(labels[test]):
        return None, None
    parts = (features[train], labels[train], features[test], labels[test])
    return linear_probe(*parts), nearest_neighbours(*parts)


def _attack(learner: Learner, question: Question) -> tuple[dict[str, tuple[float, float]], tuple[Tensor, Tensor] | None]:
    """How well each score tells members from others of the same classes, and the likelihoods of both; both read as in evaluation."""
    place = torch.full((learner.benchmark.num_classes,), -1)
    place[question.pool.columns] = torch.arange(len(question.pool.columns))
    if not len(question.members) or not len(question.others):
        return {}, None
    inside, outside = (_membership(learner, samples, place) for samples in (question.members, question.others))
    attacks = {name: (auc(inside[name], outside[name]), tpr_at_fpr(inside[name], outside[name])) for name in SCORES}
    return attacks, (inside["loss"], outside["loss"])


def _membership(learner: Learner, samples: Samples, place: Tensor) -> dict[str, Tensor]:
    """Each score of each sample, (N,); of a text the mean over its places."""
    if learner.benchmark.objective != "language_modelling":
        return membership_scores(answers(learner, samples)[1], place[samples.targets(learner)])
    scores: dict[str, list[Tensor]] = {name: [] for name in SCORES}
    for places in samples.places.split(max(1, MOST // learner.benchmark.input_shape[0])):
        some = replace(samples, places=places)
        of_text = asked(some.read(learner).targets.cpu()).nonzero()[:, 0]
        for name, values in membership_scores(answers(learner, some)[1], place[some.targets(learner)]).items():
            scores[name].append(torch.zeros(len(places), dtype=values.dtype).index_add(0, of_text, values) / of_text.bincount())
    return {name: torch.cat(parts) for name, parts in scores.items()}


def relearning(learner: Learner, question: Question) -> tuple[float, ...]:
    """Accuracy on the last third of the pool while a copy is trained on its first third, after each of RELEARNING_STEPS.

    Fresh optimizer with the run's options, `PER_CLASS` samples of each class a step, the same ones for every model.
    """
    model, samples = deepcopy(learner.model), question.to_relearn
    if not len(samples) or not len(question.to_test):
        return ()
    texts = learner.benchmark.objective == "language_modelling"  # all of one kind
    labels = torch.zeros(len(samples), dtype=torch.int64) if texts else samples.targets(learner)
    if not any(True for _ in model.parameters()):  # its strategy trains nothing (analytic); who relearns is not bound by that
        take_up_training(model)
    named = dict(model.named_parameters())
    for parameter in named.values():
        parameter.requires_grad_(True)
    optimizer = build_optimizer(learner.run.optimizer, {}, list(named.values()), list(named), {})
    stream = RandomStream("audit", "relearning", question.index)
    by_class = [samples.places[labels == label] for label in labels.unique()]
    curve = []
    with global_randomness_kept(learner.device):
        torch.manual_seed(stream.seed_at(0))
        for step in range(max(RELEARNING_STEPS) + 1):
            if step in RELEARNING_STEPS:
                curve.append(_percent(_model_s_own(learner, model, question.to_test), question.to_test, learner))
            drawn = stream.uniform(step, PER_CLASS * len(by_class)).view(len(by_class), PER_CLASS)
            places = torch.cat([own[(row * len(own)).long()] for own, row in zip(by_class, drawn, strict=True)])
            rows = samples.read(learner, places)
            model.train()
            _, logits = run_model(model, rows)
            loss = learner.criterion.mean(logits, rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return tuple(curve)


def _model_s_own(learner: Learner, model: nn.Module, samples: Samples) -> Tensor:
    """The model's own answers (N, K): a strategy's `predict` would not follow what the copy relearns."""
    with torch.no_grad(), evaluation_mode(model):
        return torch.cat([_log_probabilities(run_model(model, rows)[1], rows, samples).cpu() for rows in _batches(learner, samples)])
