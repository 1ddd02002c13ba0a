"""The engine in this process: seeds, truncation, stop strings; and that a sampler with other weights stops the run."""

import dataclasses
from math import log

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from grpokit import StateError
from grpokit.trainer import Trainer
from grpokit.trainer.agreement import check_agreement, logp_gaps
from grpokit.trainer.config import TinyModel
from grpokit.trainer.engine import InProcess, _uniforms
from grpokit.trainer.policy import Policy
from grpokit.trainer.sampling import Sampling

from .conftest import generated

SIZES = TinyModel(hidden_size=32, intermediate_size=48, layers=2, heads=2)


@pytest.fixture(scope="module")
def policy():
    return Policy.tiny(SIZES, seed=1)


def test_a_completion_is_the_same_in_any_batch(policy):
    prompts = policy.encode(["a>", "dcba>", "hello world>", "7>"])
    seeds, sampling, engine = [5, 6, 7, 2**63 - 1], Sampling(8), InProcess(policy)
    together = engine.generate(prompts, seeds, sampling)
    for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        (alone,) = engine.generate([prompt], [seed], sampling)
        assert alone.token_ids == together[row].token_ids
        assert alone.logps == pytest.approx(together[row].logps, abs=5e-6)
    # More tokens begin as fewer do.
    longer = engine.generate(prompts, seeds, Sampling(12))
    assert [c.token_ids[:8] for c in longer] == [c.token_ids for c in together]
    assert engine.generate(prompts[:2], [1, 1], sampling) != engine.generate(prompts[:2], [1, 2], sampling)


def test_prompts_go_through_the_model_once_and_rows_that_have_ended_go(policy, monkeypatch):
    """A group's prompt is read once; what a stop string ends early leaves the batch, and nothing else changes."""
    shapes, forward = [], policy.model.forward
    monkeypatch.setattr(policy.model, "forward", lambda **k: shapes.append(tuple(k["input_ids"].shape)) or forward(**k))
    prompts, sampling = policy.encode(["dcba>", "q>"] * 8), Sampling(12, stop=tuple("aeiou0123456789"))
    rows = InProcess(policy).generate(prompts, range(16), sampling)
    assert shapes[0] == (2, 5)
    assert shapes[1][0] in (12, 16)
    assert [b for b, _ in shapes[1:]] == sorted((b for b, _ in shapes[1:]), reverse=True)
    assert 0 < shapes[-1][0] <= 12
    for row, (prompt, seed) in zip(rows, zip(prompts, range(16), strict=True), strict=True):
        (alone,) = InProcess(policy).generate([prompt], [seed], sampling)
        assert alone.token_ids == row.token_ids
        assert alone.logps == pytest.approx(row.logps, abs=5e-6)


def distribution(policy, prompt, temperature):
    with torch.no_grad():
        logits = policy.model(torch.tensor(policy.encode([prompt]))).logits[0, -1]
    return (logits / temperature).double().softmax(-1)


@pytest.mark.parametrize(("top_p", "top_k"), [(0.5, 0), (1.0, 7), (0.6, 30), (1e-9, 0), (0.999, 0)])
def test_truncation(policy, top_p, top_k):
    """Sampled are the fewest likeliest tokens that have top_p, of top_k; with the probabilities that are left."""
    n, temperature = 8000, 1.3
    p = distribution(policy, "dcba>", temperature)
    order = sorted(range(len(p)), key=lambda token: -p[token])[: top_k or None]
    left, mass, within = [], 0.0, sum(p[t].item() for t in order)
    for token in order:
        left.append(token)
        mass += p[token].item()
        if mass / within >= top_p:
            break
    how = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    rows = generated(policy, ["dcba>"] * n, 1, **how)
    counts = torch.bincount(torch.tensor([r.token_ids[0] for r in rows]), minlength=len(p))
    assert set(counts.nonzero()[:, 0].tolist()) <= set(left)
    q = (p[left] / mass).numpy()
    expected, found = n * q, counts[left].numpy()
    chi2, degrees = ((found - expected) ** 2 / expected).sum(), len(left) - 1
    assert abs(chi2 - degrees) <= 5 * (2 * degrees) ** 0.5
    for row in rows[:50]:
        assert row.logps[0] == pytest.approx(log(p[row.token_ids[0]].item() / mass), abs=1e-5)
    # What the trainer's log-probs differ by is what was left, which is nothing that it stops for.
    logps, _ = policy.logps(policy.pad(rows[:64]), temperature, 10**6)
    sampled = torch.tensor([r.logps for r in rows[:64]])
    torch.testing.assert_close((sampled - logps).exp(), torch.full_like(logps, 1 / mass), rtol=1e-4, atol=0)
    assert logp_gaps(logps, sampled, Sampling(1, **how)).max() < 1e-5


