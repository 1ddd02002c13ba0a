"""Plain records, a list of dicts: the rollouts that are worth training on, with their advantages."""

import pyarrow as pa
import pyarrow.parquet as pq

import grpokit as gk

scores = [1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, None]
rollouts = [
    {"uid": "abcd"[i % 4], "score": score, "response": f"answer{i}", "response_len": 650 + i}
    for i, score in enumerate(scores)
]
pq.write_table(pa.Table.from_pylist(rollouts), "rollouts.parquet")

rollouts = pq.read_table("rollouts.parquet").to_pylist()
out = gk.process(rollouts, "dapo", max_len=20_480, columns={"group_id": "uid", "reward": "score"})
for row, keep, advantage in zip(rollouts, out.keep, out.advantages, strict=True):
    if keep:
        print(row["response"], advantage)
print(out)
