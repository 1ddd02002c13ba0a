"""Recipes inside verl: found by its own plugin loader, reached through its own functions, equal to `grpokit.loss`."""

import functools
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

import grpokit as gk
from grpokit.stages import EXAMPLES, REGISTRY, load

pytest.importorskip("verl")

from hydra import compose, initialize_config_module
from transformers import LlamaConfig, LlamaForCausalLM
from verl.protocol import DataProto
from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import ActorConfig
from verl.workers.utils.losses import ppo_loss

from grpokit.adapters import verl as adapter

ROOT = Path(__file__).parents[2]
ACTOR = "actor_rollout_ref.actor"
load()
EXAMPLES_OF = {
    name: EXAMPLES[name] for name in REGISTRY["recipe"] if REGISTRY["recipe"][name].__module__.startswith("grpokit.")
}


@functools.cache
def configured(*overrides):
    """verl's whole configuration, as its main program composes it."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=[f"{ACTOR}.ppo_micro_batch_size_per_gpu=2", *overrides])


def overrides(name, *more):
    """What a user types for a recipe."""
    typed = [f"algorithm.adv_estimator=grpokit/{name}", f"{ACTOR}.policy_loss.loss_mode=grpokit/{name}"]
    if EXAMPLES_OF[name]:
        typed += [f"+algorithm.grpokit.{key}={value}" for key, value in EXAMPLES_OF[name].items()]
        typed += [f"{ACTOR}.policy_loss._target_=grpokit.adapters.verl.PolicyLossConfig"]
        typed += [f"+{ACTOR}.policy_loss.grpokit=${{algorithm.grpokit}}"]
    return [*typed, *more]


def actor(*typed):
    return omega_conf_to_dataclass(configured(*typed).actor_rollout_ref.actor)


def plugin(directory):
    """An installation of the checkout: what an installer would write of pyproject's entry points."""
    entries = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    info = directory / "grpokit-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: grpokit\nVersion: 0.1.0\n")
    lines = [f"[{group}]\n" + "".join(f"{k}={v}\n" for k, v in found.items()) for group, found in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    path = os.pathsep.join([str(directory), str(ROOT / "python"), str(ROOT / ".peers")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(("policy", "known"), [("auto", True), ("grpokit", True), ("none", False), ("others", False)])
def test_verl_finds_the_recipes_itself(policy, known, tmp_path):
    code = (
        "import verl, sys; from verl.trainer.ppo import core_algos as c;"
        "print(sorted(n for n in c.POLICY_LOSS_REGISTRY if 'grpokit' in n) == "
        "sorted(n for n in c.ADV_ESTIMATOR_REGISTRY if 'grpokit' in n), 'grpokit/gspo' in c.POLICY_LOSS_REGISTRY)"
    )
    environment = plugin(tmp_path) | {"VERL_USE_EXTERNAL_PLUGINS": policy}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["True", str(known)], done.stderr[-2000:]


def test_a_plugin_that_fails_leaves_verl_alone(tmp_path):
    """Another verl, without the registers that the plugin needs."""
    code = (
        "import types, sys; m = types.ModuleType('verl.trainer.ppo.core_algos'); sys.modules[m.__name__] = m\n"
        "import verl; print(verl.__version__)\n"
        "try: import grpokit.adapters.verl\n"
        "except Exception as problem: print(type(problem).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=plugin(tmp_path), capture_output=True, text=True
    )
    assert done.stdout.split()[0] == "0.9.1", done.stderr[-2000:]
    assert len(done.stdout.split()) == 2


ROWS = ["grpo", "dr_grpo", "nord", "dapo", "rloo", "opo", "gpg", "gspo", "cispo", "reinforce_pp_baseline"]
UIDS = np.array(["b", "a", "b", "a", "c", "a", "b", "c"], dtype=object)
REWARDS = [1.0, 0.0, 0.5, 2.0, 0.98, 0.0, 0.0, 0.98]
LENGTHS = [3, 5, 1, 4, 2, 5, 3, 4]


def batch_of(rewards=REWARDS, lengths=LENGTHS, uids=UIDS):
    mask = (torch.arange(5) < torch.tensor(lengths)[:, None]).long()
    last = torch.tensor(lengths) - 1
    scores = torch.zeros(len(rewards), 5).scatter_(1, last[:, None], torch.tensor(rewards)[:, None])
    tensors = {"token_level_rewards": scores, "response_mask": mask}
    return DataProto.from_dict(tensors=tensors, non_tensors={"uid": uids})


@pytest.mark.filterwarnings("ignore:recipe")
@pytest.mark.parametrize("name", ROWS)
def test_advantages_are_those_of_process(name):
    config = configured(*overrides(name)).algorithm
    data = compute_advantage(batch_of(), config.adv_estimator, config=config)
    rewards = np.float32(REWARDS).astype(np.float64)
    table = {"group_id": UIDS.astype(str), "reward": rewards, "response_len": LENGTHS}
    expected = gk.process(table, name, **EXAMPLES_OF[name]).advantages
    mask = data.batch["response_mask"]
    np.testing.assert_allclose(data.batch["advantages"], expected[:, None] * mask.numpy(), rtol=1e-6, atol=1e-7)
    if name in ("grpo", "gspo", "dapo", "rloo"):
        assert (data.batch["advantages"][UIDS == "c"] == 0).all()
    assert data.batch["advantages"].dtype == torch.float32
    assert data.batch["returns"] is not None


def test_dropped_rows_are_said():
    config = configured(*overrides("dapo")).algorithm
    with pytest.warns(
        UserWarning, match=r"'dapo' drops rows \(no_signal\), which verl cannot leave out.*filter_groups"
    ):
        compute_advantage(batch_of(), config.adv_estimator, config=config)


def test_what_estimators_do_not_get_is_said():
    config = configured().algorithm
    for name, words in [
        ("reinforce_pp", ["GlobalNorm", "'logp_old'"]),
        ("remax", ["'baseline_reward'"]),
        ("ppo_clip", ["gae"]),
    ]:
        parameters = configured(*overrides(name)).algorithm
        with pytest.raises(gk.InputError) as caught:
            compute_advantage(batch_of(), f"grpokit/{name}", config=parameters)
        assert caught.value.kind == "not_handed_over"
        for word in words:
            assert word in str(caught.value), str(caught.value)
    with pytest.raises(gk.InputError, match=r"grpokit/dapo \(algorithm\) needs max_len.*\+algorithm.grpokit.max_len="):
        compute_advantage(batch_of(), "grpokit/dapo", config=config)
    with pytest.raises(gk.InputError, match="no parameter 'maxlen'. Did you mean 'max_len'"):
        compute_advantage(batch_of(), "grpokit/dapo", config=configured("+algorithm.grpokit.maxlen=5").algorithm)
    with pytest.raises(gk.InputError, match="norm_adv_by_std_in_grpo=False.*dr_grpo"):
        config = configured("algorithm.norm_adv_by_std_in_grpo=False").algorithm
        compute_advantage(batch_of(), "grpokit/grpo", config=config)
    with pytest.raises(gk.InputError, match="NaN or infinite in 1 rows"):
        compute_advantage(batch_of([float("nan"), *REWARDS[1:]]), "grpokit/grpo", config=None)
    with pytest.raises(gk.InputError, match="uid"):
        get_adv_estimator_fn("grpokit/grpo")(token_level_rewards=torch.ones(2, 1), response_mask=torch.ones(2, 1))


def test_a_greedy_answers_reward_is_taken_where_it_is_given():
    data = batch_of()
    data.batch["reward_baselines"] = torch.full((8,), 0.25)
    found = compute_advantage(data, "grpokit/remax").batch["advantages"]
    np.testing.assert_allclose(found[0, :3], 0.75)


PROMPT, WIDTH, VOCABULARY = 2, 5, 11


class Step:
    """An optimizer step of a tiny model, cut into verl's micro-batches, on one rank or two."""

    def __init__(self, *, empty=False):
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "initializer_range": 0.3}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
        self.model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes, **heads)).float()
        self.lengths = [3, 5, 1, 4, 2, 5, 3, 4]
        self.ids = [torch.randint(VOCABULARY, (PROMPT + n,)) for n in self.lengths]
        exact = [self.logps(i).detach() for i in range(8)]
        self.old = [x + 0.3 * torch.randn_like(x) for x in exact]
        self.ref = [x + 0.3 * torch.randn_like(x) for x in exact]
        self.advantages = torch.tensor([0.5, -1.2, 0.7, -0.3, 1.1, -0.8, -0.6, 0.9])
        self.mask = [torch.ones(n, dtype=torch.bool) for n in self.lengths]
        self.mask[1][2] = False  # a tool's token
        if empty:
            self.mask[4][:] = False

    def logits(self, i):
        return self.model(self.ids[i][None]).logits[0]

    def logps(self, i):
        return self.logits(i)[PROMPT - 1 : -1].log_softmax(-1).gather(-1, self.ids[i][PROMPT:, None])[:, 0]

    def padded(self, columns, value=0.0):
        return torch.nn.utils.rnn.pad_sequence(columns, batch_first=True, padding_value=value)

    def clear(self):
        self.model.zero_grad()

    def grads(self):
        return torch.cat([p.grad.flatten() for p in self.model.parameters()])

    def expected(self, recipe, **more):
        """The whole step in one batch of ours."""
        self.clear()
        lp = self.padded([self.logps(i) for i in range(8)])
        logits = self.padded([self.logits(i)[PROMPT - 1 : -1] for i in range(8)])
        batch = gk.TokenBatch(
            targets=self.padded([x[PROMPT:] for x in self.ids], 0),
            mask=self.padded(self.mask, False),
            advantages=self.advantages,
            old_logps=self.padded(self.old),
            ref_logps=self.padded(self.ref),
            **more,
        )
        out = gk.loss.from_logits(logits, batch, recipe)
        out.loss.backward()
        assert lp.shape == batch.shape
        return out, self.grads()

    def verl(self, config, ranks=1, weights=None, rows=2):
        """The sum over micro-batches and the mean over ranks of what verl's own loss function gives."""
        nested = lambda columns: torch.nested.as_nested_tensor(columns, layout=torch.jagged)
        self.clear()
        total, metrics = 0.0, []
        for first in range(0, 8, rows):
            at = range(first, first + rows)
            data = {
                "prompts": nested([self.ids[i][:PROMPT] for i in at]),
                "responses": nested([self.ids[i][PROMPT:] for i in at]),
                "response_mask": nested([self.mask[i].long() for i in at]),
                "old_log_probs": nested([self.old[i] for i in at]),
                "ref_log_prob": nested([self.ref[i] for i in at]),
                "advantages": nested([self.advantages[i] * self.mask[i] for i in at]),
            }
            if weights is not None:
                data["rollout_is_weights"] = nested([weights[i][: self.lengths[i]] for i in at])
            data = tu.get_tensordict(data, {})
            tokens = int(sum(m.sum() for m in self.mask))
            tu.assign_non_tensor(data, dp_size=ranks, batch_num_tokens=tokens, global_batch_size=8)
            outputs = [self.logits(i).log_softmax(-1) for i in at]
            lps, entropies = [], []
            for i, log_p in zip(at, outputs, strict=True):
                # As verl's engines give it: place t holds the log-prob of token t + 1.
                lps.append(log_p.gather(-1, self.ids[i].roll(-1)[:, None])[:, 0])
                entropies.append(-(log_p.exp() * log_p).sum(-1))
            output = {"log_probs": nested(lps)}
            if config.entropy_coeff:
                output["entropy"] = nested(entropies)
            loss, told = ppo_loss(config, output, data)
            (loss / ranks).backward()
            total += loss.item() / ranks
            metrics.append(told)
        return total, self.grads(), metrics


