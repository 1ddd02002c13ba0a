import dataclasses

import numpy as np
import pytest
import torch

import grpokit as gk
from grpokit.trainer.collect import Collector
from grpokit.trainer.engine import InProcess
from grpokit.trainer.learn import Learner
from grpokit.trainer.policy import Policy
from grpokit.trainer.rewards import RewardFunction, Rewards

from .conftest import generated, parameters_of


def collected(policy, task, config, *, reward=None, seed=0, reference=None):
    rewards = Rewards(task, [] if reward is None else [RewardFunction(1.0, None, reward)])
    config = dataclasses.replace(config, seed=seed)
    collector = Collector(policy, InProcess(policy), task, rewards, config, reference=reference)
    return collector.collect(config.make_recipe()).sampled(config.make_recipe())


def learned(task, config, **kwargs):
    policy = Policy.tiny(config.tiny, seed=2)
    sampled = collected(policy, task, config, **kwargs)
    learner = Learner(policy, config.make_recipe(), config)
    return sampled, learner, learner.learn(sampled)


def test_a_step_is_filled_up_from_several_rounds(task, config):
    config = dataclasses.replace(config, max_rounds=50)
    # Half of the groups get equal rewards, which DAPO drops.
    calls = []

    def reward(prompts, completions, number, **columns):
        calls.append(len(prompts))
        return [0.0 if prompt[0] in "ab" else float(row) for row, prompt in enumerate(prompts)]

    sampled = collected(Policy.tiny(config.tiny, seed=2), task, config, reward=reward, seed=1)
    kept = sampled.group_id[sampled.processed.keep]
    assert len(np.unique(kept)) == config.prompts_per_step
    assert np.bincount(kept)[np.unique(kept)].tolist() == [config.num_generations] * config.prompts_per_step
    assert sampled.measured["sampling/rounds"] == len(calls) > 1
    assert sum(calls) == len(sampled.completions) == len(sampled.items)
    # Each round asks for what is missing and no more.
    assert all(later <= earlier for earlier, later in zip(calls, calls[1:], strict=False))
    assert all(sampled.items[row]["prompt"][0] in "cd" for row in np.flatnonzero(sampled.processed.keep))
    metrics = sampled.metrics()
    assert metrics["sampling/used"] + metrics["sampling/dropped/no_signal"] == metrics["sampling/completions"]


def test_rounds_are_bounded_and_a_step_without_signal_changes_no_weight(task, config):
    config = dataclasses.replace(config, max_rounds=3)
    policy = Policy.tiny(config.tiny, seed=2)
    sampled = collected(policy, task, config, reward=lambda prompts, completions, **columns: [0.25] * len(prompts))
    assert sampled.measured["sampling/rounds"] == 3
    assert sampled.metrics()["frac_reward_zero_std"] == 1
    assert sampled.metrics()["sampling/kept_share"] == 0
    before = [w.clone() for w in policy.model.parameters()]
    learner = Learner(policy, config.make_recipe(), config)
    assert learner.learn(sampled) == {"updates": 0}
    assert all(torch.equal(a, b) for a, b in zip(before, policy.model.parameters(), strict=True))


def test_what_could_not_be_scored_is_dropped_and_not_counted_as_zero(task, config):
    def reward(prompts, completions, **columns):
        return [None if row % 4 == 3 else float(row % 4) for row in range(len(prompts))]

    sampled = collected(Policy.tiny(config.tiny, seed=2), task, config, reward=reward)
    metrics = sampled.metrics()
    assert metrics["sampling/dropped/unscored"] == config.prompts_per_step
    assert metrics["reward"] == 1
    assert metrics["reward_std"] == 1
    assert not sampled.processed.keep[3::4].any()
    assert sampled.processed.keep.sum() == 3 * config.prompts_per_step
    records = list(sampled.records(step=1, groups=1))
    assert [r["reward"] for r in records] == [0, 1, 2, None]


def test_the_logged_rows_are_rollouts_that_grpokit_reads(task, config):
    sampled = collected(Policy.tiny(config.tiny, seed=2), task, config)
    records = list(sampled.records(step=7, groups=2))
    assert len(records) == 2 * config.num_generations
    out = gk.process(records, config.make_recipe())
    assert out.advantages.tolist() == [r["advantage"] for r in records]
    assert out.keep.tolist() == [r["keep"] for r in records]


