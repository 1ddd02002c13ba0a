"""Each fault that a rule must find, and healthy runs: for the tests, and for the table in docs/doctor.md."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

import grpokit as gk
from grpokit.record import Metrics, read_record
from grpokit.stages import EXAMPLES

from . import dumps, trained
from .trained import Scored, here

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Case:
    """A record, and what is to be found in it.

    Parameters
    ----------
    name : str
        What is wrong, or what run it is.
    make : callable
        ``make(place, warm)`` gives the record; `warm` is the checkpoint that trained runs begin with.
    code : str
        What must be found above `info`; empty: nothing.
    also : dict of str to str
        What may be found beside it, with the reason.
    trained : bool
        Whether it is made by training.
    """

    name: str
    make: Callable[[Any, Any], Any]
    code: str = ""
    also: dict[str, str] = field(default_factory=dict)
    trained: bool = False


def _trained(code, name, *settings, also=None, **given):
    def make(place, warm):
        return trained.trained(place, warm, *settings, **{k: v() if k == "new" else v for k, v in given.items()})

    return Case(name, make, code, also or {}, trained=True)


def _dump(code, name, rows, also=None):
    return Case(name, lambda place, _: dumps.dump(place, rows(np.random.default_rng(0))), code, also or {})


def _run(code, name, config="", also=None, **columns):
    def make(place, _):
        return dumps.run(place, dumps.steps_of(np.random.default_rng(0), **columns), config)

    return Case(name, make, code, also or {})


def _explodes(place, warm):
    return trained.trained(place, warm, "recipe=dr_grpo", task=Scored(by=trained.Explodes()))


def _few(place, warm):
    return trained.trained(place / "run", warm, *trained.few_prompts(place))


GAP = "sampling/sampling_logp_difference/mean"
CERTAIN = {
    "D005": "a policy that is certain answers the same, and groups have equal rewards",
    "D008": "the answer that is paid for is as long as the limit",
    "D009": "what still differs in such groups is little, and divided by itself",
}

FAULTS = [
    _trained("D001", "every score is 0", task=Scored(by=trained.zero)),
    _trained("D001", "one of two functions is dead", reward=[here(trained.letters), here(trained.zero)]),
    _run("D001", "the scorer dies after a third", reward=lambda t: 0.4 if t < 0.3 else 0.0,
         frac_reward_zero_std=lambda t: 0.2 if t < 0.3 else 1.0),
    _trained("D002", "the scorer cannot say of one answer in ten", task=Scored(by=trained.forgets_some)),
    _dump("D002", "one reward in twenty is null", dumps.some_nulls),
    _trained("D003", "one answer a prompt", "num_generations=1"),
    _dump("D003", "the id of the answer as the group's", dumps.singles),
    _dump("D004", "batches cut inside groups", dumps.cut_groups),
    _dump("D004", "ids begin anew in each step", dumps.ids_begin_anew),
    _dump("D004", "the batch is one group", dumps.one_batch,
          {"D021": "its one prompt is that of the first row"}),
    _trained("D005", "few prompts can be answered", task=Scored(by=trained.hard)),
    _run("D005", "groups lose their signal", frac_reward_zero_std=lambda t: 0.2 + 0.7 * t),
    _trained("D006", "certain of what pays half", "recipe.high=0.28", "learning_rate=1e-3", "steps=40",
             task=Scored(by=trained.half_a), also=CERTAIN),
    _run("D006", "the entropy vanishes", entropy=lambda t: 0.8 * 0.02**t, reward=lambda t: 0.4),
    _trained("D007", "a symmetric clip and a high learning rate", "learning_rate=1e-3", "steps=25",
             task=Scored(by=trained.half_a), also=CERTAIN | {"D006": "the next stage of the same"}),
    _trained("D008", "length is paid for", "steps=20", task=Scored(by=trained.length),
             also=CERTAIN),
    _dump("D008", "rows that grow to the limit", dumps.growing),
    _dump("D009", "half of the groups differ by noise", dumps.small_spreads),
    _run("D010", "the engines part", **{GAP: lambda t: 0.012 * 10**t}),
    _trained("D011", "six passes over a step", "learning_rate=1e-3", "num_iterations=6",
             task=Scored(by=trained.letters)),
    _run("D011", "the sampler's ratios are uneven", **{"mismatch/ess_token": lambda t: 0.9 - 0.6 * t**0.2}),
    _dump("D012", "slow answers are dropped", dumps.starved),
    _dump("D012", "slow answers vanish", dumps.vanishing),
    _trained("D013", "a penalty of 1e-6", "recipe.beta=1e-6", "learning_rate=1e-3", "recipe.high=0.28", "steps=30",
             task=Scored(by=trained.half_a), also=CERTAIN | {"D006": "the reward pays for one answer"}),
    Case("one step's rewards are a thousand times too large", _explodes, "D014", trained=True),
    _run("D014", "two spikes", grad_norm=lambda t: 40.0 if 0.49 < t < 0.53 else 2.0),
    _dump("D015", "one answer in ten loops", dumps.looping),
    _dump("D016", "pairs of answers share a seed", dumps.copies),
    _trained("D017", "paid for the letter a, evaluated for sorting", "evaluation.every=10", "steps=30",
             "recipe.high=0.28", "learning_rate=6e-4", reward=[here(trained.half_a)],
             also=CERTAIN | {"D006": "the reward pays for one answer"}),
    _run("D017", "held-out prompts get worse", **{"eval/pass@1": dumps.at_ends(0.6, 0.4),
         "eval/pass@1_stderr": lambda t: 0.01}),
    _trained("D018", "the sampler keeps its first weights", "max_logp_gap=1e9", "learning_rate=1e-3",
             trainer=trained.Forgetful, also={"D011": "the weights of what an old policy sampled are uneven"}),
    _dump("D018", "all answers have one version", dumps.one_version),
    _trained("D019", "a learning rate of 1e-12", "learning_rate=1e-12"),
    _run("D019", "the schedule has ended", learning_rate=lambda t: max(0.0, 1e-5 * (0.7 - t))),
    _run("D020", "TRL's bnpo over 8 micro-batches", 'loss_type = "bnpo"\ngradient_accumulation_steps = 8\n'),
    Case("three prompts", _few, "D021", {"D005": "prompts that are learned by heart"}, trained=True),
    _dump("D021", "four prompts in 200 groups", dumps.few_prompts),
    _dump("D021", "every other group is of one prompt", dumps.favourite),
    _dump("D022", "the reward for the advantage", dumps.raw_rewards),
]  # fmt: skip


def _recipe(name):
    # Of the other parameters' examples `max_len` is the run's own.
    parameters = [f"recipe.{k}={v!r}".replace("'", '"') for k, v in EXAMPLES[name].items() if k != "max_len"]
    settings = [f"recipe={name}", *parameters]

    def make(place, warm):
        return trained.trained(place, warm, *settings, "steps=12", "max_rounds=2")

    return Case(f"recipe {name}", make, trained=True)


RECIPES = [_recipe(name) for name in gk.recipe_names()]
HEALTHY = [
    _dump("", "a dump", lambda rng: dumps.with_advantages(dumps.rows_of(rng, 120))),
    Case("metrics", lambda place, _: dumps.run(place, dumps.steps_of(np.random.default_rng(1)))),
    Case("metrics of 2,000 steps", lambda place, _: dumps.run(place, dumps.steps_of(np.random.default_rng(2), 2000))),
    Case("a schedule that ends in 0", lambda place, _: dumps.run(
        place, dumps.steps_of(np.random.default_rng(3), learning_rate=lambda t: 1e-5 * (1 - t)))),
]  # fmt: skip


def default_run(place, seed):
    """The run of `grpokit train --set seed=...`."""
    trainer = trained.Trainer(trained.TrainConfig(seed=seed), directory=place, console=trained.Silent())
    trainer.train()
    return read_record(place)


def perturbed(record):
    """Healthy runs that are like a healthy one: name and record."""
    rng = np.random.default_rng(0)
    metrics, rows = record.metrics, record.rows

    def of_rows(columns):
        return dataclasses.replace(record, rows=dataclasses.replace(rows, columns=rows.columns | columns))

    def of_metrics(steps_N, columns):
        return dataclasses.replace(record, metrics=Metrics(steps_N, columns))

    every = np.arange(len(metrics)) % 3 != 1
    noisy = {"reward", "reward_std", "entropy", "grad_norm", "kl", "completions/mean_length", GAP}
    columns = {
        name: values * np.exp(0.1 * rng.standard_normal(len(values))) if name in noisy else values
        for name, values in metrics.columns.items()
    }
    yield (
        "two steps of three",
        of_metrics(metrics.steps_N[every], {name: values[every] for name, values in metrics.columns.items()}),
    )
    yield "metrics with 10 % of noise", of_metrics(metrics.steps_N, columns)
    yield "rows alone", dataclasses.replace(record, metrics=None)
    yield "metrics alone", dataclasses.replace(record, rows=None)
    if rows is None:
        return
    shuffled = rng.permutation(rows.groups)
    yield "groups in another order", of_rows({"group": shuffled[rows["group"]]})
    yield (
        "two sources",
        dataclasses.replace(
            record,
            rows=dataclasses.replace(rows, sources=("a", "b"), columns=rows.columns | {"source": rows["group"] % 2}),
        ),
    )
    missing = rng.random(len(rows)) < 0.002
    yield "two rewards of a thousand are missing", of_rows({"reward": np.where(missing, np.nan, rows["reward"])})
    flipped = rng.random(len(rows)) < 0.02
    yield (
        "two rewards of a hundred are wrong",
        of_rows({"reward": np.where(flipped, 1 - rows["reward"], rows["reward"])}),
    )
