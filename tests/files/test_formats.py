"""Files of every framework are filtered as the rollouts that they hold, with that framework's traps."""

import json

import pyarrow.parquet as pq
import pytest

import grpokit as gk
from grpokit.cli import main
from grpokit.io import explain, filter_files
from grpokit.io.formats import BY_NAME
from tests.files import frameworks
from tests.files.test_files import read

ROWS = frameworks.rollouts(groups=60)
SIGNAL = gk.recipe("rloo").replace(select=(gk.HasSignal(),))
VERSION = 3
# What a format's files know beside group and reward.
KNOWS = {
    "verl": set(),
    "slime": {"failed", "truncated", "versions", "length"},
    "prime_rl": {"failed", "truncated", "versions"},
    "prime_rl_samples": {"failed", "truncated", "length"},
    "open_instruct": {"truncated", "length"},
    "areal": {"versions", "length"},
    "nemo_gym": {"failed", "truncated", "length"},
    "trl": {"failed"},
}
NAMES = {"prime_rl": "prime-rl", "prime_rl_samples": "prime-rl", "open_instruct": "open-instruct"}
NAMES |= {"nemo_gym": "nemo-gym"}


def table(order, knows, reward="reward"):
    """The same rollouts in grpokit's own columns."""
    rows = [ROWS[at] for at in order]
    failed = [row["failed"] and "failed" in knows for row in rows]
    return {
        "group_id": [(row["step"] * 1000 + row["prompt"]) for row in rows],
        "reward": [None if bad else row[reward] for row, bad in zip(rows, failed, strict=True)],
        "finish": ["error" if bad else "length" if row["truncated"] else "stop"
                   for row, bad in zip(rows, failed, strict=True)],
        "response_len": [row["length"] for row in rows],
        "version_min": [min(row["versions"]) for row in rows],
        "version_max": [max(row["versions"]) for row in rows],
    }  # fmt: skip


def kinds(caught):
    """The kind of an error, or of the one that was told with its file and line."""
    return caught.value.context.get("cause", caught.value.kind)


def made(writer, place, **options):
    """Files, the order of the rollouts in them, and what to give the reader."""
    order = getattr(frameworks, writer)(place, ROWS, **options)
    nested = writer in ("prime_rl", "areal")
    return (str(place / "**" / "*.jsonl") if nested else place), order


@pytest.mark.parametrize("writer", KNOWS)
def test_files_are_filtered_as_what_they_hold(tmp_path, writer):
    given, order = made(writer, tmp_path / "in")
    knows = KNOWS[writer]
    stages = [gk.HasSignal()]
    stages = [gk.NotTruncated(), *stages] if "truncated" in knows else stages
    stages = [gk.NotTruncated(max_len=40), *stages] if "length" in knows else stages
    stages = [gk.MaxLag(2), gk.MaxLag(1, of="newest"), *stages] if "versions" in knows else stages
    recipe = gk.recipe("rloo").replace(select=tuple(stages))
    reward = {"accuracy_reward": 1.0} if writer == "trl" else None
    version = VERSION if "versions" in knows else None
    target = tmp_path / f"out{'.parquet' if writer in ('trl', 'prime_rl_samples') else '.jsonl'}"
    found = filter_files(
        given, target, recipe, reward=reward, version=version, advantages=True,
        columns={"advantage": "ours", "reason": "why"}, keep_dropped=target.with_stem("dropped"),
    )  # fmt: skip
    assert found.format == NAMES.get(writer, writer)
    out = gk.process(table(order, knows), recipe, version=version)
    assert found.verdicts.counts == out.counts
    assert out.counts["kept"] > 5 < len(order) - out.counts["kept"]
    assert len(out.counts) >= 2 + len(knows & {"failed", "truncated", "versions"})
    everything = [
        record for path in found.inputs for record in read(path)
    ]  # in the order of the files, which is that of the rollouts
    kept = [{**row, "ours": a} for row, k, a in zip(everything, out.keep, out.advantages.tolist(), strict=True) if k]
    assert str(read(target)) == str(kept)  # as text, since NaN is not NaN
    dropped = [row for row, k in zip(everything, out.keep, strict=True) if not k]
    assert str([{**row, "why": 0} for row in dropped]) == str(
        [{**row, "why": 0} for row in read(target.with_stem("dropped"))]
    )