def assert_close(found, expected, bound=2e-6):
    assert float((found - expected).norm()) <= bound * max(float(expected.norm()), 1e-3)
    assert float(expected.norm()) > 0


TOKENS = ["ppo_clip", "dr_grpo", "nord", "dapo", "rloo", "opo", "gpg", "spo", "gspo", "gspo_token", "luspo", "gmpo"]
TOKENS += ["cispo", "sapo", "maspo", "vespo", "lad", "reinforce_pp", "remax"]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", TOKENS)
def test_micro_batches_and_ranks_add_up_to_the_recipe(name, ranks):
    step = Step(empty=True)
    recipe = gk.recipe(name, **EXAMPLES_OF[name])
    found, gradient, metrics = step.verl(actor(*overrides(name)), ranks)
    out, expected = step.expected(recipe)
    assert_close(gradient, expected)
    assert found == pytest.approx(out.loss.item(), rel=1e-5, abs=1e-6)
    assert {"actor/pg_clipfrac", "actor/ppo_kl", "actor/pg_loss"} <= set(metrics[0])


def test_all_recipes_are_tested_or_refused():
    assert set(TOKENS) | {"grpo", "reinforce_pp_baseline", "kl_cov"} | set(REFUSED) | {"oapl", "dppo"} == set(
        EXAMPLES_OF
    )


