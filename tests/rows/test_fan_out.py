"""Several rows of one rollout: a table of turns says what the table of whole answers says."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import grpokit as gk

from .strategies import rollouts
from .test_reference import RELATIVE, SELECT_ANY, recipe, run


def cut(data, random, draw_cut):
    """The same rollouts, each in several rows; which rows came first stays, what follows is shuffled."""
    n = len(data.group_id)
    parts = [1 + len(text) % 3 for text in data.text]  # the same text is cut alike
    rest = [i for i in range(n) for _ in range(parts[i] - 1)]
    random.shuffle(rest)
    rows = [*range(n), *rest]
    turns, seen = [], [0] * n
    for i in rows:
        turns.append(seen[i])
        seen[i] += 1
    last = [turn == parts[i] - 1 for i, turn in zip(rows, turns, strict=True)]
    length = [data.response_len[i] if end else 0 for i, end in zip(rows, last, strict=True)]
    for i, at in draw_cut.items():
        mine = [place for place, row in enumerate(rows) if row == i]
        moved = min(at, length[mine[-1]])
        length[mine[-1]] -= moved
        length[mine[0]] += moved
    early = [turn == 0 for turn in turns]
    finish = [
        data.finish[i] if end or (first and data.finish[i] == "length") else "stop"
        for i, end, first in zip(rows, last, early, strict=True)
    ]
    table = {name: [column[i] for i in rows] for name, column in data.table.items()}
    table |= {
        "rollout_id": [f"r{i}" for i in rows],
        "turn_idx": turns,
        "response_len": length,
        "finish": finish,
        "version_min": [data.version_min[i] + (0 if first else 1) for i, first in zip(rows, early, strict=True)],
    }
    table["version_min"] = [min(version, 10) for version in table["version_min"]]
    return table, np.array(rows, int)


@given(
    rollouts(),
    SELECT_ANY,
    st.sampled_from((*RELATIVE, gk.GlobalNorm(1, 1e-8, over="sequences"))),
    st.booleans(),
    st.randoms(use_true_random=False),
    st.data(),
)
def test_turns_are_the_answer(data, stages, estimator, shaped, random, draw):
    where = draw.draw(st.dictionaries(st.integers(0, max(len(data.group_id) - 1, 0)), st.integers(0, 20), max_size=5))
    table, rows = cut(data, random, where if data.group_id else {})
    shape = [gk.Overlong(30, 20)] if shaped else []
    whole = run(data, estimator, stages, shape)
    turns = gk.process(table, recipe(estimator, stages, shape), version=10)
    np.testing.assert_array_equal(turns.keep, whole.keep[rows])
    np.testing.assert_array_equal(turns.advantages, whole.advantages[rows])
    np.testing.assert_array_equal(turns.reasons, whole.reasons[rows])
    np.testing.assert_array_equal(turns.first_reason, whole.first_reason[rows])
    np.testing.assert_array_equal(turns.shaped_rewards, whole.shaped_rewards[rows])
    assert turns.groups.id == whole.groups.id
    np.testing.assert_array_equal(turns.groups.n, whole.groups.n)
    np.testing.assert_array_equal(turns.groups.mean, whole.groups.mean)
    counts = turns.counts
    assert counts["in"] == len(rows) == sum(n for name, n in counts.items() if name != "in")
    for source, of in turns.counts_by_source.items():
        assert of["in"] == table["source"].count(source)
    assert "duplicate_rows" not in {finding.code for finding in turns.lint}


def test_a_rollout_counts_once():
    """slime #2374: three segments of a right answer must not outvote two wrong ones."""
    table = {"group_id": [1] * 5, "rollout_id": [0, 0, 0, 1, 2], "reward": [1.0, 1.0, 1.0, 0.0, 0.0]}
    out = gk.process(table, "rloo")
    assert out.groups.n.tolist() == [3]
    assert out.advantages.tolist() == [1.0, 1.0, 1.0, -0.5, -0.5]
    # The same id in another group, or in another step, is another rollout.
    apart = gk.process(table | {"group_id": [1, 1, 1, 2, 2], "rollout_id": [0, 0, 1, 0, 1]}, "rloo")
    assert apart.groups.n.tolist() == [2, 2]


def test_tokens_of_all_turns_weigh_in_the_batch():
    one = {"group_id": [1, 2], "reward": [0.0, 1.0], "response_len": [30, 10]}
    three = {"group_id": [1, 1, 2], "rollout_id": [0, 0, 0], "reward": [0.0, 0.0, 1.0], "response_len": [10, 20, 10]}
    estimator = gk.GlobalNorm(0, 1e-8)
    whole = gk.process(one, recipe(estimator)).advantages
    np.testing.assert_array_equal(gk.process(three, recipe(estimator)).advantages, whole[[0, 0, 1]])


