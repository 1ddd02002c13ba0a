"""grpokit.io.datasets on real datasets: the verdicts of the whole table with features intact, or an error."""

import subprocess
import sys

import datasets as hf
import numpy as np
import pyarrow as pa
import pytest

import grpokit as gk
import grpokit.io.datasets
from grpokit.io import WholeGroups

SIGNAL = gk.recipe("rloo").replace(select=(gk.HasSignal(),))
FEATURES = {
    "uid": hf.Value("int64"),
    "reward": hf.Value("float32"),
    "kind": hf.ClassLabel(names=["math", "code"]),
    "when": hf.Value("timestamp[ns, tz=UTC]"),
    "messages": hf.List({"role": hf.Value("string"), "content": hf.Value("large_string")}),
}


@pytest.fixture(autouse=True)
def quiet():
    hf.disable_progress_bars()


def rollouts(uid, seed=0):
    rng, rows = np.random.default_rng(seed), len(uid)
    table = pa.table(
        {
            "uid": pa.array(uid, pa.int64()),
            "reward": pa.array([None if x > 0.9 else float(x > 0.5) for x in rng.random(rows)], pa.float32()),
            "kind": pa.array(rng.integers(0, 2, rows)),
            "when": pa.array(rng.integers(0, 2**60, rows), pa.timestamp("ns", "UTC")),
            "messages": [[{"role": "user", "content": f"question {i}"}] for i in range(rows)],
        }
    )
    features = hf.Features(FEATURES)
    return hf.Dataset(table.cast(features.arrow_schema), info=hf.DatasetInfo(features=features))


def arrow(dataset):
    if isinstance(dataset, hf.Dataset):
        return dataset.with_format("arrow")[:]
    return pa.concat_tables(list(dataset.with_format("arrow").iter(500)))


def expected(table, recipe=SIGNAL):
    out = gk.process(table, recipe, columns={"group_id": "uid"})
    assert 0 < out.keep.sum() < len(table)
    return out, table.filter(pa.array(out.keep))


@pytest.mark.parametrize("order", ["stored", "shuffled", "selected", "on disk"])
def test_a_dataset_is_filtered_as_its_table(order, tmp_path):
    dataset = rollouts(np.random.default_rng(1).integers(-300, 300, 2500))
    if order == "shuffled":
        dataset = dataset.shuffle(seed=3)
    if order == "selected":
        dataset = dataset.select([*range(2000, 100, -3), 5, 5])
    if order == "on disk":
        dataset.save_to_disk(tmp_path / "saved")
        dataset = hf.load_from_disk(tmp_path / "saved")
    out, want = expected(arrow(dataset))
    found = grpokit.io.datasets.filter(dataset, SIGNAL, columns={"group_id": "uid"})
    assert found.features == dataset.features
    assert arrow(found).equals(want)
    again = grpokit.io.datasets.filter(dataset, SIGNAL, columns={"group_id": "uid"})
    assert again._fingerprint == found._fingerprint != dataset._fingerprint
    every = {"columns": {"group_id": "uid"}, "advantages": True, "keep_dropped": True}
    marked = grpokit.io.datasets.filter(dataset, SIGNAL, **every)
    assert marked["advantage"][:] == out.advantages.tolist()
    assert [word is None for word in marked["reason"]] == out.keep.tolist()
    assert marked.select_columns(dataset.column_names).features == dataset.features


@pytest.mark.parametrize("shards", [1, 3])
def test_a_stream_is_filtered_as_its_table(shards):
    dataset = rollouts(np.repeat(np.random.default_rng(2).permutation(2000) - 1000, 3))
    out, want = expected(arrow(dataset))
    stream = dataset.to_iterable_dataset(num_shards=shards)
    found = grpokit.io.datasets.filter(stream, SIGNAL, columns={"group_id": "uid"}, advantages=True)
    assert found.features == hf.Features(FEATURES | {"advantage": hf.Value("float64")})
    for _ in range(2):  # a stream can be read again
        read = arrow(found)
        assert read.drop_columns("advantage").equals(want)
        assert read["advantage"].to_pylist() == out.advantages[out.keep].tolist()
    assert next(iter(found))["messages"] == want["messages"][0].as_py()
    assert len(list(found)) == len(want)
    marked = grpokit.io.datasets.filter(stream, SIGNAL, columns={"group_id": "uid"}, keep_dropped=True)
    assert [row["reason"] is None for row in marked] == out.keep.tolist()


def test_a_stream_that_does_not_know_its_columns():
    rows = [{"group_id": f"p{i // 4}", "reward": float(i % 3 == 0)} for i in range(4000)]
    stream = hf.IterableDataset.from_generator(lambda: iter(rows))
    assert stream.column_names is None
    assert list(grpokit.io.datasets.filter(stream, "grpo", beta=0.0)) == rows
    empty = hf.IterableDataset.from_generator(lambda: iter(()))
    assert list(grpokit.io.datasets.filter(empty, SIGNAL)) == []


