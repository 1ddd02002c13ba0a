"""verl's configuration as a user types it, and an optimizer step of a tiny model through verl's own loss function."""

import functools

import torch
from hydra import compose, initialize_config_module
from transformers import LlamaConfig, LlamaForCausalLM
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.utils.losses import ppo_loss

import grpokit as gk
from grpokit.stages import EXAMPLES, of_papers

ACTOR = "actor_rollout_ref.actor"
EXAMPLES_OF = {name: EXAMPLES[name] for name in of_papers("recipe")}


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
