"""From completions to rewards: a number each, None for what could not be scored, and never a 0 for an exception.

Functions that another process can import are called there, with a time limit; a task's own score and what cannot be
imported (lambdas, closures, what a script or notebook defines) in this process, without one.

A call has all completions of a few prompts. One that fails is made again, completion by completion, so that one of them
does not cost the others theirs: a call takes one limit, and one more for each completion that fails, of which there are
at most `max_failures` of a step's completions, as the run stops then.
"""

from __future__ import annotations

import statistics
from collections import Counter, deque
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from grpokit.errors import error

from .chat import MESSAGES
from .config_tasks import IN_PYTHON, RewardConfig
from .ranks import ALONE, groups_of
from .reward_functions import Failure, Outcome, Reward, Signature, Wrong, invoke, shortened, signature, source_of
from .reward_pool import Call, RewardPool
from .run import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from .tasks import Item, Task

T = TypeVar("T")
Given = Reward | str | tuple[Reward | str, float]
"""A reward function, or where it is, alone or with its weight."""


@dataclass(frozen=True)
class RewardFunction:
    """One of the functions that a reward is made of.

    Parameters
    ----------
    weight : float
        What it is multiplied by.
    source : str or bytes, optional
        What another process finds it by.
    function : callable, optional
        Itself, where it runs in this process.
    """

    weight: float
    source: str | bytes | None = None
    function: Reward | None = None

    @property
    def named(self) -> str:
        """What stands for it in a configuration; what was given in Python says so."""
        return self.source if isinstance(self.source, str) else IN_PYTHON + signature(self.function or str).name


def functions_of(config: RewardConfig, given: Given | Sequence[Given] | None) -> list[RewardFunction]:
    """The functions that were given in Python, or those of the configuration.

    Raises
    ------
    InputError
        `given_in_python`: the configuration is that of a run whose functions were given in Python.
    """
    if given is None:
        for source in config.functions:
            if source.startswith(IN_PYTHON):
                name = source.removeprefix(IN_PYTHON)
                raise error("given_in_python", what="reward function", name=name, argument="reward")
        weights = config.weights or [1.0] * len(config.functions)
        return [RewardFunction(weight, source) for source, weight in zip(config.functions, weights, strict=True)]
    found = []
    for one in given if isinstance(given, list) else [given]:
        function, weight = one if isinstance(one, tuple) else (one, 1.0)
        if isinstance(function, str):
            found.append(RewardFunction(weight, function))
        elif callable(function) and isinstance(weight, int | float):
            found.append(RewardFunction(weight, source_of(function), function))
        else:
            expected = (
                "a function f(prompts, completions, **columns), 'module:name', or a list of these or (it, weight)"
            )
            raise error("bad_parameter", owner="Trainer", name="reward", given=one, expected=expected)
    return found


class Scored(NamedTuple):
    """What a completion is worth.

    Parameters
    ----------
    reward : float or None
        The weighted sum of the parts that are numbers. None where all are None, and where a function failed: a sum
        without its part would take the failure for a 0.
    parts : dict
        What each function said.
    """

    reward: float | None
    parts: dict[str, float | None]


@dataclass(frozen=True)
class _Called:
    """A function as it is called: in the pool, by its number there, or here, on items and texts."""

    signature: Signature
    weight: float
    here: Callable[[Sequence[Item], Sequence[str]], Outcome] | None
    stands: str = "the reward function {}"

    @property
    def shown(self) -> str:
        return self.stands.format(repr(self.signature.name))


@dataclass(frozen=True)
class _Failures:
    """How a rank's share of a call went: what failed, of which function, the first of each, and what was shown."""

    failed: int
    timeouts: int
    of: Counter[str]
    first: dict[str, str]
    noted: dict[tuple[str, str], str]


