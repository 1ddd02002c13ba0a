"""Groups that a step has no room for: each is learned from once, or counted as expired."""

import dataclasses
import datetime as dt
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from grpokit.trainer import Trainer
from grpokit.trainer.collect import Collector
from grpokit.trainer.config_tables import Snapshots
from grpokit.trainer.engine import InProcess
from grpokit.trainer.policy import Policy
from grpokit.trainer.rewards import RewardFunction, Rewards

from .conftest import Echo


class Counting:
    """Each prompt once."""

    def __init__(self):
        self.number = 0

    def prompts(self, rng, n):
        self.number += n
        return [{"prompt": f"{number}>", "number": number} for number in range(self.number - n, self.number)]

    def score(self, completion, item):
        return 0.0


ASKED = set()


def reward(prompts, completions, **columns):
    """Half of the groups have no signal."""
    ASKED.update(int(prompt[:-1]) for prompt in prompts)
    return [float(row % 2) if int(prompt[:-1]) % 2 else 1.0 for row, prompt in enumerate(prompts)]


def collector(config, policy=None):
    policy = policy or Policy.tiny(config.tiny, seed=2)
    task = Counting()
    return Collector(policy, InProcess(policy), task, Rewards(task, [RewardFunction(1.0, None, reward)]), config)


@pytest.mark.parametrize("oversampling", [1.0, 2.5, 7.0])
def test_every_good_group_is_in_one_step_or_waits_or_expired(config, oversampling):
    config = dataclasses.replace(config, oversampling=oversampling, carry_over=2, max_rounds=20)
    own, recipe = collector(config), config.make_recipe()
    used, expired = [], 0
    ASKED.clear()
    for step in range(8):
        own.engine.load(own.policy, 2 * step)
        before = [group[0].item["number"] for group in own.waiting]
        sampled = own.collect(recipe).sampled(recipe)
        kept = sampled.processed.keep
        groups = list(dict.fromkeys(item["number"] for item, k in zip(sampled.items, kept, strict=True) if k))
        assert len(groups) == config.prompts_per_step
        assert not sampled.processed.surplus.any()
        # The oldest go first, and none is older than it may be.
        versions = np.array([c.version for c in sampled.completions])
        assert (2 * step - versions <= 2).all()
        waited = [n for n in before if n in groups]
        assert groups[: len(waited)] == waited
        used += groups
        expired += int(sampled.measured.get("sampling/expired", 0))
        assert sampled.measured.get("sampling/waiting", 0) == len(own.waiting)
        assert len(sampled.completions) == len(sampled.group_id) == config.num_generations * len(set(sampled.group_id))
    assert len(used) == len(set(used)) == 8 * config.prompts_per_step
    waiting = {group[0].item["number"] for group in own.waiting}
    good = {number for number in ASKED if number % 2}
    assert set(used) | waiting <= good
    assert len(good) == len(used) + len(waiting) + expired
    assert (oversampling == 1) == (not waiting and not expired)


def test_the_state_has_the_groups_that_wait(config):
    config = dataclasses.replace(config, oversampling=4.0)
    policy, recipe = Policy.tiny(config.tiny, seed=2), config.make_recipe()
    one, other = collector(config, policy), collector(config, policy)
    one.collect(recipe)
    assert one.waiting
    other.task.number = one.task.number
    other.restore(json.loads(json.dumps(one.state())))
    assert other.waiting == one.waiting
    assert all(row.item is group[0].item for group in other.waiting for row in group)
    a, b = one.collect(recipe).sampled(recipe), other.collect(recipe).sampled(recipe)
    assert a.completions == b.completions
    assert a.rewards == b.rewards


def test_groups_of_items_that_json_does_not_know_wait_too(config, silent, tmp_path):
    """Columns of a Parquet file may be dates, decimals or bytes, and a task's own items anything."""
    snapshots = Snapshots(every=1, keep_last=9)
    config = dataclasses.replace(config, oversampling=3.0, recipe="rloo", snapshots=snapshots)
    how = {"task": Dated(), "console": silent}
    Trainer(config, directory=tmp_path / "alone", **how).train()
    shutil.copytree(tmp_path / "alone", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/snapshots/step-00000002")
    shutil.rmtree(tmp_path / "run/snapshots/step-00000003")
    (tmp_path / "run/summary.json").unlink()
    Trainer(config, directory=tmp_path / "run", resume=True, **how).train()
    alone, run = ((tmp_path / name / "rollouts.jsonl").read_text() for name in ("alone", "run"))
    assert alone == run
    assert '"answer": "2026-11-27"' in run
    for step in (2, 3):
        tables = [pq.read_table(tmp_path / name / f"completions/step-{step:08}.parquet") for name in ("alone", "run")]
        assert tables[0] == tables[1]


class Dated(Echo):
    def prompts(self, rng, n):
        more = {"answer": dt.date(2026, 11, 27), "weight": np.int64(3), "raw": b"x"}
        return [item | more for item in super().prompts(rng, n)]


def test_a_run_that_samples_more_than_it_needs(config, task, silent, tmp_path):
    config = dataclasses.replace(config, oversampling=3.0, recipe="rloo", steps=4)
    Trainer(config, task=task, directory=tmp_path / "run", console=silent).train()
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()[1:]]
    assert [row["sampling/waiting"] for row in rows] == [8, 4, 0, 8]
    assert [row["sampling/rounds"] for row in rows] == [1, 0, 0, 1]
    # The second and third step learn from what the weights two and four updates before had sampled; the second update
    # of a step is one more.
    assert [row["staleness/max"] for row in rows] == [1, 3, 5, 1]
