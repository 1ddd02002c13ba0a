"""Two real processes train as one does: started by torchrun, over gloo, on the same task."""

import dataclasses
import json
import math
import os
import signal
import socket
import subprocess
import sys
from itertools import filterfalse
from pathlib import Path

import pytest

import grpokit as gk
from grpokit.stages import load
from grpokit.trainer import TrainConfig, Trainer
from grpokit.trainer.config import LRControl, Snapshots
from grpokit.trainer.config_tables import LoRA, RanksConfig, SamplingConfig
from grpokit.trainer.console import Silent
from grpokit.trainer.ranked import Onlooker, check, console_of
from grpokit.trainer.ranks import ALONE, Ranks, groups_of, join
from grpokit.trainer.run import RunDirectory
from tests.trainer.conftest import Echo, parameters_of
from tests.trainer.conftest import config as _config
from tests.trainer.test_resume import clock, told
from tests.trainer.test_turns import Nagging

load()
ROOT = Path(__file__).parents[2]
BASE = dataclasses.replace(_config.__wrapped__(), snapshots=Snapshots(every=2), ranks=RanksConfig(timeout=60.0))
# Three prompts in two updates: one of a single group, of which the second rank has no row. Few tokens a micro-batch:
# the ranks have several, and not equally many.
UNEVEN = {"prompts_per_step": 3, "microbatch_tokens": 12}
QUICK = {
    "grpo": {"recipe": "grpo", "recipe_parameters": {"beta": 0.04}},
    "clip_cov": {"recipe": "clip_cov", **UNEVEN},
}
CASES = QUICK | {
    "dapo": {"recipe": "dapo", "max_rounds": 3, "oversampling": 1.5},
    "dr_grpo": {"recipe": "dr_grpo", **UNEVEN},
    "gspo": {"recipe": "gspo", "microbatch_tokens": 24},
    "rloo": {"recipe": "rloo", **UNEVEN},
    "kl_in_reward": {"recipe": "reinforce_pp"},
    "remax": {"recipe": "remax"},
    "stapo": {"recipe": "stapo", **UNEVEN},
    "vcpo": {"recipe": "vcpo", "lr_control": LRControl(base=0.5)},
    "luffy": {"recipe": "luffy"},
    "checkpointing": {"recipe": "grpo", "gradient_checkpointing": True, "layout": "padded", **UNEVEN},
    "conversation": {"recipe": "rloo", "max_completion_length": 24, "sampling": SamplingConfig(stop=(".", "x", "7"))},
    "lora": {"recipe": "grpo", "lora": LoRA(rank=2)},
    "lora_bf16": {"recipe": "rloo", "lora": LoRA(rank=2), "precision": "bf16"},
}
# A log-prob of about 4.5 nats has a unit in the last place of 5e-7, and some twenty roundings lie behind it.
NATS = 1e-5

WORKER = """
import json, os, sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

import grpokit as gk
from grpokit.trainer import Trainer
from grpokit.trainer.learn import Learner
from tests.trainer.test_ranks import BASE, CASES, Silent, configured, task

place, names = Path(sys.argv[1]), sys.argv[2:]
rank, updates = int(os.environ["RANK"]), []
real, move = Learner._pass_back, Learner._move

def pass_back(self, rows, columns, sizes, clock):
    own = self.policy.ranks.shares(sizes)
    # Groups are whole, and all rows are somebody's.
    bounds = [0]
    for size in sizes:
        bounds.append(bounds[-1] + size)
    assert all(part.start in bounds and part.stop in bounds for part in own), (own, bounds)
    assert [own[0].start, own[-1].stop] == [0, len(rows.targets)]
    assert all(isinstance(weight, DTensor) for weight in self.policy.model.parameters())
    updates.append(own[rank])
    return real(self, rows, columns, sizes, clock)

def moved(self, measured, clock):
    found = move(self, measured, clock)
    assert len(self.optimizer.state)
    assert all(isinstance(s["exp_avg"], DTensor) for s in self.optimizer.state.values())
    return found

Learner._pass_back, Learner._move = pass_back, moved
for name in names:
    trainer = Trainer(configured(name), task=task(name), directory=place / name)
    trainer.train()
    held = sum(weight.to_local().numel() for weight in trainer.policy.model.parameters())
    assert held < 0.6 * sum(weight.numel() for weight in trainer.policy.model.parameters())
    try:
        Trainer(configured(name), task=task(name), directory=place / name)
    except gk.FileError as problem:
        assert problem.kind == "file_exists"
    else:
        raise AssertionError("taken")
(place / f"updates-{rank}.json").write_text(json.dumps([part.stop - part.start for part in updates]))
"""


