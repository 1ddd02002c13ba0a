"""grpokit: the GRPO family of RL algorithms for language models, exactly.

Names are loaded when they are first used: importing the package costs nothing, the row side needs NumPy alone, and
torch is imported by the losses only. What is here is typed in ``__init__.pyi``.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "advantage": (
        "Given",
        "GlobalNorm",
        "GreedyBaseline",
        "GroupNorm",
        "LeaveOneOut",
        "LengthBaseline",
        "MeanBaseline",
        "RescaledMean",
        "SoftValue",
    ),
    "aggregate": ("Constant", "SequenceMean", "SequenceSum", "TokenMean"),
    "attempts": ("AtK", "best_at_k", "majority_at_k", "pass_at_k", "pass_at_k_of_counts", "worst_at_k"),
    "batch": ("TokenBatch",),
    "collector": ("CollectedGroup", "GroupCollector"),
    "columns": ("Ragged",),
    "controllers": ("AdaptiveEntropy", "AdaptiveKL", "ESSLearningRate", "effective_sample_size"),
    "gdpo": ("GDPO",),
    "passk": ("PKPO", "PassKArgmax", "PassKTraining"),
    "drift": ("OPSM", "DPPOMask", "M2POMask"),
    "errors": ("FileError", "GroupWarning", "GrpokitError", "InputError", "InputTypeError", "StateError"),
    "lint": ("Finding",),
    "log_probs": ("mismatch_stats",),
    "mismatch": ("KPop", "MIS", "TIS", "IcePop"),
    "minimum_variance": ("MinimumVarianceBaseline",),
    "mismatch_statistics": ("MismatchStats",),
    "objective": (
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
    ),
    "packing": ("Packing", "Shares", "balance", "pack"),
    "_recipe": ("Recipe", "Term", "recipe", "recipe_names"),
    "processed": ("GroupStats", "GroupTable", "Processed"),
    "ranking": ("Learnability", "MaxVariance", "SourceLimit", "VarianceQuantile"),
    "rejection": ("WTRS", "GeometricMask", "SequenceMask", "TrustRegionMask", "Veto"),
    "rollouts": ("advantages", "group", "group_stats", "process"),
    "routing": ("Agreement", "RoutingRecord"),
    "routing_replay": ("record_routing", "replay_routing"),
    "selection": (
        "Distinct",
        "DuplicateWeight",
        "HasSignal",
        "MaxLag",
        "MinGroupSize",
        "NotTruncated",
        "PassRate",
        "Reason",
    ),
    "shaping": ("KLPenalty", "Overlong", "overlong_penalty"),
    "sketch": ("QuantileSketch",),
    "staleness": ("LagStatistics", "StalenessLedger", "TakenBatch", "VersionSpan"),
    "stages": ("Advantage", "Aggregate", "Correct", "Objective", "Select", "Shape", "Stage", "register"),
    "token_selection": ("ClipCov", "M2POClip", "S2TMask", "TopCovariance", "TopEntropy"),
    "_native": ("Groups", "__version__"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
_MODULES = ("arithmetic", "loss", "reference", "testing", "trainer")

__all__ = [*(name for name in _MODULE_OF if not name.startswith("_")), *_MODULES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF and name not in _MODULES:
        raise AttributeError(f"module 'grpokit' has no attribute {name!r}")
    try:
        module = import_module(f"grpokit.{_MODULE_OF.get(name, name)}")
    except ModuleNotFoundError as problem:
        if problem.name != "torch":
            raise
        from .errors import error

        raise error("missing_extra", what=f"grpokit.{name}", package="torch", extra="loss") from None
    value = getattr(module, name) if name in _MODULE_OF else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
