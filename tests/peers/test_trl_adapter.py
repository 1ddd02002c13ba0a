"""`RecipeTrainer` trains real steps; advantages and gradients are those of `process` and `loss`, computed apart."""

import numpy as np
import pandas as pd
import pytest
import torch

import grpokit as gk

pytest.importorskip("trl")

from transformers import LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer

from grpokit.adapters.trl import RecipeTrainer

from . import tiny
from .trl_step import N, assert_same, expected, joined, logps, table, trained


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("tiny"))


RECIPES = {
    "grpo": gk.recipe("grpo", beta=0.04),
    "dapo": gk.recipe("dapo", max_len=5, cache=3),
    "gspo": gk.recipe("gspo"),
    "cispo": gk.recipe("cispo", high=4.0),
    "rloo": gk.recipe("rloo"),
    "dr_grpo": gk.recipe("dr_grpo", max_len=6),
    "vespo": gk.recipe("vespo"),
    "clip_cov": gk.recipe("clip_cov"),
    "entropy": gk.recipe("rloo").replace(extra=(gk.Term(gk.Entropy(), -0.01),)),
}


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("name", RECIPES)
def test_advantages_and_gradients_are_the_recipes(name, accumulate, directory, tmp_path):
    recipe = RECIPES[name]
    batch = {"per_device_train_batch_size": N // accumulate, "gradient_accumulation_steps": accumulate}
    trainer, steps = trained(directory, recipe, tmp_path, **batch)
    assert len(steps) == 2
    first = steps[0]["weights"]
    for number, step in enumerate(steps):
        n = [int(x) for x in step["processed"]._lengths]
        out = gk.process(table(step["rewards"], n), recipe)
        np.testing.assert_array_equal(out.keep, step["processed"].keep)
        ids = joined(step, "rollout_ids")
        np.testing.assert_allclose(joined(step, "advantages").numpy(), out.advantages[ids].astype(np.float32))
        assert sorted(n[i] for i in ids) == sorted(joined(step, "completion_mask").sum(1).tolist())
        constants = {"ref_logps": logps(directory, first, step)} if name == "grpo" else {}
        loss, gradient = expected(directory, recipe, step, out, **constants)
        assert_same(step["grads"], gradient)
        assert trainer.state.log_history[number]["loss"] == pytest.approx(loss.item(), abs=2e-4)


def test_accumulation_changes_nothing(directory, tmp_path):
    """The same rows in 1, 2 and 4 micro-batches, of which some hold nothing that is kept."""
    recipe = gk.recipe("dapo", max_len=5, cache=3)
    found = {}
    for accumulate in (1, 2, 4):
        batch = {"per_device_train_batch_size": N // accumulate, "gradient_accumulation_steps": accumulate}
        found[accumulate] = trained(directory, recipe, tmp_path, reward=one_group, max_steps=1, **batch)[1][0]
    for accumulate in (2, 4):
        torch.testing.assert_close(joined(found[accumulate], "completion_ids"), joined(found[1], "completion_ids"))
        assert_same(found[accumulate]["grads"], found[1]["grads"], bound=1e-5)


def one_group(completion_ids, **columns):
    """The second prompt's answers are all the same."""
    return [float(sum(ids) % 5) if i < tiny.GROUP else 1.0 for i, ids in enumerate(completion_ids)]


def test_old_policies_are_those_that_sampled(directory, tmp_path):
    """Two optimizer steps a generation, each taken twice: the ratio leaves 1 and the clip has work."""
    recipe = gk.recipe("grpo", beta=0.0, low=0.05, high=0.05)
    more = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
    trainer, steps = trained(directory, recipe, tmp_path, num_iterations=2, max_steps=4, **more)
    assert len(steps) == 4
    for step in steps:
        n = [int(x) for x in step["processed"]._lengths]
        out = gk.process(table(step["rewards"], n), recipe)
        old = logps(directory, step["start"], step)
        _, gradient = expected(directory, recipe, step, out, old_logps=old)
        assert_same(step["grads"], gradient, bound=2e-4)  # old log-probs were made in batches of another shape
    assert max(log["clip_ratio/region_mean"] for log in trainer.state.log_history[:-1]) > 0


DROPPING = {
    "dapo": gk.recipe("dapo", max_len=6, cache=0),
    "gspo": gk.recipe("gspo").replace(select=(gk.HasSignal(),)),
    "dr_grpo": gk.recipe("dr_grpo", max_len=6).replace(select=(gk.HasSignal(),)),
}


@pytest.mark.parametrize("name", DROPPING)
def test_rows_without_a_score_are_dropped_and_said(name, directory, tmp_path):
    """Nothing of them is left, in denominators over all rows either; the third micro-batch may be empty."""

    def reward(completion_ids, **columns):
        return [None if i % 4 == 1 else value for i, value in enumerate(one_group(completion_ids))]

    batch = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    more = {"max_steps": 1, "gradient_checkpointing": True, "log_completions": True}
    trainer, (step,) = trained(directory, DROPPING[name], tmp_path, reward=reward, **batch, **more)
    keep = step["processed"].keep
    assert keep.tolist() == [True, False, True, True, False, False, False, False]
    n = [int(x) for x in step["processed"]._lengths]
    out = gk.process(table(step["rewards"], n), trainer.recipe)
    _, gradient = expected(directory, trainer.recipe, step, out)
    assert_same(step["grads"], gradient)
    log = trainer.state.log_history[0]
    assert log["sampling/dropped/unscored"] == 2
    assert log["sampling/dropped/no_signal"] == 3
    assert log["sampling/kept_share"] == 3 / 8
    assert log["frac_reward_zero_std"] == 0.5
    assert list(trainer._logs["advantages"]) == step["processed"].advantages.tolist()
    (shown,) = (tmp_path / "completions").glob("*.parquet")
    assert pd.read_parquet(shown)["advantage"].tolist() == step["processed"].advantages.tolist()


@pytest.mark.parametrize("value", [0.98, 0.1])
@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo"])
def test_constant_groups_move_nothing(name, value, directory, tmp_path):
    """TRL's own std of 15 times 0.98 is not 0."""
    recipe = gk.recipe("grpo", beta=0.0) if name == "grpo" else RECIPES[name].replace(shape=())
    settings = {"num_generations": N, "max_steps": 1, "logging_steps": 1}
    trainer, steps = trained(
        directory, recipe, tmp_path, reward=lambda prompts, **rest: [value] * len(prompts), **settings
    )
    assert all((g == 0).all() for g in steps[0]["grads"].values())
    assert trainer.state.log_history[0]["frac_reward_zero_std"] == 1
    assert trainer.state.log_history[0]["loss"] == 0


def rollouts(prompts, trainer):
    """Some answers, and log-probs that are near the policy's; one is not known."""
    draw = torch.Generator().manual_seed(1)
    tokens = trainer._tokenizer
    completions = [
        torch.randint(3, 24, (int(torch.randint(2, 7, (1,), generator=draw)),), generator=draw).tolist()
        for _ in prompts
    ]
    prompt_ids = [tokens(prompt)["input_ids"] for prompt in prompts]
    found = []
    for prompt, answer in zip(prompt_ids, completions, strict=True):
        with torch.no_grad():
            logits = trainer.model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        exact = logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None])[:, 0]
        found.append((exact + 0.5 * torch.randn(len(answer), generator=draw)).tolist())
    found[0][1] = float("nan")
    return {"prompt_ids": prompt_ids, "completion_ids": completions, "logprobs": found}


