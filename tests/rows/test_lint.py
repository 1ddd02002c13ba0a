"""Group lint: each finding on a table that deserves it, none on one that does not, and the ways to be told."""

import io
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import rich.console
from hypothesis import given

import grpokit as gk
from grpokit.errors import GroupWarning
from grpokit.lint import CODES

from .strategies import rollouts
from .test_reference import recipe

FINE = {
    "group_id": [1, 1, 2, 2],
    "reward": [1.0, 0.0, 0.0, 1.0],
    "prompt": ["p", "p", "q", "q"],
    "text": ["a", "b", "c", "d"],
    "response_len": [3, 4, 5, 6],
    "source": ["math", "math", "code", "code"],
    "step": [1, 1, 1, 1],
}
DAPO = gk.recipe("dapo", max_len=10)
RATE = gk.recipe("rloo").replace(select=(gk.PassRate(0.2, 0.8),))
TURNS = {"group_id": [1] * 4, "reward": [1.0, 1.0, 0.0, 0.0], "rollout_id": [0, 0, 1, 1]}
LARGE = {"group_id": [1] * 300, "reward": [float(i % 2) for i in range(300)]}
# code → (table, recipe, words of the evidence, rows)
CASES = {
    "all_singletons": ({**FINE, "group_id": [1, 2, 3, 4]}, DAPO, "each of the 4 groups has one rollout", ()),
    "uneven_groups": ({**FINE, "group_id": [1, 1, 1, 2]}, DAPO, "1 of 2 groups do not have 3 rollouts", (3,)),
    "one_group": (LARGE, gk.recipe("rloo"), "all 300 rollouts are one group", ()),
    "mixed_prompts": ({**FINE, "prompt": ["p", "x", "q", "q"]}, DAPO, "1 groups hold different prompts", (0,)),
    "split_prompt": ({**FINE, "prompt": ["p"] * 4}, DAPO, "2 groups share their prompt", (0, 2)),
    "constant_rewards": ({**FINE, "reward": [0.5] * 4}, DAPO, "all 4 outcomes are 0.5", ()),
    "dead_source": ({**FINE, "reward": [1.0, 0.0, 0.0, 0.0]}, DAPO, "all 2 outcomes of 'code' are 0", (2, 3)),
    "dead_part": (
        {**FINE, "reward_parts": [{"right": 1.0, "format": 0.0}, {"right": 0.0, "format": 0.0}] * 2},
        DAPO,
        "the reward part 'format' is 0 in every row",
        (),
    ),
    "not_binary": ({**FINE, "reward": [1.0, 0.5, 0.0, 1.0]}, RATE, "PassRate reads pass rates, and 1 outcomes", (1,)),
    "beyond_max_len": ({**FINE, "response_len": [3, 11, 5, 40]}, DAPO, "2 answers are longer than max_len=10", (1, 3)),
    "duplicate_rows": ({**TURNS, "turn_idx": [0, 1, 0, 0]}, gk.recipe("rloo"), "1 rows repeat the rollout", (3,)),
    "repeated_rollouts": (TURNS, gk.recipe("rloo"), "2 rollouts have several rows", (0, 2)),
    "duplicate_answers": ({**FINE, "text": ["a", "a", "a", "d"]}, DAPO, "1 of 4 answers repeat", (1,)),
    "unreadable_column": ({**FINE, "finish": ["tool_calls"] * 4}, DAPO, "'finish' holds 'tool_calls'", ()),
}


def codes(out):
    return [finding.code for finding in out.lint]


@pytest.mark.parametrize("code", CODES)
def test_each_finding(code):
    table, what, words, rows = CASES[code]
    for given_ in (table, pa.table(table)):
        out = gk.process(given_, what)
        found = {finding.code: finding for finding in out.lint}
        assert words in found[code].evidence, found
        assert found[code].rows == rows
        assert found[code].remedy
        assert f"lint {found[code]}" in str(out).splitlines()
        with pytest.raises(gk.InputError) as caught:
            gk.process(given_, what, strict=True)
        assert caught.value.kind == "lint"
        assert code in str(caught.value)
        with pytest.raises(gk.InputError, match=code):
            gk.process(given_, what, strict=[code])


