"""A task from a file: JSON lines or Parquet, one prompt a row, every other column for the reward functions.

Training passes all prompts of its side in an order that the run's generator shuffles, then all again in another: none
is lost or repeated within an epoch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from grpokit.errors import error, nearest

from .chat import MESSAGES, as_text
from .tasks import is_held_out, too_few

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping
    from random import Random

    from .tasks import Item

_PARQUET, _COMPRESSED = b"PAR1", (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")
# What reward functions are given under these names is not the file's.
_TAKEN = ("prompts", "completions", MESSAGES)


class PromptFile:
    """The prompts of a file.

    Parameters
    ----------
    path : path
        JSON lines or Parquet, told by what it begins with.
    evaluation_path : path, optional
        Held-out prompts; when not given, one in eight of those in `path`, by a hash of their text.
    prompt, answer : str
        The columns of both. A prompt is a text or a list of messages, ``[{"role": ..., "content": ...}]``.
    rewarded : bool
        Whether reward functions say what a completion is worth. If not, every row needs an answer, and a completion is
        worth 1 where it is that answer, but for white space around both, else 0.

    Raises
    ------
    FileError
        `file_unreadable`.
    InputError
        `bad_line`, `bad_prompt`, `no_answers`, `bad_answer`, `column_exists`, `shared_prompts`, with the file and the
        line; `missing_extra` for Parquet without pyarrow.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        evaluation_path: str | os.PathLike[str] | None = None,
        *,
        prompt: str = "prompt",
        answer: str = "answer",
        rewarded: bool = False,
    ) -> None:
        items, self.answered = _read(Path(path), prompt, answer, rewarded)
        if evaluation_path is None:
            self.training = [item for item in items if not is_held_out(item["prompt"])]
            self.held_out = [item for item in items if is_held_out(item["prompt"])]
        else:
            self.training = items
            self.held_out, answered = _read(Path(evaluation_path), prompt, answer, rewarded)
            self.answered = self.answered and answered
            shared = {item["prompt"] for item in items} & {item["prompt"] for item in self.held_out}
            if shared:
                raise error("shared_prompts", path=path, other=evaluation_path, count=len(shared), first=min(shared))
        told = json.dumps([self.training, self.held_out], default=str, ensure_ascii=False).encode()
        self.fingerprint = hashlib.blake2b(told, digest_size=16).hexdigest()
        self._orders: WeakKeyDictionary[Random, _Order] = WeakKeyDictionary()

    def prompts(self, rng: Random, n: int) -> list[Item]:
        """The next training prompts in this generator's order."""
        return self.draw(rng, n, held_out=False)

    def draw(self, rng: Random, n: int, *, held_out: bool) -> list[Item]:
        """`n` held-out prompts, all different, or the next training prompts in this generator's order.

        Raises
        ------
        InputError
            `too_few_prompts`.
        """
        side = self.held_out if held_out else self.training
        if len(side) < (n if held_out else 1):
            raise too_few(len(side), n, held_out=held_out)
        if held_out:
            return rng.sample(side, n)
        return [side[at] for at in self._order(rng).take(rng, n, len(side))]

    def epoch(self, rng: Random) -> float:
        """How often the training prompts were passed in this generator's order, a part of a pass included."""
        order = self._order(rng)
        return order.passed + order.at / len(self.training)

    def score(self, completion: str, item: Item) -> float | None:
        """1 where the completion is the answer, but for white space around both, else 0; None without an answer."""
        answer = item.get("answer")
        return None if answer is None else float(self.answer(completion) == str(answer).strip())

    def answer(self, completion: str) -> str:
        """The completion, without white space around it."""
        return completion.strip()

    def demonstrate(self, rng: Random, item: Item) -> str:
        """The answer."""
        if item.get("answer") is None:
            raise error("no_demonstrations", task=f"PromptFile without an answer to {item['prompt']!r:.60}")
        return str(item["answer"])

    def state(self, rng: Random) -> dict[str, Any]:
        """How far this generator's order is, ready for JSON."""
        return {"fingerprint": self.fingerprint, **dataclasses.asdict(self._order(rng))}

    def restore(self, rng: Random, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave; the generator's own state is the caller's to restore.

        Raises
        ------
        InputError
            `bad_parameter`: it is the state of another file.
        """
        if state["fingerprint"] != self.fingerprint:
            expected, given = f"that of a file whose rows have the fingerprint {self.fingerprint}", state["fingerprint"]
            raise error("bad_parameter", owner="PromptFile.restore", name="state", given=given, expected=expected)
        self._orders[rng] = _Order(list(state["rows"]), state["at"], state["passed"])

    def _order(self, rng: Random) -> _Order:
        return self._orders.setdefault(rng, _Order())


@dataclass
class _Order:
    """One generator's way through the rows: the order of this epoch, the place in it, and the epochs before."""

    rows: list[int] = field(default_factory=list)
    at: int = 0
    passed: int = 0

    def take(self, rng: Random, n: int, of: int) -> list[int]:
        found: list[int] = []
        while len(found) < n:
            if self.at == len(self.rows):
                self.passed += bool(self.rows)
                self.rows, self.at = rng.sample(range(of), of), 0
            part = self.rows[self.at : self.at + n - len(found)]
            self.at += len(part)
            found += part
        return found


def _read(path: Path, prompt: str, answer: str, rewarded: bool) -> tuple[list[Item], bool]:
    """The items of a file, and whether all of them have an answer."""
    rows = list(_rows(path))
    if not rows:
        raise error("file_unreadable", path=path, reason="it has no rows; expected a prompt a row")
    columns = list(dict.fromkeys(name for _, row in rows for name in row))
    for name, meant, setting in (("prompt", prompt, "task.prompt"), ("answer", answer, "task.answer")):
        if name in columns and name != meant and meant in columns:
            raise error("column_exists", path=path, column=name, remedy=f"Rename it, or leave {setting} as it is.")
    for name in set(_TAKEN) & set(columns) - {prompt, answer}:
        remedy = "Reward functions are given something else under this name: rename it."
        raise error("column_exists", path=path, column=name, remedy=remedy)
    if answer not in columns and (not rewarded or answer != "answer"):
        given, close = ", ".join(map(str, columns)), nearest(answer, columns)
        raise error("no_answers", path=path, column=answer, given=given, nearest=close)
    items: list[Item] = []
    for place, row in rows:
        item: dict[str, Any] = {name: row.get(name) for name in columns if name not in (prompt, MESSAGES)}
        item = {"prompt": _prompt(path, place, row, prompt, item)} | item
        if answer in columns:
            item["answer"] = row.get(answer)
            if not rewarded and not isinstance(item["answer"], str | int | float):
                given = "null or not there" if item["answer"] is None else repr(item["answer"])[:60]
                raise error("bad_answer", path=path, place=place, given=given)
        items.append(item)
    return items, all(item.get("answer") is not None for item in items)


def _prompt(path: Path, place: str, row: Mapping[str, Any], name: str, item: dict[str, Any]) -> str:
    """The prompt's text; messages go to the item."""
    value = row.get(name)
    problem = None
    if name not in row:
        problem = f"there is no {name!r} (it has: {', '.join(map(str, row)) or 'nothing'}).{nearest(name, row)}"
    elif isinstance(value, str):
        problem = None if value.strip() else f"{name!r} is empty."
    elif not isinstance(value, list):
        problem = f"{name!r} is {value!r:.60}."
    elif not value or not all(map(_is_message, value)):
        wrong = next((m for m in value if not _is_message(m)), value)
        problem = f"{name!r} has the message {wrong!r:.60}."
    if problem is not None:
        raise error("bad_prompt", path=path, place=place, problem=problem)
    if isinstance(value, str):
        return value
    messages = [dict(m) for m in value or ()]
    item[MESSAGES] = messages
    return as_text(messages)


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row with its place, in words."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
            if start == _PARQUET:
                yield from _parquet(path)
                return
            if start.startswith(_COMPRESSED):
                raise error("file_unreadable", path=path, reason="it is compressed; unpack it")
            file.seek(0)
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"line {number}", _object(path, number, line.removeprefix(b"\xef\xbb\xbf"))
    except OSError as problem:
        if problem.errno is None:  # ours
            raise
        raise error("file_unreadable", path=path, reason=problem.strerror or problem) from None


def _object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except UnicodeDecodeError as problem:
        raise error("bad_line", path=path, line=number, reason=f"byte {problem.start + 1} is not UTF-8") from None
    except (ValueError, RecursionError) as problem:
        raise error("bad_line", path=path, line=number, reason=f"it is no JSON ({problem})") from None
    if not isinstance(row, dict):
        raise error("bad_line", path=path, line=number, reason=f"it holds {type(row).__name__}, not an object")
    return row


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        from grpokit.io.parquet import ParquetInput
    except ModuleNotFoundError as missing:
        if missing.name != "pyarrow":
            raise
        raise error("missing_extra", what=f"a Parquet file, {path},", package="pyarrow", extra="io") from None
    file, number = ParquetInput(path), 0
    for _, columns in file.read([], file.fields):
        for values in zip(*columns.values(), strict=True):
            yield f"row {number}", dict(zip(columns, values, strict=True))
            number += 1
