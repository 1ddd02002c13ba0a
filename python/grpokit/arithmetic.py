"""The arithmetic that explains the family: what a clip, a filter, a normalisation or a punishment amounts to.

Closed forms in plain floats, and the sentences that `Recipe.explain` makes of them with a stage's own numbers.
"""

from __future__ import annotations

import math


def steps_to_grow(p: float, to: float, high: float) -> float:
    """Steps after which a token's probability has grown from `p` to `to` where each one ends at the clip.

    A step is from one π_old to the next, however many updates it has. Under a saturated clip p becomes (1 + high) p in
    it: ln(to / p) / ln(1 + high).

    Examples
    --------
    >>> [round(steps_to_grow(0.01, 0.1, high), 1) for high in (0.2, 0.28)]
    [12.6, 9.3]
    """
    return math.log(to / p) / math.log1p(high)


def growth_gap(steps: float, low: float, high: float) -> float:
    """How much further a probability gets under the wider of two clips: ((1 + high) / (1 + low))^steps.

    Examples
    --------
    >>> [round(growth_gap(n, 0.2, 0.28), 1) for n in (20, 50, 100)]
    [3.6, 25.2, 635.1]
    """
    return math.exp(steps * (math.log1p(high) - math.log1p(low)))


def never_clipped_above(high: float) -> float:
    """The probability above which the upper clip cannot bind, since no probability exceeds 1: 1 / (1 + high).

    Examples
    --------
    >>> round(never_clipped_above(0.2), 3)
    0.833
    """
    return 1 / (1 + high)


def decades_of_product(ratio: float, tokens: int) -> float:
    """log10 of a ratio to the power of a sequence's length: what the product of its tokens' ratios is.

    Examples
    --------
    >>> round(decades_of_product(1.2, 1024), 1)
    81.1
    """
    return tokens * math.log10(ratio)


def zero_variance_share(p: float, group: int) -> float:
    """The share of groups in which all answers agree, of prompts solved with probability p: p^G + (1 − p)^G.

    Examples
    --------
    >>> [round(zero_variance_share(p, 8), 3) for p in (0.05, 0.5, 0.9)]
    [0.663, 0.008, 0.43]
    """
    return p**group + (1 - p) ** group


def std_weight(p: float) -> float:
    """What dividing by the standard deviation multiplies a prompt's gradient with: 1 / √(p (1 − p)).

    Examples
    --------
    >>> [round(std_weight(p), 1) for p in (0.5, 0.1, 0.01)]
    [2.0, 3.3, 10.1]
    """
    return 1 / math.sqrt(p * (1 - p))


def signal_with_std(p: float) -> float:
    """The size of the expected gradient of a prompt solved with probability p, with std: √(p (1 − p)).

    It is the factor of E[∇log π | right] − E[∇log π | wrong], for 0/1 rewards, the population's mean and standard
    deviation, on-policy (after Goldilocks RL, arXiv:2602.14868).
    """
    return math.sqrt(p * (1 - p))


def signal_without_std(p: float) -> float:
    """The same without the standard deviation: p (1 − p)."""
    return p * (1 - p)


def token_clip(high: float | None) -> tuple[str, ...]:
    """What the upper bound of a token's ratio amounts to."""
    if not high:
        return ()
    grown = steps_to_grow(0.01, 0.1, high)
    found = (
        f"at the upper clip p grows by a factor {1 + high:g} a step (one π_old): from 0.01 to 0.1 in {grown:.1f} steps",
        f"above p = {never_clipped_above(high):.2f} the upper clip cannot bind",
    )
    if high <= 0.2:
        return found
    gaps = ", ".join(f"{growth_gap(n, 0.2, high):.3g}" for n in (20, 50, 100))
    return (*found, f"against high = 0.2, probabilities may be {gaps} times as large after 20, 50, 100 steps")


def sequence_clip(low: float | None, high: float | None) -> tuple[str, ...]:
    """Why the sequence's ratio is a geometric mean, and why a narrow window needs fp32."""
    decades = decades_of_product(1.2, 1024)
    product = f"a product of 1,024 ratios of 1.2 is 10^{decades:.0f}: finite as a logarithm, which is what is computed"
    narrow = min((bound for bound in (low, high) if bound), default=1.0)
    if narrow >= 2**-8:
        return (product,)
    return (product, f"bf16 resolves ratios to 0.4% near 1: a window of {narrow:.2%} exists in fp32 only")


def equal_groups() -> tuple[str, ...]:
    """How many groups dynamic sampling drops."""
    shares = ", ".join(f"{zero_variance_share(p, 8):.0%} at p = {p:g}" for p in (0.05, 0.5, 0.95))
    return (f"groups of 8 without signal, p^G + (1 − p)^G: {shares}",)


def overlong(max_len: int, cache: int) -> tuple[str, ...]:
    """Where the punishment begins and ends."""
    start = max_len - cache
    other = f"Overlong({start:,}, {min(cache, start):,}), which begins at {start - min(cache, start):,}"
    return (
        f"an answer is punished beyond {start:,} tokens and loses 1 at {max_len:,}",
        f"where L_max is read as the length before the cache it is {other}",
    )


def with_std() -> tuple[str, ...]:
    """How prompts are weighed where the standard deviation divides."""
    weights = ", ".join(f"{std_weight(p):.1f} at p = {p:g}" for p in (0.5, 0.1, 0.01))
    return (
        f"the std weighs a prompt by 1/√(p (1 − p)), for 0/1 rewards and ddof 0: {weights}",
        "so a prompt's expected gradient on-policy carries the factor √(p (1 − p)), largest at p = 0.5",
    )


def without_std() -> tuple[str, ...]:
    """How prompts are weighed where it does not."""
    sizes = ", ".join(f"{signal_without_std(p):.2g} at p = {p:g}" for p in (0.5, 0.1, 0.01))
    return (f"for 0/1 rewards a prompt's expected gradient on-policy carries the factor p (1 − p): {sizes}",)