def test_a_stop_string_ends_the_text_before_it_and_the_tokens_with_it(policy):
    prompts, free = ["ab>", "q>"] * 100, generated(policy, ["ab>", "q>"] * 100, 12)
    text = next(c.text for c in free if len(c.text) > 6)
    stop = (text[2:4], text[4])
    stopped = generated(policy, prompts, 12, stop=stop)
    found = 0
    for row, whole in zip(stopped, free, strict=True):
        places = [place for s in stop if (place := whole.text.find(s)) >= 0]
        assert whole.token_ids[: len(row.token_ids)] == row.token_ids
        if places:
            found += 1
            assert (row.text, row.finish) == (whole.text[: min(places)], "stop")
            written = policy.tokenizer.decode(row.token_ids)
            assert any(s in written for s in stop)
            assert not any(s in written[:-1] for s in stop)  # a character is a token here
        else:
            assert row == whole
    assert found > 5


def test_a_stop_string_whose_characters_are_several_tokens_each():
    """A byte is a token here, and a letter of Thai is three bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE({letter: at for at, letter in enumerate([*letters, "<eos>"])}, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    policy = Policy.tiny(SIZES, seed=1)
    policy.tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytewise, eos_token="<eos>", pad_token="<eos>")
    stop = "สวัสดี"
    (ids,) = policy.encode(["I say " + stop])
    engine = InProcess(policy)
    stopped = [engine._stopped(torch.tensor([ids[:n]]), ("#", stop)).item() for n in range(1, len(ids) + 1)]
    assert stopped == [False] * (len(ids) - 1) + [True]


def test_sampling_keeps_the_mode_of_the_model(policy):
    policy.model.train()
    rows = generated(policy, ["ab>"], 3)
    assert policy.model.training
    policy.model.eval()
    assert generated(policy, ["ab>"], 3) == rows


def test_gaps_are_what_truncation_does_not_explain():
    logps = torch.tensor([-1.0, -1.0, -1.0, -1.0])
    sampled = torch.tensor([-1.0, -1.25, -0.75, -0.25])
    assert logp_gaps(logps, sampled, Sampling(1)).tolist() == [0, 0.25, 0.25, 0.75]
    left = logp_gaps(logps, sampled, Sampling(1, top_p=0.6))
    assert left.tolist() == pytest.approx([0, 0.25, 0, 0.75 + log(0.6)])
    assert logp_gaps(logps, sampled, Sampling(1, top_k=3)).tolist() == [0, 0.25, 0, 0]
    for bad in (torch.tensor([0.2]), torch.tensor([torch.nan])):
        with pytest.raises(StateError, match="nats off") as caught:
            check_agreement(bad, 0.1, 3)
        assert caught.value.kind == "sampler_differs"
    check_agreement(torch.tensor([0.1]), 0.11, 3)


@pytest.mark.parametrize("broken", ["never", "late"])
def test_a_sampler_with_other_weights_stops_the_run(task, config, silent, tmp_path, broken):
    """The most expensive bug there is, made on purpose: new weights do not reach the sampler, or one update late."""

    class Broken(InProcess):
        def load(self, policy, version):
            state = {name: w.clone() for name, w in policy.model.state_dict().items()}
            if broken == "late":
                self.policy.model.load_state_dict(getattr(self, "last", state))
                self.last = state
            self.version = version

    class Breaks(Trainer):
        def make_engine(self):
            return Broken(self.policy.frozen())

    config = dataclasses.replace(config, steps=6, recipe="rloo", learning_rate=3e-3)
    config = config.with_settings(["warm_start.steps=0"])
    trainer = Breaks(config, task=task, directory=tmp_path / "run", console=silent)
    with pytest.raises(StateError, match="the sampler has other weights") as caught:
        trainer.train()
    assert caught.value.kind == "sampler_differs"
    assert trainer.summary.steps == 1  # the first step has the first weights
    sound = Trainer(config, task=task, directory=tmp_path / "sound", console=silent).train()
    assert sound.steps == 6


def test_a_rows_numbers_are_its_seeds_alone():
    seeds = [0, 1, 2**63 - 1, 2**64, 7 * 2**64 + 5, 1]
    expected = [np.random.Generator(np.random.Philox(key=seed)).random(5) for seed in seeds]
    np.testing.assert_array_equal(_uniforms(seeds, 5), expected)
