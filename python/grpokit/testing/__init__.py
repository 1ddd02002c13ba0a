"""Checks for code that others write: `laws`, what holds for every objective whatever its formula.

from grpokit.testing import laws
laws.check(MyObjective())
"""