def test_a_good_table_has_no_finding():
    assert codes(gk.process(FINE, DAPO, strict=True)) == []
    assert codes(gk.process({**TURNS, "turn_idx": [0, 1, 0, 1]}, "rloo", strict=True)) == []
    # A prompt that comes back in a later step is another group, and no finding.
    again = {name: column * 2 for name, column in FINE.items()} | {"step": [1] * 4 + [2] * 4}
    assert codes(gk.process(again, DAPO, strict=True)) == []
    # REINFORCE++ needs no groups.
    single = {"group_id": [1, 2], "reward": [1.0, 0.0]}
    assert codes(gk.process(single, recipe(gk.GlobalNorm(0, 0.0, over="sequences")), strict=True)) == []


def test_strict_may_be_told_what_to_mind():
    table = {**FINE, "text": ["a", "a", "c", "d"]}
    gk.process(table, DAPO, strict=("all_singletons", "mixed_prompts"))
    with pytest.raises(gk.InputError, match="duplicate_answers"):
        gk.process(table, DAPO, strict="duplicate_answers")
    with pytest.raises(gk.InputError, match="strict='singletons'"):
        gk.process(table, DAPO, strict=["singletons"])


def test_groups_of_one_are_warned_of():
    """rLLM #605: group ids that are ids of rollouts turn GRPO into nothing, without an error."""
    table = {"group_id": list("abcd"), "reward": [1.0, 0.0, 1.0, 0.0]}
    with pytest.warns(GroupWarning, match="each of the 4 groups has one rollout"):
        gk.process(table, "grpo")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gk.process({**table, "group_id": list("aabb")}, "grpo")


@given(rollouts())
def test_lint_never_fails_and_never_changes_a_verdict(data):
    out = gk.process(data.table | {"prompt": data.text}, DAPO)
    before = out.keep.copy()
    assert set(codes(out)) <= set(CODES)
    for finding in out.lint:
        assert all(0 <= row < len(out) for row in finding.rows)
    np.testing.assert_array_equal(out.keep, before)
    np.testing.assert_array_equal(gk.process(data.table, DAPO).keep, before)


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("response_len", [None] * 4, "null in 4 rows"),
        ("response_len", [3, -1, 2, 2], "negative in row 1"),
        ("text", [1.5] * 4, "float in row 0"),
        ("finish", ["stop", "len", "stop", "stop"], "'len'"),
    ],
)
def test_columns_that_no_stage_reads_may_be_odd_and_are_named(column, values, words):
    out = gk.process({**FINE, column: values}, "rloo")
    assert codes(out) == ["unreadable_column"]
    assert words in out.lint[0].evidence
    found = out.metrics()
    assert ("completions/mean_length" in found) == (column != "response_len")
    with pytest.raises(gk.InputError, match="unreadable_column"):
        gk.process({**FINE, column: values}, "rloo", strict=True)


def test_prompts_that_are_messages():
    """The format of chat data: lists of records, in Python and in Arrow."""

    def messages(prompts):
        return [[{"role": "user", "content": prompt}] for prompt in prompts]

    for form in (lambda table: table, pa.table, pl.DataFrame):
        assert codes(gk.process(form({**FINE, "prompt": messages("ppqq")}), DAPO)) == []
        assert codes(gk.process(form({**FINE, "prompt": messages("pxqq")}), DAPO)) == ["mixed_prompts"]
        assert codes(gk.process(form({**FINE, "prompt": messages("pppp")}), DAPO)) == ["split_prompt"]


def test_a_frame_that_is_written_to_later():
    frame = pd.DataFrame({name: column for name, column in FINE.items() if name != "step"})
    out = gk.process(frame, DAPO)
    frame.loc[:, "reward"] = 5.0
    frame.loc[:, "group_id"] = 9
    frame.loc[:, "source"] = "x"
    assert out.groups.id == [1, 2]
    assert out.shaped_rewards.tolist() == FINE["reward"]
    assert set(out.counts_by_source) == {"math", "code"}


def test_what_is_written_later_is_not_what_was_processed():
    table = {name: np.array(column, object if name != "reward" else None) for name, column in FINE.items()}
    table["group_id"], table["response_len"] = np.array(FINE["group_id"]), np.array(FINE["response_len"])
    table["step"] = np.array(FINE["step"])
    out = gk.process(table, DAPO)
    for column in table.values():
        column[:] = column[0]
    assert codes(out) == []
    assert out.metrics()["completions/max_length"] == 6


