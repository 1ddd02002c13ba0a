from . import loss as loss
from . import reference as reference
from . import trainer as trainer
from ._native import Groups as Groups
from ._native import __version__ as __version__
from ._recipe import Recipe as Recipe
from ._recipe import Term as Term
from ._recipe import recipe as recipe
from ._recipe import recipe_names as recipe_names
from .advantage import GlobalNorm as GlobalNorm
from .advantage import GroupNorm as GroupNorm
from .advantage import LeaveOneOut as LeaveOneOut
from .advantage import MeanBaseline as MeanBaseline
from .aggregate import Constant as Constant
from .aggregate import SequenceMean as SequenceMean
from .aggregate import SequenceSum as SequenceSum
from .aggregate import TokenMean as TokenMean
from .batch import TokenBatch as TokenBatch
from .errors import FileError as FileError
from .errors import GrpokitError as GrpokitError
from .errors import InputError as InputError
from .errors import InputTypeError as InputTypeError
from .errors import StateError as StateError
from .mismatch import TIS as TIS
from .mismatch import IcePop as IcePop
from .objective import KL as KL
from .objective import Clip as Clip
from .objective import Entropy as Entropy
from .objective import Reinforce as Reinforce
from .rollouts import GroupStats as GroupStats
from .rollouts import GroupTable as GroupTable
from .rollouts import Processed as Processed
from .rollouts import advantages as advantages
from .rollouts import group as group
from .rollouts import group_stats as group_stats
from .rollouts import process as process
from .selection import HasSignal as HasSignal
from .selection import NotTruncated as NotTruncated
from .selection import Reason as Reason
from .shaping import Overlong as Overlong
from .shaping import overlong_penalty as overlong_penalty
from .stages import Advantage as Advantage
from .stages import Aggregate as Aggregate
from .stages import Correct as Correct
from .stages import Objective as Objective
from .stages import Select as Select
from .stages import Shape as Shape
from .stages import Stage as Stage
from .stages import register as register

__all__ = [
    "KL",
    "TIS",
    "Advantage",
    "Aggregate",
    "Clip",
    "Constant",
    "Correct",
    "Entropy",
    "FileError",
    "GlobalNorm",
    "GroupNorm",
    "GroupStats",
    "GroupTable",
    "Groups",
    "GrpokitError",
    "HasSignal",
    "IcePop",
    "InputError",
    "InputTypeError",
    "LeaveOneOut",
    "MeanBaseline",
    "NotTruncated",
    "Objective",
    "Overlong",
    "Processed",
    "Reason",
    "Recipe",
    "Reinforce",
    "Select",
    "SequenceMean",
    "SequenceSum",
    "Shape",
    "Stage",
    "StateError",
    "Term",
    "TokenBatch",
    "TokenMean",
    "advantages",
    "group",
    "group_stats",
    "loss",
    "overlong_penalty",
    "process",
    "recipe",
    "recipe_names",
    "reference",
    "register",
    "trainer",
]

def __dir__() -> list[str]: ...
