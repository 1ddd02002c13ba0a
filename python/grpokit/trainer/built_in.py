"""The tasks that a configuration can name, each in three difficulties."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpokit.errors import error, nearest

from .config_tasks import IN_PYTHON
from .task_arithmetic import Arithmetic
from .task_chain import Chain
from .task_sorting import Sorting

if TYPE_CHECKING:
    from .config_tasks import TaskConfig
    from .tasks import Task

BUILT_IN: dict[str, dict[str, Task]] = {
    "sorting": {"easy": Sorting(), "medium": Sorting(9, 14), "hard": Sorting(15, 24)},
    "arithmetic": {
        "easy": Arithmetic(largest=20),
        "medium": Arithmetic(terms=3, operators="+-*"),
        "hard": Arithmetic(terms=4, largest=999, operators="+-*"),
    },
    "chain": {"easy": Chain(), "medium": Chain(5, 8), "hard": Chain(9, 16)},
}
GYM = "reasoning_gym:"


def check_name(name: str) -> None:
    """Refuses a name that is none of a task; which tasks reasoning-gym has is not looked up.

    Raises
    ------
    InputError
        `unknown_task`.
    """
    if name not in BUILT_IN and not name.startswith(GYM):
        raise error("unknown_task", given=name, nearest=nearest(name, BUILT_IN), known=", ".join(BUILT_IN))


def make_task(config: TaskConfig, *, rewarded: bool) -> Task:
    """The task of a resolved configuration.

    Parameters
    ----------
    config : TaskConfig
        Resolved.
    rewarded : bool
        Whether there are reward functions, so that a file needs no answers.

    Raises
    ------
    InputError, FileError
        `given_in_python`, `missing_extra`; the file cannot be read, or a row of it is no prompt.
    """
    if config.file:
        from .prompt_file import PromptFile

        held_out = config.evaluation_file or None
        return PromptFile(config.file, held_out, prompt=config.prompt, answer=config.answer, rewarded=rewarded)
    if config.name.startswith(IN_PYTHON):
        raise error("given_in_python", what="task", name=config.name.removeprefix(IN_PYTHON), argument="task")
    if config.name.startswith(GYM):
        from .gym import ReasoningGym

        return ReasoningGym(config.name.removeprefix(GYM))
    return BUILT_IN[config.name][config.difficulty]