def test_metrics():
    out = gk.process(
        FINE | {"finish": ["stop", "length", "stop", "stop"], "version_min": [1, 2, 3, 3]}, DAPO, version=3
    )
    found = out.metrics()
    expected = {
        "rows": 4,
        "groups": 2,
        "reward": 0.5,
        "reward_std": np.sqrt(0.5),
        "frac_reward_zero_std": 0,
        "kept_share": 1,
        "completions/mean_length": 4.5,
        "completions/min_length": 3,
        "completions/max_length": 6,
        "completions/length_p50": pytest.approx(4, rel=0.01),
        "completions/clipped_ratio": 0.25,
        "staleness/mean": 0.75,
        "staleness/max": 2,
    }
    for name, value in expected.items():
        assert found[name] == (value if name.endswith("p50") else pytest.approx(value)), name
    out.lengths.merge(gk.process(FINE | {"response_len": [90] * 4}, DAPO).lengths)
    assert (out.lengths.count, out.lengths.min, out.lengths.max) == (8, 3, 90)
    assert out.pass_rates(2)[0].tolist() == [0, 2]
    empty = gk.process([], "grpo").metrics()
    assert empty["rows"] == 0
    assert np.isnan(empty["reward"])


@pytest.mark.parametrize(
    ("parts", "columns"),
    [
        ({"reward_parts": [{"right": 1.0, "format": 0.5}, {"right": 0.0, "format": None}]}, None),
        ({"r": [1.0, 0.0], "f": np.array([0.5, np.nan])}, {"reward_parts": ["r", "f"]}),
        ({"reward_parts": pa.array([{"right": 1, "format": 0.5}, {"right": 0, "format": None}])}, None),
        ({"reward_parts": pl.Series([{"right": 1, "format": 0.5}, {"right": 0, "format": None}])}, None),
    ],
)
def test_reward_parts(parts, columns):
    out = gk.process({"group_id": [1, 1], "reward": [1.0, 0.0]} | parts, "rloo", columns=columns)
    found = out.metrics()
    right, form = ("r", "f") if columns else ("right", "format")
    assert (found[f"rewards/{right}/mean"], found[f"rewards/{right}/std"]) == (0.5, 0.5)
    assert found[f"rewards/{form}/mean"] == 0.5


def test_the_gate_is_the_outcome_and_the_reward_is_the_reward():
    table = {**FINE, "reward": [10.0, 20.0, 30.0, 40.0], "gate": [0.0, 1.0, 0.0, 0.0]}
    found = gk.process(table, "rloo").metrics()
    assert (found["reward"], found["outcome"], found["frac_reward_zero_std"]) == (25.0, 0.25, 0.5)
    assert found["reward_std"] == pytest.approx(np.sqrt(50))


def test_the_page_is_about_what_was_sampled():
    table = {"group_id": [1] * 8, "reward": [1.0] + [0.0] * 7}
    out = gk.process(table, recipe(gk.MeanBaseline(), [gk.MaxVariance(2)]))
    assert out.pass_rates()[0].tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert out.metrics()["reward_std"] == pytest.approx(np.std(table["reward"], ddof=1))
    assert out.groups.mean.tolist() == [0.5]


def test_many_sources_and_odd_names():
    rows = 60
    table = {"group_id": np.arange(rows) // 2, "reward": [0.0, 1.0] * 30, "source": [f"s{i // 2}" for i in range(rows)]}
    lines = str(gk.process(table, "rloo")).splitlines()
    assert sum(line.strip().startswith("s") for line in lines) == 21
    assert any(line.split()[:3] == ["10", "others", "20"] for line in lines)
    odd = {**FINE, "source": ["[/red]x", "[/red]x", "a\nb", "a\nb"]}
    assert "'a\\nb'" in str(gk.process(odd, DAPO))
    text = io.StringIO()
    rich.console.Console(file=text, width=120).print(gk.process(odd, DAPO))
    assert "[/red]x" in text.getvalue()


def test_the_rich_table():
    text = io.StringIO()
    console = rich.console.Console(file=text, width=120)
    console.print(gk.process({**FINE, "reward": [1.0, 0.0, 0.0, 0.0]}, DAPO))
    for word in ("4 rows in 2 groups", "math", "code", "all", "no_signal", "50.0%", "dead_source"):
        assert word in text.getvalue()


def test_the_table_by_source():
    assert str(gk.process({**FINE, "reward": [1.0, 0.0, 0.0, None]}, DAPO)).splitlines() == [
        "4 rows in 2 groups",
        "  kept                    2   50.00%",
        "  unscored                1   25.00%",
        "  no_signal               1   25.00%",
        "  source  in  kept  unscored  no_signal  kept %",
        "    math   2     2         0          0  100.0%",
        "    code   2     0         1          1    0.0%",
        "     all   4     2         1          1   50.0%",
        "groups of 2 to 2 rows, 1 without signal",
    ]
