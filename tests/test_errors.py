"""The table of errors, walked: every kind is provoked through the public door that raises it."""

import pickle
import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest

import grpokit as gk
from grpokit.errors import KINDS, error

ROWS = {"group_id": [1, 1], "reward": [0.0, 1.0]}


@dataclass(frozen=True)
class Wrong(gk.Advantage):
    """Returns what it is told to."""

    result: object = None

    def __call__(self, rewards_N, groups, columns):
        return self.result


def wrong(result):
    return gk.process(ROWS, gk.recipe("rloo").replace(advantage=Wrong(result)))


# kind → [(what provokes it, words that the message must have)]
ROW_SIDE = {
    "missing_column": [
        (lambda: gk.process({"group_id": [1], "rewards": [0.0]}, "grpo"), ["'reward'", "Did you mean 'rewards'?"]),
        (lambda: gk.process(pa.table(ROWS), "dapo", max_len=9), ["Overlong", "'response_len'", "columns="]),
        (lambda: gk.process(ROWS, "grpo", columns={"reward": "score"}), ["'score'", "'group_id', 'reward'"]),
        (lambda: gk.process(ROWS, "grpo", version=3), ["version_min"]),
        (lambda: gk.process(ROWS, "grpo", columns={"gate": "scoer"}), ["'scoer'", "columns={'gate': ...}"]),
        (lambda: gk.advantages([1.0], gk.group([1]), gk.GlobalNorm(0, 0.0)), ["response_len"]),
    ],
    "column_length": [
        (lambda: gk.process({"group_id": [1, 2], "reward": [0.0]}, "grpo"), ["'reward' has 1 rows", "has 2"]),
        (lambda: gk.group([1, 2], [1]), ["1 rows", "has 2"]),
        (lambda: gk.advantages([1.0], gk.group([1, 2]), gk.MeanBaseline()), ["1 rows", "has 2"]),
        (lambda: gk.group_stats([1.0], gk.group([1, 2])), ["1 rows", "has 2"]),
    ],
    "column_type": [
        (lambda: gk.process(ROWS | {"reward": [0.0, "x"]}, "grpo"), ["'reward'", "str in row 1", "None"]),
        (lambda: gk.process(ROWS | {"reward": np.array(["x", "y"])}, "grpo"), ["'reward'", "dtype <U1"]),
        (lambda: gk.process(ROWS | {"reward": np.array([1, 2], "M8[ns]")}, "grpo"), ["'reward'", "datetime64"]),
        (lambda: gk.process(pa.table(ROWS | {"step": ["a", "b"]}), "grpo"), ["'step'", "integers"]),
        (lambda: gk.process(pa.table(ROWS | {"version_min": [0.5, 1.5]}), "grpo", version=3), ["'version_min'"]),
        (lambda: gk.overlong_penalty([[1], [2, 3]], max_len=9, cache=2), ["lists of different lengths"]),
        (lambda: gk.overlong_penalty(np.array([2**63], np.uint64), max_len=9, cache=2), ["beyond int64"]),
        (lambda: gk.process(pa.table(ROWS | {"reward": ["x", "y"]}), "grpo"), ["'reward'", "Utf8"]),
        (lambda: gk.process(pa.table(ROWS | {"group_id": [0.5, 1.5]}), "grpo"), ["group_id", "Float64"]),
        (lambda: gk.process(ROWS | {"response_len": [1.5, 2.0]}, "dapo", max_len=9), ["response_len", "float64"]),
        (lambda: gk.process(ROWS | {"step": ["a", "b"]}, "grpo"), ["'step'", "whole numbers"]),
        (lambda: gk.process(ROWS | {"group_id": "ab"}, "grpo"), ["one str"]),
    ],
    "column_shape": [
        (lambda: gk.process(ROWS | {"reward": np.zeros((2, 3))}, "grpo"), ["(2, 3)"]),
        (lambda: gk.process(ROWS | {"reward": 1.0}, "grpo"), ["()"]),
        (lambda: gk.overlong_penalty([[1], [2]], max_len=9, cache=2), ["(2, 1)"]),
    ],
    "duplicate_column": [
        (
            lambda: gk.process(pa.Table.from_arrays([[1], [1], [0.0]], ["group_id", "group_id", "reward"]), "grpo"),
            ["2 columns named 'group_id'"],
        )
    ],
    "table_type": [
        (lambda: gk.process(pa.chunked_array([[1]]), "grpo"), ["ChunkedArray"]),
        (lambda: gk.process(7, "grpo"), ["int", "__arrow_c_stream__"]),
    ],
    "record_fields": [(lambda: gk.process([{"group_id": 1, "reward": 0.0}, {"group_id": 1}], "grpo"), ["record 1"])],
    "null_value": [
        (lambda: gk.process(pa.table(ROWS | {"group_id": [1, None]}), "grpo"), ["group_id", "1 rows", "[1]"]),
        (lambda: gk.process(ROWS | {"response_len": [None, 3]}, "dapo", max_len=9), ["response_len", "[0]"]),
        (lambda: gk.group(np.ma.array([1, 2], mask=[False, True])), ["1 rows", "[1]"]),
        (lambda: gk.overlong_penalty(np.ma.array([1, 2], mask=[True, False]), max_len=9, cache=2), ["[0]"]),
        (
            lambda: gk.process(
                ROWS | {"finish": ["stop", None]}, gk.recipe("grpo").replace(select=(gk.NotTruncated(),))
            ),
            ["'finish'", "[1]"],
        ),
        (
            lambda: gk.process(pa.table(ROWS | {"response_len": [None, 3]}), "dapo", max_len=9),
            ["response_len", "[0]"],
        ),
    ],
    "rollout_differs": [
        (lambda: gk.process(ROWS | {"rollout_id": [3, 3]}, "rloo"), ["0.0 in row 0 and 1.0 in row 1", "rollout_id"])
    ],
    "needs_version": [
        (lambda: gk.process(ROWS, gk.recipe("rloo").replace(select=(gk.MaxLag(1),))), ["MaxLag", "version="])
    ],
    "future_version": [
        (lambda: gk.process(ROWS | {"version_min": [3, 5]}, "rloo", version=4), ["5 in row 1", "version 4"])
    ],
    "lint": [
        (lambda: gk.process(ROWS | {"group_id": [1, 2]}, "rloo", strict=True), ["all_singletons", "strict=False"])
    ],
    "unknown_finish": [
        (
            lambda: gk.process(
                ROWS | {"finish": ["stop", "len"]}, gk.recipe("grpo").replace(select=(gk.NotTruncated(),))
            ),
            ["'len'", "length"],
        )
    ],
    "not_finite": [
        (lambda: gk.process(ROWS | {"reward": [float("nan"), 1.0]}, "grpo"), ["'reward'", "1 rows", "[0]", "None"]),
        (lambda: gk.process(ROWS | {"gate": [float("inf"), 1.0]}, "grpo"), ["'gate'"]),
        (lambda: gk.group_stats([float("-inf")], gk.group([1])), ["'reward'"]),
    ],
    "too_large": [(lambda: gk.process(ROWS | {"reward": [0.0, 1e200]}, "grpo"), ["row 1", "1e150"])],
    "too_many_rows": [(lambda: gk.group(np.broadcast_to(np.int64(1), 2**32)), ["4294967296 rows", "whole groups"])],
    "negative_length": [
        (
            lambda: gk.process(
                pa.table(ROWS | {"response_len": [-3, 4]}), gk.recipe("rloo").replace(select=(gk.NotTruncated(5),))
            ),
            ["row 0", "-3"],
        ),
        (lambda: gk.overlong_penalty([3, -1], max_len=9, cache=2), ["row 1", "-1"]),
        (lambda: gk.advantages([1.0], gk.group([1]), gk.GlobalNorm(0, 0.0), response_len=[-2]), ["-2"]),
    ],
    "zero_weight": [
        (lambda: gk.advantages([1.0], gk.group([1]), gk.GlobalNorm(0, 0.0), response_len=[0]), ["batch number 0"])
    ],
    "unknown_recipe": [
        (lambda: gk.recipe("dapoo"), ["Did you mean 'dapo'?", "grpo, dr_grpo"]),
        (lambda: gk.recipe(None), ["'None'"]),
    ],
    "unknown_parameter": [
        (lambda: gk.process(ROWS, "grpo", columns={"groupid": "uid"}), ["'groupid'", "Did you mean 'group_id'?"]),
        (lambda: gk.recipe("dapo", max_length=9), ["'max_length'", "Did you mean 'max_len'?"]),
        (lambda: gk.recipe("grpo").replace(objektive=None), ["Did you mean 'objective'?"]),
        (lambda: gk.Recipe.from_dict({"nam": "x"}), ["Did you mean 'name'?"]),
        (
            lambda: gk.Recipe.from_dict(gk.recipe("rloo").to_dict() | {"objective": {"stage": "Clip", "lo": 1}}),
            ["Did you mean 'low'?"],
        ),
    ],
    "missing_parameter": [
        (lambda: gk.recipe("dapo"), ["max_len", "recipe('dapo', max_len=...)"]),
        (lambda: gk.Recipe.from_dict({"name": "x"}), ["advantage, objective"]),
    ],
    "bad_parameter": [
        (lambda: gk.recipe("dapo", max_len=-1), ["max_len=-1", "whole number"]),
        (lambda: gk.recipe("dapo", max_len=5, cache=6), ["cache=6", "at most max_len=5"]),
        (lambda: gk.Recipe(name="x", advantage=gk.Clip(), objective=gk.Clip()), ["advantage", "grpokit.Advantage"]),
        (lambda: gk.recipe("grpo").replace(select=gk.HasSignal()), ["select", "tuple"]),
        (lambda: gk.recipe("grpo").replace(ratio="new"), ["'new'", "rollout"]),
        (lambda: gk.process(ROWS, gk.recipe("rloo"), beta=1), ["beta"]),
        (lambda: gk.process(ROWS, 3), ["recipe=3"]),
        (lambda: gk.process(ROWS, "grpo", version="5"), ["version='5'"]),
        (lambda: gk.process(ROWS, "grpo", columns="x"), ["columns='x'"]),
        (lambda: gk.process(ROWS, "grpo", columns={"reward": ["a", "b"]}), ["columns: reward=['a', 'b']"]),
        (lambda: gk.process(ROWS, "grpo", columns={"group_id": []}), ["composite key"]),
        (lambda: gk.recipe("dapo", max_len="20480"), ["max_len='20480'"]),
        (lambda: gk.recipe("grpo", beta="x"), ["scale='x'"]),
        (lambda: gk.recipe("grpo", beta=float("nan")), ["scale=nan"]),
        (lambda: gk.GroupNorm(1, -1.0), ["eps=-1.0"]),
        (lambda: gk.Term(gk.KL(), 1.0, [gk.TIS()]), ["weigh", "tuple of Correct"]),
        (lambda: gk.advantages([1.0], gk.group([1]), "rloo"), ["estimator='rloo'"]),
        (lambda: gk.group_stats([1.0], gk.group([1]), ddof="1"), ["ddof='1'"]),
        (lambda: gk.Recipe.from_dict(None), ["None", "a dict"]),
        (lambda: gk.Recipe.from_dict(gk.recipe("rloo").to_dict() | {"papers": "DAPO"}), ["papers='DAPO'", "a list"]),
        (lambda: gk.Recipe.from_dict(gk.recipe("rloo").to_dict() | {"advantage": None}), ["advantage=None", "stage"]),
        (lambda: gk.Recipe.from_dict(gk.recipe("rloo").to_dict() | {"select": {}}), ["select={}", "a list"]),
        (lambda: gk.Recipe.from_dict(gk.recipe("rloo").to_dict() | {"name": 5}), ["name=5", "a str"]),
        (lambda: gk.HasSignal(-1.0), ["tolerance=-1.0"]),
        (lambda: gk.NotTruncated(stats="some"), ["'keep'"]),
        (lambda: gk.GroupNorm(eps=float("nan")), ["eps=nan"]),
        (lambda: gk.GlobalNorm(0, 0.0, over="rows"), ["over='rows'"]),
        (lambda: gk.Constant(0), ["length=0"]),
        (lambda: gk.TokenMean(over="all"), ["over='all'"]),
    ],
    "unknown_stage": [
        (
            lambda: gk.Recipe.from_dict(gk.recipe("rloo").to_dict() | {"objective": {"stage": "Clipp"}}),
            ["objective stage 'Clipp'", "Did you mean 'Clip'?"],
        ),
        (lambda: gk.register("advantages"), ["Did you mean 'advantage'?"]),
    ],
    "registered_twice": [
        (
            lambda: gk.register("advantage")(dataclass(frozen=True)(type("GroupNorm", (gk.Advantage,), {}))),
            ["GroupNorm"],
        )
    ],
    "bad_registration": [
        (lambda: gk.register("advantage")(Wrong.__class__), ["frozen dataclass", "grpokit.Advantage"]),
        (lambda: gk.register("advantage")(type("Bare", (gk.Advantage,), {})), ["frozen dataclass"]),
        (lambda: gk.register("recipe")(Wrong), ["a function"]),
    ],
    "stage_result": [
        (lambda: wrong(np.zeros(3)), ["Wrong", "shape (3,)", "(2,)"]),
        (lambda: wrong(np.array([0.0, np.nan])), ["nan in row 1"]),
        (lambda: wrong(np.array([0.0, 1e300])), ["1e+300 in row 1"]),
        (lambda: wrong(["a", "b"]), ["dtype <U1"]),
    ],
    "bad_keys": [
        (lambda: gk.group([1.5, 2.5]), ["float in row 0"]),
        (lambda: gk.group(["a", 3]), ["int in row 1"]),
        (lambda: gk.group(["a", b"a"]), ["bytes in row 1"]),
        (lambda: gk.group([b"a", "a"]), ["str in row 1"]),
        (lambda: gk.group(["a", "\ud800"]), ["not valid Unicode in row 1"]),
        (lambda: gk.group([1, "a"]), ["str in row 1"]),
        (lambda: gk.group(np.array([1.5])), ["float64"]),
        (lambda: gk.group([("a", 1)]), ["tuple in row 0"]),
    ],
    "bad_threads": [
        (lambda given=given: gk.group([1], threads=given), ["1 or more"]) for given in (0, -1, "2", 2.5, True)
    ],
}


