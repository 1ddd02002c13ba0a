"""Whole runs on a file of prompts, with reward functions in their processes."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import grpokit as gk
from grpokit.cli import main
from grpokit.trainer import TrainConfig, Trainer
from grpokit.trainer.collect import Collector
from grpokit.trainer.engine import InProcess
from grpokit.trainer.learn import Learner
from grpokit.trainer.policy import Policy
from grpokit.trainer.rewards import RewardFunction, Rewards

FUNCTIONS = """
import os, sys, time

def letters(completions, **columns):
    return [sum(c.islower() for c in text) / 6 for text in completions]

def careful(prompts, completions, kind):
    if any(set(text) & set("abcdef") for text in completions):
        raise ValueError("a to f")
    return [float(len(text) > 2) for text in completions]

def waits(completions):
    print("pid", os.getpid(), file=sys.stderr, flush=True)
    time.sleep(1000)
"""


@pytest.fixture(autouse=True)
def where(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    rows = [{"prompt": f"say {n}:", "kind": "say", "answer": "ab"} for n in range(40)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bare = [{"prompt": f"say {n}:"} for n in range(40)]
    (tmp_path / "bare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bare))


def lines(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_a_file_and_two_functions(config, tmp_path, capsys):
    settings = ["task.file=prompts.jsonl", 'rewards.functions=["mine.py:letters", "mine.py:careful"]']
    settings += ["rewards.weights=[1, 0.5]", "rewards.max_failures=1", "recipe=rloo", "evaluation.prompts=2"]
    (tmp_path / "run.toml").write_text(config.with_settings(settings).to_toml())
    assert main(["train", "--config", "run.toml", "--name", "a"]) == 0
    metrics = lines("runs/a/metrics.jsonl")
    last = metrics[-1]
    assert {"rewards/letters/mean", "rewards/letters/std", "rewards/careful/mean", "rewards/failed"} <= last.keys()
    assert last["rewards/timeouts"] == 0
    assert metrics[1]["epoch"] < metrics[2]["epoch"] < last["epoch"]
    for row in lines("runs/a/rollouts.jsonl"):
        parts = row["reward_parts"]
        if row["reward"] is None:
            assert set(row["text"]) & set("abcdef")
            assert (row["keep"], parts["careful"]) == (False, None)
        else:
            assert row["reward"] == pytest.approx(parts["letters"] + 0.5 * parts["careful"])
    assert sum(row.get("rewards/failed", 0) for row in metrics) > 3
    assert capsys.readouterr().err.count("the reward function 'careful' raised ValueError('a to f')") == 1
    # The written configuration has all of it.
    assert main(["train", "--config", "runs/a/config.toml", "--name", "b"]) == 0
    assert lines("runs/a/rollouts.jsonl") == lines("runs/b/rollouts.jsonl")


def test_a_file_without_answers_is_evaluated_by_the_reward(config, silent):
    settings = ["task.file=bare.jsonl", "warm_start.steps=0", "evaluation.prompts=2", "steps=1"]
    config = config.with_settings(settings)
    with pytest.raises(gk.InputError, match="bare.jsonl has no column 'answer'"):
        Trainer(config, directory="a", console=silent)
    summary = Trainer(
        config, reward=lambda completions: [1.0] * len(completions), directory="a", console=silent
    ).train()
    assert summary.after.pass_1 == 1.0
    # The configuration names what it cannot give.
    with pytest.raises(gk.InputError, match="reward function '<lambda>' was given in Python"):
        Trainer(TrainConfig.from_file("a/config.toml"), directory="b", console=silent)
    with pytest.raises(gk.InputError, match="PromptFile without an answer"):
        Trainer(config.with_settings(["warm_start.steps=1"]), reward=len, directory="b", console=silent).train()


def test_a_function_that_is_not_there_leaves_no_run(config, task, silent):
    config = config.with_settings(['rewards.functions=["mine.py:leters"]'])
    with pytest.raises(gk.InputError, match="Did you mean 'letters'"):
        Trainer(config, task=task, directory="a", console=silent).train()
    assert not Path("a").exists()


def test_a_demonstration_that_is_too_long_to_be_sampled(config, silent):
    config = dataclasses.replace(config, max_completion_length=12).with_settings(
        ["task.name=chain", "task.difficulty=hard"]
    )
    with pytest.raises(gk.InputError, match=r"max_completion_length=12; expected \d\d or more: a demonstration"):
        Trainer(config, directory="a", console=silent).train()


def test_rewards_that_are_normalised_one_by_one(config, task):
    """GDPO reads what each function says."""
    recipe = gk.recipe("rloo").replace(advantage=gk.GDPO(over="sequences", weights={"letters": 1.0, "long": 0.5}))
    policy = Policy.tiny(config.tiny, seed=2)

    def letters(completions):
        return [100.0 * sum(c.islower() for c in text) for text in completions]

    def long(completions):
        return [float(len(text)) for text in completions]

    scorer = Rewards(task, [RewardFunction(1.0, None, letters), RewardFunction(1.0, None, long)])
    sampled = Collector(policy, InProcess(policy), task, scorer, config).collect(recipe).sampled(recipe)
    columns = {
        "group_id": sampled.group_id,
        "reward": sampled.rewards,
        "reward_parts": [{"letters": letters([c.text])[0], "long": long([c.text])[0]} for c in sampled.completions],
    }
    np.testing.assert_array_equal(sampled.processed.advantages, gk.process(columns, recipe).advantages)
    assert Learner(policy, recipe, config).learn(sampled)["updates"] == config.updates_per_step


PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from grpokit.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_in_a_step_leaves_a_run_and_no_process(config):
    settings = ["task.file=prompts.jsonl", "evaluation.prompts=2", 'rewards.functions=["mine.py:waits"]']
    Path("run.toml").write_text(config.with_settings([*settings, "rewards.seconds=1000"]).to_toml())
    command = [sys.executable, "-c", PROGRAM, "train", "--config", "run.toml", "--name", "a"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        pids = []
        for line in process.stderr:
            if line.startswith("pid"):
                pids.append(int(line.split()[1]))
                if len(pids) == 2:
                    process.send_signal(signal.SIGINT)
            # The step is waited for, which a reward function may hold up; it is said how not to.
            if "once more, and it ends at once" in line:
                process.send_signal(signal.SIGINT)
                break
        _, said = process.communicate()
    assert process.returncode == 130
    assert said.endswith("grpokit: interrupted\n")
    assert json.loads(Path("runs/a/summary.json").read_text())["status"] == "interrupted"
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
