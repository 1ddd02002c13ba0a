"""Tables as users have them: every container, every id type, chunks, nulls; and what is refused."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import grpokit as gk

from .strategies import rollouts
from .test_reference import SELECT_ANY, VERSION

RECIPE = gk.recipe("dapo", max_len=30, cache=10).replace(select=(gk.NotTruncated(), gk.HasSignal()))


def arrow_types(data):
    """The same table in Arrow, in every type that its columns may have."""
    text = all(isinstance(key, str) for key in data.group_id)
    types = [pa.string(), pa.large_string(), pa.string_view()] if text else [pa.int64()]
    for kind in types:
        yield pa.table(data.table | {"group_id": pa.array(data.group_id, kind)})
    if text:
        yield pa.table(data.table | {"group_id": pa.array(data.group_id, pa.string()).dictionary_encode()})
        yield pa.table(data.table | {"finish": pa.array(data.finish, pa.string()).dictionary_encode()})


@given(rollouts(), st.integers(1, 5), SELECT_ANY)
@settings(max_examples=50)
def test_all_containers_agree(data, chunks, stages):
    mine = RECIPE.replace(select=(*RECIPE.select, *stages))
    expected = gk.process(data.table, mine, version=VERSION)
    given = [
        [dict(zip(data.table, row, strict=True)) for row in zip(*data.table.values(), strict=True)] or data.table,
        {name: np.array(c, object) if name == "reward" else np.array(c) for name, c in data.table.items()},
        pl.DataFrame(data.table, schema_overrides={"reward": pl.Float64}, strict=False),
        *arrow_types(data),
    ]
    size = max(1, len(data.group_id) // chunks)
    starts = range(0, len(data.group_id), size)
    if len(starts) > 1:
        cut = [[table.slice(start, size) for start in starts] for table in arrow_types(data)]
        given.extend(map(pa.concat_tables, cut))
    for table in given:
        if isinstance(table, dict) and table["group_id"] is not data.group_id and not all_representable(data):
            continue
        out = gk.process(table, mine, version=VERSION)
        np.testing.assert_array_equal(out.advantages, expected.advantages)
        np.testing.assert_array_equal(out.reasons, expected.reasons)
        np.testing.assert_array_equal(out.shaped_rewards, expected.shaped_rewards)
        assert out.groups.id == expected.groups.id


def all_representable(data):
    """NumPy's fixed-width strings drop trailing NULs."""
    return not any(isinstance(key, str) and key.endswith("\0") for key in data.group_id)


def test_polars_columns_without_a_type():
    frame = pl.DataFrame({"group_id": [1, 1], "reward": [1.0, 0.0], "answer": [None, None]})
    assert gk.process(frame, "rloo").advantages.tolist() == [1.0, -1.0]
    assert gk.process(frame.with_columns(reward=None), "rloo").counts == {"in": 2, "kept": 0, "unscored": 2}


def test_pandas_reads_a_missing_reward_as_null():
    frame = pd.DataFrame({"group_id": ["a", "a", "b"], "reward": [1.0, None, 0.0], "response_len": [1, 2, 3]})
    assert gk.process(frame, "dapo", max_len=9).counts == {"in": 3, "kept": 0, "unscored": 1, "no_signal": 2}


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"])
def test_integer_types(dtype):
    ids = np.array([0, 1, 1, 0], dtype)
    assert gk.group(ids).codes.tolist() == [0, 1, 1, 0]
    assert (
        gk.group(pa.chunked_array([pa.array(ids[:2]), pa.array(ids[2:])])).codes.tolist() == [0, 1, 1, 0]
        if (dtype != "?")
        else True
    )
    lengths = np.array([0, 1, 1, 0], dtype)
    assert gk.overlong_penalty(lengths, max_len=1, cache=1).tolist() == [0.0, -1.0, -1.0, 0.0]