@pytest.mark.parametrize(("name", "mode"), [("grpo", "seq-mean-token-mean"), ("reinforce_pp_baseline", "token-mean")])
def test_verl_adds_the_penalty_to_the_reference(name, mode):
    """The recipe's KL term is verl's own where verl's options say the same, and an error elsewhere."""
    step, recipe = Step(), gk.recipe(name, **EXAMPLES_OF[name])
    (term,) = recipe.extra
    kind = {"k3": "low_var_kl", "k2": "mse", "k1": "kl"}[term.objective.kind]
    asked = [f"{ACTOR}.use_kl_loss=True", f"{ACTOR}.kl_loss_coef={term.scale}", f"{ACTOR}.kl_loss_type={kind}"]
    asked += [f"{ACTOR}.loss_agg_mode={mode}"]
    found, gradient, _ = step.verl(actor(*overrides(name, *asked)))
    out, expected = step.expected(recipe)
    assert_close(gradient, expected)
    assert found == pytest.approx(out.loss.item(), rel=1e-5, abs=1e-6)
    for left_out in {"grpo": (0, 1, 3), "reinforce_pp_baseline": (0, 2)}[name]:
        some = [x for i, x in enumerate(asked) if i != left_out]
        with pytest.raises(gk.InputError) as caught:
            step.verl(actor(*overrides(name, *some)))
        assert caught.value.kind == "not_handed_over"
        assert "use_kl_loss=True" in str(caught.value)