def test_rollout_ids_that_do_not_repeat_change_nothing():
    table = {"group_id": [1, 1, 2], "reward": [0.0, 1.0, 1.0]}
    plain, named = gk.process(table, "grpo"), gk.process(table | {"rollout_id": ["a", "b", "a"]}, "grpo")
    np.testing.assert_array_equal(named.advantages, plain.advantages)
    assert "repeated_rollouts" not in {finding.code for finding in named.lint}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"reward": [1.0, 0.5]}, ["'reward' is 1.0 in row 0 and 0.5 in row 1", "of one rollout"]),
        ({"reward": [1.0, None]}, ["None in row 1"]),
        ({"gate": [0.0, 1.0]}, ["'gate' is 0.0 in row 0"]),
        ({"source": ["a", "b"]}, ["'source' is 'a' in row 0 and 'b' in row 1"]),
    ],
)
def test_rows_of_a_rollout_agree(columns, words):
    table = {"group_id": [1, 1], "rollout_id": [0, 0], "reward": [1.0, 1.0]} | columns
    for container in (table, pa.table(table)):
        with pytest.raises(gk.InputError) as caught:
            gk.process(container, "rloo")
        assert caught.value.kind == "rollout_differs"
        for word in words:
            assert word in str(caught.value)


def test_turns_are_ordered_by_their_number():
    table = {
        "group_id": [1] * 4,
        "rollout_id": ["x", "x", "y", "y"],
        "turn_idx": [0, 1, 1, 0],
        "reward": [1.0, 1.0, 0.0, 0.0],
        "text": ["a", "b", "b", "a"],
        "token_ids": [[1], [2, 3], [2, 3], [1]],
        "prompt": ["p", "p a", "p a", "p"],
        "finish": ["stop", "abort", "abort", "stop"],
    }
    for on in ("text", "token_ids"):
        for container in (table, pa.table(table)):
            out = gk.process(container, recipe(gk.MeanBaseline(), [gk.Distinct(on)]))
            assert out.keep.tolist() == [True, True, False, False]
    assert "mixed_prompts" not in {finding.code for finding in out.lint}


def test_answers_are_compared_and_not_their_segments():
    table = {"group_id": [1] * 4, "rollout_id": [0, 0, 1, 1], "reward": [1.0, 1.0, 0.0, 0.0]}
    for column in ({"text": ["ab", "c", "a", "bc"]}, {"token_ids": [[1, 2], [3], [1], [2, 3]]}):
        out = gk.process(table | column, recipe(gk.MeanBaseline(), [gk.Distinct(next(iter(column)))]))
        assert out.keep.tolist() == [True, True, False, False]


def test_a_group_is_complete_when_its_last_row_has_come():
    table = {
        "group_id": ["g1", "g1", "g2", "g2", "g2", "g1"],
        "rollout_id": [1, 2, 3, 4, 3, 1],
        "reward": [1.0, 0.0, 1.0, 0.0, 1.0, 1.0],
    }
    out = gk.process(table, "rloo", need=1)
    assert out.keep.tolist() == [False, False, True, True, True, False]


def test_metrics_and_staleness_are_those_of_rollouts():
    table = {
        "group_id": [1] * 4,
        "rollout_id": [0, 0, 0, 1],
        "reward": [1.0, 1.0, 1.0, 0.0],
        "reward_parts": [{"a": 1.0}] * 3 + [{"a": 0.0}],
        "version_min": [0, 1, 2, 4],
    }
    out = gk.process(table, "rloo", version=4)
    assert out.staleness.tolist() == [4, 4, 4, 0]
    found = out.metrics()
    assert (found["reward"], found["rewards/a/mean"], found["staleness/mean"]) == (0.5, 0.5, 2.0)
    with pytest.raises(gk.InputError, match="'a' is 1.0 in row 0 and 0.5 in row 1"):
        gk.process(table | {"reward_parts": [{"a": 1.0}, {"a": 0.5}, {"a": 1.0}, {"a": 0.0}]}, "rloo")


def test_errors_name_rows_of_the_table():
    table = {"group_id": [1, 1, 1], "rollout_id": [0, 0, 1], "reward": [1.0, 1.0, float("nan")]}
    with pytest.raises(gk.InputError, match=r"'reward' is NaN or infinite in 1 rows, the first: \[2\]"):
        gk.process(table, "rloo")
    dropped = gk.process(table, gk.recipe("rloo").replace(not_finite="drop"))
    assert dropped.counts == {"in": 3, "kept": 2, "not_finite": 1}
    table = {"group_id": [1, 1, 1], "rollout_id": [0, 0, 1], "reward": [1.0] * 3, "response_len": [1, 2, -3]}
    with pytest.raises(gk.InputError, match=r"negative in row 2: -3"):
        gk.process(table, "dapo", max_len=9)
    with pytest.raises(gk.InputError, match="has 2 rows"):
        gk.process(table | {"rollout_id": [0, 0]}, "rloo")


def test_a_stage_of_another_package_sees_rollouts():
    from dataclasses import dataclass
    from typing import ClassVar

    @dataclass(frozen=True)
    class Length(gk.Advantage):
        reads: ClassVar[frozenset[str]] = frozenset({"response_len", "judge"})

        def __call__(self, rewards_N, groups, columns):
            return columns["response_len"] + columns["judge"]

    table = {
        "group_id": [1, 1, 1],
        "rollout_id": [0, 0, 1],
        "reward": [1.0, 1.0, 0.0],
        "response_len": [3, 4, 5],
        "judge": [0.5, 0.5, 0.25],
    }
    assert gk.process(table, recipe(Length())).advantages.tolist() == [7.5, 7.5, 5.25]
    with pytest.raises(gk.InputError, match="'judge' is 0.5 in row 0 and 0.75 in row 1"):
        gk.process(table | {"judge": [0.5, 0.75, 0.25]}, recipe(Length()))
