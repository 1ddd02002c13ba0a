"""Runs and dumps that are made for the report, with everything in them that a stranger could have written."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grpokit.trainer.config import TrainConfig

HOSTILE = [
    "<script>document.title='owned'</script>",
    "</div></details></svg></style><img src=x onerror=\"document.title='owned'\"><svg onload=document.title='owned'>",
    "\x1b[31mred\x1b[0m \x00 \x07 \x7f \x9b bell",
    "abc\u202egpj.exe\u2066\u200f\u00ad\ufeff",
    "שלום עולם مرحبا بالعالم " * 20,
    "👩‍👩‍👧‍👦🏳️‍🌈 Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!" * 40,
    "x" * 1_000_000,
    "\ud800 lone {{ 7*7 }} {% raw %} &lt; <!-- <a href='https://example.com/a'> ```\n# not a heading\n|a|b|",
]


def write_run(place, *, steps=40, recipe="dapo", seed=0, names=(), texts=None, level=0.0):
    """A directory as the trainer leaves it, from made-up numbers."""
    place.mkdir(parents=True)
    config = TrainConfig(recipe=recipe, seed=seed, steps=steps, num_generations=4).resolve()
    (place / "config.toml").write_text(config.to_toml())
    rng = np.random.default_rng(seed)
    lines = [{"step": 0, "eval/pass@1": 0.3, "eval/pass@1_stderr": 0.02}]
    for step in range(1, steps + 1):
        rise = 0.3 + 0.5 * step / steps + level
        row = {
            "step": step,
            "reward": rise + 0.05 * rng.standard_normal(),
            "reward_std": 0.3,
            "frac_reward_zero_std": rng.uniform(0, 0.4),
            "completions/mean_length": 80 + rng.uniform(0, 9),
            "completions/length_p90": 120 + rng.uniform(0, 9),
            "completions/max_length": 200.0,
            "completions/clipped_ratio": rng.uniform(0, 0.02),
            "sampling/completions": 100.0,
            "sampling/kept_share": 0.8,
            "sampling/dropped/no_signal": 15.0,
            "sampling/dropped/truncated": 5.0,
            "entropy": 1 - 0.5 * step / steps,
            "clip_ratio/low_mean": rng.uniform(0, 0.01),
            "clip_ratio/high_mean": rng.uniform(0, 0.02),
            "kl": 0.01 * step / steps,
            "grad_norm": rng.uniform(0.5, 2),
            "sampling/sampling_logp_difference/mean": 10 ** rng.uniform(-7, -6),
            "sampling/sampling_logp_difference/max": 10 ** rng.uniform(-5, -3),
            **{
                f"mismatch/ratio_{q}": v
                for q, v in zip(("min", "p1", "p50", "p99", "max"), (0.5, 0.9, 1, 1.1, 3), strict=True)
            },
            "mismatch/ess_token": rng.uniform(0.9, 1),
            "mismatch/ess_sequence": rng.uniform(0.7, 1),
            "staleness/mean": 0.5,
            "staleness/max": 1.0,
            **{f"time/{part}": rng.uniform(0.1, 0.2) for part in ("generate", "reward", "backward", "other")},
        }
        row |= {f"rewards/{name}/mean": rng.uniform() for name in names}
        if step % 10 == 0:
            row |= {"eval/pass@1": rise, "eval/pass@1_stderr": 0.02}
        lines.append(row)
    (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    (place / "summary.json").write_text(
        json.dumps({"status": "finished", "steps": steps, "completions": 4000, "used": 3200, "total_seconds": 61.5})
    )
    versions = {"schema_version": 1, "command": "grpokit train --set 'task.name=sorting'", "versions": {"numpy": "2.4"}}
    (place / "environment.json").write_text(json.dumps(versions))
    write_rows(place / "rollouts.jsonl", steps=min(steps, 40), texts=texts, seed=seed)
    return place


def write_rows(path, *, steps=6, texts=None, seed=0, **more):
    """Four groups of four a step; the texts in turn."""
    rng = np.random.default_rng(seed)
    texts = texts or ["an answer", "another answer", "a third one"]
    rows = [
        {"step": step, "group_id": f"{step}-{group}", "prompt": f"question {group} of {step}"}
        | {"text": texts[(step * 16 + group * 4 + n) % len(texts)], "reward": float(rng.random() < 0.2 * group + 0.1)}
        | {"response_len": int(rng.integers(5, 60)), "finish": "stop", "keep": group > 0, "advantage": 0.25}
        | more
        for step in range(1, steps + 1)
        for group in range(4)
        for n in range(4)
    ]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "first", names=("right", "brief"))


@pytest.fixture(scope="session")
def other(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "second", recipe="grpo", seed=1, level=-0.1)


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs") / "<img src=x onerror=alert(1)>"
    write_run(place, texts=HOSTILE, names=("<script>x</script>", "$\\frac{", "עברית", "r" * 500))
    config = (place / "config.toml").read_text().replace('name = "sorting"', 'name = "</style><script>1</script>"')
    (place / "config.toml").write_text(config)
    (place / "metrics.jsonl").write_text((place / "metrics.jsonl").read_text() + "</script><b>rubbish")
    return place


@pytest.fixture
def writer(tmp_path):
    return lambda name, **how: write_run(tmp_path / name, **how)


@pytest.fixture
def rows_writer(tmp_path):
    return lambda name, **how: write_rows(tmp_path / name, **how)
