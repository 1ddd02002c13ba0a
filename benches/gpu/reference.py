"""What is right: the losses in float64, by their equations and autograd, and how far a provider may be from that."""

from dataclasses import asdict, dataclass

import torch

from .cases import ENTROPY, HIGH, LOW

INFINITE = 1e30  # an error that is NaN or infinite, which JSON has no number for


def loss(logits, data, level, *, entropy):
    """The loss of logits (B, L, V): Eq. 12 of DAPO at token level, Eq. 5 of GSPO at sequence level.

    With d = log π − log π_old, r = e^d and s = e^(mean of d): −min(r A, clip(r) A) over live tokens, or the mean over
    sequences of −min(s A, clip(s) A); less ENTROPY times the mean entropy where `entropy`.
    """
    log_p = (logits.double() / data.case.temperature).log_softmax(-1)
    logps = log_p.gather(-1, data.targets[..., None]).squeeze(-1)
    old = logps.detach() if data.old_logps is None else data.old_logps.double()
    mask, A = data.mask, data.advantages.double()[:, None]
    d = logps - old
    if level == "sequence":
        d = ((d * mask).sum(1) / mask.sum(1))[:, None]
    r = d.exp()
    gate = -torch.minimum(r * A, r.clamp(1 - LOW, 1 + HIGH) * A)
    value = gate.mean() if level == "sequence" else (gate * mask).sum() / mask.sum()
    if entropy:
        value = value - ENTROPY * (-(log_p.exp() * log_p).sum(-1) * mask).sum() / mask.sum()
    return value


def gradients(data, level, *, entropy):
    """The loss and its gradients by what the provider is given, in float64."""
    if hasattr(data, "hidden"):
        inputs = [x.detach().double().requires_grad_() for x in (data.hidden, data.weight)]
        value = loss(inputs[0] @ inputs[1].T, data, level, entropy=entropy)
    else:
        inputs = [data.pristine.double().requires_grad_()]
        value = loss(inputs[0][:, :-1], data, level, entropy=entropy)
    return value.detach(), torch.autograd.grad(value, inputs)


@dataclass(frozen=True)
class Check:
    """What came of a provider on a small case.

    Attributes
    ----------
    status : {"right", "wrong", "unavailable", "failed"}
        The last two with a `reason`.
    loss_error : float
        |loss − reference|.
    gradient_error : float
        The largest over rows of ‖g − reference‖ / ‖reference‖, of the target's entry and of the others; 1e30
        where a row that has no gradient got one, or NaN.
    tolerance : float
        What they may be: the loss in absolute terms, its tokens being of order 1.
    """

    provider: str
    case: str
    status: str
    loss_error: float | None = None
    gradient_error: float | None = None
    tolerance: float | None = None
    reason: str = ""

    def asdict(self):
        return asdict(self)


def row_error(given, expected, targets=None):
    """The worst row's relative error in the 2-norm, of the targets' entries apart from the others; NaN is INFINITE."""
    given, expected = (x.detach().double().reshape(-1, x.shape[-1]) for x in (given, expected))
    if targets is None:
        parts = [(given, expected)]
    else:
        # The target's entry is nearly all of a row's norm: what is wrong elsewhere would not show beside it.
        hit = torch.zeros_like(expected, dtype=torch.bool).scatter_(1, targets.reshape(-1, 1), value=True)
        parts = [(given.masked_fill(mask, 0), expected.masked_fill(mask, 0)) for mask in (hit, ~hit)]
    worst = 0.0
    for g, e in parts:
        size, off = e.norm(dim=1), (g - e).norm(dim=1)
        # A row that is small next to the others is held to a thousandth of the largest; one without a gradient, to 0.
        floor = torch.where(size == 0, 0.0, size.clamp(min=1e-3 * float(size.max())))
        error = torch.where((size == 0) & (off == 0), 0.0, off / floor)
        worst = max(worst, float(torch.nan_to_num(error, nan=INFINITE, posinf=INFINITE).max()))
    return worst


def check(provider, data):
    """Runs a provider once, on memory full of NaN, and compares it with float64.

    Parameters
    ----------
    provider : Provider
        What to run.
    data : Data or LinearData
        A small case that it takes.

    Returns
    -------
    Check
    """
    value, expected = gradients(data, provider.level, entropy=provider.entropy)
    data.restore()
    call = provider.make(data)
    # What the allocator hands out next: whoever does not write all of its output shows it.
    poison = [torch.full(x.shape, torch.nan, dtype=torch.bfloat16, device=x.device) for x in expected]
    del poison
    found = call.forward()
    given = call.backward(found)
    loss_error = float(torch.nan_to_num((found.detach().double() - value).abs(), nan=INFINITE))
    # The place beyond the last has no target, and no gradient: any id will do.
    targets = None if hasattr(data, "hidden") else torch.nn.functional.pad(data.targets, (0, 1))
    error = max(row_error(g, e, targets) for g, e in zip(given, expected, strict=True))
    right = loss_error <= provider.tolerance and error <= provider.tolerance
    if right and not provider.inplace and hasattr(data, "pristine") and not torch.equal(data.logits, data.pristine):
        return Check(
            provider.name, data.case.name, "wrong", loss_error, error, provider.tolerance, "it overwrote the logits"
        )
    status = "right" if right else "wrong"
    return Check(provider.name, data.case.name, status, loss_error, error, provider.tolerance)
