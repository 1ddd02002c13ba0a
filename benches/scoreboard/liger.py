"""Liger-Kernel's GRPO losses on the processor: the Triton kernel in its interpreter, and the chunked loss.

The kernel takes logits. They are made from the log-probs: two words, the chosen one with the log-prob that is asked for
and the other with the rest. A token of probability 1 has no gradient by its logits, so that the log-probs of all
policies are lowered by 1 first; the ratios, which these losses are functions of, stay as they are. The chunked loss has
a function from log-probs to the loss, which is called as it is.
"""

import torch
from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction, k3_loss_fn
from liger_kernel.transformers.grpo_loss import triton_grpo_loss


class _Logits(torch.autograd.Function):
    """(B, T + 1, 2) in fp32 from log-probs, and the chain rule back, in which what has no share has none."""

    @staticmethod
    def forward(ctx, logps):
        chosen = logps.float() - 1
        ctx.save_for_backward(chosen.exp())
        ctx.given = logps.dtype
        pair = torch.stack([chosen, torch.log1p(-chosen.exp())], -1)
        return torch.cat([pair, torch.zeros_like(pair[:, :1])], 1).contiguous()

    @staticmethod
    def backward(ctx, slopes):
        (p,) = ctx.saved_tensors
        chosen, other = slopes[:, :-1].unbind(-1)
        share = torch.where((chosen == 0) & (other == 0), 0.0, chosen - other * p / (1 - p))
        return share.to(ctx.given)


def _triton(**options):
    def loss(logps, old_logps, row_advantages, mask):
        ids = torch.zeros(logps.shape, dtype=torch.int64)
        old = (old_logps.float() - 1).contiguous()
        fixed = {"temperature": 1.0, "beta": 0.0, "inplace": False, "reduce": True}
        return triton_grpo_loss(_Logits.apply(logps), old, None, ids, row_advantages, mask, **fixed, **options)[0]

    return loss


def _triton_counted(**options):
    """With the tokens of the whole step, which the kernel takes for these losses."""

    def loss(logps, old_logps, row_advantages, mask, num_tokens):
        counted = _triton(**options, num_items_in_batch=num_tokens)
        return counted(logps, old_logps, row_advantages, mask)

    return loss


def _triton_penalised(beta, **options):
    def loss(logps, old_logps, ref_logps, row_advantages, mask):
        ids = torch.zeros(logps.shape, dtype=torch.int64)
        old, ref = ((x.float() - 1).contiguous() for x in (old_logps, ref_logps))
        fixed = {"temperature": 1.0, "beta": beta, "inplace": False, "reduce": True}
        return triton_grpo_loss(_Logits.apply(logps), old, ref, ids, row_advantages, mask, **fixed, **options)[0]

    return loss


BOUNDS = {"eps_low": 0.2, "eps_high": 0.28}
SEQUENCE = {"importance_sampling_level": "sequence"}
triton_dapo = _triton_counted(loss_type="dapo", **BOUNDS)
triton_grpo = _triton_penalised(0.04, loss_type="grpo", eps_low=0.2, eps_high=0.2)
triton_bnpo = _triton(loss_type="bnpo", **BOUNDS)
triton_dr_grpo = _triton(loss_type="dr_grpo", eps_low=0.2, eps_high=0.2, max_completion_length=256)
triton_sapo = _triton(loss_type="sapo")
triton_gspo = _triton(loss_type="grpo", eps_low=3e-4, eps_high=4e-4, **SEQUENCE)
triton_luspo = _triton(loss_type="luspo", eps_low=2e-3, eps_high=2.5e-3, **SEQUENCE)


def _chunked(**options):
    def loss(logps, old_logps, row_advantages, mask):
        given = {"old_per_token_logps": old_logps, "full_attention_mask": mask, "beta": 0.0}
        return LigerFusedLinearGRPOFunction.ppo_loss_fn(logps, mask, row_advantages, **given, **options)[0]

    return loss


def _chunked_counted(**options):
    def loss(logps, old_logps, row_advantages, mask, num_tokens):
        return _chunked(**options, num_items_in_batch=num_tokens)(logps, old_logps, row_advantages, mask)

    return loss


def _chunked_penalised(beta, **options):
    def loss(logps, old_logps, ref_logps, row_advantages, mask):
        given = {"old_per_token_logps": old_logps, "ref_per_token_logps": ref_logps, "full_attention_mask": mask}
        return LigerFusedLinearGRPOFunction.ppo_loss_fn(logps, mask, row_advantages, beta=beta, **given, **options)[0]

    return loss


FUSED = {"epsilon_low": 0.2, "epsilon_high": 0.28}
chunked_dapo = _chunked_counted(loss_type="dapo", **FUSED)
chunked_grpo = _chunked_penalised(0.04, loss_type="grpo", epsilon_low=0.2, epsilon_high=0.2)
chunked_bnpo = _chunked(loss_type="bnpo", **FUSED)
chunked_dr_grpo = _chunked(loss_type="dr_grpo", epsilon_low=0.2, epsilon_high=0.2, max_completion_length=256)
chunked_cispo = _chunked_counted(loss_type="cispo", epsilon_high=5.0)
chunked_sapo = _chunked(loss_type="sapo")
chunked_vespo = _chunked_counted(loss_type="vespo")
chunked_gspo = _chunked(loss_type="grpo", epsilon_low=3e-4, epsilon_high=4e-4, **SEQUENCE)
chunked_luspo = _chunked(loss_type="luspo", epsilon_low=2e-3, epsilon_high=2.5e-3, **SEQUENCE)


def k3(logps, ref_logps):
    return k3_loss_fn(ref_logps, logps)
