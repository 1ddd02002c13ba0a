"""DuckDB: the rollouts that are worth training on, with their advantages."""

import duckdb

import grpokit as gk

duckdb.sql("""
    COPY (
        SELECT ['a', 'b', 'c', 'd'][i % 4 + 1] AS uid, 'answer' || i AS response, 650 + i AS response_len,
            [1, 1, 1, 0, 0, 1, 1, 0, 0, 1, 0, NULL][i + 1] AS score
        FROM range(12) AS t(i)
    ) TO 'rollouts.parquet'
""")

rollouts = duckdb.sql("FROM 'rollouts.parquet'").to_arrow_table()
out = gk.process(rollouts, "dapo", max_len=20_480, columns={"group_id": "uid", "reward": "score"})
verdicts = {"keep": out.keep, "advantage": out.advantages}
kept = duckdb.sql("SELECT rollouts.*, advantage FROM rollouts POSITIONAL JOIN verdicts WHERE keep")
kept.write_parquet("kept.parquet")
print(out)
print(kept)