def test_a_group_that_comes_back_in_a_stream_is_an_error():
    dataset = rollouts([7] * 4 + list(range(100, 2100)) + [7] * 4)
    stream = grpokit.io.datasets.filter(dataset.to_iterable_dataset(), SIGNAL, columns={"group_id": "uid"})
    with pytest.raises(gk.InputError, match="group 7 comes back") as caught:
        list(stream)
    assert caught.value.kind == "group_returns"
    assert len(grpokit.io.datasets.filter(dataset, SIGNAL, columns={"group_id": "uid"})) in range(9)
    long = rollouts([7] * 3000).to_iterable_dataset()
    with pytest.raises(gk.InputError, match="group 7 has"):
        list(grpokit.io.datasets.filter(long, SIGNAL, columns={"group_id": "uid"}, max_group_rows=1000))


def test_stages_of_a_batch_see_whole_steps():
    uid = np.random.default_rng(4).integers(0, 40, 3000)
    dataset = rollouts(uid).add_column("step", np.repeat(np.arange(6), 500))
    recipe = SIGNAL.replace(select=(gk.HasSignal(), gk.Learnability(7)))
    _, want = expected(arrow(dataset), recipe)
    call = {"columns": {"group_id": "uid"}}
    assert arrow(grpokit.io.datasets.filter(dataset, recipe, **call)).equals(want)
    assert arrow(grpokit.io.datasets.filter(dataset.to_iterable_dataset(), recipe, **call)).equals(want)
    with pytest.raises(gk.InputError, match="Learnability looks at a whole batch") as caught:
        list(grpokit.io.datasets.filter(dataset.remove_columns("step").to_iterable_dataset(), recipe, **call))
    assert caught.value.kind == "needs_whole_batch"


def test_errors():
    dataset = rollouts(np.arange(9) // 3)
    call = grpokit.io.datasets.filter
    for given in (dataset, dataset.to_iterable_dataset()):
        with pytest.raises(gk.InputError, match="'group_id', which is not there") as caught:
            call(given, SIGNAL)
        assert "'uid'" in str(caught.value)
        with pytest.raises(gk.InputError, match="'reason' already"):
            call(given.rename_column("kind", "reason"), SIGNAL, columns={"group_id": "uid"}, keep_dropped=True)
    with pytest.raises(gk.InputTypeError, match="type DatasetDict; expected a datasets.Dataset"):
        call(hf.DatasetDict({"train": dataset}), SIGNAL)
    rewards = [float(i % 3) for i in range(4000)]
    rewards[3001] = float("nan")
    bad = hf.Dataset.from_dict({"group_id": np.arange(4000) // 4, "reward": rewards})
    for given in (bad, bad.to_iterable_dataset()):
        with pytest.raises(gk.InputError, match=r"'reward' is NaN or infinite in 1 rows, the first: \[3001\]"):
            list(call(given, SIGNAL))


def advantages(batch):
    return {"advantage": gk.process(batch, "rloo", columns={"group_id": "uid"}).advantages}


MADE = {
    None: advantages,
    "numpy": advantages,
    "arrow": lambda table: table.append_column("advantage", pa.array(advantages(table)["advantage"])),
    "pandas": lambda frame: frame.assign(**advantages(frame)),
}


@pytest.mark.parametrize("form", MADE)
def test_the_guard_of_a_map_lets_whole_groups_pass(form):
    """Pass after pass, and whatever the batches are made of."""
    dataset = rollouts(np.repeat(np.arange(600) - 300, 4)).select_columns(["uid", "reward"])
    if form in ("numpy", "pandas"):  # in which a null is a NaN
        dataset = dataset.filter(lambda row: row["reward"] is not None)
    want = gk.process(arrow(dataset), "rloo", columns={"group_id": "uid"}).advantages.tolist()
    guard = WholeGroups(MADE[form], "uid")
    sizes = [None, None] if form in ("numpy", "pandas") else [400, None, 400]
    for size in sizes:
        found = dataset.with_format(form).map(guard, batched=True, batch_size=size, with_indices=True)
        assert found.with_format(None)["advantage"][:] == want
    if form is None:
        stream = dataset.to_iterable_dataset().map(guard, batched=True, batch_size=400, with_indices=True)
        for _ in range(2):
            assert [row["advantage"] for row in stream] == want


def test_the_guard_of_a_map_stops_what_cuts_groups():
    """A thousand rows at a time is what `map` does by itself."""
    dataset = rollouts(np.repeat(np.arange(500), 3))
    guard = WholeGroups(advantages, "uid")
    with pytest.raises(gk.InputError, match="group 333 comes back"):
        dataset.map(guard, batched=True, with_indices=True)
    with pytest.raises(gk.StateError, match="without num_proc") as caught:
        dataset.map(guard, batched=True, with_indices=True, num_proc=2, batch_size=None)
    assert caught.value.kind == "not_in_order"
    with pytest.raises(gk.StateError, match="with_indices=True"):
        dataset.map(guard, batched=True)
    fingerprints = {
        dataset.map(WholeGroups(advantages, "uid"), batched=True, batch_size=None, with_indices=True)._fingerprint
        for _ in range(2)
    }
    assert len(fingerprints) == 1


@pytest.mark.parametrize("engine", ["ray", "datasets"])
def test_an_engine_that_is_not_there(engine):
    code = f"import sys; sys.modules[{engine!r}] = None\nimport grpokit.io.{engine}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"grpokit.io.{engine} needs {engine}, which is not installed. Run: pip install '{engine}" in done.stderr
    assert "missing_engine" in gk.errors.KINDS
