"""Stage 6, objective: a value per token, whose gradient is all that the model sees.

One module an objective: the paper's formula on columns (T,) of live tokens, made of what `columns` offers.
"""

from .clip import Clip
from .clipped_weight import ClippedWeight
from .divergence import Divergence
from .entropy import Entropy
from .gamma_weight import GammaWeight
from .gaussian_gate import GaussianGate
from .geometric_clip import GeometricClip
from .kl import KL
from .mixed_policy import MixedPolicy
from .quadratic_penalty import QuadraticPenalty
from .regression import Regression
from .reinforce import Reinforce
from .sequence_clip import SequenceClip, SequenceClipToken
from .soft_gate import SoftGate

__all__ = [
    "KL",
    "Clip",
    "ClippedWeight",
    "Divergence",
    "Entropy",
    "GammaWeight",
    "GaussianGate",
    "GeometricClip",
    "MixedPolicy",
    "QuadraticPenalty",
    "Regression",
    "Reinforce",
    "SequenceClip",
    "SequenceClipToken",
    "SoftGate",
]