def configured(name):
    changes = CASES[name]
    parameters = parameters_of(changes["recipe"]) | changes.get("recipe_parameters", {})
    return dataclasses.replace(BASE, **changes | {"recipe_parameters": parameters})


def task(name):
    return Nagging() if name == "conversation" else Echo()


def environment(**more):
    path = os.pathsep.join([str(ROOT / "python"), str(ROOT)])
    return os.environ | {"PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"} | more


def torchrun(*words, ranks=2):
    """Processes which listen to this machine alone."""
    how = ["--standalone", "--local-addr", "localhost", "--nproc-per-node", str(ranks)]
    words = [sys.executable, "-m", "torch.distributed.run", *how, *map(str, words)]
    return subprocess.run(words, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=600)


def without_torchrun(text):
    """What the ranks said, without the many lines that torchrun adds where one failed."""
    return text.partition("closing signal")[0][-6000:]


def run_worker(text, place, *names, ranks=2):
    place.mkdir(exist_ok=True)
    (place / "worker.py").write_text(text)
    done = torchrun(place / "worker.py", place, *names, ranks=ranks)
    assert done.returncode == 0, without_torchrun(done.stderr)
    return done


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def alike(one, two, tolerance, where=""):
    """The same but for rounding, and what a clock says."""
    assert type(one) is type(two), where
    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in filterfalse(clock, one):
            alike(one[key], two[key], tolerance, f"{where}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(two), where
        for number, (a, b) in enumerate(zip(one, two, strict=True)):
            alike(a, b, tolerance, f"{where}/{number}")
    elif isinstance(one, float):
        # Sums of exponentials of log-probs, and gradients: relative to their size, a hundred times that of a log-prob.
        assert math.isclose(one, two, rel_tol=10 * tolerance, abs_tol=tolerance), (where, one, two)
    else:
        assert one == two, where


def compare(place, names, tmp_path):
    for name in names:
        Trainer(configured(name), task=task(name), directory=tmp_path / "one" / name, console=Silent()).train()
        one, two = tmp_path / "one" / name, place / name
        if name == "lora_bf16":
            # 4.5 nats are 4.5 ± 0.02 there, and the ranks' batches round in another way: other tokens are sampled.
            for a, b in zip(rows(one / "metrics.jsonl")[1:], rows(two / "metrics.jsonl")[1:], strict=True):
                assert a["entropy"] == pytest.approx(b["entropy"], abs=0.05)
                assert a["reward"] == pytest.approx(b["reward"], abs=0.2)
        else:
            for file in ("metrics.jsonl", "rollouts.jsonl"):
                alike(rows(one / file), rows(two / file), NATS, f"{name}/{file}")
        files = [sorted(p.name for p in run.rglob("*") if "snapshots" not in p.parts) for run in (one, two)]
        assert files[0] == files[1]


def test_two_ranks_are_one_process(tmp_path):
    """Parameters are DTensors, groups are whole, and the numbers are those of one process to rounding."""
    run_worker(WORKER, tmp_path / "two", *QUICK)
    compare(tmp_path / "two", QUICK, tmp_path)
    mine = [json.loads((tmp_path / "two" / f"updates-{rank}.json").read_text()) for rank in (0, 1)]
    assert 0 in mine[0] + mine[1]  # the update of one group
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tmp_path / "two" / "grpo" / "checkpoint")