SAMPLED = {
    "icepop": gk.recipe("icepop", low=0.2, high=0.2).replace(correct=(gk.IcePop(0.7, 1.5),)),
    "decoupled_ppo": gk.recipe("decoupled_ppo"),
    "dppo": gk.recipe("dppo", low=0.1, high=0.1),
    "m2po_mask": gk.recipe("m2po_mask"),
    "vcpo_like": gk.recipe("rloo").replace(correct=(gk.TIS(1.2),)),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_the_samplers_log_probs_reach_the_corrections(name, directory, tmp_path):
    recipe = SAMPLED[name]
    batch = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 2}
    trainer, steps = trained(directory, recipe, tmp_path, rollout_func=rollouts, **batch)
    for step in steps:
        n = [int(x) for x in step["processed"]._lengths]
        out = gk.process(table(step["rewards"], n), recipe)
        old = logps(directory, step["start"], step)
        sampled = joined(step, "sampling_per_token_logps")
        first = joined(step, "rollout_ids") == 0
        torch.testing.assert_close(sampled[first][0, 1], old[first][0, 1])  # not known: the old policy's
        assert not sampled.isnan().any()
        _, gradient = expected(directory, recipe, step, out, old_logps=old, rollout_logps=sampled)
        assert_same(step["grads"], gradient, bound=2e-4)
    assert "sampling/sampling_logp_difference/mean" in trainer.state.log_history[0]
    if recipe.correct:
        assert "mismatch/weight_mean" in trainer.state.log_history[0]


