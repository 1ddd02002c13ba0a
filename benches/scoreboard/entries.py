"""What is held against what, and which departures are the library's documented choice.

`ENTRIES` has a line an implementation; `CHOICES`, `NOT_LOOKED_AT` and `NOTES` are asked with an implementation's name, in
which `*` and `?` stand for what they stand for in file names, and a law's. The first line that fits counts.
"""

from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from . import ours_names


@dataclass(frozen=True)
class Entry:
    """One implementation.

    Attributes
    ----------
    name : str
        ``module:attribute`` in the package `scoreboard`: ``verl:gspo``.
    calls : str
        What of the library that is, in its own words.
    kind, recipe : str
        What it is held against.
    settings : dict
        The recipe's parameters: those that the implementation has.
    examples : int
        Cases a law; fewer where a call is slow.
    """

    name: str
    calls: str
    kind: str
    recipe: str
    settings: dict = field(default_factory=dict)
    examples: int = 60

    @property
    def library(self):
        """The module of the package."""
        return self.name.partition(":")[0]

    @property
    def implementation(self):
        """As `grpokit conform` takes it."""
        return f"scoreboard.{self.name}"

    @property
    def against(self):
        """The recipe with its parameters."""
        settings = ", ".join(f"{k}={v}" for k, v in self.settings.items())
        return f"{self.recipe}({settings})" if settings else self.recipe


LIBRARIES = {
    "trl": ("TRL", "trl"),
    "verl": ("verl", "verl"),
    "liger": ("Liger-Kernel", "liger-kernel"),
    "ours": ("grpokit", "grpokit"),
}
PPO, HIGHER = {"low": 0.2, "high": 0.2}, {"low": 0.2, "high": 0.28}
NARROW = {"low": 3e-4, "high": 4e-4}
LUSPO = {"low": 2e-3, "high": 2.5e-3}
PLAIN = {"beta": 0.0, **PPO}
DAPO = {"max_len": 256, **HIGHER}
SLOW = 12