def test_verl_adds_the_entropy_bonus():
    step = Step()
    recipe = gk.recipe("gpg").replace(extra=(gk.Term(gk.Entropy(), -0.01),), name="gpg_entropy")
    adapter.register("gpg_entropy", recipe)
    mode = f"{ACTOR}.policy_loss.loss_mode=gpg_entropy"
    found, gradient, _ = step.verl(actor(mode, f"{ACTOR}.entropy_coeff=0.01"))
    out, expected = step.expected(recipe)
    assert_close(gradient, expected)
    assert found == pytest.approx(out.loss.item(), rel=1e-5)
    with pytest.raises(gk.InputError, match="Entropy reads 'entropies'.*actor.entropy_coeff=0.01"):
        step.verl(actor(mode))
    with pytest.raises(gk.InputError, match="registered already, by verl"):
        adapter.register("gpg_entropy", recipe)
    with pytest.raises(gk.InputError, match="registered already, by verl"):
        adapter.register("gspo", recipe)


def test_a_penalty_to_the_old_policy_is_ours():
    step = Step()
    recipe = gk.recipe("gpg").replace(extra=(gk.Term(gk.KL("k3", to="old"), 0.1),), name="gpg_old")
    adapter.register("gpg_old", recipe)
    _, gradient, _ = step.verl(actor(f"{ACTOR}.policy_loss.loss_mode=gpg_old"))
    assert_close(gradient, step.expected(recipe)[1])


@pytest.mark.parametrize("name", ["dapo", "gspo_token", "cispo"])
def test_verls_own_weights_weigh_the_policy_term(name):
    """Of its rollout correction; a weight of 0 leaves the log-prob in its sequence's ratio, as in verl."""
    from grpokit.adapters.verl_options import RolloutWeights

    step, recipe = Step(), gk.recipe(name, **EXAMPLES_OF[name])
    weights = torch.rand(8, WIDTH, generator=torch.Generator().manual_seed(1)) * 2
    weights[0, 1] = 0
    _, gradient, _ = step.verl(actor(*overrides(name)), weights=weights)
    weighed = recipe.replace(correct=(RolloutWeights(),), dropped="in_ratio")
    assert_close(gradient, step.expected(weighed, rollout_is_weights=weights)[1])
    own = get_policy_loss_fn("gspo")
    if name == "gspo_token":
        # verl's own GSPO, whose gradient is each token's, differs in nothing but the bound of its ratio.
        config = ActorConfig(
            strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, clip_ratio_low=3e-4, clip_ratio_high=4e-4
        )
        config.global_batch_info.update(dp_size=1, batch_num_tokens=100, global_batch_size=8, loss_scale_factor=None)
        step.clear()
        lp, mask = step.padded([step.logps(i) for i in range(8)]), step.padded(step.mask, False)
        arguments = {"old_log_prob": step.padded(step.old), "log_prob": lp, "response_mask": mask}
        arguments |= {"advantages": step.advantages[:, None] * mask, "rollout_is_weights": weights}
        loss, _ = own(**arguments, loss_agg_mode="seq-mean-token-mean", config=config)
        loss.backward()
        assert_close(step.grads(), gradient, bound=1e-5)
    with pytest.raises(gk.InputError, match="whether rollout_is_weights are of tokens or of sequences"):
        step.verl(actor(*overrides("vespo")), weights=weights)


