"""LAD (Li & Li, arXiv:2602.20132): the policy is moved towards the distribution that the advantages induce.

LOSS is the mean over sequences of e^{A/η} f(x), x = R e^{−A/η}, R = Π_t r_t the sequence's ratio π / π_old: an
f-divergence between π and π_old e^{A/η}, without the normalising constants, which the paper's Lemma 3.2 removes.
Where f'(1) = 0 the loss is flat at R = e^{A/η}.

Experimental: f, η and whether the authors' code takes the ratio per token or per sequence were not found; the ratio is
the sequence's here, as in the definitions. |log R| and |A/η| are limited to 20.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from grpokit.parameters import check_choice, check_number
from grpokit.stages import Objective, register

from .columns import LIMIT, clip, ratio

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from grpokit.tokens import Tokens

KINDS = ("js", "hellinger", "tv", "kl", "reverse_kl", "jeffreys")


@register("objective")
@dataclass(frozen=True)
class Divergence(Objective):
    """e^{A/η} f(x), x = R e^{−A/η}, R = Π_t r_t.

    Parameters
    ----------
    f : {"js", "hellinger", "tv", "kl", "reverse_kl", "jeffreys"}
        The divergence; the first three are the paper's strict ones, "js" the best in one reading of it.
    eta : float
        η, more than 0: the larger, the less the advantages count.

    Raises
    ------
    InputError
        `bad_parameter`.

    Notes
    -----
    ∂/∂log π_j = R f'(x), the same for every token of the sequence.

    ========== ================================ ======================
    f          f(x)                             R f'(x)
    ========== ================================ ======================
    js         (x ln x − (x+1) ln((x+1)/2)) / 2 (R/2) ln(2x / (1+x))
    hellinger  (√x − 1)²                        R (1 − x^{−1/2})
    tv         |x − 1| / 2                      (R/2) sign(x − 1)
    kl         x ln x                           R (ln x + 1)
    reverse_kl −ln x                            −e^{A/η}
    jeffreys   (x − 1) ln x                     R (ln x + 1 − 1/x)
    ========== ================================ ======================
    """

    f: Literal["js", "hellinger", "tv", "kl", "reverse_kl", "jeffreys"]
    eta: float
    reads: ClassVar[frozenset[str]] = frozenset({"log_ratio", "advantages"})
    scope: ClassVar[Literal["sequence"]] = "sequence"
    equation: ClassVar[str] = "e^{A/η} f(x)"
    where: ClassVar[str] = "x = R e^{−A/η}, R = Π_t r_t, |log R| and |A/η| at most 20"
    gradient: ClassVar[str] = "g = R f'(x), summed over the sequence's tokens"
    example: ClassVar[Mapping[str, Any]] = {"f": "js", "eta": 1.0}

    def __post_init__(self) -> None:
        check_choice(self, "f", KINDS)
        check_number(self, "eta", more_than=0)

    @property
    def breaks(self) -> Mapping[str, str]:
        return {
            "zero_advantage": "A = 0 still pulls towards π_old",
            "homogeneous": "A is in an exponent",
            "on_policy": "R f'(e^{−A/η}) instead of −A, and summed over the sequence's tokens",
            "bounded": "it grows with the sequence's ratio",
        }

    def value(self, tokens: Tokens) -> Tensor:
        D, a = tokens.total(tokens.log_ratio), clip(tokens.advantages / self.eta, -LIMIT, LIMIT)
        R, E, log_x = ratio(D), a.exp(), clip(D, -LIMIT, LIMIT) - a
        if self.f == "js":
            return (R * log_x - (R + E) * ((log_x.exp() + 1) / 2).log()) / 2
        if self.f == "hellinger":
            return (ratio(D / 2, LIMIT / 2) - (a / 2).exp()) ** 2
        if self.f == "tv":
            return (R - E).abs() / 2
        if self.f == "kl":
            return R * log_x
        return -E * log_x if self.f == "reverse_kl" else (R - E) * log_x
