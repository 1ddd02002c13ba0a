"""What can be read of a run: its metrics by step, its rows, its configuration; of any framework, as far as files go.

In: a run's directory, one that TRL's trainer wrote, or rollout files of any format that `grpokit filter` reads. Out: a
`Record`, in which what cannot be read is said and what can be is there. Nothing here needs torch, or writes.
"""

from .metrics import Metrics
from .read import Record, read_record
from .rows import Rows

__all__ = ["Metrics", "Record", "Rows", "read_record"]