@pytest.mark.slow
def test_every_kind_of_recipe(tmp_path):
    names = [name for name in CASES if name not in QUICK]
    run_worker(WORKER, tmp_path / "two", *names)
    compare(tmp_path / "two", names, tmp_path)


@pytest.mark.slow
def test_three_ranks_two_of_which_have_nothing(tmp_path):
    names = ["clip_cov", "rloo"]  # updates of two groups and of one
    run_worker(WORKER, tmp_path / "three", *names, ranks=3)
    compare(tmp_path / "three", names, tmp_path)
    mine = [json.loads((tmp_path / "three" / f"updates-{rank}.json").read_text()) for rank in range(3)]
    assert {sum(rows == 0 for rows in update) for update in zip(*mine, strict=True)} == {1, 2}


SMALL = [
    f"--set={word}"
    for word in (
        "tiny.hidden_size=16", "tiny.intermediate_size=32", "tiny.layers=1", "tiny.heads=2", "evaluation.prompts=8",
        "warm_start.steps=4", "warm_start.batch_size=8", "prompts_per_step=4", "recipe=grpo", "steps=2",
    )
]  # fmt: skip


@pytest.mark.slow
def test_the_command_speaks_once(tmp_path):
    """With a reward function, which each rank has processes of its own for."""
    (tmp_path / "rewards.py").write_text(
        "def lower(completions): return [sum(map(str.islower, t)) for t in completions]"
    )
    words = ["-m", "grpokit", "train", "--json", "--runs", tmp_path]
    settings = [*SMALL, f'--set=rewards.functions=["{tmp_path}/rewards.py:lower"]']
    done = torchrun(*words, "--name", "two", *settings)
    assert done.returncode == 0, without_torchrun(done.stderr)
    assert json.loads(done.stdout)["status"] == "finished"
    assert done.stderr.count("step    0") == 1
    alone = [sys.executable, *map(str, words), "--name", "one", *settings]
    subprocess.run(alone, env=environment(), cwd=ROOT, check=True, capture_output=True)
    for file in ("metrics.jsonl", "rollouts.jsonl"):
        alike(rows(tmp_path / "one" / file), rows(tmp_path / "two" / file), NATS)
    # Without a name it is made of the time, which is the first rank's.
    done = torchrun(*words[:4], "--runs", tmp_path / "unnamed", *SMALL)
    assert len(list((tmp_path / "unnamed").iterdir())) == 1


STOPPED = """
import os, random, signal, sys
from dataclasses import replace
from pathlib import Path

from grpokit.trainer import Trainer
from tests.trainer.conftest import Echo
from tests.trainer.test_ranks import BASE, Chancy

place, name, kill = Path(sys.argv[1]), sys.argv[2], sys.argv[3:] == ["kill"]
real = Trainer._step

def step(self, number):
    if kill and number == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, number)

Trainer._step = step
config = replace(BASE, steps=6, recipe="grpo", recipe_parameters={"beta": 0.04})
there = (place / name).exists()
random.seed(int(os.environ["RANK"]) + 10 * there)  # what a snapshot has to bring back, on each rank
Trainer(config, task=Chancy(), directory=place / name, resume=there).train()
"""


class Chancy(Echo):
    """A score that draws lots, from each rank's own generator."""

    def score(self, completion, item):
        import random

        return super().score(completion, item) + random.random()


@pytest.mark.slow
def test_killed_and_resumed(tmp_path):
    """To the bit on two ranks; to rounding on another number of them."""
    run_worker(STOPPED, tmp_path, "alone")
    worker = tmp_path / "worker.py"
    assert torchrun(worker, tmp_path, "run", "kill").returncode != 0
    assert sorted(p.name for p in (tmp_path / "run" / "snapshots").iterdir()) == ["step-00000000", "step-00000002"]
    assert torchrun(worker, tmp_path, "run").returncode == 0
    assert told(tmp_path / "run") == told(tmp_path / "alone")


