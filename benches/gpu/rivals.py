"""The rivals: Liger's two losses, fla's, and eager torch as TRL has it, as it is and compiled."""

import torch

from .cases import HIGH, LOW
from .providers import LOGITS, Provider, Unavailable, differentiated

# Log-probs that are rounded to bf16, 2^-9 of a number near 16, are in the ratio and in every probability.
ROUNDED = 0.1


def liger(data, level, *, inplace):
    """Liger's Triton loss: loss_type dapo at token level, grpo, the mean over sequences, at sequence level."""
    try:
        from liger_kernel.transformers.grpo_loss import triton_grpo_loss
    except ImportError as problem:
        raise Unavailable(f"Liger cannot be imported: {problem}") from None
    mask = data.mask.int()

    def forward():
        loss, _ = triton_grpo_loss(
            data.logits,
            data.old_logps,
            None,
            data.targets,
            data.advantages,
            mask,
            temperature=data.case.temperature,
            beta=0.0,
            eps_low=LOW,
            eps_high=HIGH,
            inplace=inplace,
            loss_type="dapo" if level == "token" else "grpo",
            importance_sampling_level=level,
            reduce=True,
        )
        return loss

    return differentiated(forward, data.logits)


def liger_chunked(data, *, tf32, compiled):
    """Liger's chunked loss from hidden states, the one that TRL uses, a sequence a chunk."""
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss
    except ImportError as problem:
        raise Unavailable(f"Liger cannot be imported: {problem}") from None
    how = {"epsilon_low": LOW, "epsilon_high": HIGH, "temperature": data.case.temperature}
    loss_of = LigerFusedLinearGRPOLoss(
        beta=0.0, compiled=compiled, use_ref_model=False, chunk_size=1, loss_type="dapo", **how
    )
    mask = data.mask.int()

    def forward():
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32
        given = data.hidden, data.weight, data.targets, mask, data.advantages
        loss, _ = loss_of(*given, old_per_token_logps=data.old_logps)
        torch.backends.cuda.matmul.allow_tf32 = before
        return loss

    return differentiated(forward, data.hidden, data.weight)


def fla(data):
    """fla's loss: on-policy, no temperature; without its KL penalty."""
    if data.device.type != "cuda":
        raise Unavailable("fla tunes its kernels on a CUDA device")
    try:
        from fla.modules.grpo import fused_grpo_loss
    except ImportError as problem:
        raise Unavailable(f"fla cannot be imported: {problem}") from None
    mask, ref_logps = data.mask.int(), torch.zeros_like(data.targets, dtype=torch.float32)

    def forward():
        given = data.logits, ref_logps, data.targets, data.advantages
        losses = fused_grpo_loss(*given, beta=0.0, completion_mask=mask, inplace=True)
        return losses.sum() / mask.sum()

    return differentiated(forward, data.logits)


def selected_log_softmax(logits, ids):
    """Log π of some tokens, a sequence at a time, so that one sequence's log-softmax is there at once."""
    if logits.dtype in (torch.float32, torch.float64):
        found = logits.gather(-1, ids[..., None]).squeeze(-1)
        return found - torch.stack([row.logsumexp(-1) for row in logits])
    return torch.stack(
        [row.log_softmax(-1).gather(-1, i[:, None]).squeeze(-1) for row, i in zip(logits, ids, strict=True)]
    )


def entropy_of(logits, rows):
    """The entropy of each place, some rows at a time; None is all at once."""
    flat = logits.reshape(-1, logits.shape[-1])
    found = []
    for chunk in [flat] if rows is None else flat.split(rows):
        log_p = chunk.log_softmax(-1)
        found.append(-(log_p.exp() * log_p).sum(-1))
    return torch.cat(found).view(logits.shape[:-1])