def test_an_update_is_the_gradient_of_the_equation(task, config):
    config = dataclasses.replace(config, max_grad_norm=1e9, updates_per_step=1)
    sampled, learner, metrics = learned(task, config)
    # On-policy, DAPO's gradient is that of −Σ A log π over the number of tokens, whatever the clip.
    policy = Policy.tiny(config.tiny, seed=2)
    rows = np.flatnonzero(sampled.processed.keep)
    batch = policy.pad([sampled.completions[row] for row in rows])
    logps = policy.logits(batch.inputs, batch.targets.shape[1]).log_softmax(-1)
    logps = logps.gather(-1, batch.targets[..., None])[..., 0]
    A = torch.from_numpy(sampled.processed.advantages[rows]).float()
    loss = -(A[:, None] * logps)[batch.mask].sum() / batch.mask.sum()
    loss.backward()
    for ours, expected in zip(learner.policy.model.parameters(), policy.model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, atol=1e-6, rtol=1e-4)
    norm = torch.stack([w.grad.norm() for w in policy.model.parameters()]).norm().item()
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert metrics["clip_ratio/region_mean"] == 0
    assert metrics["ratio/mean"] == pytest.approx(1, abs=1e-5)
    assert metrics["sampling/sampling_logp_difference/max"] < 1e-5


@pytest.mark.parametrize("name", gk.recipe_names())
def test_micro_batches_do_not_change_an_update(task, config, name):
    config = dataclasses.replace(config, recipe=name, recipe_parameters=parameters_of(name))
    _, whole, _ = learned(task, config)
    _, parts, _ = learned(task, dataclasses.replace(config, microbatch_tokens=1))
    assert whole.updates == parts.updates == config.updates_per_step
    for a, b in zip(whole.policy.model.parameters(), parts.policy.model.parameters(), strict=True):
        # Adam's first steps are the gradient's sign: rounding shows where a gradient is all but zero.
        close = torch.isclose(a, b, atol=1e-6)
        assert close.float().mean() > 0.99, name


def test_remax_has_the_greedy_answers_reward_as_its_baseline(task, config):
    config = dataclasses.replace(config, recipe="remax")
    policy = Policy.tiny(config.tiny, seed=2)
    sampled = collected(policy, task, config)
    prompts = [item["prompt"] for item in sampled.items]
    greedy = generated(policy, prompts, 6, temperature=0)
    again = generated(policy, prompts, 6, temperature=0, seed=9)
    assert greedy == again
    expected = [r - task.score(c.text, item) for r, c, item in zip(sampled.rewards, greedy, sampled.items, strict=True)]
    np.testing.assert_allclose(sampled.processed.advantages, expected, atol=1e-15)
    logits = policy.logits(policy.pad(greedy).inputs, max(len(c.token_ids) for c in greedy))
    best = logits.argmax(-1)
    assert all(best[i, : len(c.token_ids)].tolist() == c.token_ids for i, c in enumerate(greedy))


def test_luffy_has_a_demonstration_in_every_group(task, config):
    config = dataclasses.replace(config, recipe="luffy", updates_per_step=1, max_grad_norm=1e9)
    sampled, learner, _ = learned(task, config)
    shown = [c.off_policy for c in sampled.completions]
    assert shown == [False, False, False, True] * config.prompts_per_step
    for item, completion, reward in zip(sampled.items, sampled.completions, sampled.rewards, strict=True):
        assert reward == task.score(completion.text, item)
        if completion.off_policy:
            assert set(completion.text) == {item["prompt"][0]}
    # Against the equation, from a policy as it was: −A π for own tokens' gradient, π / (π + 0.1) for shown ones.
    policy = Policy.tiny(config.tiny, seed=2)
    batch = policy.pad(sampled.completions)
    logps = policy.logits(batch.inputs, batch.targets.shape[1]).log_softmax(-1)
    logps = logps.gather(-1, batch.targets[..., None])[..., 0]
    A, off = torch.from_numpy(sampled.processed.advantages).float()[:, None], torch.tensor(shown)[:, None]
    loss = -(A * torch.where(off, logps.exp() / (logps.exp() + 0.1), logps))[batch.mask].sum() / batch.mask.sum()
    loss.backward()
    for ours, expected in zip(learner.policy.model.parameters(), policy.model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, atol=1e-6, rtol=1e-4)


def test_corrections_for_the_sampler_leave_demonstrations_alone(task, config):
    """Nobody sampled them: their weight is 1, and they are not in the gap between sampler and trainer."""
    config = dataclasses.replace(config, recipe="luffy", updates_per_step=1)
    policy = Policy.tiny(config.tiny, seed=2)
    sampled = collected(policy, task, config)
    recipe = config.make_recipe().replace(correct=(gk.IcePop(0.5, 2.0),))
    metrics = Learner(policy, recipe, config).learn(sampled)
    assert metrics["mismatch/dropped"] == 0
    assert metrics["mismatch/weight_mean"] == pytest.approx(1, abs=1e-5)
    assert metrics["sampling/sampling_logp_difference/max"] < 1e-5