@pytest.mark.slow
def test_resumed_on_another_number_of_ranks(tmp_path):
    text = STOPPED.replace("Chancy()", "Echo()")
    run_worker(text, tmp_path, "two")
    worker = tmp_path / "worker.py"
    one = [sys.executable, str(worker), str(tmp_path)]
    how = {"env": environment(RANK="0"), "cwd": ROOT, "capture_output": True, "text": True}
    assert torchrun(worker, tmp_path, "two_one", "kill").returncode != 0
    done = subprocess.run([*one, "two_one"], **how)
    assert done.returncode == 0, done.stderr
    assert subprocess.run([*one, "one_two", "kill"], **how).returncode == -signal.SIGKILL
    done = torchrun(worker, tmp_path, "one_two")
    assert done.returncode == 0, without_torchrun(done.stderr)
    for name in ("two_one", "one_two"):
        alike(rows(tmp_path / name / "metrics.jsonl"), rows(tmp_path / "two" / "metrics.jsonl"), NATS, name)


BREAKING = """
import os, random, signal, sys, time
from dataclasses import replace
from pathlib import Path

import grpokit as gk
from grpokit.trainer import Trainer
from grpokit.trainer.config import Snapshots
from grpokit.trainer.config_tables import RanksConfig
from grpokit.trainer.engine import InProcess
from grpokit.trainer.policy import Policy
from tests.trainer.conftest import Echo
from tests.trainer.test_ranks import BASE, Silent

place, how, rank = Path(sys.argv[1]), sys.argv[2], int(os.environ["RANK"])
# What breaks off inside a pass waits as long as the process group does.
config = replace(BASE, ranks=RanksConfig(timeout=30.0 if how == "learning" else 60.0), recipe="dapo")

class Breaking(Echo):
    def score(self, completion, item):
        if rank == 1 and how == "sleep":
            time.sleep(300)
        if rank == 1 and how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 1 and how == "score":
            raise ValueError("no score")
        return super().score(completion, item)

    def prompts(self, rng, n):
        if how == "differ":
            rng = random.Random(rank)
        return super().prompts(rng, n)

def broken(*_, **__):
    if how == "unforeseen":
        raise ZeroDivisionError("by nothing")
    time.sleep(300)

if rank == 1 and how == "unforeseen":
    InProcess.generate = broken
if rank == 1 and how == "learning":
    Policy.loss = broken
try:
    trainer = Trainer(config, task=Breaking(), directory=place / "run", console=Silent())
    # Until here the ranks have waited for one another's imports.
    trainer.ranks.timeout = float(sys.argv[3])
    trainer.train()
except gk.GrpokitError as problem:
    print(problem.kind, problem, sep="|")
except ZeroDivisionError as problem:
    print("ZeroDivisionError", problem, sep="|")
"""


def two(tmp_path, how, timeout=60.0):
    """What each rank says where one of them breaks; without torchrun, which would end the other one at once."""
    (tmp_path / "worker.py").write_text(BREAKING)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    words = [sys.executable, str(tmp_path / "worker.py"), str(tmp_path), how, str(timeout)]
    told = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            words, env=environment(RANK=str(rank), **told), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        out, talk = processes[0].communicate(timeout=300)
        assert "|" in out, talk
        if how in ("sleep", "learning"):
            processes[1].kill()
        return out.split("|"), processes[1].communicate(timeout=60)[0].split("|")
    finally:
        for process in processes:
            process.kill()


def test_a_rank_that_hangs_is_named_with_its_phase(tmp_path):
    (kind, text), _ = two(tmp_path, "sleep", timeout=8.0)
    assert kind == "ranks_timed_out"
    for words in ("rank 1 did not come within 8 s", "rank 0 waited", "'evaluation, rewards'", "ranks.timeout"):
        assert words in text
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert not (tmp_path / "run" / "checkpoint").exists()


