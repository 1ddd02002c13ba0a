"""Prompts that are messages: kept beside their text, and written by the tokenizer's chat template where it has one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grpokit.errors import error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .tasks import Item

MESSAGES = "prompt_messages"
"""The key of an item's messages; the text under ``"prompt"`` is what is logged, hashed, and used without a template."""


def as_text(messages: Sequence[dict[str, Any]]) -> str:
    """Messages as a text without any template: one message is its content, several name their roles.

    Examples
    --------
    >>> as_text([{"role": "user", "content": "1 + 1?"}])
    '1 + 1?'
    >>> print(as_text([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]))
    system: Be brief.
    user: 1 + 1?
    assistant:
    """
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n".join([*(f"{m['role']}: {m['content']}" for m in messages), "assistant:"])


def rendered(tokenizer: Any, items: Sequence[Item]) -> list[str]:
    """What the policy reads of each item.

    Raises
    ------
    InputError
        `chat_template`: the tokenizer's template refuses the messages.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        return [item["prompt"] for item in items]
    texts: list[str] = []
    for at, item in enumerate(items):
        if MESSAGES not in item:
            texts.append(item["prompt"])
        elif at and item is items[at - 1]:  # the rows of a group share their item
            texts.append(texts[-1])
        else:
            try:
                texts.append(tokenizer.apply_chat_template(item[MESSAGES], tokenize=False, add_generation_prompt=True))
            except Exception as problem:  # whatever a template raises
                raise error("chat_template", reason=problem, prompt=item["prompt"]) from problem
    return texts
