"""grpokit.io.ray on a real local Ray with two workers: the same verdicts as on the whole table, or an error."""

import logging
import os
import pickle
import signal
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
import ray.data
import ray.exceptions
from ray.data.context import ShuffleStrategy

import grpokit as gk
import grpokit.io.ray

pytestmark = [
    # Of Ray's own making: settings of its own that it has renamed, and files and sockets that it leaves to exit.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
SIGNAL = gk.recipe("rloo").replace(select=(gk.HasSignal(),))


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Two workers on the loopback interface, gone at the end; sockets' paths must be short."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as directory:
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=200 * 2**20,
            _temp_dir=directory,
        )
        assert ray.nodes()[0]["NodeManagerAddress"] == "127.0.0.1"
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.shuffle_strategy = ShuffleStrategy.HASH_SHUFFLE
        yield context
        ray.shutdown()


def dataset(table, cuts=(0.3, 0.35, 0.8)):
    """The table in blocks that cut groups."""
    places = [0, *(int(cut * len(table)) for cut in cuts), len(table)]
    return ray.data.from_arrow([table.slice(a, b - a) for a, b in zip(places, places[1:], strict=False)])


def collected(found):
    return pa.concat_tables(ray.get(found.to_arrow_refs()))


def rollouts(keys, seed=0):
    rng = np.random.default_rng(seed)
    rows = len(next(iter(keys.values())))
    rewards = [None if x > 0.9 else float(x > 0.5) for x in rng.random(rows)]
    return pa.table(keys | {"reward": rewards, "response_len": rng.integers(1, 99, rows), "at": np.arange(rows)})


def tables():
    rng = np.random.default_rng(5)
    return {
        "together": rollouts({"group_id": np.repeat([f"p{i}" for i in rng.permutation(700)], 4)}),
        "apart": rollouts({"group_id": rng.integers(-(2**60), 2**60, 500)[rng.integers(0, 500, 3000)]}),
        "composite": rollouts(
            {"step": rng.integers(0, 3, 2000), "set": rng.choice(["a", "b"], 2000), "uid": rng.integers(0, 90, 2000)}
        ),
    }


@pytest.mark.parametrize(
    ("name", "shuffle"),
    [
        ("together", ShuffleStrategy.SHUFFLE_V2),  # Ray's default, which starts workers of its own each time
        ("apart", ShuffleStrategy.HASH_SHUFFLE),
        ("composite", ShuffleStrategy.HASH_SHUFFLE),
    ],
)
def test_equals_the_whole_table(name, shuffle, cluster, monkeypatch):
    """Rows, columns, advantages and order are those of one call on everything."""
    monkeypatch.setattr(cluster, "shuffle_strategy", shuffle)
    table = tables()[name]
    columns = {"group_id": ["set", "uid"]} if name == "composite" else None
    out = gk.process(table, SIGNAL, columns=columns)
    want = table.append_column("advantage", pa.array(out.advantages)).filter(pa.array(out.keep))
    found = grpokit.io.ray.filter(dataset(table), SIGNAL, columns=columns, ordered=True, advantages=True, num_blocks=4)
    assert collected(found).equals(want)


def test_stages_of_a_batch_see_whole_steps():
    """What ranks groups of a step against each other, and what keeps the first of equals, sees the table's order."""
    rng = np.random.default_rng(1)
    table = rollouts({"group_id": rng.integers(0, 60, 1500), "step": rng.integers(0, 5, 1500)})
    recipe = SIGNAL.replace(select=(gk.HasSignal(), gk.MaxVariance(2), gk.Learnability(7)))
    out = gk.process(table, recipe)
    found = collected(grpokit.io.ray.filter(dataset(table), recipe, num_blocks=3, keep_dropped=True, advantages=True))
    found = found.sort_by("at")
    assert (found["reason"].is_null().to_numpy() == out.keep).all()
    assert found["advantage"].to_pylist() == out.advantages.tolist()
    words = found["reason"].value_counts().to_pylist()
    counts = {word["values"] or "kept": word["counts"] for word in words}
    assert counts == {name: count for name, count in out.counts.items() if name != "in"}
    with pytest.raises(gk.InputError, match="Learnability looks at a whole batch") as caught:
        grpokit.io.ray.filter(dataset(table.drop_columns("step")), recipe)
    assert caught.value.kind == "needs_whole_batch"


