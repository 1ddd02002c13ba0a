"""Conversations with an environment: whose tokens are whose, and what the loss sees of them."""

import dataclasses
from random import Random

import numpy as np
import pytest
import torch

import grpokit as gk
from grpokit.trainer import Trainer
from grpokit.trainer.engine import InProcess
from grpokit.trainer.learn import Learner, _advantages
from grpokit.trainer.policy import Policy
from grpokit.trainer.sampling import Sampling
from grpokit.trainer.score_norms import score_norms
from grpokit.trainer.turns import answers

from .conftest import Echo
from .test_learn import collected


@dataclasses.dataclass(frozen=True)
class Nagging(Echo):
    """Says how often it was spoken to, until it was three times or hears a vowel."""

    def reply(self, messages, item):
        assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2)
        assert messages[0]["content"] == item["prompt"]
        if set("aeiou") & set(messages[-1]["content"]):
            return None
        turns = len(messages) // 2
        return None if turns == 3 else f"[{turns}]"


@pytest.fixture
def policy(config):
    return Policy.tiny(config.tiny, seed=2)


def talked(policy, n=200, *, longest=30, max_turns=8, task=None, **how):
    items = [{"prompt": f"ab{row % 7}>", "number": row} for row in range(n)]
    sampling = Sampling(longest, **{"stop": (".", "x", "7")} | how)
    task = task or Nagging()
    return answers(InProcess(policy), policy, task, items, sampling=sampling, max_turns=max_turns, seeds=Random(0))


def test_a_conversation_is_what_was_said_in_turns(policy):
    rows, tokenizer = talked(policy), policy.tokenizer
    seen = set()
    for row in rows:
        assert len(row.token_ids) == len(row.logps) <= 30
        own = row.own or [True] * len(row.token_ids)
        assert len(own) == len(row.token_ids)
        assert all(logp == 0 for logp, mine in zip(row.logps, own, strict=True) if not mine)
        assert all(logp < 0 for logp, mine in zip(row.logps, own, strict=True) if mine)
        others = tokenizer.decode([t for t, mine in zip(row.token_ids, own, strict=True) if not mine])
        seen.add((others, row.finish))
        assert others in ("", "[1]", "[1][2]") or row.finish == "length"
        assert row.text.count("[1]") >= others.count("[1]")
    assert {("", "stop"), ("[1]", "stop"), ("[1][2]", "stop"), ("", "length")} <= seen
    # The trainer's log-probs of the policy's tokens are those that it sampled with, over all turns.
    batch = policy.pad(rows)
    logps, _ = policy.logps(batch, 1.0, 10**6)
    assert batch.mask.sum() == sum(sum(r.own) if r.own else len(r.token_ids) for r in rows)
    torch.testing.assert_close(batch.rollout_logps[batch.mask], logps[batch.mask], atol=1e-5, rtol=0)


def test_a_conversation_is_the_same_in_any_batch(policy):
    """Rows that have more room are sampled beside it; what it has no room for is in neither its tokens nor its text."""
    together = talked(policy, 60, longest=12)
    assert any(row.own and row.finish == "length" for row in together)
    seeds = Random(0)
    for number, row in enumerate(together):
        seed, item = seeds.getrandbits(63), {"prompt": f"ab{number % 7}>", "number": number}
        sampling = Sampling(12, stop=(".", "x", "7"))

        class Seed(Random):
            def getrandbits(self, _, seed=seed):
                return seed

        how = {"sampling": sampling, "max_turns": 8, "seeds": Seed()}
        (alone,) = answers(InProcess(policy), policy, Nagging(), [item], **how)
        assert (alone.token_ids, alone.text, alone.finish, alone.own) == (row.token_ids, row.text, row.finish, row.own)


def test_what_is_not_over_in_time_is_too_long(policy):
    rows = talked(policy, max_turns=1)
    assert all(row.own is None for row in rows)
    assert {row.finish for row in rows} == {"stop", "length"}
    # Without a vowel the environment would have spoken.
    assert all(set("aeiou") & set(row.text) for row in rows if row.finish == "stop")
    assert all(len(row.token_ids) <= 4 for row in talked(policy, longest=4))


def test_the_environments_tokens_are_in_no_loss(config, monkeypatch):
    """What the loss counts are the policy's tokens."""
    config = dataclasses.replace(config, max_completion_length=24, recipe="rloo").with_settings(
        ['sampling.stop=[".", "x", "7"]']
    )
    policy = Policy.tiny(config.tiny, seed=2)
    sampled = collected(policy, Nagging(), config)
    assert any(c.own is not None for c in sampled.completions)
    learner = Learner(policy, config.make_recipe(), config)
    seen = []
    real = gk.TokenBatch

    def spy(*args, **kwargs):
        if "advantages" in kwargs:
            seen.append(kwargs["mask"])
        return real(*args, **kwargs)

    monkeypatch.setattr(gk, "TokenBatch", spy)
    metrics = learner.learn(sampled)
    rows = [c for c, kept in zip(sampled.completions, sampled.processed.keep, strict=True) if kept]
    assert sum(int(mask.sum()) for mask in seen) == sum(sum(c.own) if c.own else len(c.token_ids) for c in rows)
    assert metrics["sampling/sampling_logp_difference/max"] < 1e-5


