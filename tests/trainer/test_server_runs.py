"""Whole runs that a server samples for, in both dialects: what the run in one process does, to rounding."""

import dataclasses
import json

import pytest

from grpokit import StateError
from grpokit.cli import main
from grpokit.trainer import Trainer
from grpokit.trainer.config import Evaluation, Snapshots
from grpokit.trainer.config_tables import EngineConfig, SamplingConfig

from .conftest import log, post
from .test_resume import clock
from .test_turns import Nagging

SMALL = [
    "tiny.hidden_size=16", "tiny.intermediate_size=32", "tiny.layers=2", "tiny.heads=2", "evaluation.prompts=6",
    "evaluation.samples=2", "evaluation.every=2", "warm_start.steps=30", "warm_start.batch_size=8", "steps=3",
    "prompts_per_step=4", "num_generations=4", "max_rounds=2", "learning_rate=3e-3", 'sampling.stop=["zz"]',
]  # fmt: skip


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def numbers(run):
    return [{k: v for k, v in row.items() if not clock(k)} for row in lines(run / "metrics.jsonl")]


def train(tmp_path, name, *settings):
    (tmp_path / "rewards.py").write_text(
        "def letters(completions):\n    return [sum(map(str.islower, c)) for c in completions]\n"
    )
    settings = [f'rewards.functions=["{tmp_path}/rewards.py:letters"]', *settings]
    words = [word for setting in (*SMALL, *settings) for word in ("--set", setting)]
    assert main(["train", "--json", "--runs", str(tmp_path), "--name", name, *words]) == 0
    return tmp_path / name


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs"), "alone")


@pytest.mark.parametrize("protocol", ["vllm", "sglang"])
def test_a_run_is_that_of_one_process(url, alone, tmp_path, protocol, capsys):
    run = train(tmp_path, "served", f"engine.url={url}", f"engine.protocol={protocol}", "engine.concurrency=4")
    assert json.loads(capsys.readouterr().out)["status"] == "finished"
    for row, expected in zip(numbers(run), numbers(alone), strict=True):
        assert row == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert any(row["sampling/used"] for row in numbers(run)[1:])
    told = ("step", "prompt", "text", "reward", "finish", "keep", "version_min")
    rows, expected = ([[row[k] for k in told] for row in lines(r / "rollouts.jsonl")] for r in (run, alone))
    assert rows == expected
    assert not (run / "weights").exists()
    rows = log(url)
    assert {row["path"] for row in rows if "prompt" in row} == {
        "/v1/completions" if protocol == "vllm" else "/generate"
    }
    # Before the first evaluation and step, and after each step's two updates: once each.
    assert sum("prompt" not in row for row in rows) == 4


def of_server(config, url, **more):
    config = dataclasses.replace(config, recipe="rloo", engine=EngineConfig(url=url, retries=1, **more))
    return dataclasses.replace(config, learning_rate=3e-3, max_logp_gap=1e-3)


def test_a_run_goes_on_at_a_server_that_has_moved(door, url, task, config, silent, tmp_path):
    quick = Evaluation(prompts=2, samples=1, every=1)
    config = of_server(dataclasses.replace(config, snapshots=Snapshots(every=1), evaluation=quick), url)
    whole = Trainer(dataclasses.replace(config, steps=3), task=task, directory=tmp_path / "whole", console=silent)
    whole.train()
    Trainer(dataclasses.replace(config, steps=1), task=task, directory=tmp_path / "parts", console=silent).train()
    left = tmp_path / "parts" / "weights" / "grpokit-version-00000001"  # as a killed run leaves it
    left.mkdir(parents=True)
    config = dataclasses.replace(config, steps=3, engine=dataclasses.replace(config.engine, url=post(door)))
    Trainer(config, task=task, directory=tmp_path / "parts", console=silent, resume=True).train()
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")
    assert (tmp_path / "parts/rollouts.jsonl").read_bytes() == (tmp_path / "whole/rollouts.jsonl").read_bytes()
    assert not left.exists()


@pytest.mark.parametrize("protocol", ["vllm", "sglang"])
def test_an_update_that_is_ignored_stops_the_run(url, task, config, silent, tmp_path, protocol):
    """The server says that it has the new weights, and goes on with the former ones."""
    post(url + "/plan", {"update": ["fine", "claim"]})
    trainer = Trainer(of_server(config, url, protocol=protocol), task=task, directory=tmp_path / "run", console=silent)
    with pytest.raises(StateError, match="the sampler has other weights") as caught:
        trainer.train()
    assert caught.value.kind == "sampler_differs"
    assert trainer.summary.steps == 1


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["vllm", "sglang"])
def test_conversations_are_those_of_one_process(url, config, silent, tmp_path, protocol):
    config = dataclasses.replace(of_server(config, url, protocol=protocol), max_completion_length=24)
    config = dataclasses.replace(config, sampling=SamplingConfig(stop=(".", "x", "7")))
    alone = dataclasses.replace(config, engine=EngineConfig())
    for name, how in (("alone", alone), ("served", config)):
        Trainer(how, task=Nagging(), directory=tmp_path / name, console=silent).train()
    told = ("step", "prompt", "text", "reward", "finish", "keep", "version_min")
    rows, expected = (
        [[r[k] for k in told] for r in lines(tmp_path / n / "rollouts.jsonl")] for n in ("served", "alone")
    )
    assert rows == expected
    assert any("[1]" in row[2] for row in rows)
    for row, other in zip(numbers(tmp_path / "served"), numbers(tmp_path / "alone"), strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-4)


def test_an_update_that_is_ignored_stops_a_run_ahead(url, task, config, silent, tmp_path):
    """Where the trainer's weights have moved on, the process that samples sees it."""
    config = dataclasses.replace(of_server(config, url), async_level=1, steps=5)
    trainer = Trainer(config, task=task, directory=tmp_path / "fine", console=silent)
    trainer.train()
    rows = lines(tmp_path / "fine" / "metrics.jsonl")[1:]
    assert max(row["sampling/ahead_logp_difference/max"] for row in rows) < 1e-3
    assert rows[-1]["sampling/sampling_logp_difference/mean"] > 1e-3
    post(url + "/plan", {"update": ["fine"] + ["claim"] * 20})
    trainer = Trainer(config, task=task, directory=tmp_path / "run", console=silent)
    with pytest.raises(StateError, match="the sampler has other weights") as caught:
        trainer.train()
    assert caught.value.kind == "sampler_differs"
    assert trainer.summary.steps == 2  # both are of the first weights


def test_a_server_that_dies_leaves_a_usable_run(url, task, config, silent, tmp_path):
    post(url + "/plan", {"sample": ["fine"] * 40 + ["die"]})
    trainer = Trainer(of_server(config, url), task=task, directory=tmp_path / "run", console=silent)
    with pytest.raises(StateError, match=rf"{url} did not answer /v1/completions in 2 tries") as caught:
        trainer.train()
    assert caught.value.kind == "server_failed"
    assert (trainer.summary.status, trainer.summary.steps) == ("failed", 1)
    assert (tmp_path / "run" / "checkpoint" / "model.safetensors").exists()
    assert (tmp_path / "run" / "summary.json").exists()
