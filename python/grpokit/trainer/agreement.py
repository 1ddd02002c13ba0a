"""Whether the sampler has the trainer's weights, from their log-probs of the same tokens.

A weight update that did not reach the sampler raises no error anywhere: rewards fall, or do not rise, for reasons that
nobody finds. So each step compares, and the run stops where they part.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from grpokit.errors import error

if TYPE_CHECKING:
    from torch import Tensor

    from .collect import Gathered
    from .config import TrainConfig
    from .policy import Policy
    from .sampling import Sampling

_ROWS = 32


def sampled_ahead(policy: Policy, gathered: Gathered, config: TrainConfig) -> dict[str, float]:
    """Compares where rows are sampled, for a trainer whose weights will have moved on.

    Parameters
    ----------
    policy : Policy
        With the weights that were to sample.
    gathered : Gathered
        Of what they sampled so many rows are looked at, spread evenly.
    config : TrainConfig

    Returns
    -------
    dict
        The gaps' mean and largest, nats; nothing where no row is theirs.

    Raises
    ------
    StateError
        `sampler_differs`.
    """
    answers = [row.completion for row in gathered.rows]
    own = [c for c in answers if c.version == gathered.version and not c.off_policy and c.token_ids]
    if not own:
        return {}
    batch = policy.pad(own[:: -(-len(own) // _ROWS)])
    logps, _ = policy.logps(batch, config.temperature, config.microbatch_tokens)
    gaps = logp_gaps(logps, batch.rollout_logps, config.how())[batch.mask]
    if not len(gaps):
        return {}
    check_agreement(gaps, config.logp_gap_bound, gathered.version)
    named = "sampling/ahead_logp_difference"
    return {f"{named}/mean": gaps.mean().item(), f"{named}/max": gaps.max().item()}


def logp_gaps(logps: Tensor, sampled: Tensor, sampling: Sampling) -> Tensor:
    """How far the trainer's log-probs and the sampler's are apart, beyond what truncation explains.

    Parameters
    ----------
    logps, sampled : Tensor
        Any shape, nats: of the same tokens under the policy, and under the distribution that was sampled from.
    sampling : Sampling
        Among the tokens that top-p and top-k leave the sampler's are higher, by −log of the mass that is left: from 0
        to −log `least_mass`.

    Returns
    -------
    Tensor
        Of that shape, 0 or more; NaN where one of them is.
    """
    above = sampled - logps
    most = -math.log(sampling.least_mass) if sampling.least_mass else math.inf
    return (-above).relu() + (above - most).relu()


def check_agreement(gaps: Tensor, bound: float, version: int) -> None:
    """Stops the run where the gaps' mean is beyond the bound, or no number.

    Raises
    ------
    StateError
        `sampler_differs`.
    """
    mean = gaps.double().mean().item()
    if not mean <= bound:
        raise error("sampler_differs", mean=mean, most=gaps.max().item(), bound=bound, version=version)
