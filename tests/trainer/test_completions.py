"""A step's completions as Parquet: what the run kept is what `grpokit filter` keeps."""

import dataclasses
import datetime as dt
import inspect
import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import grpokit as gk
from grpokit.stages import EXAMPLES, lookup
from grpokit.trainer import Trainer, config_tables
from grpokit.trainer.completions import write_rows
from grpokit.trainer.config_tables import Logging, Snapshots
from grpokit.trainer.evaluate_run import evaluate_run
from grpokit.trainer.run import RunDirectory

from .conftest import Echo


@pytest.fixture
def train(config, task, silent, tmp_path):
    def run(name="run", resume=False, reward=None, **changes):
        trainer = Trainer(
            dataclasses.replace(config, **changes),
            task=task,
            reward=reward,
            directory=tmp_path / name,
            console=silent,
            resume=resume,
        )
        trainer.train()
        return tmp_path / name

    return run


def rows_of(run):
    return [row for path in sorted((run / "completions").iterdir()) for row in pq.read_table(path).to_pylist()]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# Selections and a length punishment; a greedy answer; log-probs in the reward; score norms; demonstrations.
RECIPES = ["dapo", "remax", "reinforce_pp", "vcpo", "luffy"]


@pytest.mark.parametrize("name", RECIPES)
def test_filter_decides_as_the_run_did(train, tmp_path, name):
    required = {key: value for key, value in EXAMPLES.get(name, {}).items() if key != "max_len"}
    # Two parts of these groups have no signal.
    run = train(reward=coarse, recipe=name, recipe_parameters=required, max_rounds=2)
    rows, metrics = rows_of(run), lines(run / "metrics.jsonl")[1:]
    counts = [sum(row["step"] == one["step"] for row in rows) for one in metrics]
    assert counts == [one["sampling/completions"] for one in metrics]
    assert sum(row["keep"] for row in rows) == sum(one["sampling/used"] for one in metrics)
    config = RunDirectory(run).configuration()
    recipe = config.make_recipe()
    parameters = dict(config.recipe_parameters)
    if "max_len" in inspect.signature(lookup("recipe", name)).parameters:
        parameters["max_len"] = config.max_completion_length
    words = [word for key, value in parameters.items() for word in ("--set", f"{key}={value}")]
    kept, dropped = tmp_path / "kept.parquet", tmp_path / "dropped.parquet"
    command = [sys.executable, "-m", "grpokit", "filter", run / "completions", "-o", kept, "--recipe", name, *words]
    done = subprocess.run([*command, "--keep-dropped", dropped], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert pq.read_table(kept).to_pylist() == [row for row in rows if row["keep"]]
    assert pq.read_table(dropped).num_rows == sum(not row["keep"] for row in rows)
    if name == "dapo":
        assert {row["keep"] for row in rows} == {True, False}
    # Step by step the advantages are the run's too.
    for step in range(1, config.steps + 1):
        table = pq.read_table(run / "completions" / f"step-{step:08}.parquet")
        processed = gk.process(table, recipe, need=config.prompts_per_step)
        found = processed.advantages if processed.token_advantages is None else processed.token_advantages
        assert [np.array(row).tolist() for row in found] == table["advantage"].to_pylist()


def coarse(prompts, completions, **columns):
    """Of two groups one without signal; a row now and then is not scored."""
    return [
        None if len(text) == 1 else float(text[:1] < "d") if prompt < "c" else 1.0
        for prompt, text in zip(prompts, completions, strict=True)
    ]


def test_every_row_of_rollouts_is_there_as_it_is(train):
    run = train(steps=2, logged_groups=100)
    assert rows_of(run) == lines(run / "rollouts.jsonl")
    schema = pq.read_schema(run / "completions" / "step-00000001.parquet")
    assert [str(schema.field(name).type) for name in ("step", "text", "reward", "keep")] == [
        "int64", "string", "double", "bool",
    ]  # fmt: skip


def test_lengths_by_trls_names(train):
    """Of all completions, and of those that ended by themselves; of none of them TRL says 0."""
    run = train(steps=4)
    by_step = {row["step"]: row for row in lines(run / "metrics.jsonl")[1:]}
    table = rows_of(run)
    assert {row["finish"] for row in table} == {"stop", "length"}
    for step, metrics in by_step.items():
        rows = [row for row in table if row["step"] == step]
        for part, chosen in (("", rows), ("terminated_", [row for row in rows if row["finish"] == "stop"])):
            lengths = [row["response_len"] for row in chosen] or [0]
            for name, value in (("mean", np.mean(lengths)), ("min", min(lengths)), ("max", max(lengths))):
                assert metrics[f"completions/{name}_{part}length"] == pytest.approx(value)


def test_how_often(train):
    assert sorted(path.name for path in (train("b", logging=Logging(completions=2)) / "completions").iterdir()) == [
        "step-00000002.parquet"
    ]
    assert not (train("c", logging=Logging(completions=0)) / "completions").exists()


def test_without_pyarrow(train, config, monkeypatch):
    monkeypatch.setattr(config_tables, "find_spec", lambda name: None)
    assert config.resolve().logging.completions == 0
    assert not (train() / "completions").exists()
    with pytest.raises(gk.InputError, match=r"logging.completions needs pyarrow, .*'grpokit\[io\]'") as caught:
        train("b", logging=Logging(completions=1))
    assert caught.value.kind == "missing_extra"


def test_what_was_written_after_the_snapshot_is_written_anew(train):
    """Also what a kill has left half written, and where another choice about logging is made."""
    every = Snapshots(every=2)
    alone = train("alone", steps=5, snapshots=every)
    run = train(steps=3, snapshots=every)
    # As if it had been killed in step 4, and a longer one had been here before.
    shutil.rmtree(run / "snapshots" / "step-00000003")
    for number in (4, 7):
        (run / "completions" / f"step-{number:08}.parquet").touch()
    (run / "completions" / ".new-step-00000004.parquet").touch()
    train(resume=True, steps=5, snapshots=every, logging=Logging(samples=0))
    names = [f"step-{number:08}.parquet" for number in range(1, 6)]
    for where in (alone, run):
        assert sorted(path.name for path in (where / "completions").iterdir()) == names
    for name in names:
        assert (run / "completions" / name).read_bytes() == (alone / "completions" / name).read_bytes()


def test_a_disk_that_is_full_leaves_no_half_of_a_file(train, tmp_path, monkeypatch):
    def full(path, rows, *, parquet):
        path.write_bytes(b"PAR1")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("grpokit.trainer.run.write_rows", full)
    with pytest.raises(gk.FileError, match="step-00000001.parquet cannot be written: No space left") as caught:
        train()
    assert caught.value.kind == "file_unwritable"
    assert list((tmp_path / "run" / "completions").iterdir()) == []


def test_answers_of_several_types_and_parts_that_have_nothing_to_say(tmp_path):
    rows = [
        {"group_id": 0, "reward": None, "answer": 7, "reward_parts": {"a": None, "b": 1.0}, "advantage": 0.5},
        {"group_id": 0, "reward": 1, "answer": None, "reward_parts": {"a": None, "b": None}, "advantage": 0.0},
    ]
    write_rows(tmp_path / "a.parquet", rows, parquet=True)
    table = pq.read_table(tmp_path / "a.parquet")
    assert table["answer"].to_pylist() == ["7", None]
    assert table["reward"].to_pylist() == [None, 1.0]
    assert table["reward_parts"].to_pylist() == [row["reward_parts"] for row in rows]
    assert table.schema.field("reward_parts").type == pa.struct([("a", pa.float64()), ("b", pa.float64())])
    write_rows(tmp_path / "a.jsonl", rows, parquet=False)
    assert lines(tmp_path / "a.jsonl") == rows


def test_items_of_which_some_have_an_answer(config, silent, tmp_path):
    """The column is there whichever comes first, and an answer that JSON does not know is its text."""
    config = dataclasses.replace(config, steps=1, logged_groups=100)
    for letters in ("ab", "cd"):
        task, run = Some(letters), tmp_path / letters
        Trainer(config, task=task, directory=run, console=silent).train()
        rows = rows_of(run)
        expected = ["2026-11-27" if row["prompt"][0] in letters else None for row in rows]
        assert [row["answer"] for row in rows] == expected
        assert [row.get("answer") for row in lines(run / "rollouts.jsonl")] == expected
        assert set(expected) == {"2026-11-27", None}
        evaluated = evaluate_run(run, task=task, settings={"prompts": 20})
        for name in ("a.jsonl", "a.parquet"):
            write_rows(tmp_path / name, evaluated.records(), parquet=name == "a.parquet")
        expected = ["2026-11-27" if item["prompt"][0] in letters else None for item in evaluated.items]
        assert [row.get("answer") for row in lines(tmp_path / "a.jsonl")] == expected
        assert pq.read_table(tmp_path / "a.parquet")["answer"].to_pylist() == expected


@dataclasses.dataclass(frozen=True)
class Some(Echo):
    letters: str

    def prompts(self, rng, n):
        known = {"answer": dt.date(2026, 11, 27)}
        return [item | (known if item["prompt"][0] in self.letters else {}) for item in super().prompts(rng, n)]
