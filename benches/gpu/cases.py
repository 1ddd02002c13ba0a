"""What is given to every provider: a shape, a mask and a policy, and the tensors that they make.

All of them get the same contiguous logits (B, L + 1, V), whose last place nobody trains on: Liger and fla want it so,
and ours has it masked. They give the gradient of the whole tensor back.
"""

import math
from dataclasses import dataclass, replace

import torch

# The clip of the ratio at both levels, and what the entropy term weighs.
LOW, HIGH, ENTROPY = 0.2, 0.28, 0.01
SPREAD = 2.0


@dataclass(frozen=True)
class Case:
    """A shape of the loss from logits.

    Attributes
    ----------
    sequences, length, vocabulary : int
        B, L, V; N = B L.
    temperature : float
        τ.
    live : float
        The share of places that are trained on; sequences end early.
    policy : {"off", "on", "clipped"}
        "off": log r of ± 0.1, within the clip; "on": no old log-probs; "clipped": four sequences in turn at log r of
        ± 0.1 and ± 0.5, far from the clip's bounds, so that no rounding decides.
    """

    sequences: int
    length: int
    vocabulary: int
    temperature: float = 1.0
    live: float = 1.0
    policy: str = "off"

    @property
    def name(self):
        mask = "" if self.live == 1 else f", {1 - self.live:.0%} padded"
        policy = (
            "" if self.policy == "off" else {"on": ", on-policy", "clipped": ", a fourth beyond the clip"}[self.policy]
        )
        return f"{self.sequences * self.length} × {self.vocabulary}, τ = {self.temperature:g}{mask}{policy}"

    def but(self, **changes):
        return replace(self, **changes)


class Data:
    """The tensors of a case.

    Attributes
    ----------
    logits : (B, L + 1, V) bf16 leaf
        What providers read, and may overwrite.
    targets, mask, old_logps : (B, L)
        int64, bool and fp32; `old_logps` is None on-policy.
    advantages : (B,) fp32
        Not 0, of either sign.
    beyond : (B,) bool
        Sequences that the clip leaves without a gradient.
    """

    def __init__(self, case, device, seed=0):
        self.case, self.device = case, torch.device(device)
        B, L, V = case.sequences, case.length, case.vocabulary
        generator = torch.Generator(self.device).manual_seed(seed)
        how = {"generator": generator, "device": self.device}
        self.pristine = torch.empty(B, L + 1, V, dtype=torch.bfloat16, device=self.device)
        self.pristine.normal_(0.0, SPREAD, generator=generator)
        self.logits = self.pristine.clone().requires_grad_()
        self.targets = torch.randint(V, (B, L), **how)
        lengths = torch.full((B,), L, device=self.device)
        if case.live < 1:
            # Of both halves the mean is what is asked for.
            least = max(1, math.ceil(L * (2 * case.live - 1))) if case.live > 0.5 else 1
            lengths = torch.linspace(least, 2 * case.live * L - least, B, device=self.device).round().long().clamp(1, L)
        self.mask = torch.arange(L, device=self.device) < lengths[:, None]
        steps = torch.tensor([-0.1, 0.1, -0.5, 0.5] if case.policy == "clipped" else [-0.1, 0.1], device=self.device)
        sequence = torch.arange(B, device=self.device)
        step = steps[sequence % len(steps)]
        # Either sign meets every step.
        self.advantages = (1 - 2 * (sequence // len(steps) % 2)) * (0.5 + torch.rand(B, **how))
        log_ratio = step[:, None] + 0.02 * torch.rand(B, L, **how)
        self.beyond = ((step < -0.3) & (self.advantages < 0)) | ((step > 0.3) & (self.advantages > 0))
        self.old_logps = self._logps() - log_ratio if case.policy != "on" else None

    def restore(self):
        """The logits as they were."""
        self.logits.detach().copy_(self.pristine)

    def shares(self):
        """Of all B (L + 1) places: live ones with a gradient, live ones without, and the rest."""
        total = self.mask.shape[0] * (self.mask.shape[1] + 1)
        still = int((self.mask & self.beyond[:, None]).sum())
        live = int(self.mask.sum())
        return (live - still) / total, still / total, 1 - live / total

    @torch.no_grad()
    def _logps(self):
        """Log π of the targets, a few rows at a time."""
        rows, targets = self.pristine[:, :-1], self.targets
        out = torch.empty(targets.shape, device=self.device)
        at = max(1, 2**28 // self.case.vocabulary)
        for b in range(len(out)):
            for start in range(0, out.shape[1], at):
                z = rows[b, start : start + at].float() / self.case.temperature
                found = z.gather(1, targets[b, start : start + at, None]).squeeze(1)
                out[b, start : start + at] = found - z.logsumexp(1)
        return out


@dataclass(frozen=True)
class LinearCase:
    """A shape of the loss from hidden states: B, L, H, V."""

    sequences: int
    length: int
    hidden: int
    vocabulary: int
    temperature: float = 1.0
    live: float = 1.0
    policy: str = "off"

    @property
    def name(self):
        return f"{self.sequences * self.length} × {self.hidden} × {self.vocabulary}, τ = {self.temperature:g}"


class LinearData:
    """The tensors of a `LinearCase`: hidden (B, L, H) and weight (V, H), bf16 leaves; the others as in `Data`."""

    def __init__(self, case, device, seed=0):
        self.case, self.device = case, torch.device(device)
        B, L, H, V = case.sequences, case.length, case.hidden, case.vocabulary
        generator = torch.Generator(self.device).manual_seed(seed)
        how = {"generator": generator, "device": self.device}
        self.hidden = torch.randn(B, L, H, **how).bfloat16().requires_grad_()
        weight = torch.empty(V, H, dtype=torch.bfloat16, device=self.device)
        self.weight = weight.normal_(0.0, SPREAD / math.sqrt(H), generator=generator).requires_grad_()
        self.targets = torch.randint(V, (B, L), **how)
        self.mask = torch.ones(B, L, dtype=torch.bool, device=self.device)
        sign = 1 - 2 * (torch.arange(B, device=self.device) % 2)
        self.advantages = sign * (0.5 + torch.rand(B, **how))
        self.old_logps = self._logps() - 0.1 * (1 + 0.2 * torch.rand(B, L, **how))

    def restore(self):
        """Nothing overwrites the inputs."""

    @torch.no_grad()
    def _logps(self):
        hidden, targets = self.hidden.flatten(0, 1), self.targets.flatten()
        out = torch.empty(len(hidden), device=self.device)
        for start in range(0, len(hidden), 1024):
            z = (hidden[start : start + 1024] @ self.weight.T).float() / self.case.temperature
            found = z.gather(1, targets[start : start + 1024, None]).squeeze(1)
            out[start : start + 1024] = found - z.logsumexp(1)
        return out.view_as(self.targets)
