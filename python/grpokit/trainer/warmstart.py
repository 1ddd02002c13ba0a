"""The warm start: a short supervised run on demonstrations, so that reinforcement learning has something to sharpen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from grpokit.errors import error

from .chat import rendered
from .policy import Completion, Policy
from .tasks import Demonstrates, Task, draw

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    from .config_tables import WarmStart
    from .tasks import Item


def warm_start(
    policy: Policy,
    task: Task,
    config: WarmStart,
    rng: Random,
    each: Callable[[int, float], None],
    *,
    longest: int | None = None,
) -> None:
    """Trains the policy in place on demonstrations of training prompts.

    Parameters
    ----------
    policy : Policy
        Changed in place.
    task : Task
        One that demonstrates, unless there are no steps.
    config : WarmStart
        Steps, batch and learning rate.
    rng : random.Random
        Of the prompts and the demonstrations.
    each : callable
        Called with every step and its loss, in nats per token.
    longest : int, optional
        Tokens that a completion may have.

    Raises
    ------
    InputError
        The task has no demonstrations; one of them is too long to be sampled.
    """
    if not config.steps:
        return
    optimizer = torch.optim.AdamW(policy.trained(), lr=config.learning_rate, weight_decay=0.0, foreach=True)
    for step in range(1, config.steps + 1):
        items = draw(task, rng, config.batch_size, held_out=False)
        shown = demonstrations(policy, task, items, rng)
        length = max(len(c.token_ids) for c in shown)
        if longest is not None and length > longest:
            expected = f"{length} or more: a demonstration of the task has so many tokens, its end among them"
            name = "max_completion_length"
            raise error("bad_parameter", owner="TrainConfig", name=name, given=longest, expected=expected)
        batch = policy.pad(shown)
        logits = policy.logits(batch.inputs, batch.targets.shape[1])
        loss = cross_entropy(logits[batch.mask], batch.targets[batch.mask])
        for group in optimizer.param_groups:
            rise, fall = step / (0.05 * config.steps), 0.5 + 0.5 * math.cos(math.pi * step / config.steps)
            group["lr"] = config.learning_rate * min(1.0, rise) * fall
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(policy.trained(), 1.0)
        optimizer.step()
        each(step, loss.item())


def demonstrations(policy: Policy, task: Task, items: Sequence[Item], rng: Random) -> list[Completion]:
    """One demonstration of each item, as a completion whose tokens had probability 1.

    Raises
    ------
    InputError
        The task has no demonstrations.
    """
    if not isinstance(task, Demonstrates):
        raise error("no_demonstrations", task=type(task).__name__)
    prompts = policy.encode(rendered(policy.tokenizer, items))
    texts, end = [task.demonstrate(rng, item) for item in items], policy.tokenizer.eos_token_id
    answers = [[*ids, end] for ids in policy.encode(texts)]
    return [
        Completion(prompt, answer, [0.0] * len(answer), "stop", text, off_policy=True)
        for prompt, answer, text in zip(prompts, answers, texts, strict=True)
    ]
