"""Rollout files: reading what frameworks write, filtering it, writing it back whole or not at all.

Needs pyarrow: ``pip install 'grpokit[io]'``.
"""

from .files import Filtered, expand, explain, filter_files

__all__ = ["Filtered", "expand", "explain", "filter_files"]
