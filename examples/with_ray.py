"""Ray Data: the rollouts that are worth training on, with their advantages, on as many machines as there are."""

import pandas as pd
import ray

import grpokit.io.ray

pd.DataFrame(
    {
        "uid": ["a", "b", "c", "d"] * 3,
        "score": [1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, None],
        "response": [f"answer{i}" for i in range(12)],
        "response_len": [700, 650] * 6,
    }
).to_parquet("rollouts.parquet")

rollouts = ray.data.read_parquet("rollouts.parquet")
names = {"group_id": "uid", "reward": "score"}
kept = grpokit.io.ray.filter(rollouts, "dapo", max_len=20_480, columns=names, advantages=True, num_blocks=2)
print(kept.to_pandas())
