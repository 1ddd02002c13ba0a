from . import arithmetic as arithmetic
from . import loss as loss
from . import reference as reference
from . import testing as testing
from . import trainer as trainer
from ._native import Groups as Groups
from ._native import __version__ as __version__
from ._recipe import Recipe as Recipe
from ._recipe import Term as Term
from ._recipe import recipe as recipe
from ._recipe import recipe_names as recipe_names
from .advantage import Given as Given
from .advantage import GlobalNorm as GlobalNorm
from .advantage import GreedyBaseline as GreedyBaseline
from .advantage import GroupNorm as GroupNorm
from .advantage import LeaveOneOut as LeaveOneOut
from .advantage import LengthBaseline as LengthBaseline
from .advantage import MeanBaseline as MeanBaseline
from .advantage import RescaledMean as RescaledMean
from .advantage import SoftValue as SoftValue
from .aggregate import Constant as Constant
from .aggregate import SequenceMean as SequenceMean
from .aggregate import SequenceSum as SequenceSum
from .aggregate import TokenMean as TokenMean
from .attempts import AtK as AtK
from .attempts import best_at_k as best_at_k
from .attempts import majority_at_k as majority_at_k
from .attempts import pass_at_k as pass_at_k
from .attempts import pass_at_k_of_counts as pass_at_k_of_counts
from .attempts import worst_at_k as worst_at_k
from .batch import TokenBatch as TokenBatch
from .collector import CollectedGroup as CollectedGroup
from .collector import GroupCollector as GroupCollector
from .columns import Ragged as Ragged
from .controllers import AdaptiveEntropy as AdaptiveEntropy
from .controllers import AdaptiveKL as AdaptiveKL
from .controllers import ESSLearningRate as ESSLearningRate
from .controllers import effective_sample_size as effective_sample_size
from .drift import OPSM as OPSM
from .drift import DPPOMask as DPPOMask
from .drift import M2POMask as M2POMask
from .errors import FileError as FileError
from .errors import GroupWarning as GroupWarning
from .errors import GrpokitError as GrpokitError
from .errors import InputError as InputError
from .errors import InputTypeError as InputTypeError
from .errors import StateError as StateError
from .gdpo import GDPO as GDPO
from .lint import Finding as Finding
from .log_probs import mismatch_stats as mismatch_stats
from .minimum_variance import MinimumVarianceBaseline as MinimumVarianceBaseline
from .mismatch import MIS as MIS
from .mismatch import TIS as TIS
from .mismatch import IcePop as IcePop
from .mismatch import KPop as KPop
from .mismatch_statistics import MismatchStats as MismatchStats
from .objective import KL as KL
from .objective import Clip as Clip
from .objective import ClippedWeight as ClippedWeight
from .objective import Divergence as Divergence
from .objective import Entropy as Entropy
from .objective import GammaWeight as GammaWeight
from .objective import GaussianGate as GaussianGate
from .objective import GeometricClip as GeometricClip
from .objective import MixedPolicy as MixedPolicy
from .objective import QuadraticPenalty as QuadraticPenalty
from .objective import Regression as Regression
from .objective import Reinforce as Reinforce
from .objective import SequenceClip as SequenceClip
from .objective import SequenceClipToken as SequenceClipToken
from .objective import SoftGate as SoftGate
from .packing import Packing as Packing
from .packing import Shares as Shares
from .packing import balance as balance
from .packing import pack as pack
from .passk import PKPO as PKPO
from .passk import PassKArgmax as PassKArgmax
from .passk import PassKTraining as PassKTraining
from .processed import GroupStats as GroupStats
from .processed import GroupTable as GroupTable
from .processed import Processed as Processed
from .ranking import Learnability as Learnability
from .ranking import MaxVariance as MaxVariance
from .ranking import SourceLimit as SourceLimit
from .ranking import VarianceQuantile as VarianceQuantile
from .rejection import WTRS as WTRS
from .rejection import GeometricMask as GeometricMask
from .rejection import SequenceMask as SequenceMask
from .rejection import TrustRegionMask as TrustRegionMask
from .rejection import Veto as Veto
from .rollouts import advantages as advantages
from .rollouts import group as group
from .rollouts import group_stats as group_stats
from .rollouts import process as process
from .routing import Agreement as Agreement
from .routing import RoutingRecord as RoutingRecord
from .routing_replay import record_routing as record_routing
from .routing_replay import replay_routing as replay_routing
from .selection import Distinct as Distinct
from .selection import DuplicateWeight as DuplicateWeight
from .selection import HasSignal as HasSignal
from .selection import MaxLag as MaxLag
from .selection import MinGroupSize as MinGroupSize
from .selection import NotTruncated as NotTruncated
from .selection import PassRate as PassRate
from .selection import Reason as Reason
from .shaping import KLPenalty as KLPenalty
from .shaping import Overlong as Overlong
from .shaping import overlong_penalty as overlong_penalty
from .sketch import QuantileSketch as QuantileSketch
from .stages import Advantage as Advantage
from .stages import Aggregate as Aggregate
from .stages import Correct as Correct
from .stages import Objective as Objective
from .stages import Select as Select
from .stages import Shape as Shape
from .stages import Stage as Stage
from .stages import register as register
from .staleness import LagStatistics as LagStatistics
from .staleness import StalenessLedger as StalenessLedger
from .staleness import TakenBatch as TakenBatch
from .staleness import VersionSpan as VersionSpan
from .token_selection import ClipCov as ClipCov
from .token_selection import M2POClip as M2POClip
from .token_selection import S2TMask as S2TMask
from .token_selection import TopCovariance as TopCovariance
from .token_selection import TopEntropy as TopEntropy

