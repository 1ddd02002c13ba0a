"""Answers to prompts: one turn, or a conversation with an environment until one of the two ends it.

Token ids in, token ids out: what the policy wrote is never written anew from its text, and what the environment says is
appended to it. The loss is over the policy's tokens alone.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from itertools import chain
from random import Random
from typing import TYPE_CHECKING, Any
from zlib import crc32

from grpokit.errors import error

from .chat import MESSAGES, rendered
from .engine import completion
from .policy import Completion
from .ranks import groups_of
from .reward_functions import shortened
from .tasks import Converses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .engine import Engine
    from .policy import Policy
    from .sampling import Sampling
    from .tasks import Item, Task


def answers(
    engine: Engine,
    policy: Policy,
    task: Task,
    items: Sequence[Item],
    *,
    sampling: Sampling,
    max_turns: int,
    seeds: Random,
) -> list[Completion]:
    """One completion of each item; of a task that converses, the whole conversation after the prompt.

    Parameters
    ----------
    engine : Engine
        Samples.
    policy : Policy
        Whose tokens they are.
    task : Task
        Answers the policy, if it `Converses`.
    items : sequence of Item, (N,)
        What is asked; repeat an item to have a group. Each rank samples whole groups.
    sampling : Sampling
        How; its length bounds all turns of a conversation together, the environment's tokens included.
    max_turns : int
        How often the policy speaks at most; a conversation that is not over then ends as one that is too long.
    seeds : Random
        Where each completion's seed comes from; a conversation's later turns follow from it.

    Returns
    -------
    list of Completion, (N,)

    Raises
    ------
    InputError
        A prompt cannot be encoded, or leaves no room in the model's context; what the environment said is no text.
    StateError
        `ranks_differ`: another rank drew other prompts.
    """
    prompts = policy.encode(rendered(policy.tokenizer, items))
    _check_context(policy, prompts, items, sampling.max_completion_length)
    drawn = [seeds.getrandbits(63) for _ in items]

    def own(rows: slice) -> list[Completion]:
        if isinstance(task, Converses):
            talks = [_Talk(*one) for one in zip(items[rows], prompts[rows], map(Random, drawn[rows]), strict=True)]
            _converse(engine, policy, task, talks, sampling=sampling, max_turns=max_turns)
            return [talk.completion() for talk in talks]
        return engine.generate(prompts[rows], drawn[rows], sampling) if prompts[rows] else []

    ranks = policy.ranks
    # Ranks that drew other prompts would take each other's completions for answers to theirs.
    mark = crc32(repr((prompts, drawn)).encode()) if ranks.world > 1 else 0
    parts = ranks.spread("sampling", groups_of(items), lambda rows: (mark, own(rows)))
    if any(other != mark for other, _ in parts):
        raise error("ranks_differ", task=type(task).__name__)
    return list(chain(*(found for _, found in parts)))


def _converse(
    engine: Engine, policy: Policy, task: Converses, talks: list[_Talk], *, sampling: Sampling, max_turns: int
) -> None:
    longest = sampling.max_completion_length
    for turn in range(max_turns):
        going = [talk for talk in talks if not talk.finish]
        if not going:
            break
        # One length for all, since they are sampled together; each keeps what it has room for.
        room = dataclasses.replace(sampling, max_completion_length=max(longest - len(t.ids) for t in going))
        drawn = [talk.seeds.getrandbits(63) for talk in going]
        for talk, said in zip(going, engine.generate([t.prompt + t.ids for t in going], drawn, room), strict=True):
            talk.hear(_within(said, longest - len(talk.ids), policy, sampling))
            if talk.finish:
                continue
            reply: Any = task.reply(talk.messages, talk.item)
            if reply is not None and not isinstance(reply, str):
                expected = "a text, or None where the conversation is over"
                raise error("stage_result", stage="the task's reply()", given=repr(reply), expected=expected)
            if reply is None:
                talk.finish = "stop"
            elif turn + 1 == max_turns:
                talk.finish = "length"
            else:
                talk.see(reply, policy, longest)


def _within(said: Completion, room: int, policy: Policy, sampling: Sampling) -> Completion:
    """What a conversation has room for, of what was sampled beside one that has more; its text likewise."""
    if len(said.token_ids) <= room:
        return said
    sampling = dataclasses.replace(sampling, max_completion_length=room)
    ids, logps = said.token_ids[:room], said.logps[:room]
    return completion(policy, said.prompt_ids, ids, logps, sampling=sampling, version=said.version)


def _check_context(policy: Policy, prompts: Sequence[list[int]], items: Sequence[Item], longest: int) -> None:
    context = getattr(policy.model.config, "max_position_embeddings", None)
    at = max(range(len(prompts)), key=lambda row: len(prompts[row]))
    if context is not None and len(prompts[at]) + longest > context:
        prompt = shortened(repr(items[at]["prompt"]), 60)
        expected = (
            f"at most {context - len(prompts[at])}: the model's context is {context} tokens, and the prompt {prompt} "
            f"has {len(prompts[at])}"
        )
        name = "max_completion_length"
        raise error("bad_parameter", owner="TrainConfig", name=name, given=longest, expected=expected)


@dataclass
class _Talk:
    """One conversation: what was asked, and the tokens since."""

    item: Item
    prompt: list[int]
    seeds: Random
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    own: list[bool] = field(default_factory=list)
    text: str = ""
    finish: str = ""
    versions: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        asked = self.item.get(MESSAGES) or [{"role": "user", "content": self.item["prompt"]}]
        self.messages: list[dict[str, Any]] = list(asked)

    def hear(self, said: Completion) -> None:
        """What the policy said."""
        if said.finish == "length":
            self.finish = "length"
        self.ids += said.token_ids
        self.logps += said.logps
        self.own += [True] * len(said.token_ids)
        self.text += said.text
        self.versions.append(said.version)
        self.messages.append({"role": "assistant", "content": said.text})

    def see(self, reply: str, policy: Policy, longest: int) -> None:
        """What the environment said."""
        self.messages.append({"role": "user", "content": reply})
        self.text += reply
        (ids,) = policy.encode([_turn(policy.tokenizer, reply)])
        room = longest - len(self.ids)
        self.ids += ids[:room]
        self.logps += [0.0] * len(ids[:room])
        self.own += [False] * len(ids[:room])
        if len(ids) >= room:
            self.finish = "length"

    def completion(self) -> Completion:
        """As the trainer takes it."""
        version, own = min(self.versions), None if all(self.own) else self.own
        return Completion(self.prompt, self.ids, self.logps, self.finish, self.text, version=version, own=own)


def _turn(tokenizer: Any, reply: str) -> str:
    """What stands between the end of the policy's turn and the beginning of its next one."""
    if getattr(tokenizer, "chat_template", None) is None:
        return reply
    asked = [{"role": "user", "content": "."}, {"role": "assistant", "content": "."}]
    try:
        before = tokenizer.apply_chat_template(asked, tokenize=False)
        replied = [*asked, {"role": "user", "content": reply}]
        after = tokenizer.apply_chat_template(replied, tokenize=False, add_generation_prompt=True)
    except Exception as problem:  # whatever a template raises
        raise error("chat_template", reason=problem, prompt=reply) from problem
    if not after.startswith(before):
        reason = "a further message changes how the former ones are written"
        raise error("chat_template", reason=reason, prompt=reply)
    # The policy writes the end token itself, and not what a template puts behind it.
    end = before.rfind(tokenizer.eos_token)
    return str(after[len(before) if end < 0 else end + len(tokenizer.eos_token) :])
