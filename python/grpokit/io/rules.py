"""How grpokit's columns are made of the fields that frameworks write, value by value.

A rule is a function of the values of one row. What it cannot read it refuses, with the value and what was expected; no
value is guessed, and an answer that failed is not scored rather than worth 0.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class UnmeantError(Exception):
    """A value that a rule cannot read: what is given and what is expected."""

    def __init__(self, given: str, expected: str) -> None:
        super().__init__(given, expected)
        self.given, self.expected = given, expected


@dataclass(frozen=True)
class Rule:
    """How one of grpokit's columns is made of a row's fields.

    Attributes
    ----------
    reads : tuple of str
        The fields, in the order in which `of` takes their values.
    text : str
        The same in words.
    of : callable
        Values of one row to one value; raises `UnmeantError`.
    kind : str
        The Arrow type of what comes out.
    maybe : tuple of str
        Fields of `reads` that may be absent; then their values are None.
    unseen : set of str
        Parts that were asked for and that no row has had.
    """

    reads: tuple[str, ...]
    text: str
    of: Callable[..., Any]
    kind: str = "double"
    maybe: tuple[str, ...] = ()
    unseen: set[str] = field(default_factory=set, compare=False)


def number(value: Any) -> float | None:
    """A reward, or None where there is none."""
    if value is None or isinstance(value, bool | int | float):
        return None if value is None else float(value)
    way = f"; --reward KEY takes a part ({', '.join(map(str, value))})" if isinstance(value, dict) else ""
    way = "; --reward NAME adds up those of its tokens" if isinstance(value, list) else way
    raise UnmeantError(f"{type(value).__name__} {value!r}"[:80], "a number, or null where there is none" + way)


def _summed(value: Any) -> float | None:
    """A reward that may be one a token."""
    if not isinstance(value, list):
        return number(value)
    parts = [number(part) for part in value]
    known = [part for part in parts if part is not None]
    return sum(known) if known and len(known) == len(parts) else None


def weighted(terms: dict[str, float], fields: list[str], base: str | None) -> Rule:
    """The reward as a weighted sum of columns, or of the parts of one.

    Parameters
    ----------
    terms : dict of str to float
        Weights by name.
    fields : list of str
        The file's.
    base : str or None
        The field in which names that are no fields are looked up.
    """
    wanted = [*([base] if base is not None else []), *(name for name in terms if name in fields)]
    reads = tuple(dict.fromkeys(wanted))
    unseen = set(terms)

    def of(*values: Any) -> float | None:
        row = dict(zip(reads, values, strict=True))
        total, found = 0.0, False
        parts: Any = row.get(base) if base is not None else None
        for name, weight in terms.items():
            # A part of the reward comes before a field of that name.
            inside = isinstance(parts, dict) and name in parts
            value = parts[name] if inside else row.get(name) if name in fields else _part(parts, name)
            if inside or name in fields:
                unseen.discard(name)
            part = _summed(value)
            if part is not None and part == part:  # noqa: PLR0124  # NaN: this part has nothing to say
                total, found = total + weight * part, True
        return total if found else None

    text = " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in terms.items())
    return Rule(reads, f"{text}, of those that are there", of, unseen=unseen)


def scored(reward: str | Rule, failed: Rule) -> Rule:
    """A reward that is None where a rollout failed.

    Parameters
    ----------
    reward : str or Rule
        A field, or how it is made.
    failed : Rule
        Whether the rollout failed.
    """
    base = Rule((reward,), reward, number) if isinstance(reward, str) else reward
    split = len(base.reads)

    def of(*values: Any) -> float | None:
        return None if failed.of(*values[split:]) else base.of(*values[:split])

    text = f"{base.text}; null where {failed.text}"
    return Rule((*base.reads, *failed.reads), text, of, "double", (*base.maybe, *failed.maybe), base.unseen)


def _part(value: Any, name: str) -> Any:
    if value is None or isinstance(value, dict):
        return None if value is None else value.get(name)
    raise UnmeantError(f"{type(value).__name__} {value!r}"[:80], f"an object with the part {name!r}")


def whole(value: Any) -> int:
    """A version or a count, which may be written as text."""
    if isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return int(value)
        except ValueError:
            pass
    raise UnmeantError(f"the version {value!r}"[:80], "whole numbers, as numbers or as text")


def _versions(versions: Any) -> list[int]:
    if versions is not None and not isinstance(versions, list):
        raise UnmeantError(f"{type(versions).__name__} {versions!r}"[:80], "a list of versions")
    return [whole(version) for version in versions or []]


def oldest(versions: Any) -> int | None:
    """The smallest of some versions; None of none."""
    return min(_versions(versions), default=None)


def newest(versions: Any) -> int | None:
    """The largest of some versions; None of none."""
    return max(_versions(versions), default=None)


def finish(words: dict[str, str]) -> Callable[[Any], str]:
    """How an answer ended, in grpokit's words."""
    return lambda word: words.get(str(word), "unknown")


