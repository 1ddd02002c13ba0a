import dataclasses
import json
import time

import numpy as np
import pytest

from grpokit.trainer import Trainer
from grpokit.trainer.clock import PARTS, Clock


def spend(seconds):
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def test_parts_add_up_to_the_step():
    clock = Clock()
    clock.begin()
    with clock("generate"):
        spend(0.002)
    spend(0.002)
    with clock("reward"), clock("generate"):  # inside another part: not counted twice
        spend(0.002)
    told = clock.metrics(100)
    parts = {name.removeprefix("time/"): value for name, value in told.items() if name.startswith("time/")}
    assert list(parts) == [*PARTS, "other"]
    assert told["step_time"] == pytest.approx(sum(parts.values()))
    assert all(parts[name] >= 0.002 for name in ("generate", "reward", "other"))
    assert parts["backward"] == 0
    assert told["tokens_per_second"] == 100 / told["step_time"]
    clock.begin()
    assert clock.seconds == {}


def test_a_part_that_fails_is_counted_and_left():
    clock = Clock()
    with pytest.raises(ValueError), clock("reward"):
        raise ValueError
    with clock("generate"):
        pass
    assert list(clock.seconds) == ["reward", "generate"]


def test_a_run_says_where_its_time_went(config, task, silent, tmp_path):
    """Every part of it is measured where the recipe has it: log-probs of a reference policy, a slow reward."""

    def slow(prompts, completions, **columns):
        spend(0.02)
        return [float(len(text)) for text in completions]

    config = dataclasses.replace(config, recipe="grpo", recipe_parameters={"beta": 0.04})
    Trainer(config, task=task, reward=slow, directory=tmp_path / "run", console=silent).train()
    first, *rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert first["time/evaluation"] > 0
    tokens = np.diff([0, *(row["num_tokens"] for row in rows)])
    for row, sampled in zip(rows, tokens, strict=True):
        assert all(row[f"time/{part}"] > 0 for part in [*PARTS, "other"])
        assert row["time/reward"] >= 0.02
        assert row["step_time"] == pytest.approx(sum(row[f"time/{part}"] for part in [*PARTS, "other"]))
        assert row["tokens_per_second"] == pytest.approx(sampled / row["step_time"])
        assert ("time/evaluation" in row) == ("eval/pass@1" in row)
