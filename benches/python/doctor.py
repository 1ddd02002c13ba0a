"""What the doctor costs beside a run: `python benches/python/doctor.py RUN`.

In: a run's metrics, of 100 steps or more. Out: milliseconds of a look with a full window, and its share of the steps
between two looks.
"""

import json
import statistics
import sys
import time
from pathlib import Path

from grpokit.doctor import Watch
from grpokit.doctor.watch import STEPS
from grpokit.trainer import TrainConfig

LOOKS = 20

lines = Path(sys.argv[1], "metrics.jsonl").read_text().splitlines()[1:]
rows = [json.loads(lines[at % len(lines)]) | {"step": at + 1} for at in range(STEPS)]
config = TrainConfig.from_file(Path(sys.argv[1], "config.toml"))
watch = Watch(config.to_dict(), rows)
watch.new()
seconds = []
for _ in range(LOOKS):
    start = time.perf_counter()
    watch.new()
    seconds.append(time.perf_counter() - start)
step, every = statistics.median(row["step_time"] for row in rows), config.logging.doctor
look = statistics.median(seconds)
print(f"{look * 1e3:.1f} ms a look, {look / every / step:.2%} of {every} steps of {step * 1e3:.0f} ms")