def with_tools(prompts, trainer):
    """The second token of each answer is not the model's."""
    found = rollouts(prompts, trainer)
    return found | {"env_mask": [[int(i != 1) for i in range(len(ids))] for ids in found["completion_ids"]]}


@pytest.mark.parametrize("name", ["dapo", "dr_grpo"])
def test_tokens_that_the_model_did_not_write_are_not_there(name, directory, tmp_path):
    recipe = DROPPING[name].replace(correct=(gk.TIS(2.0),))
    batch = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 1}
    _, (step,) = trained(directory, recipe, tmp_path, rollout_func=with_tools, **batch)
    mask = joined(step, "completion_mask") * joined(step, "tool_mask")
    assert step["processed"]._lengths.tolist() == mask.sum(1)[joined(step, "rollout_ids").argsort()].tolist()
    out = gk.process(table(step["rewards"], step["processed"]._lengths), recipe)
    constants = {"old_logps": logps(directory, step["start"], step)}
    constants |= {"rollout_logps": joined(step, "sampling_per_token_logps"), "mask": mask}
    _, gradient = expected(directory, recipe, step, out, **constants)
    assert_same(step["grads"], gradient, bound=2e-4)


@pytest.mark.parametrize("name", ["reinforce_pp", "kl_in_reward"])
def test_row_stages_read_log_probs(name, directory, tmp_path):
    """One advantage a token; and a penalty in the reward."""
    recipe = gk.recipe("reinforce_pp", ddof=1, eps=1e-8)
    if name == "kl_in_reward":
        recipe = gk.recipe("rloo").replace(shape=(gk.KLPenalty(0.5),))
    batch = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    _, steps = trained(directory, recipe, tmp_path, **batch)
    first = steps[0]["weights"]
    for step in steps:
        ids, mask = joined(step, "rollout_ids"), joined(step, "completion_mask").bool()
        old, ref = logps(directory, step["start"], step), logps(directory, first, step)
        order = ids.argsort().tolist()
        columns = {
            "logp_old": [old[i][mask[i]].tolist() for i in order],
            "logp_ref": [ref[i][mask[i]].tolist() for i in order],
        }
        out = gk.process(table(step["rewards"], mask.sum(1)[order].tolist()) | columns, recipe)
        given = joined(step, "advantages")
        for i, row in enumerate(ids.tolist()):
            if name == "reinforce_pp":
                np.testing.assert_allclose(given[i][mask[i]], out.token_advantages[row], atol=2e-5)
            else:
                np.testing.assert_allclose(given[i], out.advantages[row], atol=2e-5)
    assert not torch.equal(old, ref)


def test_two_passes_read_the_whole_step(directory, tmp_path):
    """Weights and denominators that depend on the current policy on all micro-batches."""
    stapo = gk.recipe("stapo").replace(correct=(gk.S2TMask(0.2, 0.5),))
    top = gk.recipe("high_entropy", max_len=6).replace(select=())
    for name, recipe in {"stapo": stapo, "top": top}.items():
        batch = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 1}
        trainer, steps = trained(directory, recipe, tmp_path / name, **batch)
        out = gk.process(table(steps[0]["rewards"], steps[0]["processed"]._lengths), recipe)
        _, gradient = expected(directory, recipe, steps[0], out)
        assert_same(steps[0]["grads"], gradient, bound=5e-5)
        assert trainer.state.log_history[0]["mismatch/dropped"] > 0