def test_every_type_stays():
    table = pa.table(
        {
            "group_id": pa.array(["a", "b", "a", "b"]).dictionary_encode(),
            "reward": pa.array([1, 0, None, 1], pa.int8()),
            "large": pa.array(["x", "y", None, "z"], pa.large_string()),
            "bytes": pa.array([b"a", b"\xff", None, b""], pa.large_binary()),
            "time": pa.array([1, 2, None, 4], pa.timestamp("ns", "UTC")),
            "day": pa.array([1, 2, None, 4], pa.date32()),
            "span": pa.array([1, 2, None, 4], pa.duration("ms")),
            "money": pa.array([1, 2, 3, None], pa.decimal128(20, 3)),
            "unsigned": pa.array([2**64 - 1, 2**63, 3, None], pa.uint64()),
            "half": pa.array(np.array([1, 2, 3, 4], np.float16)),
            "nothing": pa.nulls(4),
            "messages": pa.array([[{"role": "user", "ids": [1, 2]}], None, [], [{"role": "x", "ids": None}]]),
            "pair": pa.array([[1, 2], [3, 4], None, [5, 6]], pa.list_(pa.int32(), 2)),
            "map": pa.array([[("a", 1)], [], None, [("b", None)]], pa.map_(pa.string(), pa.int64())),
        }
    ).replace_schema_metadata({"written by": "a test"})
    recipe = gk.recipe("rloo")
    found = collected(grpokit.io.ray.filter(dataset(table), recipe, ordered=True, num_blocks=2))
    assert found.equals(table.filter(pa.array(gk.process(table, recipe).keep)), check_metadata=True)


def test_ids_of_any_width_and_no_rows():
    """A group is one group where files have different types for its id; Ray alone hashes these apart."""
    table = pa.table({"group_id": pa.array([7, 8, 9], pa.int32()), "reward": [1.0, 1.0, 0.0]})
    other = pa.table({"group_id": pa.array([9, 8, 7], pa.int64()), "reward": [1.0, 1.0, 0.0]})
    both = ray.data.from_arrow(table).union(ray.data.from_arrow(other))
    found = grpokit.io.ray.filter(both, SIGNAL, num_blocks=8)
    assert sorted(row["group_id"] for row in found.take_all()) == [7, 7, 9, 9]
    assert grpokit.io.ray.filter(dataset(table.slice(0, 0)), SIGNAL, num_blocks=2).count() == 0


@pytest.mark.parametrize("blocks", [2, 5])
def test_a_group_in_two_blocks_is_an_error(blocks, monkeypatch):
    """The blocks are really cut: rows are dealt out without regard to their groups."""
    monkeypatch.setattr(grpokit.io.ray, "_shuffled", lambda sent, _: sent.repartition(blocks))
    table = rollouts({"group_id": np.repeat(np.arange(300), 4)})
    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        grpokit.io.ray.filter(dataset(table), SIGNAL, num_blocks=4).materialize()
    assert "grpokit.errors.StateError: a block has" in str(caught.value)
    assert "came in several blocks" in str(caught.value)
    assert "num_blocks" in str(caught.value)


@pytest.mark.parametrize(
    "shuffle", [ShuffleStrategy.HASH_SHUFFLE, pytest.param(ShuffleStrategy.SHUFFLE_V2, marks=pytest.mark.slow)]
)
def test_small_blocks_are_not_split_after_the_shuffle(shuffle, cluster, monkeypatch):
    monkeypatch.setattr(cluster, "target_max_block_size", 500)
    monkeypatch.setattr(cluster, "shuffle_strategy", shuffle)
    table = rollouts({"group_id": np.tile(np.arange(50), 4)})
    found = collected(grpokit.io.ray.filter(dataset(table), SIGNAL, num_blocks=2))
    out = gk.process(table, SIGNAL)
    assert sorted(found["at"].to_pylist()) == np.flatnonzero(out.keep).tolist()


def die_once(flag, block):
    """Kills the worker that runs this, the first time."""
    try:
        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return block
    os.kill(os.getpid(), signal.SIGKILL)
    return block