def test_bypass_mode_gives_the_samplers_log_probs():
    """verl then takes them for the old ones, and the recipe's ratio is against the sampler."""
    bypass = f"+{ACTOR}.policy_loss.rollout_correction.bypass_mode=True"
    for name in ("dppo", "oapl"):
        step, recipe = Step(), gk.recipe(name, **EXAMPLES_OF[name])
        _, gradient, _ = step.verl(actor(*overrides(name, bypass)))
        sampled = step.padded(step.old)
        assert_close(gradient, step.expected(recipe, rollout_logps=sampled)[1])
        with pytest.raises(gk.InputError, match="bypass_mode=True"):
            step.verl(actor(*overrides(name)))


REFUSED = {
    "decoupled_ppo": "rollout_is=token",
    "icepop": "rollout_is=token",
    "vcpo": "'rollout_logps'",
    "luffy": "'off_policy'",
    "m2po_clip": "the whole step's tokens",
    "m2po_mask": "the whole step's tokens",
    "clip_cov": "the whole step's tokens",
    "stapo": "the whole step's tokens",
    "high_entropy": "the whole step's tokens",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_verl_does_not_hand_over_is_refused(name):
    with pytest.raises(gk.InputError) as caught:
        Step().verl(actor(*overrides(name)))
    assert caught.value.kind == "not_handed_over"
    assert REFUSED[name] in str(caught.value)


@pytest.mark.parametrize(
    "option",
    ["clip_ratio_low=0.1", "clip_ratio_high=0.28", "clip_ratio_c=5.0", "tau_pos=2.0", "loss_agg_mode=token-sum"]
    + ["loss_scale_factor=7", "policy_loss.ppo_kl_coef=0.5"],
)
def test_options_that_the_recipe_states_are_refused(option):
    with pytest.raises(gk.InputError) as caught:
        Step().verl(actor(*overrides("gspo", f"{ACTOR}.{option}")))
    assert caught.value.kind == "refused_option"
    assert option.split("=")[0] in str(caught.value)


def test_the_recipes_own_mode_and_constant_may_be_said():
    asked = [f"{ACTOR}.loss_agg_mode=seq-mean-token-sum-norm", f"{ACTOR}.loss_scale_factor=3000"]
    step = Step()
    _, gradient, _ = step.verl(actor(*overrides("dr_grpo", *asked)))
    assert_close(gradient, step.expected(gk.recipe("dr_grpo", max_len=3000))[1])


def test_parameters_that_are_missing_are_asked_for():
    with pytest.raises(
        gk.InputError, match=r"grpokit/cispo \(policy loss\) needs high.*_target_=grpokit.*grpokit.high"
    ):
        Step().verl(actor(f"{ACTOR}.policy_loss.loss_mode=grpokit/cispo"))


def test_counts():
    """Without verl's counts a micro-batch has its own, as in verl; with some of them it is an error."""
    step, config = Step(), actor(*overrides("rloo"))
    mask = step.padded(step.mask, False)
    columns = {"old_log_prob": step.padded(step.old), "advantages": step.advantages[:, None] * mask}
    call = lambda: get_policy_loss_fn("grpokit/rloo")(
        log_prob=step.padded([step.logps(i) for i in range(8)]), response_mask=mask, config=config, **columns
    )[0]
    assert call().item() == pytest.approx(step.expected(gk.recipe("rloo"))[0].loss.item(), rel=1e-5)
    config.global_batch_info.update(dp_size=2)
    with pytest.raises(gk.InputError, match="'batch_num_tokens'"):
        call()
    live = gk.recipe("rloo").replace(aggregate=gk.SequenceSum(), name="live_rows")
    adapter.register("live_rows", live)
    config = actor(f"{ACTOR}.policy_loss.loss_mode=live_rows")
    Step().verl(config)
    with pytest.raises(gk.InputError, match="how many rows of the whole step have tokens"):
        Step(empty=True).verl(config)
    with pytest.raises(gk.InputError, match="ActorConfig"):
        get_policy_loss_fn("grpokit/rloo")(log_prob=mask.float(), response_mask=mask, config=None, **columns)


def test_everything_masked_is_nothing():
    step, config = Step(), actor(*overrides("gspo"))
    config.global_batch_info.update(dp_size=1, batch_num_tokens=10, global_batch_size=8)
    lp = step.padded([step.logps(i).detach() for i in range(8)]).requires_grad_()
    mask = torch.zeros(lp.shape, dtype=torch.bool)
    columns = {"old_log_prob": step.padded(step.old), "advantages": torch.ones(lp.shape)}
    loss, metrics = get_policy_loss_fn("grpokit/gspo")(log_prob=lp, response_mask=mask, config=config, **columns)
    loss.backward()
    assert loss.item() == 0
    assert (lp.grad == 0).all()
    assert all(np.isfinite(x) for x in metrics.values())
