import json
import random
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from grpokit.stages import EXAMPLES
from grpokit.trainer import calls
from grpokit.trainer.config import Evaluation, TinyModel, TrainConfig, WarmStart
from grpokit.trainer.console import Silent
from grpokit.trainer.engine import InProcess
from grpokit.trainer.policy import Policy
from grpokit.trainer.sampling import Sampling

SERVED = TinyModel(hidden_size=16, intermediate_size=32, layers=2, heads=2)


@dataclass(frozen=True)
class Echo:
    """Say the prompt's letter as often as you can: rewarded from the first random weights on, so groups have signal."""

    def prompts(self, rng, n):
        return [{"prompt": f"{rng.choice('abcd')}{rng.randrange(1000)}>", "number": i} for i in range(n)]

    def score(self, completion, item):
        return sum(c.islower() for c in completion) / 6

    def demonstrate(self, rng: random.Random, item):
        return item["prompt"][0] * rng.randint(1, 5)


@pytest.fixture
def task():
    return Echo()


@pytest.fixture
def config():
    return TrainConfig(
        steps=3,
        prompts_per_step=4,
        num_generations=4,
        max_completion_length=6,
        tiny=SERVED,
        warm_start=WarmStart(steps=4, batch_size=8),
        evaluation=Evaluation(prompts=6, samples=2, every=2),
    )


def parameters_of(name):
    """What a recipe requires, but for the run's own length."""
    return {k: v for k, v in EXAMPLES[name].items() if k != "max_len"}


def generated(policy, prompts, longest, *, seed=0, **how):
    """A completion of each prompt, sampled in process."""
    seeds = [seed << 32 | row for row in range(len(prompts))]
    return InProcess(policy).generate(policy.encode(prompts), seeds, Sampling(longest, **how))


@pytest.fixture
def silent():
    return Silent()


@pytest.fixture(scope="session")
def door(tmp_path_factory):
    """A process that serves the tiny model, with other weights than any run begins with; see serving.py."""
    checkpoint = tmp_path_factory.mktemp("served")
    Policy.tiny(SERVED, seed=99).save(checkpoint)
    command = [sys.executable, str(Path(__file__).with_name("serving.py")), str(checkpoint)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/open"
        process.stdin.close()


@pytest.fixture
def url(door, monkeypatch):
    """A server of its own in that process; what it loses is asked again soon."""
    monkeypatch.setattr(calls, "_FIRST_WAIT", 0.01)
    return post(door)


def post(url, body=None):
    request = urllib.request.Request(url, json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read() or b"null")


def log(url):
    with urllib.request.urlopen(url + "/log", timeout=30) as answer:
        return json.loads(answer.read())
