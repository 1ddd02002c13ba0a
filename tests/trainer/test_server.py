"""The engine that asks a server, against a real one in another process, in both dialects: what comes back is what the
policy itself samples; what is lost on the way is asked again; what is wrong stops the run and says where and why."""

import dataclasses
import os
import signal
import socket
import threading

import pytest
import torch

from grpokit import FileError, InputError, StateError
from grpokit.trainer import TrainConfig, Trainer
from grpokit.trainer.config_tables import EngineConfig, LoRA
from grpokit.trainer.engine import InProcess
from grpokit.trainer.models import load
from grpokit.trainer.policy import Policy
from grpokit.trainer.sampling import Sampling
from grpokit.trainer.server import Server

from .conftest import SERVED, log, post

DIALECTS = ("vllm", "sglang")
GREEDY, PLAIN = Sampling(8, temperature=0.0), Sampling(8, temperature=1.2)
HOWS = {
    "vllm": [PLAIN, GREEDY, Sampling(8, top_p=0.7), Sampling(8, top_k=5, top_p=0.9), Sampling(9, stop=("a", "e9"))],
    "sglang": [PLAIN, GREEDY, Sampling(9, stop=("a", "e9"))],
}


@pytest.fixture(scope="module")
def policy():
    return Policy.tiny(SERVED, seed=1)


@pytest.fixture
def engine(url, policy, tmp_path):
    def made(protocol="vllm", *, loaded=True, **options):
        options = {"timeout": 20.0, "retries": 3, "concurrency": 4, **options}
        server = Server(url, policy, protocol=protocol, weights=tmp_path / "weights", **options)
        if loaded:
            server.load(policy, 0)
        return server

    return made


def prompts_of(policy, n):
    return policy.encode([f"{'abcd'[i % 4]}{i}>" for i in range(n)]), [2**63 - 1 - 7 * i for i in range(n)]


