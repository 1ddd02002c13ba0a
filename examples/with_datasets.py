"""Hugging Face datasets: the rollouts that are worth training on, with their advantages."""

from datasets import Dataset

import grpokit.io.datasets

Dataset.from_dict(
    {
        "uid": ["a", "b", "c", "d"] * 3,
        "score": [1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, None],
        "response": [f"answer{i}" for i in range(12)],
        "response_len": [700, 650] * 6,
    }
).to_parquet("rollouts.parquet")

rollouts = Dataset.from_parquet("rollouts.parquet")
names = {"group_id": "uid", "reward": "score"}
kept = grpokit.io.datasets.filter(rollouts, "dapo", max_len=20_480, columns=names, advantages=True)
kept.to_parquet("kept.parquet")
for row in kept:
    print(row)