@pytest.mark.parametrize("kind", ROW_SIDE)
def test_row_side(kind):
    for provoke, words in ROW_SIDE[kind]:
        with pytest.raises(KINDS[kind].cls) as caught:
            provoke()
        assert caught.value.kind == kind, caught.value
        for word in words:
            assert word in str(caught.value), (word, str(caught.value))


def test_threads_variable(monkeypatch):
    monkeypatch.setenv("GRPOKIT_NUM_THREADS", "many")
    with pytest.raises(gk.InputError, match="GRPOKIT_NUM_THREADS is 'many'"):
        gk.group([1])


def test_every_kind_is_provoked_somewhere():
    """A kind that no test names cannot be raised by anything that is tested."""
    from pathlib import Path

    root = Path(__file__).parent
    text = "".join(path.read_text(encoding="utf-8") for path in root.rglob("*.py"))
    unnamed = [kind for kind in KINDS if not re.search(rf"[\"']{kind}[\"']", text)]
    assert not unnamed, unnamed
    package = root.parent / "python" / "grpokit"
    source = "".join(p.read_text(encoding="utf-8") for p in package.rglob("*.py") if p.name != "errors.py")
    source += "".join(p.read_text(encoding="utf-8") for p in (root.parent / "rust" / "py" / "src").rglob("*.rs"))
    unused = [kind for kind in KINDS if f'"{kind}"' not in source]
    assert not unused, unused


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_builtin_errors_and_travel(kind):
    names = re.findall(r"{(\w+)[!:}]", KINDS[kind].template)
    context = {name: 3 if f"{{{name}:" in KINDS[kind].template else f"<{name}>" for name in names}
    raised = error(kind, **context)
    assert isinstance(raised, gk.GrpokitError)
    assert isinstance(raised, ValueError | TypeError | OSError | RuntimeError)
    again = pickle.loads(pickle.dumps(raised))
    assert (type(again), str(again), again.kind) == (type(raised), str(raised), kind)
    for value in context.values():
        assert str(value) in str(raised)