ENTRIES = [
    Entry("trl:dapo", "loss_type='dapo', epsilon_high=0.28", "loss", "dapo", DAPO),
    Entry("trl:bnpo", "loss_type='bnpo'", "loss", "ppo_clip", PPO),
    Entry("trl:delta", "loss_type='dapo', delta=3.0", "loss", "ppo_clip", {**PPO, "dual": 3.0}),
    Entry("trl:grpo", "loss_type='grpo', beta=0.04, use_bias_correction_kl=False", "loss", "grpo", {"beta": 0.04, **PPO}),
    Entry("trl:grpo_default_kl", "loss_type='grpo', beta=0.04", "loss", "grpo", {"beta": 0.04, **PPO}),
    Entry("trl:dr_grpo", "loss_type='dr_grpo', max_completion_length=256", "loss", "dr_grpo", {"max_len": 256, **PPO}),
    Entry("trl:gspo", "loss_type='grpo', importance_sampling_level='sequence', epsilon=3e-4, epsilon_high=4e-4", "loss", "gspo", NARROW),
    Entry("trl:luspo", "loss_type='luspo', importance_sampling_level='sequence', epsilon=2e-3, epsilon_high=2.5e-3", "loss", "luspo", LUSPO),
    Entry("trl:cispo", "loss_type='cispo', epsilon_high=5.0", "loss", "cispo", {"high": 4.0}),
    Entry("trl:cispo_default", "loss_type='cispo'", "loss", "cispo", {"high": 0.2}),
    Entry("trl:sapo", "loss_type='sapo'", "loss", "sapo"),
    Entry("trl:vespo", "loss_type='vespo'", "loss", "vespo"),
    Entry("trl:scale_rewards_group", "scale_rewards='group'", "advantage", "GroupNorm(1, 1e-4)"),
    Entry("trl:scale_rewards_none", "scale_rewards='none'", "advantage", "MeanBaseline()"),
    Entry("trl:frac_reward_zero_std", "the metric `frac_reward_zero_std`, a group a call: a group is kept where the metric does not count it", "filter", "HasSignal()"),
    Entry("verl:vanilla", "loss_mode='vanilla', token-mean, clip_ratio_high=0.28", "loss", "ppo_clip", {**HIGHER, "dual": 3.0}),
    Entry("verl:gspo", "loss_mode='gspo', seq-mean-token-mean, an advantage an answer", "loss", "gspo", PPO),
    Entry("verl:gspo_token", "loss_mode='gspo', seq-mean-token-mean", "loss", "gspo_token", PPO),
    Entry("verl:geo_mean", "loss_mode='geo_mean', clip_ratio_low=clip_ratio_high=0.4, an advantage an answer", "loss", "gmpo", {"low": 0.4, "high": 0.4}),
    Entry("verl:cispo", "loss_mode='cispo', token-mean", "loss", "cispo", {"high": 0.2, "low": 0.2}),
    Entry("verl:sapo", "loss_mode='sapo'", "loss", "sapo"),
    Entry("verl:gpg", "loss_mode='gpg', token-mean", "loss", "gpg"),
    Entry("verl:grpo", "adv_estimator=grpo", "advantage", "GroupNorm(1, 1e-6)"),
    Entry("verl:grpo_without_std", "adv_estimator=grpo, norm_adv_by_std_in_grpo=False", "advantage", "MeanBaseline()"),
    Entry("verl:grpo_vectorized", "adv_estimator=grpo_vectorized", "advantage", "GroupNorm(1, 1e-6)"),
    Entry("verl:rloo", "adv_estimator=rloo", "advantage", "LeaveOneOut()"),
    Entry("verl:rloo_vectorized", "adv_estimator=rloo_vectorized", "advantage", "LeaveOneOut()"),
    Entry("verl:opo", "adv_estimator=opo", "advantage", "LengthBaseline()"),
    Entry("verl:gpg_advantages", "adv_estimator=gpg", "advantage", "RescaledMean()"),
    Entry("verl:remax", "adv_estimator=remax", "advantage", "GreedyBaseline()"),
    Entry("verl:reinforce_plus_plus", "adv_estimator=reinforce_plus_plus", "advantage", "GlobalNorm(1, 1e-8)"),
    Entry("verl:reinforce_plus_plus_baseline", "adv_estimator=reinforce_plus_plus_baseline", "advantage", 'GlobalNorm(1, 1e-8, "group")'),
    Entry("verl:filter_groups_reward", "filter_groups.metric=reward", "filter", "HasSignal()"),
    Entry("verl:filter_groups_acc", "filter_groups.metric=acc", "filter", "HasSignal()"),
    Entry("verl:k1", "kl_penalty 'k1'", "kl", "k1"),
    Entry("verl:k2", "kl_penalty 'k2'", "kl", "k2"),
    Entry("verl:k3", "kl_penalty 'k3'", "kl", "k3"),
    Entry("verl:absolute", "kl_penalty 'abs'", "kl", "abs"),
    Entry("verl:k1_plus", "kl_penalty 'k1+'", "kl", "k1"),
    Entry("verl:k3_plus", "kl_penalty 'k3+'", "kl", "k3"),
    Entry("verl:token_mean", "agg_loss 'token-mean'", "aggregate", "TokenMean()"),
    Entry("verl:seq_mean_token_mean", "agg_loss 'seq-mean-token-mean'", "aggregate", "SequenceMean()"),
    Entry("verl:seq_mean_token_sum", "agg_loss 'seq-mean-token-sum'", "aggregate", "SequenceSum()"),
    Entry("verl:seq_mean_token_sum_norm", "agg_loss 'seq-mean-token-sum-norm', loss_scale_factor=7", "aggregate", "Constant(7.0)"),
    Entry("liger:triton_dapo", "triton_grpo_loss(loss_type='dapo', eps_high=0.28)", "loss", "dapo", DAPO, SLOW),
    Entry("liger:triton_bnpo", "triton_grpo_loss(loss_type='bnpo', eps_high=0.28)", "loss", "ppo_clip", HIGHER, SLOW),
    Entry("liger:triton_grpo", "triton_grpo_loss(loss_type='grpo', eps_high=0.2)", "loss", "grpo", {"beta": 0.04, **PPO}, SLOW),
    Entry("liger:triton_dr_grpo", "triton_grpo_loss(loss_type='dr_grpo', max_completion_length=256)", "loss", "dr_grpo", {"max_len": 256, **PPO}, SLOW),
    Entry("liger:triton_gspo", "triton_grpo_loss(loss_type='grpo', importance_sampling_level='sequence')", "loss", "gspo", NARROW, SLOW),
    Entry("liger:triton_luspo", "triton_grpo_loss(loss_type='luspo', importance_sampling_level='sequence')", "loss", "luspo", LUSPO, SLOW),
    Entry("liger:triton_sapo", "triton_grpo_loss(loss_type='sapo')", "loss", "sapo", {}, SLOW),
    Entry("liger:chunked_dapo", "LigerFusedLinearGRPO, loss_type='dapo'", "loss", "dapo", DAPO),
    Entry("liger:chunked_bnpo", "LigerFusedLinearGRPO, loss_type='bnpo'", "loss", "ppo_clip", HIGHER),
    Entry("liger:chunked_grpo", "LigerFusedLinearGRPO, loss_type='grpo', beta=0.04", "loss", "grpo", {"beta": 0.04, **PPO}),
    Entry("liger:chunked_dr_grpo", "LigerFusedLinearGRPO, loss_type='dr_grpo', max_completion_length=256", "loss", "dr_grpo", {"max_len": 256, **PPO}),
    Entry("liger:chunked_gspo", "LigerFusedLinearGRPO, loss_type='grpo', importance_sampling_level='sequence'", "loss", "gspo", NARROW),
    Entry("liger:chunked_luspo", "LigerFusedLinearGRPO, loss_type='luspo', importance_sampling_level='sequence'", "loss", "luspo", LUSPO),
    Entry("liger:chunked_cispo", "LigerFusedLinearGRPO, loss_type='cispo', epsilon_high=5.0", "loss", "cispo", {"high": 4.0}),
    Entry("liger:chunked_sapo", "LigerFusedLinearGRPO, loss_type='sapo'", "loss", "sapo"),
    Entry("liger:chunked_vespo", "LigerFusedLinearGRPO, loss_type='vespo'", "loss", "vespo"),
    Entry("liger:k3", "k3_loss_fn", "kl", "k3"),
    *(Entry(*line) for line in ours_names.lines()),
]  # fmt: skip