def same(found, expected):
    assert [dataclasses.replace(c, logps=[]) for c in found] == [dataclasses.replace(c, logps=[]) for c in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logps == pytest.approx(other.logps, abs=1e-5)


@pytest.mark.parametrize(("protocol", "how"), [(name, how) for name in DIALECTS for how in HOWS[name]])
def test_what_comes_back_is_what_the_policy_samples(engine, policy, protocol, how):
    prompts, seeds = prompts_of(policy, 12)
    server = engine(protocol)
    found, expected = (e.generate(prompts, seeds, how) for e in (server, InProcess(policy)))
    same(found, expected)
    assert {c.finish for c in expected} >= ({"length"} if how.temperature else set())
    server.close()


@pytest.mark.parametrize("protocol", DIALECTS)
def test_new_weights_are_loaded_and_the_former_removed(engine, url, policy, protocol, tmp_path):
    prompts, seeds = prompts_of(policy, 6)
    server = engine(protocol, loaded=False)
    other = server.generate(prompts, seeds, PLAIN)  # the weights that the server was started with
    expected = InProcess(policy).generate(prompts, seeds, PLAIN)
    assert [c.token_ids for c in other] != [c.token_ids for c in expected]
    server.load(policy, 3)
    server.load(policy, 3)
    same(server.generate(prompts, seeds, PLAIN), InProcess(policy, 3).generate(prompts, seeds, PLAIN))
    moved = policy.frozen()
    with torch.no_grad():
        for weight in moved.model.parameters():
            weight.mul_(1.5)
    (tmp_path / "weights" / ".new-grpokit-version-00000001").mkdir()  # as a killed run leaves it
    server.load(moved, 4)
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["grpokit-version-00000004"]
    same(server.generate(prompts, seeds, PLAIN), InProcess(moved, 4).generate(prompts, seeds, PLAIN))
    assert sum("prompt" not in row for row in log(url)) == 2  # version 3 went there once
    server.close()
    assert not (tmp_path / "weights").exists()


def test_low_rank_weights_are_sent_merged(engine, tmp_path):
    config = TrainConfig(tiny=SERVED, lora=LoRA(rank=4))
    policy = load(config, 5)
    with torch.no_grad():
        for weight in policy.trained():
            weight.add_(0.2)
    before = {name: weight.clone() for name, weight in policy.model.state_dict().items()}
    prompts, seeds = prompts_of(policy, 6)
    server = engine(loaded=False)
    server.load(policy, 1)
    found, expected = (e.generate(prompts, seeds, PLAIN) for e in (server, InProcess(policy, 1)))
    same(found, expected)
    assert all(torch.equal(weight, before[name]) for name, weight in policy.model.state_dict().items())


LOST = ["drop", "cut", "cut unnoticed", "500", "503", "429", "408", "no json", "abort", "hang"]


@pytest.mark.parametrize("lost", LOST)
def test_what_is_lost_is_asked_again_with_its_seed(engine, url, policy, lost):
    """Every prompt is answered once, in its place, and as if nothing had been lost."""
    prompts, seeds = prompts_of(policy, 8)
    server = engine("sglang" if lost == "abort" else "vllm", timeout=1.0 if lost == "hang" else 20.0)
    post(url + "/plan", {"sample": ["fine", lost, "fine", lost, lost]})
    same(server.generate(prompts, seeds, PLAIN), InProcess(policy).generate(prompts, seeds, PLAIN))
    rows = [row for row in log(url) if "prompt" in row]
    assert len(rows) == 8 + 3
    done = [(row["prompt"], row["seed"]) for row in rows if row["kind"] != lost]
    assert sorted(done) == sorted(zip(prompts, seeds, strict=True))


def test_the_order_is_kept_where_answers_overtake_one_another(engine, url, policy):
    prompts, seeds = prompts_of(policy, 12)
    server = engine(concurrency=4)
    post(url + "/plan", {"sample": ["later", "later"]})
    same(server.generate(prompts, seeds, PLAIN), InProcess(policy).generate(prompts, seeds, PLAIN))
    assert server.generate([], [], PLAIN) == []


@pytest.mark.parametrize("lost", ["drop", "cut unnoticed", "500", "hang"])
def test_what_stays_lost_is_an_error(engine, url, policy, lost):
    prompts, seeds = prompts_of(policy, 4)
    server = engine(retries=2, timeout=0.5, loaded=False)
    post(url + "/plan", {"sample": [lost] * 12})
    with pytest.raises(StateError, match=r"did not answer /v1/completions in 3 tries") as caught:
        server.generate(prompts, seeds, PLAIN)
    assert caught.value.kind == "server_failed"
    assert url in str(caught.value)
    reason = {"drop": "closed connection", "cut unnoticed": "cut off", "500": "as planned", "hang": "for 0.5 s"}[lost]
    assert reason in str(caught.value)


def test_ctrl_c_comes_through_at_once(engine, url, policy):
    prompts, seeds = prompts_of(policy, 6)
    server = engine(loaded=False, timeout=600.0, concurrency=3)
    post(url + "/plan", {"sample": ["hang"] * 3})
    before, handler = set(threading.enumerate()), signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt():
        while len(log(url)) < 3:
            pass
        os.kill(os.getpid(), signal.SIGINT)

    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            server.generate(prompts, seeds, PLAIN)
    finally:
        signal.signal(signal.SIGINT, handler)
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive()
    assert len(log(url)) == 3


@pytest.mark.parametrize(
    ("protocol", "spoilt", "message"),
    [
        ("vllm", "more logps", "log-probs, one a token"),
        ("vllm", "two", "expected one completion with its token ids"),
        ("vllm", "no ids", "expected one completion with its token ids"),
        *((p, "nan", "log-probs, numbers that are 0 or less and finite") for p in DIALECTS),
        *((p, "null", "log-probs, numbers that are 0 or less and finite") for p in DIALECTS),
        *((p, "positive", "log-probs, numbers that are 0 or less and finite") for p in DIALECTS),
        *((p, "foreign id", "token ids, whole numbers from 0 to 98") for p in DIALECTS),
        *((p, "text id", "token ids, whole numbers from 0 to 98") for p in DIALECTS),
        *((p, "no tokens", "answered 0 tokens; expected 1 to 8") for p in DIALECTS),
        *((p, "too long", "answered 99 tokens; expected 1 to 8") for p in DIALECTS),
        *((p, "goes on", "nothing behind the end token, 1") for p in DIALECTS),
        *((p, "odd finish", "answered tired; expected a completion that ended") for p in DIALECTS),
    ],
)
def test_an_answer_that_is_none_is_an_error_at_once(engine, url, policy, protocol, spoilt, message):
    prompts, seeds = prompts_of(policy, 3)
    server = engine(protocol, loaded=False, concurrency=1)
    post(url + "/plan", {"sample": ["fine", spoilt]})
    with pytest.raises(StateError, match=message) as caught:
        server.generate(prompts, seeds, PLAIN)
    assert caught.value.kind == "server_answer"
    assert url in str(caught.value)
    assert len(log(url)) == 2


def test_a_refusal_is_not_asked_again_and_has_the_servers_words(engine, url, policy):
    prompts, seeds = prompts_of(policy, 3)
    server = engine(loaded=False, concurrency=1)
    for status, words in (("400", "as planned: 400"), ("404", "engine.protocol"), ("401", "without one")):
        post(url + "/plan", {"sample": [status]})
        with pytest.raises(StateError, match=words) as caught:
            server.generate(prompts, seeds, PLAIN)
        assert caught.value.kind == "server_refused"
        assert url in str(caught.value)
        assert f"status {status}" in str(caught.value)
    assert len(log(url)) == 3


def test_a_full_context_ends_a_completion_by_its_length(engine, url, policy):
    prompts, seeds = prompts_of(policy, 1)
    server = engine(loaded=False)
    post(url + "/plan", {"sample": ["full"]})
    (made,) = server.generate(prompts, seeds, PLAIN)
    assert (made.finish, made.token_ids) == ("length", [5, 6])
    # At the limit the engine in process says "stop" of a stop string or the end token, whatever the server calls it.
    post(url + "/plan", {"sample": ["full", "ended"]})
    how = Sampling(2, stop=(policy.tokenizer.decode([6]),))
    assert [server.generate(prompts, seeds, how)[0].finish for _ in range(2)] == ["stop", "stop"]


def test_other_weights_than_were_sent_last(engine, url, policy):
    prompts, seeds = prompts_of(policy, 3)
    server = engine("sglang")
    post(url + "/plan", {"update": ["forget"]})
    server.load(policy, 1)
    with pytest.raises(StateError, match="-0', and '.*-1' are") as caught:
        server.generate(prompts, seeds, PLAIN)
    assert caught.value.kind == "server_version"
    assert url in str(caught.value)
    server.load(policy, 2)
    server.generate(prompts, seeds, PLAIN)
    # Another run that uses the server has the same numbers of updates, and other weights.
    engine("sglang").load(policy, 2)
    with pytest.raises(StateError, match="another run uses it"):
        server.generate(prompts, seeds, PLAIN)


def test_an_update_that_is_lost_or_refused(engine, url, policy, tmp_path):
    server = engine("sglang")
    post(url + "/plan", {"update": ["drop", "500"]})
    server.load(policy, 1)
    assert server.version == 1
    post(url + "/plan", {"update": ["no success"]})
    with pytest.raises(StateError, match=r"out of memory.*expected that the weights are loaded"):
        server.load(policy, 2)
    post(url + "/plan", {"update": ["400"]})
    with pytest.raises(StateError, match="refused /update_weights_from_disk with status 400"):
        server.load(policy, 2)
    # What it has now is not known, and the former version is sent once more.
    before = len(log(url))
    server.load(policy, 1)
    assert len(log(url)) == before + 1
    server.load(policy, 2)
    assert server.version == 2
    (tmp_path / "taken").write_text("")
    server.weights = tmp_path / "taken"
    with pytest.raises(FileError, match="cannot be written"):
        server.load(policy, 3)


def test_a_server_that_is_not_there(policy, config, task, silent, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(StateError, match=rf"{url} did not answer /health in 2 tries.*Connection refused.*engine.url"):
        Server(url + "/v1/", policy, weights=tmp_path, retries=1)
    # A run finds out before it does any work.
    config = dataclasses.replace(config, engine=EngineConfig(url=url, retries=0))
    with pytest.raises(StateError, match="did not answer"):
        Trainer(config, task=task, directory=tmp_path / "run", console=silent).train()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["engine.url=localhost:8000"], "expected http://host:port"),
        (["engine.url=http://"], "expected http://host:port"),
        (["engine.url=http://a:99999"], "expected http://host:port"),
        (["engine.protocol=tgi"], "expected one of 'vllm', 'sglang'"),
        (["engine.timeout=0"], "a number above 0"),
        (["engine.retries=-1"], "0 or more"),
        (["engine.concurrency=0"], "1 or more"),
        (["engine.url=http://a:1", "engine.protocol=sglang", "sampling.top_k=5"], "SGLang's log-probs are of all"),
    ],
)
def test_settings_that_cannot_be_meant(settings, message):
    with pytest.raises(InputError, match=message):
        TrainConfig().with_settings(settings)


def test_what_follows_from_a_server():
    assert TrainConfig().logp_gap_bound == 1e-3
    assert TrainConfig(engine=EngineConfig(url="http://a:1")).logp_gap_bound == 0.05
    assert TrainConfig(engine=EngineConfig(url="http://a:1"), max_logp_gap=0.2).logp_gap_bound == 0.2
    for field in dataclasses.fields(EngineConfig):
        assert field.name in EngineConfig.__doc__
    # A run may go on with a server that has moved.
    assert not TrainConfig().differences(TrainConfig(engine=EngineConfig(url="http://a:1")))


def test_truncation_that_a_servers_log_probs_do_not_show(engine, policy):
    prompts, seeds = prompts_of(policy, 1)
    with pytest.raises(InputError, match="log-probs are those of all tokens"):
        engine("sglang", loaded=False).generate(prompts, seeds, Sampling(8, top_p=0.5))