def test_the_same_prompt_at_another_step_is_another_group(tmp_path):
    """verl's dump has no id; with `uid` the prompt does not matter."""
    for uid in (False, True):
        given, order = made("verl", tmp_path / str(uid), uid=uid)
        found = filter_files(given, None, SIGNAL)
        assert found.verdicts.counts == gk.process(table(order, ()), SIGNAL).counts
        assert found.columns["group_id"] == ("uid" if uid else "input")
        assert not found.contiguous


def test_a_reward_of_parts_must_be_chosen(tmp_path, capsys):
    given, order = made("slime", tmp_path / "in", parts=True)
    assert main(["filter", str(given), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "line 1" in said
    assert "an object" in said or "dict" in said
    assert "--reward" in said
    for reward, key in ((("score", 1.0),), "reward"), ((("style", 1.0),), "style"):
        found = filter_files(given, None, SIGNAL, reward=dict(reward))
        assert found.verdicts.counts == gk.process(table(order, {"failed"}, key), SIGNAL).counts
    both = filter_files(given, None, SIGNAL, reward={"score": 1.0, "style": 0.5})
    expected = table(order, {"failed"})
    expected["reward"] = [None if ROWS[at]["failed"] else ROWS[at]["reward"] + 0.5 * ROWS[at]["style"] for at in order]
    assert both.verdicts.counts == gk.process(expected, SIGNAL).counts


def test_trl_has_a_column_a_reward_function(tmp_path):
    given, order = made("trl", tmp_path / "in")
    with pytest.raises(
        gk.InputError, match=r"which column is the reward\? These may be: 'accuracy_reward', 'style_rew"
    ) as caught:
        filter_files(given, None, SIGNAL)
    assert kinds(caught) == "choose_reward"
    found = filter_files(given, None, SIGNAL, reward={"accuracy_reward": 1.0, "style_reward": 2.0})
    expected = table(order, {"failed"})
    expected["reward"] = [None if ROWS[at]["failed"] else ROWS[at]["reward"] + 2 * ROWS[at]["style"] for at in order]
    assert found.verdicts.counts == gk.process(expected, SIGNAL).counts
    # One function needs no choice, and its NaN is not an error: it had nothing to say.
    for path in found.inputs:
        pq.write_table(pq.read_table(path).drop_columns(["style_reward"]), path)
    alone = filter_files(given, tmp_path / "out.parquet", SIGNAL)
    assert alone.verdicts.counts == gk.process(table(order, {"failed"}), SIGNAL).counts
    with pytest.raises(gk.InputError, match="has a column 'advantage' already.*--column advantage=NAME"):
        filter_files(given, tmp_path / "other.parquet", SIGNAL, advantages=True)


def test_rewards_of_tokens_are_added_up_when_asked(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text(
        '{"group_id": 1, "reward": [0, 0, 1.5]}\n{"group_id": 1, "reward": [0.5]}\n{"group_id": 1, "reward": null}\n'
    )
    with pytest.raises(
        gk.InputError, match=r"line 1: the reward, 'reward', is a list in row 0.*--reward reward adds"
    ) as caught:
        filter_files(path, None, SIGNAL)
    assert kinds(caught) == "reward_nested"
    out = tmp_path / "out.jsonl"
    filter_files(path, out, SIGNAL, reward={"reward": 1.0}, advantages=True)
    assert [row["advantage"] for row in read(out)] == [1.0, -1.0]


def test_rows_that_only_their_place_groups(tmp_path):
    path = frameworks.lines(tmp_path / "in.jsonl", [{"score": float(i in (0, 5, 6, 7)), "text": "x"} for i in range(8)])
    found = filter_files(path, tmp_path / "out.jsonl", SIGNAL, columns={"reward": "score"}, group_size=2)
    assert read(tmp_path / "out.jsonl") == [
        {"score": 1.0, "text": "x"},
        {"score": 0.0, "text": "x"},
        {"score": 0.0, "text": "x"},
        {"score": 1.0, "text": "x"},
    ]
    assert found.columns["group_id"] == "the row's number // 2"
    with pytest.raises(gk.InputError, match="has 8 rows, and groups of 3 rows do not go into that") as caught:
        filter_files(path, None, SIGNAL, columns={"reward": "score"}, group_size=3)
    assert kinds(caught) == "group_size"


def test_several_samples_of_one_rollout(tmp_path):
    """slime's compact rollouts: siblings share rollout_id, and their reward counts once."""
    samples = [frameworks.slime_sample(ROWS[0] | {"failed": False, "reward": float(i == 0)}, i) for i in range(3)]
    samples[1] |= {"rollout_id": 7}
    samples[2] |= {"rollout_id": 7}
    path = frameworks.lines(tmp_path / "in.jsonl", samples)
    filter_files(path, tmp_path / "out.jsonl", SIGNAL, advantages=True)
    assert [row["advantage"] for row in read(tmp_path / "out.jsonl")] == [1.0, -1.0, -1.0]


BAD = {
    "a version that is no number": ("slime", {"weight_versions": ["v1"]}, "weight_versions.*the version 'v1'"),
    "an episode with two that learn": (
        "prime_rl",
        {"traces": [frameworks.trace(ROWS[0]), frameworks.trace(ROWS[1])]},
        "'traces' holds an episode with 2 trainable traces",
    ),
    "a status of another type": ("nemo_gym", {"reward": "high"}, "reward and _ng_failure_class.*str 'high'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_a_rule_cannot_read_names_file_and_line(tmp_path, case):
    writer, change, said = BAD[case]
    frameworks.__dict__[writer](tmp_path / "in", ROWS)
    path = min(tmp_path.rglob("traces.jsonl" if writer == "prime_rl" else "rollout*.jsonl"))
    records = read(path)
    records[4] |= change
    path.unlink()
    frameworks.lines(path, records)
    recipe = SIGNAL.replace(select=(gk.MaxLag(1),)) if writer == "slime" else SIGNAL
    with pytest.raises(gk.InputError, match=rf"{path.name}, line 5: .*{said}"):
        filter_files(path, None, recipe, version=VERSION if writer == "slime" else None)


def test_a_format_is_told_and_explained(tmp_path, capsys):
    given, _ = made("nemo_gym", tmp_path / "in")
    assert main(["filter", str(given), "--explain-format"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("format nemo-gym (known by _ng_task_index, _ng_rollout_index, reward)\nschema: NeMo Gym")
    for line in ("  group_id     _ng_task_index\n", "  response_len response.usage.output_tokens\n",
                 "not read: responses_create_params, _ng_rollout_index;", "rollouts_failures.jsonl"):  # fmt: skip
        assert line in said
    assert main(["filter", str(given), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("format nemo-gym: group_id from _ng_task_index | reward from reward; null where _ng_failure")
    assert said.count("which holds no rollouts") == 2
    assert main(["filter", str(given), "--dry-run", "--json", "--format", "nemo-gym"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "nemo-gym"


def test_a_wrong_format_is_an_error(tmp_path):
    given, _ = made("verl", tmp_path / "in")
    with pytest.raises(gk.InputError, match="is not in the format 'slime': it lacks 'group_index', 'index'") as caught:
        filter_files(given, None, SIGNAL, format="slime")
    assert kinds(caught) == "not_of_format"
    with pytest.raises(gk.InputError, match="there is no format 'verll'. Did you mean 'verl'") as caught:
        explain(given, format="verll")
    assert kinds(caught) == "unknown_format"
    # What is named wins over what is recognised.
    found = filter_files(given, None, SIGNAL, columns={"reward": "acc"})
    assert (found.format, found.columns["reward"]) == ("verl", "acc")
    assert filter_files(given, None, SIGNAL, columns={"reward": "acc", "group_id": "gts"}).format == "columns"


def test_pickles_are_refused_with_the_way_out(tmp_path):
    path = tmp_path / "0.pt"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(gk.FileError, match=r"reading it would run code.*docs/formats.md"):
        filter_files(path, None, SIGNAL)


def test_every_format_is_written_down():
    """docs/formats.md has a row for each, and this module a file of each."""
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    for name in BY_NAME:
        assert f"| `{name}` |" in page
    assert {NAMES.get(writer, writer) for writer in KNOWS} | {"columns"} == set(BY_NAME)
