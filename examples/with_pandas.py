"""pandas: the rollouts that are worth training on, with their advantages."""

import pandas as pd

import grpokit as gk

pd.DataFrame(
    {
        "uid": ["a", "b", "c", "d"] * 3,
        "score": [1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, None],
        "response": [f"answer{i}" for i in range(12)],
        "response_len": [700, 650] * 6,
    }
).to_parquet("rollouts.parquet")

rollouts = pd.read_parquet("rollouts.parquet")
out = gk.process(rollouts, "dapo", max_len=20_480, columns={"group_id": "uid", "reward": "score"})
kept = rollouts.assign(advantage=out.advantages)[out.keep]
kept.to_parquet("kept.parquet")
print(out)
print(kept)