def test_large_unsigned_ids_stay_apart():
    assert gk.group(np.array([2**64 - 1, 0, 2**63, 2**64 - 1], np.uint64)).codes.tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize(
    "ids",
    [
        ["b", "a", "b"],
        np.array(["b", "a", "b"]),
        np.array([b"b", b"a", b"b"]),
        np.array(["b", "a", "b"], object),
        np.array(["b", "a", "b"], np.dtypes.StringDType()),
        [b"b", b"a", b"b"],
        pl.Series(["b", "a", "b"]),
        pl.Series(["b", "a", "b"], dtype=pl.Categorical),
        pd.Series(["b", "a", "b"]),
        pa.chunked_array([["b"], ["a", "b"]]),
        np.array([7, 5, 7], object),
        np.array([7, 0, 5, 0, 7])[::2],
        (7, 5, 7),
    ],
)
def test_id_containers(ids):
    groups = gk.group(ids)
    assert groups.codes.tolist() == [0, 1, 0]
    assert groups.sizes.tolist() == [2, 1]
    assert groups.first.tolist() == [0, 1]
    assert groups.order.tolist() == [0, 2, 1]
    assert len(groups) == 2


def test_dictionaries_that_repeat_and_differ_between_chunks():
    one = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), pa.array(["a", "b", "a"]))
    two = pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array(["b", "c"]))
    assert gk.group(pa.chunked_array([one, two])).codes.tolist() == [0, 1, 0, 1, 2]


def test_read_only_and_strided_arrays():
    ids, rewards = np.repeat([1, 2], 2), np.array([0.0, 1.0, 1.0, 1.0])
    expected = gk.process({"group_id": ids, "reward": rewards}, "grpo").advantages
    ids.flags.writeable = rewards.flags.writeable = False
    np.testing.assert_array_equal(gk.process({"group_id": ids, "reward": rewards}, "grpo").advantages, expected)
    wide = np.repeat(rewards, 3)[::3]
    np.testing.assert_array_equal(gk.process({"group_id": ids, "reward": wide}, "grpo").advantages, expected)
    assert rewards.tolist() == [0.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, np.bool_, object])
def test_reward_types(dtype):
    rewards = np.array([1, 0, 0, 1], dtype)
    out = gk.process({"group_id": [1, 1, 2, 2], "reward": rewards}, gk.recipe("rloo"))
    assert out.advantages.tolist() == [1.0, -1.0, -1.0, 1.0]
    if dtype is not object:
        table = pa.table({"group_id": [1, 1, 2, 2], "reward": rewards})
        assert gk.process(table, "rloo").advantages.tolist() == [1.0, -1.0, -1.0, 1.0]


def test_masked_rewards_are_null():
    rewards = np.ma.array([1.0, 9.0, 0.0], mask=[False, True, False])
    assert gk.process({"group_id": [1, 1, 1], "reward": rewards}, "rloo").reasons.tolist() == [0, 1, 0]


def test_null_rewards_do_not_count():
    out = gk.process({"group_id": [1, 1, 1], "reward": [1.0, None, 0.0]}, "rloo")
    assert out.advantages.tolist() == [1.0, 0.0, -1.0]
    assert out.counts == {"in": 3, "kept": 2, "unscored": 1}
    assert out.groups.n.tolist() == [2]
    every = gk.process({"group_id": [1, 1], "reward": pa.nulls(2).to_pylist()}, "rloo")
    assert every.counts == {"in": 2, "kept": 0, "unscored": 2}
    null_type = pa.table({"group_id": [1, 1], "reward": pa.nulls(2)})
    assert gk.process(null_type, "rloo").counts == every.counts


def test_other_names_and_composite_keys():
    rows = {"uid": ["a", "a", "a", "a"], "env": [1, 1, 2, 2], "score": [1.0, 0.0, 1.0, 1.0]}
    names = {"group_id": ["uid", "env"], "reward": "score"}
    out = gk.process(rows, gk.recipe("grpo").replace(select=(gk.HasSignal(),)), columns=names)
    assert out.keep.tolist() == [True, True, False, False]
    assert out.groups.id == [("a", 1), ("a", 2)]
    assert gk.group(rows["uid"], rows["env"]).codes.tolist() == [0, 0, 1, 1]


def test_step_is_part_of_the_key():
    rows = {"group_id": ["a", "a", "a", "a"], "reward": [1.0, 0.0, 1.0, 1.0], "step": [1, 1, 2, 2]}
    out = gk.process(rows, "rloo")
    assert out.groups.id == [(1, "a"), (2, "a")]
    assert out.advantages.tolist() == [1.0, -1.0, 0.0, 0.0]


def test_staleness():
    rows = {"group_id": [1, 1], "reward": [0.0, 1.0], "version_min": [7, 9]}
    assert gk.process(rows, "rloo").staleness is None
    assert gk.process(rows, "rloo", version=10).staleness.tolist() == [3, 1]
    assert gk.process(pa.table(rows), "rloo", version=10).staleness.tolist() == [3, 1]