# Implementation, laws, what is chosen and where it is said. A branch of its own in the source counts as said.
CHOICES = [
    ("trl:bnpo", ("split",), 'the mean is over the local batch: "results may slightly vary depending on the local batch size" (`GRPOConfig.loss_type`)'),
    ("trl:grpo_default_kl", ("value", "gradient", "fp32", "split"), "the KL term is multiplied by the ratio, with gradient (`GRPOConfig.use_bias_correction_kl`, True by default; DeepSeek-V3.2)"),
    ("trl:cispo_default", ("value", "gradient", "bound", "masked_nan", "fp32", "split"), "with `cispo` the cap of the weight is `epsilon_high` itself, and `epsilon` where that is not given (`GRPOConfig.epsilon_high`, which recommends 5.0)"),
    ("verl:k3*", ("value", "fp32"), 'the estimate is limited to ±10 and the log-ratio to ±20 (`kl_penalty_forward`, "for numerical stability")'),
    ("verl:k3", ("gradient",), "the estimate is limited to ±10, with no gradient beyond (`kl_penalty_forward`)"),
    ("verl:k?_plus", ("gradient",), "a name with `+` has the estimator's value and the gradient of k2 (`kl_penalty`, docstring)"),
    ("verl:*", ("singleton",), "a group of one has a branch of its own in the source: mean 0 and std 1 in the estimators, kept by the filter"),
]  # fmt: skip
# On a bound the two sides of the minimum are equal, and whatever share of the gradient is one of its subgradients.
AT_A_BOUND = (
    "at a tie each share of the gradient from 0 to 1 is a subgradient; `torch.min` and `torch.maximum` give either side "
    "half (PyTorch, autograd mechanics: gradients for non-differentiable functions), grpokit the whole"
)
NOT_LOOKED_AT = [
    ("trl:frac_reward_zero_std", ("not_finite",), "a metric: it keeps and drops nothing"),
    ("trl:*", ("bf16",), "the fused LM head gives float32 log-probs whatever the model's format"),
    ("liger:chunked_*", ("bf16",), "`chunk_forward` gives float32 log-probs whatever the model's format"),
    ("liger:triton_*", ("bound",), "the kernel computes in float32, where no log-ratio stands exactly on a bound"),
    ("liger:triton_*", ("bf16",), "the kernel takes logits and reads them as float32"),
]
# What is to be known beside a departure.
NOTES = [
    ("trl:*", ("masked_nan",), "the log-prob of a padded place is 0 in TRL's own forward pass"),
    ("verl:*", ("masked_nan",), "the log-prob of a padded place is 0 in verl's own forward pass (`no_padding_2_padding`)"),
    ("verl:*", ("bf16",), "`logprobs_from_logits` gives bf16 log-probs of bf16 logits where flash-attn is not installed"),
    ("verl:geo_mean", ("split",), "`loss_agg_mode` is \"not used\" (docstring): the loss is the mean over the micro-batch's rows"),
]  # fmt: skip


def found(table, name, law):
    """What a table says of an implementation and a law, or nothing."""
    return next((says for fits, laws, says in table if fnmatchcase(name, fits) and law in laws), "")
