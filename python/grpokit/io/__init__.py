"""Rollout files: reading what frameworks write, filtering it, writing it back whole or not at all.

Needs pyarrow: ``pip install 'grpokit[io]'``. `grpokit.io.ray` and `grpokit.io.datasets` do the same to datasets of Ray
Data and of Hugging Face, and are imported by themselves.
"""

from .files import Filtered, expand, explain, filter_files
from .whole_groups import WholeGroups

__all__ = ["Filtered", "WholeGroups", "expand", "explain", "filter_files"]