def test_the_table_a_person_reads():
    rows = {"group_id": ["a", "a", "b", "b", "c"], "reward": [1.0, 0.0, 1.0, None, 1.0]}
    out = gk.process(rows, gk.recipe("grpo").replace(select=(gk.HasSignal(),)))
    assert str(out).splitlines() == [
        "5 rows in 3 groups",
        "  kept                    2   40.00%",
        "  unscored                1   20.00%",
        "  no_signal               2   40.00%",
        "groups of 1 to 2 rows, 2 without signal",
        f"lint {out.lint[0]}",
    ]


def test_not_finite_rewards_can_be_dropped():
    rows = {"group_id": [1, 1, 1], "reward": [1.0, float("nan"), 0.0]}
    out = gk.process(rows, gk.recipe("rloo").replace(not_finite="drop"))
    assert out.counts == {"in": 3, "kept": 2, "not_finite": 1}
    assert out.advantages.tolist() == [1.0, 0.0, -1.0]


def test_the_result_does_not_change_with_the_callers_buffers():
    ids, rewards = np.array([1, 1, 2, 2]), np.array([1.0, 0.0, 1.0, 0.0])
    listed = ["a", "a", "b", "b"]
    out = gk.process({"group_id": ids, "reward": rewards}, "rloo")
    also = gk.process({"group_id": listed, "reward": rewards}, "rloo")
    ids[:], rewards[:], listed[:] = 7, 9.0, ["z"] * 4
    assert out.groups.id == [1, 2]
    assert also.groups.id == ["a", "b"]
    assert out.groups.mean.tolist() == [0.5, 0.5]
    assert out.groups.std.round(3).tolist() == [0.707, 0.707]
    assert out.shaped_rewards.tolist() == [1.0, 0.0, 1.0, 0.0]


def test_columns_of_a_dict_keep_their_nulls():
    for column in (
        pl.Series([1.0, None, 0.0]),
        pa.array([1.0, None, 0.0]),
        pa.chunked_array([[1.0, None], [0.0]]),
        pd.Series([1.0, None, 0.0], dtype="Float64"),
    ):
        out = gk.process({"group_id": [1, 1, 1], "reward": column}, "rloo")
        assert out.counts == {"in": 3, "kept": 2, "unscored": 1}


def test_dictionaries_of_integers():
    ids = pa.array([70, 50, 70, 2**60]).dictionary_encode()
    assert gk.group(pa.chunked_array([ids])).codes.tolist() == [0, 1, 0, 2]
    frame = pd.DataFrame({"group_id": pd.Categorical([7, 5, 7]), "reward": [1.0, 0.0, 0.0]})
    assert gk.process(frame, "rloo").groups.id == [7, 5]


def test_big_endian_ids():
    text = np.array(["a", "b", "a"])
    for ids in (text.astype(">U1"), np.array([7, 5, 7], ">i4")):
        assert gk.group(ids).codes.tolist() == [0, 1, 0]


def test_many_threads_are_no_more_than_there_is_work_for():
    ids = [f"g{i % 999}" for i in range(40_000)]
    assert gk.group(ids, threads=100_000).codes.tolist() == gk.group(ids, threads=1).codes.tolist()


def test_large_dictionaries_are_read_in_linear_time():
    """Three hundred thousand groups: minutes if a row's value were looked up in the whole dictionary anew."""
    ids = pa.array([f"g{i // 2}" for i in range(600_000)]).dictionary_encode()
    table = pa.table({"group_id": ids, "reward": np.zeros(600_000)})
    assert gk.process(table, "rloo").groups.id[-1] == "g299999"


def test_a_group_without_a_reward_has_no_statistics():
    groups = gk.process({"group_id": [1, 2, 2], "reward": [None, 1.0, 0.0]}, "rloo").groups
    assert groups.n.tolist() == [0, 2]
    assert np.isnan([groups.mean[0], groups.min[0], groups.max[0]]).all()
    assert not groups.signal[0]


def test_no_spread_to_divide_by():
    for estimator in (gk.GroupNorm(1, 0.0), gk.GroupNorm(2, 0.0)):
        assert gk.advantages([0.0, 1e-170], [0, 0], estimator).tolist() == [0.0, 0.0]
