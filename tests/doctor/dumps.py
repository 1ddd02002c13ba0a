"""Runs and rollout dumps that have a fault by their definition, or none."""

import json
import math

import numpy as np

from grpokit.record import read_record

WORDS = (
    "so", "we", "add", "the", "two", "numbers", "and", "get", "what", "was", "asked", "for", "here", "because", "it",
    "must", "be", "even", "or", "odd",
)  # fmt: skip


def rows_of(rng, groups, *, size=8, steps=20, per_step=None, p=0.5, **more):
    """Rows of a healthy dump: groups of answers that are right or wrong, their texts unlike each other."""
    per_step = per_step or max(1, groups // steps)
    rows = []
    for group in range(groups):
        step, rate = 1 + group // per_step, rng.beta(4 * p, 4 - 4 * p)
        for _ in range(size):
            row = {"step": step, "group_id": group % per_step, "prompt": f"question {group}"}
            row |= {"text": " ".join(rng.choice(WORDS, 20)), "reward": float(rng.random() < rate), "response_len": 20}
            row |= {"finish": "stop", "version_min": 2 * step - 2, "keep": True}
            rows.append(row | {name: make(row) for name, make in more.items()})
    return rows


def dump(place, rows):
    """A file of these rows, read."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_record(place / "rollouts.jsonl")


def steps_of(rng, count=60, **columns):
    """Metrics of a healthy run, with columns of one's own: numbers by step from 0 to 1 of the way."""
    shapes = {
        "reward": lambda t: 0.4 + 0.3 * t,
        "frac_reward_zero_std": lambda t: 0.1 + 0.3 * t,
        "entropy": lambda t: 0.8 - 0.4 * t,
        "grad_norm": lambda t: 2.0,
        "learning_rate": lambda t: 3e-4,
        "completions/mean_length": lambda t: 100.0,
        "completions/clipped_ratio": lambda t: 0.02,
        "clip_ratio/high_mean": lambda t: 0.001,
        "sampling/sampling_logp_difference/mean": lambda t: 0.012,
    } | columns
    lines = []
    for step in range(1, count + 1):
        values = {name: shape((step - 1) / (count - 1)) for name, shape in shapes.items()}
        exact = ("learning_rate", "eval/pass@1_stderr", "frac_reward_zero_std")
        noisy = {name: v if name in exact else v * math.exp(0.05 * rng.standard_normal()) for name, v in values.items()}
        lines.append({"step": step} | {name: v for name, v in noisy.items() if v == v})
    return lines


def run(place, lines, config=""):
    """A run's directory with these metrics, read."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if config:
        (place / "config.toml").write_text(config)
    return read_record(place)


def at_ends(first, last):
    """A shape that is NaN but at the ends, as evaluations are."""
    return lambda t: first if t == 0 else last if t == 1 else (first + last) / 2 if abs(t - 0.5) < 0.01 else math.nan


def some_nulls(rng, groups=60):
    rows = rows_of(rng, groups)
    for row in rows[::20]:
        row["reward"] = None
    return rows


def singles(rng):
    return [row | {"group_id": at} for at, row in enumerate(rows_of(rng, 12))]


def cut_groups(rng):
    """A batch boundary inside of each third group."""
    rows = rows_of(rng, 60)
    return [row | {"group_id": row["group_id"] + 100 * (at % 24 >= 19)} for at, row in enumerate(rows)]


def ids_begin_anew(rng):
    """Groups are numbered from 0 in each step, and there is no column of steps."""
    return [{k: v for k, v in row.items() if k != "step"} for row in rows_of(rng, 60)]


def one_batch(rng):
    return [row | {"group_id": 0, "step": 1} for row in rows_of(rng, 60)]


def small_spreads(rng):
    """Half of the groups differ in the third digit alone; advantages are divided by the group's spread."""
    rows = rows_of(rng, 60)
    for at, row in enumerate(rows):
        if at // 8 % 2:
            row["reward"] = 0.3 + 0.01 * rng.random()
    return with_advantages(rows, divided=True)


def with_advantages(rows, *, divided=False):
    groups = {}
    for row in rows:
        groups.setdefault((row["step"], row["group_id"]), []).append(row)
    for group in groups.values():
        rewards = np.array([row["reward"] for row in group])
        spread = rewards.std() if divided and rewards.std() > 1e-9 else 1.0
        for row, advantage in zip(group, (rewards - rewards.mean()) / spread, strict=True):
            row["advantage"] = float(advantage)
    return rows


def raw_rewards(rng):
    """The reward was taken for the advantage."""
    return [row | {"advantage": row["reward"]} for row in rows_of(rng, 120)]


def starved(rng):
    """Answers of the source "slow" are four versions old, and mostly dropped for it."""
    rows = rows_of(rng, 120)
    for at, row in enumerate(rows):
        slow = at // 8 % 3 == 0
        row |= {"source": "slow" if slow else "quick"}
        if slow:
            row |= {"version_min": max(0, row["version_min"] - 4), "keep": rng.random() < 0.2}
    return rows


def unknown_versions(rng):
    """The same, but nobody recorded the slow answers' versions: age cannot be what drops them."""
    return [row | {"version_min": row["version_min"] if row["source"] == "quick" else None} for row in starved(rng)]


def vanishing(rng):
    """The same, in a dump that has only what was kept."""
    lucky = rng.random(1000) < 0.1
    rows = starved(rng)
    rows = [row for at, row in enumerate(rows) if row["source"] == "quick" or row["step"] < 6 or lucky[at // 8]]
    return [{k: v for k, v in row.items() if k != "keep"} for row in rows]


def looping(rng):
    return [
        row | {"text": row["text"] + " wait, let me check again." * 8} if at % 10 == 0 else row
        for at, row in enumerate(rows_of(rng, 60))
    ]


def copies(rng):
    """The sampler gives each pair of answers one seed."""
    rows = rows_of(rng, 60)
    return [row | {"text": rows[at - at % 2]["text"]} for at, row in enumerate(rows)]


def one_version(rng):
    return [row | {"version_min": 4} for row in rows_of(rng, 60)]


def few_prompts(rng):
    return [row | {"prompt": f"question {row['step'] * 7 % 4}"} for row in rows_of(rng, 200)]


def favourite(rng):
    """A sampler that asks one prompt in every other group."""
    return [row | {"prompt": "again"} if at // 8 % 2 else row for at, row in enumerate(rows_of(rng, 120))]


def growing(rng):
    """Lengths rise to the limit."""
    rows = rows_of(rng, 120)
    for row in rows:
        length = int(40 + 3 * row["step"] + rng.normal(0, 8))
        row |= {"response_len": min(length, 100), "finish": "length" if length >= 100 else "stop"}
    return rows