def test_the_environments_tokens_are_in_nothing_that_a_recipe_reads(config):
    """Lengths, KL in the reward, advantages of tokens and gradients' sizes are of what the policy wrote."""
    parameters = {"ddof": 1, "eps": 0.0, "beta": 0.1}
    config = dataclasses.replace(
        config, max_completion_length=24, recipe="reinforce_pp", recipe_parameters=parameters
    ).with_settings(['sampling.stop=[".", "x", "7"]'])
    policy, reference = (Policy.tiny(config.tiny, seed=seed) for seed in (2, 3))
    sampled = collected(policy, Nagging(), config, reference=reference)
    batch = policy.pad(sampled.completions)
    lengths = batch.mask.sum(1).tolist()
    assert lengths != [len(c.token_ids) for c in sampled.completions]
    assert [record["response_len"] for record in sampled.records(step=1)] == lengths
    metrics = sampled.metrics()
    assert metrics["completions/mean_length"] == pytest.approx(np.mean(lengths))
    ended = [n for n, c in zip(lengths, sampled.completions, strict=True) if c.finish == "stop"]
    assert metrics["completions/mean_terminated_length"] == pytest.approx(np.mean(ended))
    old, ref = (who.logps(batch, 1.0, 10**6)[0] for who in (policy, reference))
    gaps = (old - ref) * batch.mask
    assert metrics["kl"] == pytest.approx(gaps.sum().item() / sum(lengths), abs=1e-6)
    x = torch.tensor(sampled.rewards)[:, None] - 0.1 * gaps.flip(1).cumsum(1).flip(1)
    own = x[batch.mask]
    expected = torch.zeros_like(x).masked_scatter(batch.mask, (own - own.mean()) / own.std())
    found = _advantages(sampled, np.arange(len(lengths)), batch)
    torch.testing.assert_close(found.float(), expected, atol=1e-4, rtol=1e-4)
    row = next(row for row, c in enumerate(sampled.completions) if c.own)
    one = batch[[row]]
    logps = policy.logits(one.inputs, one.targets.shape[1]).log_softmax(-1).gather(-1, one.targets[..., None])[..., 0]
    gradients = torch.autograd.grad(logps[one.mask].sum(), policy.trained())
    (norm,) = score_norms(policy, sampled.completions[row : row + 1], 1.0)
    assert norm == pytest.approx(sum(float(g.square().sum()) for g in gradients), rel=1e-4)


def test_a_run_of_conversations(config, silent, tmp_path):
    config = dataclasses.replace(config, max_completion_length=24).with_settings(
        ['sampling.stop=[".", "x", "7"]', "warm_start.steps=0", "max_turns=3"]
    )
    summary = Trainer(config, task=Nagging(), directory=tmp_path / "run", console=silent).train()
    assert summary.status == "finished"


def test_a_prompt_that_leaves_no_room(policy):
    items = [{"prompt": "ab>"}, {"prompt": "a" * 400 + ">"}]
    how = {"task": Echo(), "max_turns": 1, "seeds": Random(0)}
    with pytest.raises(
        gk.InputError, match="=200; expected at most 111: the model's context is 512 tokens, and the prompt 'aa"
    ):
        answers(InProcess(policy), policy, items=items, sampling=Sampling(200), **how)
    how |= {"items": items[1:]}
    assert len(answers(InProcess(policy), policy, sampling=Sampling(111), **how)) == 1


def test_what_an_environment_may_not_say(policy):
    class Wrong(Nagging):
        def reply(self, messages, item):
            return 3

    with pytest.raises(gk.InputError, match=r"the task's reply\(\).*3.*a text, or None"):
        talked(policy, task=Wrong())


TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}{{ eos_token if m['role'] == 'assistant' }}\n"
    "{% endfor %}{{ 'a:' if add_generation_prompt }}"
)


def test_a_chat_template_writes_the_environments_turns(policy):
    tokenizer = policy.tokenizer
    tokenizer.chat_template = TEMPLATE
    try:
        rows = [row for row in talked(policy, longest=60) if row.own and row.finish == "stop"]
        assert rows
        for row in rows:
            own = row.own
            others = tokenizer.decode([t for t, mine in zip(row.token_ids, own, strict=True) if not mine])
            assert others in ("\nu:[1]\na:", "\nu:[1]\na:\nu:[2]\na:")
        tokenizer.chat_template = "{{ messages | length }}"
        with pytest.raises(gk.InputError, match="changes how the former ones are written"):
            talked(policy)
    finally:
        tokenizer.chat_template = None
