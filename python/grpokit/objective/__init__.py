"""Stage 6, objective: a value per token, whose gradient is all that the model sees.

One module an objective: the paper's formula on columns (T,) of live tokens, made of what `columns` offers.
"""

from .clip import Clip
from .entropy import Entropy
from .kl import KL
from .reinforce import Reinforce

__all__ = ["KL", "Clip", "Entropy", "Reinforce"]