@pytest.mark.slow
def test_a_rank_that_hangs_while_it_learns(tmp_path):
    (kind, text), _ = two(tmp_path, "learning", timeout=30.0)
    assert kind == "ranks_timed_out"
    assert "rank 1 was last seen in 'learning'" in text


@pytest.mark.slow
def test_a_rank_that_dies(tmp_path):
    (kind, text), _ = two(tmp_path, "die")
    assert kind == "rank_lost"
    assert "rank 1 was last seen in 'evaluation, rewards'" in text


@pytest.mark.slow
def test_what_one_raises_all_raise(tmp_path):
    first, second = two(tmp_path, "score")
    assert first == second
    assert first[0] == "reward_failed"
    assert "no score" in first[1]


@pytest.mark.slow
def test_ranks_that_drew_other_prompts(tmp_path):
    first, second = two(tmp_path, "differ")
    assert first == second
    assert first[0] == "ranks_differ"
    assert "task Breaking" in first[1]


@pytest.mark.slow
def test_what_nobody_foresaw(tmp_path):
    first, second = two(tmp_path, "unforeseen")
    assert (first[0], second[0]) == ("rank_failed", "ZeroDivisionError")
    assert "rank 1 failed in the phase 'evaluation, sampling'" in first[1]
    assert "ZeroDivisionError: by nothing" in first[1]


def test_shares_are_whole_groups():
    for world in (1, 2, 3, 5):
        for sizes in ([4, 4, 4], [1], [2, 3, 1, 5, 2], []):
            parts = Ranks(0, world).shares(sizes)
            bounds = [sum(sizes[:at]) for at in range(len(sizes) + 1)]
            assert len(parts) == world
            assert [row for part in parts for row in range(sum(sizes))[part]] == list(range(sum(sizes)))
            assert all(part.start in bounds and part.stop in bounds for part in parts)
            counts = [bounds.index(part.stop) - bounds.index(part.start) for part in parts]
            assert max(counts) - min(counts) <= 1
    one, other = {"prompt": "a"}, {"prompt": "a"}
    assert groups_of([one, one, other]) == [2, 1]
    assert groups_of([700, 700, 3, 700]) == [2, 1, 1]


def test_one_process_is_alone(monkeypatch):
    assert join(1.0) is ALONE
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)
    assert join(1.0) is ALONE
    assert ALONE.spread("sampling", [2, 1], lambda own: range(3)[own]) == [range(3)]
    with pytest.raises(ZeroDivisionError), ALONE.phase("sampling"):
        ALONE.together(lambda: 1 // 0)


def test_what_several_ranks_cannot_do(tmp_path):
    config, ranks = TrainConfig(recipe="rloo", async_level=1), Ranks(1, 2)
    with pytest.raises(gk.InputError, match="async_level=1; expected 0 on 2 ranks") as caught:
        check(config, config.make_recipe(), ranks)
    assert caught.value.kind == "bad_parameter"
    check(config, config.make_recipe(), ALONE)

    from tests.test_ranks import Centred

    recipe = gk.recipe("rloo").replace(objective=Centred())
    with pytest.raises(gk.InputError, match="recipe 'rloo': the objective Centred") as caught:
        check(TrainConfig(), recipe, ranks)
    assert caught.value.kind == "not_across_ranks"
    with pytest.raises(gk.InputError, match="timeout=0; expected a number above 0"):
        RanksConfig(timeout=0)
    assert isinstance(console_of(ranks, None), Silent)


def test_only_the_first_writes(tmp_path):
    """Every method of a run's directory that writes does nothing on another rank."""
    onlooker = Onlooker(tmp_path / "run")
    reading = {"check", "configuration", "last_snapshot", "finished_steps", "reference", "sizes", "snapshots", "steps"}
    writing = {name for name in vars(RunDirectory) if not name.startswith("_")} - reading
    assert writing <= vars(Onlooker).keys()
    for name in writing:
        getattr(onlooker, name)(None)
    assert not (tmp_path / "run").exists()