def test_luffy_needs_demonstrations(config):
    class Mute:
        def prompts(self, rng, n):
            return [{"prompt": f"a{rng.randrange(1000)}>"} for _ in range(n)]

        def score(self, completion, item):
            return 0.0

    with pytest.raises(gk.InputError) as caught:
        collected(Policy.tiny(config.tiny, seed=2), Mute(), dataclasses.replace(config, recipe="luffy"))
    assert caught.value.kind == "no_demonstrations"


def test_reinforce_pp_learns_from_advantages_per_token(task, config):
    parameters = {"ddof": 1, "eps": 1e-8, "beta": 0.5}
    config = dataclasses.replace(
        config, recipe="reinforce_pp", recipe_parameters=parameters, updates_per_step=1, max_grad_norm=1e9
    )
    policy, reference = Policy.tiny(config.tiny, seed=2), Policy.tiny(config.tiny, seed=3)
    sampled = collected(policy, task, config, reference=reference)
    batch = policy.pad(sampled.completions)
    old, ref = (who.logps(batch, 1.0, 10**6)[0].double() for who in (policy, reference))
    gap = torch.where(batch.mask, old - ref, 0.0)
    to_go = gap.flip(1).cumsum(1).flip(1)
    x = torch.tensor(sampled.rewards).double()[:, None] - 0.5 * to_go
    A = (x - x[batch.mask].mean()) / (x[batch.mask].std() + 1e-8)
    np.testing.assert_allclose(sampled.processed.token_advantages.values, A[batch.mask].numpy(), rtol=1e-5, atol=1e-5)
    assert sampled.kl == pytest.approx(float(gap[batch.mask].mean()), abs=1e-6)
    learner = Learner(policy, config.make_recipe(), config)
    learner.learn(sampled)
    again = Policy.tiny(config.tiny, seed=2)
    logps = (
        again.logits(batch.inputs, batch.targets.shape[1]).log_softmax(-1).gather(-1, batch.targets[..., None])[..., 0]
    )
    (-(A.float() * logps)[batch.mask].sum() / batch.mask.sum()).backward()
    for ours, expected in zip(policy.model.parameters(), again.model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, atol=1e-6, rtol=1e-3)


def test_a_step_may_be_learned_from_several_times(task, config):
    config = dataclasses.replace(config, recipe="rloo", num_iterations=3, learning_rate=0.01)
    _, learner, metrics = learned(task, config)
    assert learner.updates == metrics["updates"] == 3 * config.updates_per_step
    # Each pass deals the same rows, and the ratios are to the policy before the first.
    rows = [tuple(hand.tolist()) for hand in learner._deal(np.repeat(np.arange(4), 4))]
    assert len(set(rows)) == config.updates_per_step
    once, _, first = learned(task, dataclasses.replace(config, num_iterations=1))
    assert metrics["mismatch/ess_last"] < first["mismatch/ess_last"] < 1
    assert dataclasses.replace(config, steps=5).arithmetic()["updates in all, at most"] == 30
    assert len(once.completions) == 16


def test_groups_are_dealt_whole_and_each_once(task, config):
    _, learner, _ = learned(task, dataclasses.replace(config, updates_per_step=3))
    group_id = np.repeat([4, 0, 2, 9, 7], [2, 3, 1, 2, 4])
    dealt = [set(rows.tolist()) for rows in learner._deal(group_id)]
    assert len(dealt) == 3
    assert sorted(row for hand in dealt for row in hand) == list(range(12))
    groups = [{int(group_id[row]) for row in hand} for hand in dealt]
    assert sum(map(len, groups)) == 5
    assert len(learner._deal(np.array([1, 1]))) == 1


def test_a_recipe_with_a_reference_policy_has_the_policy_before_the_first_update(task, config):
    config = dataclasses.replace(config, recipe="grpo", updates_per_step=1, learning_rate=0.01)
    sampled, learner, metrics = learned(task, config)
    assert metrics["kl"] == pytest.approx(0, abs=1e-9)
    assert learner.learn(sampled)["kl"] > 1e-4
    dapo = dataclasses.replace(config, recipe="dapo")
    assert learned(task, dapo)[1].reference is None


def test_a_gradient_that_is_not_finite_leaves_the_weights_as_they_were(task, config):
    policy = Policy.tiny(config.tiny, seed=2)
    sampled = collected(policy, task, config)
    learner = Learner(policy, config.make_recipe(), config)
    policy.model.model.layers[0].mlp.up_proj.weight.register_hook(lambda grad: grad * float("inf"))
    before = [w.clone() for w in policy.model.parameters()]
    with pytest.raises(gk.InputError, match="the gradient's norm is NaN or infinite: training has diverged"):
        learner.learn(sampled)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.model.parameters(), strict=True))


