"""What is wrong with a run, and why: rules that are pure functions of what was measured.

In: a `grpokit.record.Record`, or the last steps of a run that goes on. Out: findings, each with its evidence and a fix.
"""

from .finding import Finding
from .rule import Rule, Seen, rule
from .rules import RULES, diagnose
from .watch import Watch

__all__ = ["RULES", "Finding", "Rule", "Seen", "Watch", "diagnose", "rule"]
