"""Groups of the wrong rows, and groups without signal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from grpokit.doctor.configured import compares_groups, whole
from grpokit.doctor.rule import Bounds, Seen, rule
from grpokit.doctor.series import difference, ends, rising, slope

from .scorer import all_equal, dead_scorer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from grpokit.record import Record, Rows

LOOKED_AT = 64


@rule(
    "D003",
    "singletons",
    "Every group has one answer",
    severity="error",
    cause="The advantage compares the answers of a group, and there is nothing to compare: it is 0, or the raw reward. "
    "The group's id is the answer's own id, or one answer a prompt was asked for.",
    fix="`num_generations=8`; in files name the prompt's id, `--column group_id=...`. With one answer a prompt: "
    "`recipe=reinforce_pp` or `remax`.",
    source="rLLM #605, #776, #924; Search-R1 #88: the id of the trajectory as the id of the group",
    reads="the groups of rows, or num_generations and recipe of the configuration",
    bounds={"groups": (8, "fewer groups may be a sample of a dump")},
    online=True,
)
def singletons(record: Record, bound: Bounds) -> Iterator[Seen]:
    """By configuration where there is one, which knows whether the recipe has use for groups."""
    if compares_groups(record) is False:
        return
    if record.rows is not None:
        rows = record.rows
        used = "advantage" in rows and bool(np.nan_to_num(rows["advantage"]).any())
        if rows.groups == len(rows) >= bound["groups"] and not (used and compares_groups(record) is None):
            yield Seen(f"{rows.groups} groups have {len(rows)} rows.", {"groups": rows.groups, "rows": len(rows)})
            return
    if whole(record, "num_generations") == 1 and compares_groups(record):
        yield Seen("num_generations is 1.", {"num_generations": 1})


def is_singletons(record: Record) -> bool:
    """Whether every group has one row."""
    alone = record.rows is not None and record.rows.groups == len(record.rows)
    return alone or whole(record, "num_generations") == 1


@rule(
    "D004",
    "split-or-merged-groups",
    "Groups are not what was sampled together",
    severity="error",
    cause="Rows were lost, a batch boundary cut groups, or different prompts share an id: ids that begin anew in each "
    "step or file, or a batch that is taken for one group. Their mean and spread are those of something else.",
    fix="Name all that makes the key, `--column group_id=step,uid`, or say `--group-size`; do not cut batches inside "
    "groups. In a trainer look for answers that were dropped before they were scored.",
    source="agent-lightning #489 (turns of a rollout mixed); slime: a batch of another size is treated as one group",
    reads="the groups of rows; num_generations of the configuration; prompts",
    bounds={
        "share": (0.05, "a cut at the end of a file or an aborted answer makes a few; a systematic fault makes many"),
        "groups": (2, "one short group is the end of a file"),
        "largest": (256, "nobody samples so many answers to one prompt: the batch is one group"),
    },
)
def split_or_merged(record: Record, bound: Bounds) -> Iterator[Seen]:
    """By sizes, then by the prompts of some groups."""
    rows = record.rows
    if rows is None or is_singletons(record):
        return
    sizes = np.bincount(rows["group"])
    if len(sizes) == 1 and len(rows) > bound["largest"]:
        yield Seen(f"All {len(rows)} rows are one group.", {"groups": 1, "rows": len(rows)})
        return
    size = whole(record, "num_generations") or int(np.argmax(np.bincount(sizes)))
    wrong = sizes != size
    if wrong.sum() >= bound["groups"] and wrong.mean() > bound["share"]:
        smaller, larger = int((sizes < size).sum()), int((sizes > size).sum())
        message = f"{wrong.sum()} of {len(sizes)} groups do not have {size} rows: {smaller} have fewer, {larger} more."
        numbers = {"groups": len(sizes), "size": size, "smaller": smaller, "larger": larger, "share": wrong.mean()}
        yield Seen(message, numbers, rows.span(wrong[rows["group"]]))
        return
    mixed, looked = _mixed(rows)
    if mixed:
        message = f"{mixed} of {looked} groups that were looked at have more than one prompt."
        yield Seen(message, {"mixed": mixed, "looked at": looked, "size": size})


def _mixed(rows: Rows) -> tuple[int, int]:
    """How many groups have several prompts, and how many were looked at."""
    groups = np.unique(np.linspace(0, rows.groups - 1, LOOKED_AT).round().astype(int))
    of = np.flatnonzero(np.isin(rows["group"], groups))
    prompts: dict[int, set[str]] = {}
    for row, text in zip(of.tolist(), rows.texts(of), strict=True):
        if text["prompt"] is not None:
            prompts.setdefault(int(rows["group"][row]), set()).add(text["prompt"])
    return sum(len(found) > 1 for found in prompts.values()), len(prompts)


@rule(
    "D005",
    "no-signal",
    "Most groups have equal rewards and teach nothing",
    severity="warning",
    cause="The prompts are too easy or too hard for the policy as it is. Groups of G answers, each right with "
    "probability p, are all equal with p^G + (1 − p)^G; prompts differ in p, which makes it more.",
    fix="`recipe=dapo` samples again for such groups (`max_rounds`, `oversampling`); a larger `num_generations`; "
    "prompts that the policy answers sometimes: `grpokit filter --select 'PassRate(low=0.2, high=0.8)'`.",
    source="arXiv:2503.14476, §3.2 (dynamic sampling)",
    reads="the metric frac_reward_zero_std, or rewards of rows by group",
    bounds={
        "share": (0.75, "a quarter of the groups teach: the gradient's standard error is twice what it could be"),
        "errors": (3, "standard errors that the mean is above the bound, so that a few steps do not tell"),
        "solved": (0.95, "of a reward of 1: the prompts are learned, which is worth knowing and no fault"),
    },
    online=True,
)
def no_signal(record: Record, bound: Bounds) -> Iterator[Seen]:
    """At the end of the run; whether it rose, and what one p would give, is said."""
    found = ends(record.metrics, "frac_reward_zero_std")
    if is_singletons(record) or all_equal(record, dead_scorer.thresholds()) is not None:
        return
    size = whole(record, "num_generations")
    if found is not None and record.metrics is not None:
        late, early = float(found.late.mean()), float(found.early.mean())
        error = float(found.late.std(ddof=1)) / len(found.late) ** 0.5
        if late - bound["errors"] * error < bound["share"]:
            return
        values = record.metrics.trained().there("frac_reward_zero_std")[1]
        rises = rising(values) > 3 and difference(found.early, found.late) > 3
        numbers: dict[str, float | int | str] = {"late": late, "early": early, "slope a step": slope(values)}
        message = f"{late:.0%} of the groups have equal rewards at the end, {early:.0%} at the beginning"
        message += " (it rises)" if rises else ""
        means = record.metrics.trained().there("reward")[1]
        p = float(means[-len(found.late) :].mean()) if len(means) else float("nan")
        steps: tuple[int, int] | None = found.steps
    elif record.rows is not None and (scored := int((record.rows.group_rewards.count > 0).sum())) >= 20:
        late, p, size = _without_signal(record.rows)
        if late - bound["errors"] * (late * (1 - late) / scored) ** 0.5 < bound["share"]:
            return
        numbers, steps = {"share": late, "groups": scored}, None
        message = f"{late:.0%} of {scored} groups have equal rewards"
    else:
        return
    if size and 0 <= p <= 1 and not _of_degrees(record):
        alike = p**size + (1 - p) ** size
        numbers |= {"p": p, "group size": size, "p^G + (1-p)^G": alike}
        message += f"; if every prompt had p = {p:.2f}, it would be {alike:.1%}"
    # What is solved has nothing left to teach.
    yield Seen(message + ".", numbers, steps, "info" if bound["solved"] <= p <= 1 else None)


def _of_degrees(record: Record) -> bool:
    """Whether rewards are known to be more than right or wrong."""
    return record.rows is not None and len(np.unique(record.rows.scored("reward"))) > 2


def _without_signal(rows: Rows) -> tuple[float, float, int]:
    """The share of groups with equal rewards, of those that have some, the mean reward, a group's usual size."""
    rewards, of = rows.scored("reward"), rows.group_rewards
    size = int(np.argmax(np.bincount(np.bincount(rows["group"]))))
    return float((of.high == of.low)[of.count > 0].mean()), float(rewards.mean()), size
