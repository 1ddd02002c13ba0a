"""pyarrow: the rollouts that are worth training on, with their advantages."""

import pyarrow as pa
import pyarrow.parquet as pq

import grpokit as gk

rollouts = pa.table(
    {
        "uid": ["a", "b", "c", "d"] * 3,
        "score": [1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, None],
        "response": [f"answer{i}" for i in range(12)],
        "response_len": [700, 650] * 6,
    }
)
pq.write_table(rollouts, "rollouts.parquet")

rollouts = pq.read_table("rollouts.parquet")
out = gk.process(rollouts, "dapo", max_len=20_480, columns={"group_id": "uid", "reward": "score"})
kept = rollouts.append_column("advantage", pa.array(out.advantages)).filter(pa.array(out.keep))
pq.write_table(kept, "kept.parquet")
print(out)
for response, advantage in zip(kept["response"], kept["advantage"], strict=True):
    print(response, advantage)