def trl_loss(given, temperature, *, level="token", entropy=False, rows=128):
    """The loss as TRL's trainer computes it; its mean entropy is a metric, without a gradient, 128 rows at a time."""
    logits, targets, mask, advantages, old_logps = given
    x = logits[:, :-1] / temperature
    logps = selected_log_softmax(x, targets)
    mean_entropy = None
    if entropy:
        with torch.no_grad():
            mean_entropy = (entropy_of(x, rows) * mask).sum() / mask.sum()
    d = logps - (logps.detach() if old_logps is None else old_logps)
    if level == "sequence":
        d = ((d * mask).sum(-1) / mask.sum(-1).clamp(min=1.0))[:, None]
    A = advantages[:, None]
    r = d.exp()
    gate = -torch.min(r * A, r.clamp(1 - LOW, 1 + HIGH) * A)
    if level == "sequence":
        return gate.mean(), mean_entropy
    return (gate * mask).sum() / mask.sum().clamp(min=1.0), mean_entropy


def eager(data, level="token", *, entropy=False):
    """`trl_loss` as it is."""
    mask = data.mask.float()

    def forward():
        given = data.logits, data.targets, mask, data.advantages, data.old_logps
        return trl_loss(given, data.case.temperature, level=level, entropy=entropy)[0]

    return differentiated(forward, data.logits)


def torch_compiled(data, *, entropy=False):
    """`trl_loss` in torch.compile, one graph of fixed shapes, the entropies in one piece."""
    if data.device.type != "cuda":
        raise Unavailable("no CUDA device to compile for")
    mask = data.mask.float()
    loss = torch.compile(trl_loss, dynamic=False, fullgraph=True)

    def forward():
        given = data.logits, data.targets, mask, data.advantages, data.old_logps
        return loss(given, data.case.temperature, entropy=entropy, rows=None)[0]

    return differentiated(forward, data.logits)


def only_fla(case):
    """What fla's loss leaves out."""
    if case.temperature != 1.0:
        return "fla has no temperature"
    return "" if case.policy == "on" else "fla is on-policy only"


FORWARD_BACKWARD = "the forward pass reads 2, the backward pass reads 2 and writes 2; masked rows are written"
LIGER_SEQUENCE = "two reads of 2 in the forward pass, the backward pass reads 2 and writes 2; masked rows are written"


def _eager(name, **how):
    from .eager_bytes import count

    def make(data):
        return eager(data, **how)

    moved = count(lambda given: trl_loss(given, 1.0, **how))
    counted = "every operator's tensors once, by a dispatch mode; log_softmax counts as one read and one write"
    return Provider(name, make, how.get("level", "token"), moved=(moved,) * 3, counted=counted, tolerance=ROUNDED)


def token_level():
    """Liger, fla and eager torch."""
    three = {"moved": (6, 6, 2), "counted": FORWARD_BACKWARD}
    return (
        Provider("Liger, in place", lambda data: liger(data, "token", inplace=True), inplace=True, **three),
        Provider("Liger", lambda data: liger(data, "token", inplace=False), **three),
        _eager("eager as TRL"),
        _eager("eager as TRL, entropy metric", entropy=True),
    )


def sequence_level():
    """Liger and eager torch."""
    four = {"moved": (8, 8, 2), "counted": LIGER_SEQUENCE}
    return (
        Provider(
            "Liger, sequence level, in place",
            lambda data: liger(data, "sequence", inplace=True),
            "sequence",
            inplace=True,
            **four,
        ),
        _eager("eager as TRL, sequence level", level="sequence"),
    )


def slow_to_compile():
    """What takes long to start: fla, which times 48 configurations, and torch.compile."""
    return (
        Provider("fla, in place", fla, inplace=True, moved=(6, 6, 2), counted=FORWARD_BACKWARD, refuses=only_fla),
        Provider("torch.compile of eager", torch_compiled, tolerance=ROUNDED),
        Provider(
            "torch.compile of eager, entropy metric",
            lambda data: torch_compiled(data, entropy=True),
            tolerance=ROUNDED,
        ),
    )


def linear(*, compiled):
    """Liger's chunked loss, its fp32 matrix products as PyTorch has them and in TF32; `compiled` is its default."""
    for tf32 in (False, True):
        name = f"Liger chunked, TF32 {'on' if tf32 else 'off'}"
        yield Provider(
            name, lambda data, tf32=tf32: liger_chunked(data, tf32=tf32, compiled=compiled), tolerance=LOGITS
        )