def test_evaluation_and_metrics(directory, tmp_path):
    trainer, _ = trained(directory, "gspo", tmp_path, max_steps=1)
    log = trainer.state.log_history[0]
    for name in ("clip_ratio/region_mean", "ratio/mean", "entropy", "reward", "completions/mean_length", "num_tokens"):
        assert name in log
    assert log["ratio/mean"] == pytest.approx(1)
    assert trainer.state.log_history[0]["sampling/kept_share"] == 1
    trainer.args.per_device_eval_batch_size = N
    found = trainer.evaluate(tiny.dataset())
    assert np.isfinite(found["eval_loss"])
    assert "eval_ratio/mean" in trainer.state.log_history[-1]


def test_reward_functions_are_weighed_and_told_apart(directory, tmp_path):
    """GDPO reads them one by one."""
    recipe = gk.recipe("rloo").replace(advantage=gk.GDPO("sequences"))
    trainer = RecipeTrainer(
        model=LlamaForCausalLM.from_pretrained(directory),
        processing_class=tiny.tokenizer(directory),
        reward_funcs=[short, tiny.reward],
        args=GRPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=N,
            num_generations=4,
            max_completion_length=6,
            max_steps=1,
            report_to="none",
            use_cpu=True,
            bf16=False,
            save_strategy="no",
        ),
        train_dataset=tiny.dataset(),
        recipe=recipe,
    )
    trainer.train()
    parts = {name: list(trainer._logs["rewards"][name]) for name in ("short", "reward")}
    rows = {
        "group_id": np.arange(N) // 4,
        "reward": np.add(parts["short"], parts["reward"]),
        "reward_parts": [{"short": a, "reward": b} for a, b in zip(parts["short"], parts["reward"], strict=True)],
    }
    expected = gk.process(rows, recipe).advantages
    np.testing.assert_allclose(list(trainer._logs["advantages"]), expected, atol=1e-6)


def short(completion_ids, **columns):
    return [-float(len(ids)) for ids in completion_ids]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_reward_is_a_number_or_none(value, directory, tmp_path):
    def reward(prompts, **columns):
        return [1.0, float(value)] + [0.0] * (len(prompts) - 2)

    with pytest.raises(gk.InputError, match="NaN or infinite in 1 rows, the first: .?1.*None"):
        trained(directory, "rloo", tmp_path, reward=reward)
    dropping = gk.recipe("rloo").replace(not_finite="drop")
    _, (step,) = trained(directory, dropping, tmp_path, reward=reward, max_steps=1)
    assert step["processed"].keep.tolist() == [True, False] + [True] * 6


def test_asynchronous_reward_functions(directory, tmp_path):
    async def fine(completion_ids, **columns):
        return tiny.reward(None, completion_ids)

    async def wrong(completion_ids, **columns):
        return [float("nan")] * len(completion_ids)

    config = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "max_steps": 1, "report_to": "none"}
    sizes = {"per_device_train_batch_size": N, "num_generations": 4, "max_completion_length": 6, "save_strategy": "no"}
    model = LlamaForCausalLM.from_pretrained(directory)
    for function, fails in ((fine, False), (wrong, True)):
        trainer = RecipeTrainer(
            model,
            [function, tiny.reward],
            GRPOConfig(**config, **sizes),
            tiny.dataset(),
            processing_class=tiny.tokenizer(directory),
            recipe="rloo",
        )
        if fails:
            with pytest.raises(gk.InputError, match="'wrong' is NaN or infinite in 8 rows"):
                trainer.train()
        else:
            trainer.train()
            assert trainer.processed.keep.all()


def test_nothing_else_of_trl_changes(directory, tmp_path):
    """The recipe that is TRL's default loss gives TRL's own gradients and rollouts, step by step."""
    recipe = gk.recipe("grpo", beta=0.0).replace(aggregate=gk.TokenMean())
    batch = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_iterations": 2, "max_steps": 4}
    _, ours = trained(directory, recipe, tmp_path, **batch)
    _, theirs = trained(directory, recipe, tmp_path, trainer=Plain, **batch)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(joined(one, "completion_ids"), joined(other, "completion_ids"))
        assert_same(one["grads"], other["grads"], bound=1e-3)  # TRL takes statistics in fp32


class Plain(GRPOTrainer):
    """TRL's own; the recipe is left out."""

    start, processed = None, None

    def __init__(self, recipe, **named):
        super().__init__(**named)
