import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import grpokit as gk
from grpokit.trainer.config import TinyModel
from grpokit.trainer.policy import CHARACTERS, Completion, Policy, character_tokenizer

from .conftest import generated

SIZES = TinyModel(hidden_size=32, intermediate_size=48, layers=2, heads=2)
PROMPTS = ["a>", "dcba>", "hello world>", "7>"]


@pytest.fixture(scope="module")
def policy():
    return Policy.tiny(SIZES, seed=1)


def sample(policy, prompts, *, seed=0, temperature=1.0, longest=7):
    return generated(policy, prompts, longest, seed=seed, temperature=temperature)


def completion(prompt_ids, token_ids):
    return Completion(prompt_ids, token_ids, [0.0] * len(token_ids), "length", "")


def test_every_character_is_a_token_and_comes_back():
    tokenizer = character_tokenizer()
    ids = tokenizer(CHARACTERS)["input_ids"]
    assert len(ids) == len(set(ids)) == len(CHARACTERS) == 96
    assert tokenizer.decode(ids) == CHARACTERS
    assert tokenizer.decode(tokenizer("a  b ,c .")["input_ids"]) == "a  b ,c ."


def test_what_cannot_be_encoded_is_an_error_not_an_empty_prompt(policy):
    for text in ("Grüße", "", "emoji 🙂", "tab\t"):
        with pytest.raises(gk.InputError, match="cannot encode") as caught:
            policy.encode(["fine", text])
        assert caught.value.kind == "untokenizable"


def test_a_checkpoint_is_loaded_by_the_auto_classes(policy, tmp_path):
    policy.save(tmp_path / "saved")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    # The trap: with some model types AutoTokenizer builds another tokenizer, whose unknown words vanish.
    for text in (CHARACTERS, "dcab>", "  a b\n"):
        assert tokenizer(text)["input_ids"] == policy.tokenizer(text)["input_ids"]
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (
        policy.tokenizer.pad_token_id,
        policy.tokenizer.eos_token_id,
    )
    assert tokenizer.padding_side == "left"
    assert model.state_dict().keys() == policy.model.state_dict().keys()
    for name, weight in policy.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    loaded, ours = sample(Policy(model, tokenizer), PROMPTS), sample(policy, PROMPTS)
    assert loaded == ours


def test_padding_changes_nothing(policy):
    prompts, answers = policy.encode(PROMPTS), policy.encode(["xy", "z", "abcdef", "q7"])
    rows = [completion(p, a) for p, a in zip(prompts, answers, strict=True)]
    together = policy.pad(rows)
    logps, entropies = policy.logps(together, 0.7, max_tokens=1000)
    assert together.inputs["attention_mask"].sum() == sum(len(r.prompt_ids) + len(r.token_ids) for r in rows)
    for i, row in enumerate(rows):
        ids = torch.tensor([row.prompt_ids + row.token_ids])
        with torch.no_grad():
            alone = (policy.model(ids).logits[0, len(row.prompt_ids) - 1 : -1] / 0.7).log_softmax(-1)
        expected = alone.gather(1, torch.tensor(row.token_ids)[:, None])[:, 0]
        live = together.mask[i]
        assert live.sum() == len(row.token_ids)
        torch.testing.assert_close(logps[i, live], expected, atol=2e-6, rtol=0)
        torch.testing.assert_close(entropies[i, live], -(alone.exp() * alone).sum(1), atol=5e-6, rtol=0)