class Rewards:
    """The functions of a run, or the score of its task, with the processes that they run in: a context manager.

    Parameters
    ----------
    task : Task
        Its score is the reward where no functions are given; and it is what evaluations go by, where it has one.
    functions : sequence of RewardFunction
        The reward functions.
    config : RewardConfig, optional
        Time limit, processes, how many failures are borne.
    note : callable
        Where the first failure of each kind is shown.

    Attributes
    ----------
    answer : callable
        What a completion answers, for majorities: the task's `answer`.
    total, failed, timeouts : int
        Completions since the last `begin`; those that a function failed on; those that it took too long for.
    ranks : Ranks
        Each scores a share of whole groups, in processes of its own.
    """

    def __init__(
        self,
        task: Task,
        functions: Sequence[RewardFunction] = (),
        config: RewardConfig | None = None,
        note: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.config, self.note, self.functions = config or RewardConfig(), note, list(functions)
        self.ranks = ALONE
        sources = [f.source for f in functions if f.source is not None]
        self.pool = RewardPool(sources, self.config.workers, self.config.seconds) if sources else None
        self.task = _task_score(task)
        # A file without answers has no score.
        self.judges = getattr(task, "answered", True)
        # Without a word from the task a completion is its own answer.
        answer = getattr(task, "answer", None)
        self.answer: Callable[[str], str] = answer if callable(answer) else str
        self._called: list[_Called] = []
        self._noted: dict[tuple[str, str], str] = {}
        self.begin()

    def __enter__(self) -> Self:
        """Starts the processes; a function that cannot be imported is said here."""
        self._start()
        return self

    def _start(self) -> None:
        if self.pool is not None:
            self.pool.start()
        self._called = []
        signatures, names = iter(self.pool.signatures if self.pool else ()), Counter[str]()
        for function in self.functions:
            here = function.function if function.source is None else None
            known = next(signatures) if here is None else signature(here)
            names[known.name] += 1
            if names[known.name] > 1:
                known = replace(known, name=f"{known.name}_{names[known.name]}")
            self._called.append(_Called(known, function.weight, None if here is None else _local(here, known)))
            if here is not None:
                self.note(f"{self._called[-1].shown} runs in this process, without a time limit")

    def __exit__(self, *_: object) -> None:
        with uninterrupted():
            if self.pool is not None:
                self.pool.stop()

    def begin(self) -> None:
        """A step begins: what fails is counted from here."""
        self.total = self.failed = self.timeouts = 0
        self._failures: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def __call__(self, items: Sequence[Item], completions: Sequence[str]) -> list[Scored]:
        """What each completion is worth to training.

        Raises
        ------
        InputError
            `reward_failed`: a function failed on too many; `stage_result`: it returned something else than one finite
            number or None a completion; `reward_column`, `record_fields`: a column that it needs is not there.
        """
        return self._shared(self._score, items, completions)

    def _score(self, items: Sequence[Item], completions: Sequence[str]) -> list[Scored]:
        if not self.functions:
            return [Scored(value, {"score": value}) for value in self._judge(items, completions)]
        if not self._called:
            self._start()
        values, failed = self._run(self._called, items, completions)
        scored = []
        for row in range(len(items)):
            parts = {f.signature.name: v[row] for f, v in zip(self._called, values, strict=True)}
            known = [f.weight * x for f, x in zip(self._called, parts.values(), strict=True) if x is not None]
            scored.append(Scored(sum(known) if known and row not in failed else None, parts))
        return scored

    def judge(self, items: Sequence[Item], completions: Sequence[str]) -> list[float | None]:
        """What an evaluation goes by: the task's score, or the reward where the task has none."""
        self.begin()
        if not self.judges:
            return [scored.reward for scored in self(items, completions)]
        return self._shared(self._judge, items, completions)

    def _judge(self, items: Sequence[Item], completions: Sequence[str]) -> list[float | None]:
        return self._run([self.task], items, completions)[0][0]

    def _shared(
        self, score: Callable[[Sequence[Item], Sequence[str]], list[T]], items: Sequence[Item], texts: Sequence[str]
    ) -> list[T]:
        """What all ranks say of their shares; what failed is counted over all."""
        self.total += len(items)
        failed, timeouts, failures, noted = self.failed, self.timeouts, self._failures.copy(), set(self._noted)

        def own(rows: slice) -> tuple[list[T], _Failures]:
            scores = score(items[rows], texts[rows])
            new = {key: text for key, text in self._noted.items() if key not in noted}
            counts = self.failed - failed, self.timeouts - timeouts, self._failures - failures
            return scores, _Failures(*counts, self._first, new)

        parts = self.ranks.spread("rewards", groups_of(items), own)
        self.failed, self.timeouts, self._failures = failed, timeouts, failures
        for _, told in parts:
            self._add(told)
        return [one for scores, _ in parts for one in scores]

    def metrics(self, scored: Sequence[Scored]) -> dict[str, float]:
        """Mean and spread of each function, by TRL's names, and what has failed since the step began."""
        found: dict[str, float] = {}
        for name in (f.signature.name for f in self._called):
            values = [value for one in scored if (value := one.parts[name]) is not None]
            found[f"rewards/{name}/mean"] = statistics.fmean(values) if values else float("nan")
            found[f"rewards/{name}/std"] = statistics.stdev(values) if len(values) > 1 else float("nan")
        if self.functions or self.failed:
            found |= {"rewards/failed": self.failed, "rewards/timeouts": self.timeouts}
        return found

    def _run(
        self, functions: Sequence[_Called], items: Sequence[Item], completions: Sequence[str]
    ) -> tuple[list[list[float | None]], set[int]]:
        """What each function says of each completion, and the rows on which one of them failed."""
        rows, failed = list(range(len(items))), set[int]()
        values: list[list[float | None]] = [[None] * len(items) for _ in functions]
        far = [at for at, f in enumerate(functions) if f.here is None]
        near = [at for at, f in enumerate(functions) if f.here is not None]
        groups = [list(group) for _, group in groupby(rows, key=lambda row: id(items[row]))]
        size = self.config.groups_per_call
        parts = [list(chain(*groups[start : start + size])) for start in range(0, len(groups), size)]
        for there, numbers, chunks in ((True, far, parts), (False, near, [rows] if rows else [])):
            todo = deque(Call(number, chunk) for number in range(len(numbers)) for chunk in chunks)
            chosen = [functions[at] for at in numbers]
            with closing(self._calls(there, chosen, items, completions, todo)) as outcomes:
                for call, outcome in outcomes if todo else ():
                    if isinstance(outcome, list):
                        for row, value in zip(call.rows, outcome, strict=True):
                            values[numbers[call.function]][row] = value
                    elif isinstance(outcome, Wrong):
                        expected = f"a list of {len(call.rows)} finite numbers or None (could not be scored)"
                        stage = chosen[call.function].shown
                        raise error("stage_result", stage=stage, given=outcome.given, expected=expected)
                    elif len(call.rows) > 1:
                        todo.extend(Call(call.function, [row]) for row in call.rows)
                    else:
                        failed.add(call.rows[0])
                        self._fail(chosen[call.function].shown, outcome, completions[call.rows[0]])
        self.failed += len(failed)
        return values, failed

    def _calls(
        self,
        there: bool,
        functions: Sequence[_Called],
        items: Sequence[Item],
        completions: Sequence[str],
        todo: deque[Call],
    ) -> Generator[tuple[Call, Outcome]]:
        def picked(call: Call) -> tuple[list[Item], list[str]]:
            return [items[row] for row in call.rows], [completions[row] for row in call.rows]

        if there and self.pool is not None:
            yield from self.pool.run(todo, lambda c: functions[c.function].signature.chosen(_columns(*picked(c))))
        while not there and todo:
            call = todo.popleft()
            here = functions[call.function].here
            assert here is not None
            yield call, here(*picked(call))

    def _fail(self, function: str, failure: Failure, completion: str) -> None:
        """Counts a failure, shows the first of its kind, and stops the run where there are too many."""
        says = f"{failure.says} on {shortened(completion, 60)!r}"
        self.timeouts += failure.kind == "time-out"
        self._failures[function] += 1
        self._first.setdefault(function, f"it {says}")
        self._say(function, failure.kind, f"{function} {says}: no reward there, and no 0")
        self._check(function)

    def _say(self, function: str, kind: str, text: str) -> None:
        if (function, kind) not in self._noted:
            self._noted[function, kind] = text
            self.note(text)

    def _check(self, function: str) -> None:
        count, limit, first = self._failures[function], self.config.max_failures, self._first[function]
        if count > limit * self.total:
            raise error("reward_failed", function=function, count=count, total=self.total, limit=limit, first=first)

    def _add(self, told: _Failures) -> None:
        """A rank's failures to those of all; what it has shown where nobody sees it is shown here."""
        self.failed, self.timeouts = self.failed + told.failed, self.timeouts + told.timeouts
        self._failures += told.of
        for (function, kind), text in told.noted.items():
            self._say(function, kind, text)
        for function in told.of:
            self._first.setdefault(function, told.first[function])
            self._check(function)


def _task_score(task: Task) -> _Called:
    def scores(items: Sequence[Item], completions: Sequence[str]) -> Outcome:
        def each() -> list[float | None]:
            return [task.score(text, item) for text, item in zip(completions, items, strict=True)]

        return invoke(each, {}, len(items))

    return _Called(Signature("score"), 1.0, scores, "the task's score()")


def _local(function: Reward, known: Signature) -> Callable[[Sequence[Item], Sequence[str]], Outcome]:
    return lambda items, texts: invoke(function, known.chosen(_columns(items, texts)), len(items))


def _columns(items: Sequence[Item], completions: Sequence[str]) -> dict[str, Any]:
    """What TRL gives a function: prompts and completions, as messages where the prompt is messages, and the columns."""
    names = [name for name in items[0] if name not in ("prompt", MESSAGES)]
    for row, item in enumerate(items):
        for name in names:
            if name not in item:
                raise error("record_fields", row=row, field=name)
    answers = [
        [{"role": "assistant", "content": text}] if MESSAGES in item else text
        for item, text in zip(items, completions, strict=True)
    ]
    prompts = [item.get(MESSAGES, item["prompt"]) for item in items]
    return {"prompts": prompts, "completions": answers} | {name: [item[name] for item in items] for name in names}