__all__ = [
    "GDPO",
    "KL",
    "MIS",
    "OPSM",
    "PKPO",
    "TIS",
    "WTRS",
    "AdaptiveEntropy",
    "AdaptiveKL",
    "Advantage",
    "Aggregate",
    "Agreement",
    "AtK",
    "Clip",
    "ClipCov",
    "ClippedWeight",
    "CollectedGroup",
    "Constant",
    "Correct",
    "DPPOMask",
    "Distinct",
    "Divergence",
    "DuplicateWeight",
    "ESSLearningRate",
    "Entropy",
    "FileError",
    "Finding",
    "GammaWeight",
    "GaussianGate",
    "GeometricClip",
    "GeometricMask",
    "Given",
    "GlobalNorm",
    "GreedyBaseline",
    "GroupCollector",
    "GroupNorm",
    "GroupStats",
    "GroupTable",
    "GroupWarning",
    "Groups",
    "GrpokitError",
    "HasSignal",
    "IcePop",
    "InputError",
    "InputTypeError",
    "KLPenalty",
    "KPop",
    "LagStatistics",
    "Learnability",
    "LeaveOneOut",
    "LengthBaseline",
    "M2POClip",
    "M2POMask",
    "MaxLag",
    "MaxVariance",
    "MeanBaseline",
    "MinGroupSize",
    "MinimumVarianceBaseline",
    "MismatchStats",
    "MixedPolicy",
    "NotTruncated",
    "Objective",
    "Overlong",
    "Packing",
    "PassKArgmax",
    "PassKTraining",
    "PassRate",
    "Processed",
    "QuadraticPenalty",
    "QuantileSketch",
    "Ragged",
    "Reason",
    "Recipe",
    "Regression",
    "Reinforce",
    "RescaledMean",
    "RoutingRecord",
    "S2TMask",
    "Select",
    "SequenceClip",
    "SequenceClipToken",
    "SequenceMask",
    "SequenceMean",
    "SequenceSum",
    "Shape",
    "Shares",
    "SoftGate",
    "SoftValue",
    "SourceLimit",
    "Stage",
    "StalenessLedger",
    "StateError",
    "TakenBatch",
    "Term",
    "TokenBatch",
    "TokenMean",
    "TopCovariance",
    "TopEntropy",
    "TrustRegionMask",
    "VarianceQuantile",
    "VersionSpan",
    "Veto",
    "advantages",
    "arithmetic",
    "balance",
    "best_at_k",
    "effective_sample_size",
    "group",
    "group_stats",
    "loss",
    "majority_at_k",
    "mismatch_stats",
    "overlong_penalty",
    "pack",
    "pass_at_k",
    "pass_at_k_of_counts",
    "process",
    "recipe",
    "recipe_names",
    "record_routing",
    "reference",
    "register",
    "replay_routing",
    "testing",
    "trainer",
    "worst_at_k",
]

def __dir__() -> list[str]: ...