def test_log_probs_do_not_depend_on_how_many_rows_go_at_once(policy):
    batch = policy.pad(sample(policy, PROMPTS * 3))
    whole, _ = policy.logps(batch, 1.0, max_tokens=10**6)
    rows, _ = policy.logps(batch, 1.0, max_tokens=1)
    torch.testing.assert_close(rows[batch.mask], whole[batch.mask], atol=2e-6, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_the_sampler_and_the_training_forward_agree(policy, temperature):
    batch = policy.pad(sample(policy, PROMPTS * 4, temperature=temperature))
    logps, _ = policy.logps(batch, temperature, max_tokens=10**6)
    # fp32 logits of size 1 to 10 after two layers: a few ulp each.
    torch.testing.assert_close(batch.rollout_logps[batch.mask], logps[batch.mask], atol=5e-6, rtol=0)


def test_the_same_generator_state_samples_the_same(policy):
    assert sample(policy, PROMPTS) == sample(policy, PROMPTS)
    assert sample(policy, PROMPTS) != sample(policy, PROMPTS, seed=1)


def test_cold_sampling_is_what_transformers_decodes_greedily(policy):
    longest = 9
    ours = sample(policy, PROMPTS, temperature=1e-6, longest=longest)
    encoded = policy.tokenizer(PROMPTS, return_tensors="pt", padding=True)
    theirs = policy.model.generate(
        input_ids=encoded["input_ids"],
        attention_mask=encoded["attention_mask"],
        max_new_tokens=longest,
        do_sample=False,
    )
    for row, ids in zip(ours, theirs[:, encoded["input_ids"].shape[1] :].tolist(), strict=True):
        assert row.token_ids == ids[: len(row.token_ids)]


def test_tokens_are_sampled_with_their_probabilities(policy):
    n, temperature = 20_000, 1.3
    ids = policy.encode(["dcba>"])[0]
    with torch.no_grad():
        p = (policy.model(torch.tensor([ids])).logits[0, -1] / temperature).softmax(-1).double()
    rows = sample(policy, ["dcba>"] * n, temperature=temperature, longest=1)
    counts = torch.bincount(torch.tensor([r.token_ids[0] for r in rows]), minlength=len(p))
    chi2 = ((counts - n * p) ** 2 / (n * p)).sum().item()
    degrees = len(p) - 1
    assert abs(chi2 - degrees) < 5 * (2 * degrees) ** 0.5


def test_a_completion_ends_with_its_end_token_or_at_the_limit(policy):
    end = policy.tokenizer.eos_token_id
    rows = sample(policy, ["ab>"] * 400, longest=40)
    assert {r.finish for r in rows} == {"stop", "length"}
    for row in rows:
        assert len(row.token_ids) == len(row.logps) <= 40
        assert end not in row.token_ids[:-1]
        assert (row.token_ids[-1] == end) == (row.finish == "stop")
        assert row.finish == "stop" or len(row.token_ids) == 40
        shown = row.token_ids[:-1] if row.finish == "stop" else row.token_ids
        assert row.text == policy.tokenizer.decode(shown)


def test_a_policy_that_is_no_longer_finite_is_an_error():
    policy = Policy.tiny(SIZES, seed=1)
    with torch.no_grad():
        policy.model.model.norm.weight[0] = float("nan")
    with pytest.raises(gk.InputError, match="a logit of the policy is NaN or infinite") as caught:
        sample(policy, PROMPTS)
    assert caught.value.kind == "diverged"


def test_the_seed_decides_the_weights_and_torchs_own_generator_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = (Policy.tiny(SIZES, seed=s).model.state_dict() for s in (3, 3, 4))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_frozen_copy_does_not_follow(policy):
    moving = Policy.tiny(SIZES, seed=1)
    reference = moving.frozen()
    with torch.no_grad():
        for weight in moving.model.parameters():
            weight.mul_(1.1)
    batch = policy.pad(sample(policy, PROMPTS))
    assert torch.equal(reference.logps(batch, 1.0, 1000)[0], policy.logps(batch, 1.0, 1000)[0])
    assert not any(weight.requires_grad for weight in reference.model.parameters())


def test_the_default_model_has_about_a_tenth_of_a_million_weights():
    weights = sum(w.numel() for w in Policy.tiny(TinyModel(), seed=0).model.parameters())
    assert 90_000 < weights < 130_000


def test_rows_are_taken_from_every_tensor(policy):
    batch = policy.pad(sample(policy, PROMPTS))
    part = batch[torch.tensor([2, 0])]
    for field in dataclasses.fields(batch):
        whole, taken = getattr(batch, field.name), getattr(part, field.name)
        pairs = zip(whole.values(), taken.values(), strict=True) if isinstance(whole, dict) else [(whole, taken)]
        assert all(torch.equal(a[[2, 0]], b) for a, b in pairs)