def count(tokens: Any) -> int:
    """How many tokens there are."""
    if isinstance(tokens, list):
        return len(tokens)
    raise UnmeantError(f"{type(tokens).__name__}", "a list of token ids")


def read_object(value: Any) -> dict[str, Any]:
    """An object that may be written as JSON text."""
    try:
        found = json.loads(value) if isinstance(value, str | bytes) else value
    except ValueError:
        found = value
    if found is not None and not isinstance(found, dict):
        raise UnmeantError(f"{value!r}"[:80], "an object")
    return found or {}


# prime-rl: an episode holds one trace per agent; the reward is that of the trainable one.
LIMITS = ("max_turns", "max_input_tokens", "max_output_tokens", "max_total_tokens", "context_length")


def _trained(traces: Any) -> dict[str, Any]:
    """The trace of an episode that is trained on."""
    listed = [read_object(trace) for trace in traces or []]
    trainable = [trace for trace in listed if (trace.get("agent") or {}).get("trainable")]
    if len(trainable) > 1:
        raise UnmeantError(f"an episode with {len(trainable)} trainable traces", "one: write a line for each")
    return (trainable or [{}])[0]


def trace_reward(traces: Any) -> float | None:
    """The reward of an episode of prime-rl: None where its trace failed or was not scored."""
    trace = _trained(traces)
    parts = [part for part in (trace.get("rewards") or {}).values() if part is not None]
    if not trace.get("ok") or not parts:
        return None
    return sum(float(part["score"]) * float(part.get("weight", 1.0)) for part in parts)


def trace_finish(traces: Any) -> str:
    """How the trace of an episode ended."""
    trace = _trained(traces)
    answered = [call for call in trace.get("calls") or [] if call.get("error") is None]
    if trace.get("stop_condition") in LIMITS or (answered and answered[-1].get("finish_reason") == "length"):
        return "length"
    return "stop" if trace.get("ok") else "error"


def _sample_trace(info: Any) -> dict[str, Any] | None:
    held = read_object(info)
    episode, at = held.get("native_wrapper"), held.get("native_trace_index")
    return episode["traces"][at] if isinstance(episode, dict) and isinstance(at, int) else None


def sample_failed(info: Any) -> bool:
    """Whether the trace of a sample of prime-rl failed, whose reward the file calls 0."""
    trace = _sample_trace(info)
    return trace is not None and not trace.get("ok")


def sample_finish(info: Any) -> str:
    """How the trace of a sample ended."""
    trace = _sample_trace(info)
    return "unknown" if trace is None else trace_finish([trace | {"agent": {"trainable": True}}])


def policy(end: str) -> Callable[[Any], int | None]:
    """One end of the span of policies that an episode of prime-rl was made by."""

    def of(run: Any) -> int | None:
        policy = (read_object(run).get("work") or {}).get("policy")
        return None if policy is None else whole(policy[end])

    return of


def named(*names: str) -> Callable[[Any], str | None]:
    """A text, or the first of some fields of an object that is there."""

    def of(value: Any) -> str | None:
        if value is None or isinstance(value, str):
            return value
        held = value if isinstance(value, dict) else {}
        return next((str(held[name]) for name in names if held.get(name) is not None), None)

    return of


def joined(value: Any) -> str | None:
    """One text of several."""
    return None if value is None else value if isinstance(value, str) else "+".join(map(str, value))


def response_finish(response: Any) -> str:
    """How an answer of the Responses API ended."""
    held = read_object(response)
    if held.get("error"):
        return "error"
    if held.get("incomplete_details"):
        return "length" if held["incomplete_details"].get("reason") == "max_output_tokens" else "unknown"
    return "stop" if held.get("status") == "completed" else "unknown"


def response_tokens(response: Any) -> int:
    """How many tokens an answer of the Responses API has."""
    usage = read_object(response).get("usage") or {}
    if "output_tokens" not in usage:
        raise UnmeantError("a response without usage", "usage.output_tokens")
    return whole(usage["output_tokens"])