def ranked(prompts, completions, **columns):
    return [float(row % 3) for row in range(len(prompts))]


def test_the_learning_rate_follows_the_effective_sample_size(task, config):
    """VCPO: the first update of a batch is on-policy and full, the second is scaled, and an SGD step would be by it."""
    config = dataclasses.replace(config, recipe="vcpo", updates_per_step=2, learning_rate=0.3)
    controlled = config.with_settings(["lr_control.base=1"])
    steps = {}
    for name, c in (("free", config), ("scaled", controlled)):
        policy = Policy.tiny(c.tiny, seed=2)
        learner = Learner(policy, c.make_recipe(), c)
        learner.optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.3)
        seen, weights = [], [[w.clone() for w in policy.model.parameters()]]
        update = learner._move

        def watched(*rows, update=update, seen=seen, weights=weights, policy=policy):
            seen.append(update(*rows))
            weights.append([w.clone() for w in policy.model.parameters()])
            return seen[-1]

        learner._move = watched
        found = learner.learn(collected(policy, task, c, reward=ranked))
        steps[name] = seen, weights, found
    free, scaled = steps["free"], steps["scaled"]
    assert "lr_scale" not in free[2]
    first, second = (each["lr_scale"] for each in scaled[0])
    assert first == pytest.approx(1, abs=1e-6)
    assert second == pytest.approx(np.sqrt(scaled[0][1]["mismatch/ess_current"]))
    assert second < 0.99
    assert scaled[2]["lr_scale"] == pytest.approx((first + second) / 2)
    for before, after, free_before, free_after in zip(*scaled[1][1:], *free[1][1:], strict=True):
        torch.testing.assert_close(after - before, second * (free_after - free_before), rtol=1e-3, atol=1e-6)


def test_score_norms_are_those_of_each_answer(task, config):
    """Against gradients per sample of the whole padded batch."""
    from grpokit.trainer.score_norms import score_norms

    policy = Policy.tiny(config.tiny, seed=2)
    sampled = collected(policy, task, config)
    completions = sampled.completions[:3]
    found = score_norms(policy, completions, 0.8)
    batch = policy.pad(completions)
    for i, norm in enumerate(found):
        logps = (policy.logits(batch.inputs, batch.targets.shape[1]) / 0.8).log_softmax(-1)
        score = logps.gather(-1, batch.targets[..., None]).squeeze(-1)[i][batch.mask[i]].sum()
        gradients = torch.autograd.grad(score, list(policy.model.parameters()))
        assert norm == pytest.approx(sum(float((g**2).sum()) for g in gradients), rel=1e-4)
    assert all(w.grad is None for w in policy.model.parameters())


def test_the_baseline_of_least_variance_in_the_trainer(task, config):
    config = dataclasses.replace(config, recipe="vcpo", recipe_parameters={"baseline": "minimum_variance"})
    sampled, learner, measured = learned(task, config, reward=ranked)
    assert measured["updates"] == learner.updates > 0
    from grpokit.trainer.score_norms import score_norms

    norms = np.array(score_norms(Policy.tiny(config.tiny, seed=2), sampled.completions, config.temperature))
    rewards, size = np.array(sampled.rewards), config.num_generations
    for group in range(config.prompts_per_step):
        at = slice(group * size, (group + 1) * size)
        W, R = norms[at] / norms[at].sum(), rewards[at]
        # Sampler and trainer are one here: w is 1 to rounding.
        expected = (R - W @ R) / (R.std() + 1e-4)
        np.testing.assert_allclose(sampled.processed.advantages[at], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("microbatch_tokens", [64, 16384])
@pytest.mark.parametrize("recipe", ["dapo", "gspo", "vcpo"])
def test_one_update_takes_its_log_probs_from_the_loss(task, config, monkeypatch, recipe, microbatch_tokens):
    """A policy that has not moved is the old policy: a pass of its own finds the same, to rounding."""
    config = dataclasses.replace(config, updates_per_step=1, microbatch_tokens=microbatch_tokens)
    config = config.with_settings([f"recipe={recipe}"])
    passes = []
    real = Learner._logps
    monkeypatch.setattr(Learner, "_logps", lambda *a: passes.append(1) or real(*a))
    reward = lambda prompts, completions, **columns: [float(len(text)) for text in completions]  # noqa: E731
    _, once, found = learned(task, config, reward=reward)
    assert not passes
    monkeypatch.setattr("grpokit.trainer.learn._looks_at_all", lambda recipe: True)
    _, twice, expected = learned(task, config, reward=reward)
    assert len(passes) == 1
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=2e-4, abs=2e-6)
    for a, b in zip(once.policy.trained(), twice.policy.trained(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)