@pytest.mark.parametrize(
    "shuffle", [ShuffleStrategy.HASH_SHUFFLE, pytest.param(ShuffleStrategy.SHUFFLE_V2, marks=pytest.mark.slow)]
)
def test_killed_workers_change_nothing(shuffle, cluster, tmp_path, monkeypatch):
    """One dies after it has told what it sends, one after it has decided; then the dataset is executed once more."""
    monkeypatch.setattr(cluster, "shuffle_strategy", shuffle)
    shuffled = grpokit.io.ray._shuffled
    dies = [partial(die_once, str(tmp_path / name)) for name in ("sending", "deciding")]
    options = {"batch_format": "pyarrow", "batch_size": None}
    monkeypatch.setattr(grpokit.io.ray, "_shuffled", lambda sent, n: shuffled(sent.map_batches(dies[0], **options), n))
    table = rollouts({"group_id": np.random.default_rng(3).integers(0, 400, 4000)})
    found = grpokit.io.ray.filter(dataset(table), SIGNAL, num_blocks=4).map_batches(dies[1], **options)
    want = np.flatnonzero(gk.process(table, SIGNAL).keep).tolist()
    for _ in range(2):
        assert sorted(row["at"] for row in found.iter_rows()) == want
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deciding", "sending"]


def only_first_half(flag, block):
    return block.slice(0, len(block) // 2) if Path(flag).exists() else block


def test_executions_do_not_count_together(tmp_path):
    """The same dataset, when what it reads has changed in between."""
    flag = tmp_path / "half"
    flag.touch()
    table = rollouts({"group_id": np.random.default_rng(3).integers(0, 90, 1000)})
    read = dataset(table, cuts=()).map_batches(
        partial(only_first_half, str(flag)), batch_format="pyarrow", batch_size=None
    )
    found = grpokit.io.ray.filter(read, SIGNAL, num_blocks=2)
    for rows in (500, 1000):
        want = np.flatnonzero(gk.process(table.slice(0, rows), SIGNAL).keep).tolist()
        assert sorted(row["at"] for row in found.iter_rows()) == want
        flag.unlink(missing_ok=True)


def test_what_is_wrong_with_the_data_is_said():
    table = rollouts({"group_id": np.arange(40) % 10})
    bad = table.set_column(1, "reward", pa.array([float("nan"), *[1.0] * 39]))
    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        grpokit.io.ray.filter(dataset(bad), SIGNAL, num_blocks=2).materialize()
    assert "grpokit.errors.InputError: 'reward' is NaN or infinite in 1 rows" in str(caught.value)
    assert "counted within a block of" in str(caught.value)
    bad = table.set_column(0, "group_id", pa.array([None, *["a"] * 39]))
    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        grpokit.io.ray.filter(dataset(bad), SIGNAL, num_blocks=2).materialize()
    assert "column 'group_id' is null" in str(caught.value)


def test_what_is_wrong_with_the_call_is_said_at_once():
    table = rollouts({"group_id": np.arange(40) % 10})
    call = partial(grpokit.io.ray.filter, dataset(table))
    with pytest.raises(gk.InputError, match=r"reads column 'score', which is not there .*'reward'"):
        call(SIGNAL, columns={"reward": "score"})
    with pytest.raises(gk.InputError, match="Did you mean 'group_id'"):
        call(SIGNAL, columns={"groupid": "uid"})
    with pytest.raises(gk.InputError, match="'advantage' already") as caught:
        grpokit.io.ray.filter(dataset(table.append_column("advantage", table["at"])), SIGNAL, advantages=True)
    assert caught.value.kind == "column_exists"
    with pytest.raises(gk.InputError, match="num_blocks=0"):
        call(SIGNAL, num_blocks=0)
    with pytest.raises(gk.InputTypeError, match="type Table; expected a ray"):
        grpokit.io.ray.filter(table, SIGNAL)
    with pytest.raises(gk.InputError, match="max_length"):
        call("dapo", max_length=9)


def test_the_errors_travel():
    problem = gk.errors.error("in_block", problem="x", rows=3, group=("a", 1))
    assert str(pickle.loads(pickle.dumps(problem))) == str(problem)
    assert "split_group" in gk.errors.KINDS
