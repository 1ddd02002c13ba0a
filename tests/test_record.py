"""What can be read of a run is read, and what cannot is said."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grpokit import FileError, InputTypeError
from grpokit.doctor import diagnose
from grpokit.record import Metrics, read_record
from grpokit.report import content


def run(place, lines, **files):
    place.mkdir()
    (place / "metrics.jsonl").write_bytes(lines if isinstance(lines, bytes) else "\n".join(lines).encode() + b"\n")
    for name, text in files.items():
        (place / name.replace("_", ".")).write_text(text)
    return place


def line(step, **values):
    return json.dumps({"step": step, **values})


def test_metrics_by_step(tmp_path):
    record = read_record(run(tmp_path / "run", [line(0, **{"eval/pass@1": 0.5}), line(1, reward=1), line(2, kl=None)]))
    assert record.metrics.steps_N.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(record.metrics["reward"], [np.nan, 1, np.nan])
    assert record.metrics.there("eval/pass@1") == ([0], [0.5])
    assert record.metrics.trained().steps_N.tolist() == [1, 2]
    assert "kl" not in record.metrics
    assert (record.rows, record.config, record.summary, record.problems) == (None, None, None, [])


def test_what_is_broken_is_said_and_the_rest_is_read(tmp_path):
    data = b'{"step": 1, "reward": 1}\nrubbish\n[1]\n{"step": "x"}\n{"step": 3, "schema_version": 1}\n'
    data += b'{"step": 2, "schema_version": 7, "reward": 2}\n{"step": 2, "reward": 3}\n{"step": 4, "rew'
    record = read_record(run(tmp_path / "run", data, config_toml="= no", summary_json="[1]"))
    assert record.metrics.steps_N.tolist() == [1, 2, 3]
    assert record.metrics["reward"][:2].tolist() == [1, 3]
    told = " ".join(record.problems)
    for words in ("left out: 3, the first is line 2", "cut off", "there twice", "backwards", "version 1, 7"):
        assert words in told
    assert "config.toml: it is no configuration" in told
    assert "summary.json: it is no summary" in told


@pytest.mark.parametrize("made", ["nothing", "empty", "only rubbish", "no run"])
def test_where_nothing_can_be_read(tmp_path, made):
    place = tmp_path / "run"
    if made != "nothing":
        run(place, b"" if made == "empty" else b"rubbish\n")
    if made == "no run":
        (place / "metrics.jsonl").unlink()
    with pytest.raises(FileError, match="can be read") as caught:
        read_record(place)
    assert caught.value.kind == "nothing_to_read"


def test_rows_of_any_container_and_their_texts(tmp_path):
    rows = [
        {"group_id": g, "step": 1 + g // 2, "reward": None if r == 3 else r / 4, "response_len": r, "prompt": f"p{g}"}
        | {"text": f"t{g}{r}", "finish": "length" if r == 1 else "stop", "keep": r > 0, "advantage": 0.5}
        | {"source": "ab"[g % 2]}
        for g in (7, 5, 6)
        for r in range(4)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=5)
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"group_id')
    for name in ("a.parquet", "b.jsonl"):
        record = read_record(tmp_path / name)
        found = record.rows
        assert found["group"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
        np.testing.assert_array_equal(found["reward"], [0, 0.25, 0.5, np.nan] * 3)
        assert found["truncated"].tolist() == [0, 1, 0, 0] * 3
        assert found["keep"].tolist() == [0, 1, 1, 1] * 3
        assert found["step"].tolist() == [4] * 4 + [3] * 4 + [4] * 4
        assert [found.sources[at] for at in found["source"][::4]] == ["b", "b", "a"]
        assert found.texts([9, 0]) == [{"prompt": "p6", "text": "t61"}, {"prompt": "p7", "text": "t70"}]
        assert (found.groups, found.format, len(found)) == (3, "columns", 12)
        assert record.metrics is None
        assert len(record.problems) == (name == "b.jsonl")


@pytest.mark.parametrize("word", ["reward", "response_len", "step"])
def test_numbers_that_are_texts(tmp_path, word):
    """Of a reward it is an error; of what a rule may do without, that column alone is not there."""
    rows = {"group_id": ["a", "a"], "reward": [0.0, 1.0], "step": [1, 1], "response_len": [5, 6]}
    pq.write_table(pa.table(rows), tmp_path / "0.parquet")
    pq.write_table(pa.table(rows | {word: list(map(str, rows[word]))}), tmp_path / "1.parquet")
    if word == "reward":
        with pytest.raises(InputTypeError, match="'reward' holds Arrow's string; expected numbers"):
            read_record(tmp_path)
        return
    record = read_record(tmp_path)
    assert word not in record.rows
    assert record.rows["reward"].tolist() == [0, 1, 0, 1]
    (problem,) = record.problems
    assert f"{word!r} was not read" in problem


@pytest.mark.parametrize("named", [True, False], ids=["steps in the rows", "steps in the names of files alone"])
def test_the_last_groups_are_those_of_the_last_steps(tmp_path, named):
    """Frameworks name their files 9.jsonl and 10.jsonl; what has steps goes by these, whatever the names are."""
    from grpokit.record.rows import read_rows

    for step in range(1, 121):
        text = "and so on " * 40 if step > 100 else "what was asked for"
        rows = [
            {"group_id": f"{step}-{at // 4}", "reward": at % 2, "prompt": f"{step} {at // 4}", "text": f"{at} {text}"}
            | ({"step": step} if named else {})
            for at in range(16)
        ]
        name = f"{step * 50 % 121}.jsonl" if named else f"{step}.jsonl"
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = read_record(tmp_path)
    rows = record.rows
    prompts = [text["prompt"] for text in rows.texts(rows.firsts[rows.in_time])]
    assert prompts == [f"{step} {at}" for step in range(1, 121) for at in range(4)]
    assert [finding.code for finding in diagnose(record)] == ["D015"]
    best = content([record])["runs"][0]["groups"]["best"]
    assert [one["prompt"]["text"] for one in best] == ["120 3", "120 2", "120 1"]
    if not named:
        rows = read_rows(sorted(tmp_path.glob("*.jsonl")), [], most_files=3)
        assert [text["prompt"] for text in rows.texts([0, 16, 32])] == ["1 0", "61 0", "120 0"]


def test_of_many_files_some_are_read_and_the_last_is_among_them(tmp_path):
    from grpokit.record.rows import read_rows

    for step in range(50):
        pq.write_table(
            pa.table({"group_id": [1, 1], "reward": [0.0, 1.0], "step": [step] * 2}), tmp_path / f"{step:03}.parquet"
        )
    (tmp_path / "020.parquet").write_bytes(b"PAR1 no")
    problems = []
    rows = read_rows(sorted(tmp_path.glob("*.parquet")), problems, most_files=50)
    assert (rows.files, rows.read, len(rows), rows.groups) == (50, 49, 98, 49)
    assert "020.parquet" in problems[0]
    rows = read_rows(sorted(tmp_path.glob("*.parquet")), [], most_files=10)
    assert rows.read == 10
    assert rows["step"][-1] == 49


@pytest.mark.parametrize("far", [0, 10**12])
def test_groups_and_steps_are_counted(tmp_path, far):
    """Against what each group and each step says by itself; steps close together and far apart, rewards missing."""
    rng = np.random.default_rng(far)
    ids, rewards = rng.integers(0, 40, 300), rng.integers(0, 3, 300) * 0.1
    rewards[(rng.random(300) < 0.1) | (ids == ids[7])] = np.nan
    lengths = pa.array(rng.integers(1, 9, 300), mask=rng.random(300) < 0.2)
    steps = ids // 4 * (1 + far)
    table = {"group_id": ids, "step": steps, "reward": pa.array(rewards, from_pandas=True), "response_len": lengths}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    rows = read_record(tmp_path / "a.parquet").rows
    assert rows.groups == 40
    of = rows.group_rewards
    for at, first in enumerate(rows.firsts):
        own = ids == ids[first]
        assert first == np.flatnonzero(own)[0]
        known = rewards[own & ~np.isnan(rewards)]
        assert of.count[at] == len(known)
        if not len(known):
            assert np.isnan(of.mean[at])
            assert (of.low[at], of.high[at], of.squares[at], of.distance[at]) == (np.inf, -np.inf, 0, 0)
            continue
        assert (of.low[at], of.high[at]) == (known.min(), known.max())
        off = known - known.mean() if np.ptp(known) else 0 * known
        expected = [known.mean(), (off**2).sum(), np.abs(off).sum()]
        np.testing.assert_allclose([of.mean[at], of.squares[at], of.distance[at]], expected, rtol=1e-14)
    found, means = rows.step_means("reward", "response_len")
    assert found.tolist() == np.unique(steps).tolist()
    for at, step in enumerate(found):
        for name, mean in zip(("reward", "response_len"), means, strict=True):
            values = rows[name][steps == step]
            np.testing.assert_allclose(mean[at], values[~np.isnan(values)].mean(), rtol=1e-14)
    assert rows.span() == (0, found[-1])
    assert rows.span(steps == found[3]) == (found[3],) * 2
    assert rows.span(steps < 0) is None


def test_a_directory_of_trls_trainer(tmp_path):
    for name, steps in (("checkpoint-1", 1), ("checkpoint-2", 2)):
        (tmp_path / name).mkdir()
        history = [{"step": at, "reward": at / 2} for at in range(1, steps + 1)] + [{"step": steps, "eval_loss": 1.0}]
        (tmp_path / name / "trainer_state.json").write_text(json.dumps({"log_history": history}))
        os.utime(tmp_path / name / "trainer_state.json", (steps, steps))
    (tmp_path / "completions").mkdir()
    table = {"step": [1, 1], "prompt": ["a", "a"], "completion": ["b", "c"], "f": [0.0, 1.0], "advantage": [-1.0, 1.0]}
    pq.write_table(pa.table(table), tmp_path / "completions" / "completions_00001.parquet")
    record = read_record(tmp_path)
    assert record.metrics["reward"].tolist() == [0.5, 1.0]
    assert record.metrics["eval_loss"][1] == 1
    assert record.rows.format == "trl"
    assert record.rows.texts([1])[0]["text"] == "c"


@pytest.mark.parametrize("first", ["checkpoint-9", "checkpoint-10"])
def test_the_last_checkpoint_is_the_one_with_most_steps(tmp_path, first):
    """Whichever was copied first."""
    for name, steps in (("checkpoint-9", 9), ("checkpoint-10", 10)):
        (tmp_path / name).mkdir()
        history = [{"step": at, "reward": at / 2} for at in range(1, steps + 1)]
        (tmp_path / name / "trainer_state.json").write_text(json.dumps({"log_history": history}))
        os.utime(tmp_path / name / "trainer_state.json", (1, 1) if name == first else (2, 2))
    record = read_record(tmp_path)
    assert len(record.metrics) == 10
    assert ["it has more steps" in problem for problem in record.problems] == ([True] if first[-1] == "0" else [])


def test_a_step_that_is_there_twice():
    metrics = Metrics.of([{"step": 2, "a": 1}, {"step": 2, "a": True, "b": "x"}])
    assert len(metrics) == 1
    assert metrics["a"].tolist() == [1]
