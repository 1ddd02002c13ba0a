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
    # The framework's rules stay: what failed is not scored.
    nemo, order = made("nemo_gym", tmp_path / "nemo")
    named = {"group_id": "_ng_task_index", "reward": "reward"}
    found = filter_files(nemo, None, SIGNAL, columns=named)
    assert found.verdicts.counts == gk.process(table(order, {"failed"}), SIGNAL).counts


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


def lined(path, *records):
    path.parent.mkdir(exist_ok=True)
    return frameworks.lines(path, records)


def test_a_field_that_comes_late_is_not_overlooked(tmp_path):
    """The first line says what there is, and a later one with a step, a gate or an id of its own is an error."""
    row = {"group_id": 1, "reward": 1.0}
    for field in ({"step": 2}, {"gate": 0.0}, {"source": "x"}, {"rollout_id": 4}):
        path = lined(tmp_path / f"{next(iter(field))}.jsonl", row, row, row | field)
        with pytest.raises(gk.InputError, match=rf"line 3: there is a field '{next(iter(field))}'") as caught:
            filter_files(path, None, SIGNAL)
        assert kinds(caught) == "late_field"
    late = lined(tmp_path / "late.jsonl", row, row | {"reward": 0.0, "step": None})
    assert filter_files(late, None, SIGNAL).verdicts.counts["kept"] == 2


def test_an_advantage_that_comes_late_is_not_written_twice(tmp_path):
    rows = [{"group_id": 1, "reward": float(i)} | ({"advantage": 7} if i else {}) for i in range(2)]
    path = lined(tmp_path / "in.jsonl", *rows)
    with pytest.raises(gk.InputError, match="has a column 'advantage' already") as caught:
        filter_files(path, tmp_path / "out.jsonl", SIGNAL, advantages=True)
    assert kinds(caught) == "column_exists"
    assert not (tmp_path / "out.jsonl").exists()


def test_a_column_that_some_files_lack_is_an_error(tmp_path):
    one = lined(tmp_path / "a.jsonl", {"group_id": 1, "reward": 1.0, "step": 1})
    two = lined(tmp_path / "b.jsonl", {"group_id": 1, "reward": 0.0})
    with pytest.raises(
        gk.InputError, match=r"a.jsonl has 'step', which is read as `step`, and .*b.jsonl has not"
    ) as caught:
        filter_files([one, two], None, SIGNAL)
    assert kinds(caught) == "uneven_files"
    with pytest.raises(gk.FileError) as caught:
        filter_files([one, tmp_path / "." / "a.jsonl"], None, SIGNAL)
    assert kinds(caught) == "file_twice"


def test_parts_of_the_reward_come_before_fields_and_must_be_there(tmp_path):
    samples = [
        {"group_id": 1, "reward": {"score": 1.0 * i, "group_id": 0.0, "reward": 2.0 * i}, "index": 5} for i in range(2)
    ]
    path = lined(tmp_path / "in.jsonl", *samples)
    for terms, expected in (
        ({"score": 1.0, "group_id": 7.0}, [-1.0, 1.0]),
        ({"reward": 1.0}, [-2.0, 2.0]),
        ({"score": -1.0}, [1.0, -1.0]),
    ):
        filter_files(path, tmp_path / "out.jsonl", SIGNAL, reward=terms, advantages=True, overwrite=True)
        assert [row["advantage"] for row in read(tmp_path / "out.jsonl")] == expected
    with pytest.raises(gk.InputError, match="no row has the part scoer") as caught:
        filter_files(path, None, SIGNAL, reward={"score": 1.0, "scoer": 1.0})
    assert kinds(caught) == "missing_part"


def test_an_episode_in_which_nobody_learns_is_not_scored(tmp_path):
    records = [frameworks.episode(row) for row in ROWS[:4]]
    for record in records:
        record["traces"] = record["traces"][:1]
    found = filter_files(lined(tmp_path / "in.jsonl", *records), None, SIGNAL)
    assert found.verdicts.counts == {"in": 4, "kept": 0, "unscored": 4}


def test_a_frameworks_field_is_not_ours_by_its_name(tmp_path):
    """A reward function of verl may return something called gate."""
    given_, order = made("verl", tmp_path / "in")
    for path in given_.iterdir():
        records = [row | {"gate": 0} for row in read(path)]
        path.unlink()
        frameworks.lines(path, records)
    assert filter_files(given_, None, SIGNAL).verdicts.counts == gk.process(table(order, ()), SIGNAL).counts


def test_places_do_not_ask_for_the_step(tmp_path):
    rows = [{"score": float(i % 2), "step": 1 + i // 3} for i in range(8)]
    path = lined(tmp_path / "in.jsonl", *rows)
    found = filter_files(path, None, SIGNAL, columns={"reward": "score"}, group_size=4)
    assert (found.verdicts.groups, found.verdicts.counts["kept"]) == (2, 8)
    with pytest.raises(gk.InputError, match="no --group-size with it"):
        filter_files(path, None, SIGNAL, columns={"reward": "score", "group_id": "step"}, group_size=4)


@pytest.mark.parametrize("versions", ["12", [1.9], 3])
def test_versions_are_a_list_of_whole_numbers(tmp_path, versions):
    samples = [frameworks.slime_sample(row, at) for at, row in enumerate(ROWS[:4])]
    samples[2]["weight_versions"] = versions
    recipe = SIGNAL.replace(select=(gk.MaxLag(9),))
    with pytest.raises(gk.InputError, match=r"line 3: column 'weight_versions' holds"):
        filter_files(lined(tmp_path / "in.jsonl", *samples), None, recipe, version=12)


def test_options_that_do_not_go_together(tmp_path, capsys):
    path = lined(tmp_path / "in.jsonl", {"group_id": 1, "reward": 1.0}, {"group_id": 1, "reward": 0.0})
    out = str(tmp_path / "out.jsonl")
    for arguments, said in (
        (["--dry-run", "--keep-dropped", out], "--keep-dropped"),
        (["-o", out, "--keep-dropped", out], "place of the dropped rows as well"),
        (["--explain-format", "--json"], "--json"),
        (["--explain-format", "--column", "gropu=x"], "Did you mean 'group_id'"),
        (["--explain-format", "--column", "finish=nope"], "'nope'"),
        (["--dry-run", "--reward", "reward,reward=-1"], "each once"),
        (["--dry-run", "--column", "gate=reward", "--column", "gate=group_id"], "each WORD once"),
        (["-o", out, "--advantages", "--column", "advantage=x,y"], "one name"),
        (["-o", out, "--max-group-rows", "1"], "group 1 has 2 rows"),
        (["-o", out, "--select", "MaxLag(4)"], "version"),
    ):
        assert main(["filter", str(path), *arguments]) == 2, arguments
        assert said in capsys.readouterr().err, arguments
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.jsonl"]
    assert main(["filter", "", "--dry-run"]) == 2
    assert "the name is empty" in capsys.readouterr().err


def test_a_directory_with_what_the_command_has_written(tmp_path):
    """Empty files, compressed files beside the rollouts, directories in a pattern."""
    given_, order = made("nemo_gym", tmp_path / "in")
    (given_ / "kept.jsonl").write_bytes(b"")
    (given_ / "more").mkdir()
    (given_ / "rollouts_failures.jsonl").rename(given_ / "rollouts_failures.jsonl.gz")
    for inputs in (given_, str(given_ / "*")):
        found = filter_files(inputs, None, SIGNAL)
        assert found.verdicts.counts == gk.process(table(order, {"failed"}), SIGNAL).counts
        assert len(found.beside) == 3
