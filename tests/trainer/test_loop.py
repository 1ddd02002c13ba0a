import dataclasses
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import grpokit as gk
from grpokit.trainer import TrainConfig, Trainer
from grpokit.trainer.config import TaskConfig
from grpokit.trainer.policy import Policy
from grpokit.trainer.tasks import is_held_out

from .conftest import generated, parameters_of

FILES = ["checkpoint", "completions", "config.toml", "environment.json", "metrics.jsonl", "rollouts.jsonl", "snapshots"]
FILES += ["summary.json"]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def numbers(directory):
    """The metrics, but for what a clock says."""
    rows = lines(directory / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "step_time", "tokens_per"))} for row in rows]


@pytest.fixture
def train(task, silent, tmp_path):
    def run(config, name="run", **options):
        trainer = Trainer(config, **{"task": task, "directory": tmp_path / name, "console": silent, **options})
        return trainer, trainer.train()

    return run


def test_what_a_run_leaves_behind(train, config, task, tmp_path):
    trainer, summary = train(config)
    directory = tmp_path / "run"
    assert sorted(path.name for path in directory.iterdir()) == FILES
    assert TrainConfig.from_file(directory / "config.toml") == trainer.config
    # The task was given in Python: the file says so, and does not claim another.
    assert trainer.config == dataclasses.replace(config.resolve(), task=TaskConfig(name="python:Echo"))

    metrics = lines(directory / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [0, 1, 2, 3]
    assert ["eval/pass@1" in row for row in metrics] == [True, False, True, True]
    names = {
        "reward", "reward_std", "frac_reward_zero_std", "completions/mean_length", "completions/clipped_ratio",
        "entropy", "clip_ratio/region_mean", "grad_norm", "learning_rate", "step_time", "num_tokens",
        "sampling/kept_share", "sampling/sampling_logp_difference/mean", "mismatch/kl_k3", "mismatch/ess_sequence",
        "mismatch/ess_current", "staleness/mean", "staleness/max", "tokens_per_second",
        # What TRL 1.16.0 calls so.
        "completions/min_length", "completions/max_length", "completions/mean_terminated_length",
        "completions/min_terminated_length", "completions/max_terminated_length", "clip_ratio/low_mean",
        "clip_ratio/low_min", "clip_ratio/high_mean", "clip_ratio/high_max",
        "sampling/sampling_logp_difference/max", "sampling/importance_sampling_ratio/min",
        "sampling/importance_sampling_ratio/mean", "sampling/importance_sampling_ratio/max",
    }  # fmt: skip
    assert all(names <= row.keys() for row in metrics[1:])
    # Sampler and trainer are one program: they differ by rounding.
    assert all(row["mismatch/ess_sequence"] > 1 - 1e-9 and row["mismatch/kl_k3"] < 1e-9 for row in metrics[1:])

    # Two updates of a step see rows that none and that one update has passed since.
    assert {(row["staleness/mean"], row["staleness/max"]) for row in metrics[1:]} == {(0.5, 1.0)}
    assert all(0 <= row["clip_ratio/low_min"] <= row["clip_ratio/low_mean"] for row in metrics[1:])
    assert all(row["clip_ratio/high_mean"] <= row["clip_ratio/high_max"] <= 1 for row in metrics[1:])
    assert all(abs(row["sampling/importance_sampling_ratio/max"] - 1) < 1e-4 for row in metrics[1:])

    rollouts = lines(directory / "rollouts.jsonl")
    assert len(rollouts) == config.steps * config.logged_groups * config.num_generations
    assert not any(is_held_out(row["prompt"]) for row in rollouts)
    assert all(row["reward"] == task.score(row["text"], row) for row in rollouts)

    written = json.loads((directory / "summary.json").read_text())
    assert written == summary.to_dict()
    assert written["schema_version"] == 1
    assert (written["status"], written["steps"], written["seed"]) == ("finished", 3, 0)
    assert written["before"]["pass_1"] == metrics[0]["eval/pass@1"]
    assert written["after"]["pass_1"] == metrics[-1]["eval/pass@1"]
    assert written["after"]["step"] == 3
    assert written["used"] == sum(row["sampling/used"] for row in metrics[1:])
    assert trainer.summary == summary


def test_the_checkpoint_is_the_policy_at_the_end(train, config, tmp_path):
    trainer, _ = train(config)
    where = tmp_path / "run" / "checkpoint"
    loaded = Policy(AutoModelForCausalLM.from_pretrained(where), AutoTokenizer.from_pretrained(where))
    prompts = ["a1>", "bcd>"]
    ours, theirs = (generated(p, prompts, 6) for p in (trainer.policy, loaded))
    assert ours == theirs


def test_the_written_configuration_reproduces_the_run_bit_for_bit(train, config, tmp_path):
    first, _ = train(config, "first")
    torch.manual_seed(99)  # torch's own generator has no say
    second, _ = train(TrainConfig.from_file(tmp_path / "first" / "config.toml"), "second")
    assert numbers(tmp_path / "first") == numbers(tmp_path / "second")
    assert (tmp_path / "first/rollouts.jsonl").read_bytes() == (tmp_path / "second/rollouts.jsonl").read_bytes()
    for a, b in zip(first.policy.model.parameters(), second.policy.model.parameters(), strict=True):
        assert torch.equal(a, b)
    train(dataclasses.replace(config, seed=1), "other")
    assert numbers(tmp_path / "first") != numbers(tmp_path / "other")


def test_it_learns_what_it_is_rewarded_for(train, config, tmp_path):
    # From random weights, without demonstrations.
    warm_start = dataclasses.replace(config.warm_start, steps=0)
    longer = dataclasses.replace(config, steps=25, warm_start=warm_start, learning_rate=0.02, recipe="rloo")
    train(longer)
    rewards = [row["reward"] for row in lines(tmp_path / "run" / "metrics.jsonl")[1:]]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.3


@pytest.mark.parametrize("name", gk.recipe_names())
def test_every_recipe_trains(train, config, tmp_path, name):
    trainer, _ = train(dataclasses.replace(config, recipe=name, recipe_parameters=parameters_of(name), steps=3))
    *_, before, last = lines(tmp_path / "run" / "metrics.jsonl")
    assert last["updates"] == config.updates_per_step
    assert last["grad_norm"] > 0
    assert ("kl" in last) == (name in ("grpo", "reinforce_pp", "reinforce_pp_baseline"))
    assert before["step"] == 2
    rows = lines(tmp_path / "run" / "rollouts.jsonl")
    assert any(row["off_policy"] for row in rows) if name == "luffy" else "off_policy" not in rows[0]
    assert isinstance(rows[0]["advantage"], list) == (name == "reinforce_pp")


def test_the_scale_of_the_learning_rate_is_in_metrics_and_checkpoint(train, config, tmp_path):
    train(config.with_settings(["recipe=vcpo", "lr_control.base=1", "lr_control.scale=linear"]))
    rows = lines(tmp_path / "run" / "metrics.jsonl")[1:]
    assert all(0 < row["lr_scale"] <= 1 for row in rows)
    state = json.loads((tmp_path / "run" / "checkpoint" / "controllers.json").read_text())
    assert 0 < state["lr_scale"]["coefficient"] <= 1
    with pytest.raises(gk.InputError, match="scale='log'"):
        config.with_settings(["lr_control.scale=log"])


@pytest.mark.parametrize("control", ["kl", "entropy"])
def test_a_steered_coefficient_moves_and_is_in_the_checkpoint(train, config, tmp_path, control):
    settings = {
        "kl": ["recipe=grpo", "kl_control.target=1e-9", "kl_control.horizon=16"],
        "entropy": ["recipe=grpo", "recipe.beta=0", "entropy_control.target=9", "entropy_control.delta=0.25"],
    }
    trainer, _ = train(config.with_settings(settings[control]))
    found = [row[f"{control}_coef"] for row in lines(tmp_path / "run" / "metrics.jsonl")[1:]]
    state = json.loads((tmp_path / "run" / "checkpoint" / "controllers.json").read_text())
    if control == "kl":
        # The first step is on-policy and the second is not: far above its target, β grows by a fifth for 16 rollouts.
        assert found[0] == 0.04
        assert found[2] == pytest.approx(found[1] * 1.2)
        assert state["kl_coef"]["coefficient"] == pytest.approx(found[2] * 1.2)
    else:
        assert found == [0.0, 0.25, 0.5]
        assert state["entropy_coef"] == {"coefficient": 0.75, "raised": 0.75}
        assert trainer.learner.recipe.extra == (gk.Term(gk.Entropy(), -0.75, (), trainer.recipe.aggregate),)
    assert trainer.recipe == trainer.config.make_recipe()


def test_a_kl_target_without_a_kl_penalty_is_refused(train, config):
    with pytest.raises(gk.InputError, match="recipe 'dapo' has no KL penalty whose coefficient could be steered"):
        train(config.with_settings(["recipe=dapo", "kl_control.target=0.1"]))


def test_a_reward_function_replaces_the_tasks_score(train, config, tmp_path):
    train(config, reward=lambda prompts, completions, number, **columns: [float(len(c) % 2) for c in completions])
    assert all(row["reward"] == len(row["text"]) % 2 for row in lines(tmp_path / "run" / "rollouts.jsonl"))


def test_a_scorer_that_fails_stops_the_run_and_loses_nothing(train, config, tmp_path):
    calls = []

    def reward(prompts, completions, **columns):
        calls.append(len(prompts))
        if len(calls) >= 2:
            raise TimeoutError("judge")
        return [float(row) for row in range(len(prompts))]

    with pytest.raises(gk.InputError, match=r"'reward' failed on 2 of 16 .*it raised TimeoutError\('judge'\)"):
        train(config, reward=reward)
    directory = tmp_path / "run"
    assert sorted(path.name for path in directory.iterdir()) == FILES
    assert [row["step"] for row in lines(directory / "metrics.jsonl")] == [0, 1]
    summary = json.loads((directory / "summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["after"]) == ("failed", 1, None)
    AutoModelForCausalLM.from_pretrained(directory / "checkpoint")


def test_ctrl_c_in_a_reward_function(task, config, silent, tmp_path):
    def reward(prompts, completions, **columns):
        raise KeyboardInterrupt

    trainer = Trainer(config, task=task, reward=reward, directory=tmp_path / "run", console=silent)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.summary.status == "interrupted"
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint")


def test_a_rate_that_is_much_too_high_is_said(train, config, tmp_path):
    with pytest.raises(gk.InputError, match="training has diverged. Lower learning_rate"):
        train(dataclasses.replace(config, learning_rate=1e37))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"


def test_a_task_without_demonstrations(config, silent, tmp_path, task):
    class Bare:
        prompts, score = type(task).prompts, type(task).score

    with pytest.raises(gk.InputError, match="Bare has no demonstrate") as caught:
        Trainer(config, task=Bare(), directory=tmp_path / "a", console=silent).train()
    assert caught.value.kind == "no_demonstrations"
    random = dataclasses.replace(config, warm_start=dataclasses.replace(config.warm_start, steps=0), steps=1)
    summary = Trainer(random, task=Bare(), directory=tmp_path / "b", console=silent).train()
    assert summary.steps == 1


def test_a_run_is_not_overwritten_unless_it_is_said(train, config, tmp_path):
    train(config)
    with pytest.raises(gk.FileError, match="exists already") as caught:
        train(config)
    assert caught.value.kind == "file_exists"
    (tmp_path / "run" / "left.txt").touch()
    train(dataclasses.replace(config, seed=1), overwrite=True)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == FILES
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["seed"] == 1

    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").touch()
    with pytest.raises(gk.FileError, match="is not the directory of a run") as caught:
        train(config, "home", overwrite=True)
    assert caught.value.kind == "not_a_run"
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(gk.FileError, match="is not the directory of a run"):
        train(config, "link", overwrite=True)
    assert (tmp_path / "home" / "thesis.txt").exists()


def test_a_checkpoint_is_there_whole_or_not_at_all(train, config, tmp_path, monkeypatch):
    trainer, _ = train(config)
    where = tmp_path / "run" / "checkpoint"
    before = {path.name: path.read_bytes() for path in where.iterdir()}

    def full(directory):
        raise OSError(28, "No space left on device")

    with torch.no_grad():
        next(iter(trainer.policy.model.parameters())).add_(1)
    # The weights are written, then the disk is full: the half of a checkpoint must not replace the whole one.
    monkeypatch.setattr(trainer.policy.tokenizer, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.run.checkpoint(trainer.policy)
    assert {path.name: path.read_bytes() for path in where.iterdir()} == before
    assert sorted(path.name for path in where.parent.iterdir()) == FILES
    monkeypatch.undo()
    trainer.run.checkpoint(trainer.policy)
    assert (where / "model.safetensors").read_bytes() != before["model.safetensors"]
    assert sorted(path.name for path in where.parent.iterdir()) == FILES


def test_torchs_threads_are_given_back(train, config):
    threads = torch.get_num_threads()
    train(dataclasses.replace(config, steps=0, threads=threads + 1))
    assert torch.get_num_threads() == threads
