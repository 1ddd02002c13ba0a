"""Files are filtered as the table that they hold, and what is written is what was read."""

import gzip
import json
import os
import resource
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import grpokit as gk
from grpokit.cli import main
from grpokit.io import filter_files, jsonl, parquet
from tests.rows.strategies import rollouts
from tests.rows.test_reference import SELECT_ANY, VERSION, recipe

RLOO = gk.recipe("rloo").replace(select=(gk.HasSignal(),))


def rows(n=40, size=4):
    rng = np.random.default_rng(0)
    return {
        "group_id": [f"p{i // size}" for i in range(n)],
        "reward": [float(x) for x in rng.integers(0, 2, n)],
        "text": [f"answer {i} ✓" for i in range(n)],
    }


def write(path, table, **options):
    if path.suffix == ".parquet":
        pq.write_table(pa.table(table), path, **options)
    else:
        records = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def read(path):
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


@given(rollouts(), SELECT_ANY, st.sampled_from((".parquet", ".jsonl")), st.integers(1, 7), st.booleans(), st.data())
@settings(max_examples=60)
def test_a_file_is_filtered_as_its_table(tmp_path_factory, data, stages, suffix, batch, together, draw):
    """In whatever batches it is read, and however the rows of a group lie."""
    if not data.group_id or any("\ud800" <= c <= "\udfff" for key in map(str, data.group_id) for c in key):
        return
    if together:
        first = {key: i for i, key in reversed(list(enumerate(data.key)))}
        data = data.take(sorted(range(len(data.key)), key=lambda i: first[data.key[i]]))
    path = tmp_path_factory.mktemp("files")
    source = write(path / f"in{suffix}", data.table)
    mine = recipe(gk.LeaveOneOut(), stages)
    out = gk.process(data.table, mine, version=VERSION)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "BATCH", batch)
        patch.setattr(parquet, "COPIED", batch + 1)
        patch.setattr(jsonl, "BLOCK", 40 * batch)
        order = draw.draw(st.sampled_from(("auto", "any", *(["contiguous"] if together else []))))
        found = filter_files(
            source, path / f"out{suffix}", mine, version=VERSION, order=order, advantages=True,
            keep_dropped=path / f"dropped{suffix}",
        )  # fmt: skip
    everything = read(source)
    kept = [
        {**row, "advantage": a} for row, k, a in zip(everything, out.keep, out.advantages.tolist(), strict=True) if k
    ]
    assert read(path / f"out{suffix}") == kept
    names = [gk.Reason(int(reason)).name.lower() if reason else "" for reason in out.first_reason]
    assert read(path / f"dropped{suffix}") == [
        {**row, "reason": name} for row, name in zip(everything, names, strict=True) if name
    ]
    assert found.verdicts.counts == out.counts
    assert found.verdicts.counts_by_source == out.counts_by_source
    assert found.verdicts.groups == len(out.groups.n)


MATRIX = {
    "nested": pa.array([[{"a": 1, "b": ["x", None]}], None, []] * 2),
    "when": pa.array([1, None, 3] * 2, pa.timestamp("us", tz="UTC")),
    "day": pa.array([1, 2, None] * 2, pa.date32()),
    "word": pa.array(["a", "b", None] * 2).dictionary_encode(),
    "bytes": pa.array([b"\x00", None, b"abc"] * 2, pa.large_binary()),
    "wide": pa.array([2**53 + 1, -(2**63), 2**63 - 1] * 2),
    "unsigned": pa.array([2**64 - 1, 0, 1] * 2, pa.uint64()),
    "price": pa.array([1, 2, 3] * 2, pa.decimal128(10, 2)),
    "half": pa.array([1.5, 2.5, None] * 2, pa.float16()),
    "pair": pa.array([[1, 2], [3, 4], None] * 2, pa.list_(pa.int8(), 2)),
    "map": pa.array([[("k", 1)], [], None] * 2, pa.map_(pa.string(), pa.int64())),
    "nothing": pa.nulls(6),
}


def test_parquet_keeps_columns_types_metadata_and_compression(tmp_path):
    table = pa.table({"group_id": [1, 1, 2, 2, 3, 3], "reward": [1.0, 0, 1, 1, 0, 1], **MATRIX})
    table = table.replace_schema_metadata({"framework": "mine", "pandas": "{}"})
    codecs = {"text": "zstd", "reward": "none", "group_id": "gzip"}
    table = table.append_column("text", pa.array(list("abcdef")))
    path = tmp_path / "in.parquet"
    pq.write_table(table, path, row_group_size=2, compression={n: codecs.get(n, "snappy") for n in flat(table)})
    filter_files(path, tmp_path / "out.parquet", RLOO)
    written = pq.read_table(tmp_path / "out.parquet")
    assert written.schema.equals(pq.read_table(path).schema, check_metadata=True)
    assert written.equals(pq.read_table(path).take([0, 1, 4, 5]))
    group = pq.ParquetFile(tmp_path / "out.parquet").metadata.row_group(0)
    original = pq.ParquetFile(path).metadata.row_group(0)
    assert [group.column(i).compression for i in range(group.num_columns)] == [
        original.column(i).compression for i in range(original.num_columns)
    ]
    assert group.num_rows == 2


def flat(table):
    file = pq.ParquetFile(as_buffer(table))
    return [file.metadata.row_group(0).column(i).path_in_schema for i in range(file.metadata.num_columns)]


def as_buffer(table):
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return pa.BufferReader(sink.getvalue())


LINES = (
    b'\xef\xbb\xbf{"reward": 1,  "group_id":"a", "x": [1,2 ,3]}\r\n'
    b"\n"
    b'{"group_id":"a","reward":0.0,"id":9007199254740993,"x":"\\u00e9"}\n'
    b'{"group_id": "b", "reward": 1e0}\n'
    b'   {"group_id": "b", "reward": 1, "x": {"group_id": "a", "reward": 5}}\n'
    b'{"group_id": "c", "reward": null}\n'
    b'{"group_id": "a2", "reward": 1}\n'
    b'{"group_id": "a2", "reward": 0}'
)


@pytest.mark.parametrize("codec", [None, "gzip", "zstd"])
def test_lines_are_copied_byte_for_byte(tmp_path, codec):
    path = tmp_path / "in.jsonl"
    if codec == "zstd":
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(LINES)
    else:
        path.write_bytes(gzip.compress(LINES) if codec else LINES)
    found = filter_files(path, tmp_path / "out.jsonl", RLOO, keep_dropped=tmp_path / "dropped.jsonl")
    lines = LINES[3:].splitlines(keepends=True)
    assert (tmp_path / "out.jsonl").read_bytes() == lines[0] + lines[2] + lines[6] + lines[7] + b"\n"
    assert (tmp_path / "dropped.jsonl").read_bytes().splitlines()[-1] == (
        b'{"group_id": "c", "reward": null, "reason": "unscored"}'
    )
    assert found.verdicts.counts == {"in": 7, "kept": 4, "unscored": 1, "no_signal": 2}


def test_nan_follows_the_policy_and_is_counted(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text(
        '{"group_id": 1, "reward": NaN}\n{"group_id": 1, "reward": 1}\n{"group_id": 1, "reward": -Infinity}\n'
    )
    with pytest.raises(gk.InputError, match=r"in.jsonl, line 1: 'reward' is NaN or infinite in 2 rows"):
        filter_files(path, None, RLOO)
    dropped = filter_files(path, None, gk.recipe("rloo").replace(not_finite="drop"))
    assert dropped.verdicts.counts == {"in": 3, "kept": 1, "not_finite": 2}


def test_findings_name_rows_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "BATCH", 4)
    table = {"group_id": [i // 2 for i in range(12)], "reward": [i % 2 for i in range(12)], "response_len": [5] * 12}
    table["response_len"][9] = 50
    table["version_max"] = list(range(12))
    path = write(tmp_path / "in.parquet", table)
    dapo = gk.recipe("dapo", max_len=20)
    assert gk.process(table, dapo).lint[0].rows == (9,)
    assert filter_files(path, None, dapo).verdicts.lint["beyond_max_len"].rows == (9,)
    newest = recipe(gk.LeaveOneOut(), [gk.MaxLag(2, of="newest")])
    assert filter_files(path, None, newest, version=11).verdicts.counts == {"in": 12, "kept": 3, "stale": 9}


def test_directories_patterns_and_several_files(tmp_path):
    (tmp_path / "dumps").mkdir()
    for step in (2, 1):
        write(tmp_path / "dumps" / f"step_{step}.jsonl", {"group_id": [f"s{step}"] * 2, "reward": [1.0, 0.0]})
    (tmp_path / "dumps" / "notes.txt").write_text("not rollouts")
    for given_ in (
        tmp_path / "dumps",
        str(tmp_path / "dumps" / "*.jsonl"),
        sorted((tmp_path / "dumps").glob("*.jsonl")),
    ):
        filter_files(given_, tmp_path / "out.jsonl", RLOO, overwrite=True)
        assert [row["group_id"] for row in read(tmp_path / "out.jsonl")] == ["s1", "s1", "s2", "s2"]


def test_other_names_and_composite_keys(tmp_path):
    path = write(tmp_path / "in.parquet", {"set": [1, 2, 1, 2], "uid": ["a"] * 4, "score": [1.0, 0.0, 0.0, 0.0]})
    found = filter_files(path, None, RLOO, columns={"group_id": ["set", "uid"], "reward": "score"})
    assert (found.verdicts.counts["kept"], found.verdicts.groups, found.contiguous) == (2, 2, False)
    code = ["filter", str(path), "--dry-run", "--column", "group_id=set,uid", "--column", "reward=score"]
    assert main([*code, "--json"]) == 0


def test_advantages_writes_every_row(tmp_path, capsys):
    path = write(tmp_path / "in.parquet", rows())
    assert main(["advantages", str(path), "-o", str(tmp_path / "out.parquet"), "--recipe", "rloo"]) == 0
    expected = gk.process(rows(), "rloo").advantages
    np.testing.assert_array_equal(pq.read_table(tmp_path / "out.parquet")["advantage"], expected)
    assert "wrote" in capsys.readouterr().out


def test_the_command(tmp_path, capsys):
    path = write(tmp_path / "in.jsonl", rows())
    assert main(["filter", str(path), "-o", str(tmp_path / "out.jsonl"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"] == {"in": 40, "kept": 24, "no_signal": 16}  # groups with signal, unless told otherwise
    assert found["columns"] == {"group_id": "group_id", "reward": "reward"}
    assert found["kind"] == "jsonl"
    nothing = write(tmp_path / "none.jsonl", {"group_id": [1], "reward": [None]})
    assert main(["filter", str(nothing), "--dry-run"]) == 1
    assert main(["filter", str(path), "-o", str(tmp_path / "out.jsonl")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["filter", str(path)]) == 2


def test_stages_are_chosen_on_the_command_line(tmp_path, capsys):
    path = write(tmp_path / "in.jsonl", rows())

    def kept(*arguments):
        assert main([arguments[0], str(path), "--dry-run", "--json", *arguments[1:]]) == 0
        found = capsys.readouterr()
        return json.loads(found.out)["counts"]["kept"], found.err

    assert kept("filter", "--recipe", "rloo")[0] == 40
    assert kept("filter", "--recipe", "rloo", "--select", "HasSignal()")[0] == 24
    assert (
        kept("filter", "--select", "PassRate(low=0.5, high=0.7)", "--select", "HasSignal")[0]
        == sum(0.5 <= sum(rows()["reward"][i : i + 4]) / 4 <= 0.7 for i in range(0, 40, 4)) * 4
    )
    assert kept("advantages")[0] == 40
    assert main(["filter", str(path), "--dry-run", "--recipe", "rloo"]) == 0
    assert "the recipe rloo selects nothing: --select HasSignal()" in capsys.readouterr().out
    for wrong, said in {
        "HasSignl()": "Did you mean 'HasSignal'",
        "PassRate(": "expected a stage with its arguments",
        "PassRate(0.1)": "PassRate",
        "PassRate(low=__import__('os'))": "expected a stage with its arguments",
        "": "expected a stage",
    }.items():
        assert main(["filter", str(path), "--dry-run", "--select", wrong]) == 2
        assert said in capsys.readouterr().err
    for option, wrong in (("--reward", "a=x"), ("--reward", ","), ("--column", "a"), ("--group-size", "0")):
        assert main(["filter", str(path), "--dry-run", option, wrong]) == 2
        assert option.strip("-").replace("-", "_") in capsys.readouterr().err.replace("-", "_")


def test_what_is_said_of_the_whole_is_not_said_of_a_part(tmp_path, monkeypatch):
    """A file is decided on in parts; a finding about all of its groups needs all of them."""
    monkeypatch.setattr(parquet, "BATCH", 4)
    recipe_ = gk.recipe("grpo")
    single = {"group_id": [0, 1, 2, 3, 4, 4, 5, 5, 6, 6], "reward": [1.0] * 4 + [0.0, 1.0] * 3}
    found = filter_files(write(tmp_path / "a.parquet", single), None, recipe_).verdicts
    assert found.lint.keys() == {"uneven_groups"}
    with pytest.warns(gk.errors.GroupWarning, match="each of the 9 groups has one rollout"):
        alone = filter_files(
            write(tmp_path / "b.parquet", {"group_id": list(range(9)), "reward": [0.0, 1.0, 0.5] * 3}), None, recipe_
        ).verdicts
    assert alone.lint["all_singletons"].evidence.startswith("each of the 9 groups")
    dead = {"group_id": [i // 2 for i in range(12)], "reward": [0.0] * 12}
    constant = filter_files(write(tmp_path / "c.parquet", dead), None, recipe_).verdicts
    assert constant.lint["constant_rewards"].evidence == "all 12 outcomes are 0"


def test_standard_input_and_output(tmp_path):
    path = write(tmp_path / "in.jsonl", rows())
    filter_files(path, tmp_path / "out.jsonl", RLOO)
    command = [sys.executable, "-m", "grpokit", "filter", "-", "-o", "-", "--recipe", "rloo"]
    done = subprocess.run([*command, "--json"], input=path.read_bytes(), capture_output=True, check=True, cwd=tmp_path)
    assert done.stdout == path.read_bytes()  # rloo keeps all
    assert json.loads(done.stderr)["counts"] == {"in": 40, "kept": 40}
    broken = subprocess.run(command, input=b"{", capture_output=True)
    assert (broken.returncode, broken.stdout) == (2, b"")
    assert b"standard input, line 1: it is no JSON" in broken.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def bad(path, content):
    path.write_bytes(content)
    return path


def truncated(directory):
    path = write(directory / "a.parquet", rows())
    return bad(path, path.read_bytes()[:-20])


def mixed(directory):
    return [write(directory / "a.parquet", rows()), write(directory / "a.jsonl", rows())]


def schemas(directory):
    other = rows() | {"more": [1] * 40}
    return [write(directory / "a.parquet", rows()), write(directory / "b.parquet", other)]


# name → (kind, words, what makes it)
REFUSED = {
    "missing": ("file_unreadable", "it is not there", lambda d: d / "nowhere.parquet"),
    "empty": ("file_unreadable", "it is empty", lambda d: bad(d / "a.jsonl", b"")),
    "no such pattern": ("file_unreadable", "matched by no file", lambda d: str(d / "*.parquet")),
    "empty directory": ("file_unreadable", "without Parquet", lambda d: d),
    "pickle": ("file_unreadable", "it is pickled", lambda d: bad(d / "a.pt", b"PK\x03\x04rest")),
    "truncated": ("file_unreadable", "it is damaged", truncated),
    "cut gzip": ("file_unreadable", "a.jsonl", lambda d: bad(d / "a.jsonl", gzip.compress(LINES * 50)[:60])),
    "half a line": (
        "bad_line",
        "a.jsonl, line 3: it is no JSON",
        lambda d: bad(d / "a.jsonl", LINES[:60] + b'\n{"group'),
    ),
    "no object": ("bad_line", "line 1: it holds list", lambda d: bad(d / "a.jsonl", b"[1]\n")),
    "not UTF-8": ("bad_line", "line 1", lambda d: bad(d / "a.jsonl", b'{"group_id": "\xff", "reward": 1}\n')),
    "no reward": (
        "missing_field",
        "no column 'reward'",
        lambda d: bad(d / "a.jsonl", b'{"group_id": 1, "rewards": 1}\n'),
    ),
    "reward is text": (
        "in_file",
        "a.jsonl, as a whole: column 'reward' holds",
        lambda d: bad(d / "a.jsonl", b'{"group_id": 1, "reward": "1"}\n'),
    ),
    "mixed types": (
        "in_file",
        "a.jsonl, line 2: column 'group_id' holds text after a number",
        lambda d: bad(d / "a.jsonl", b'{"group_id": 1, "reward": 1}\n{"group_id": "a", "reward": 1}\n'),
    ),
    "mixed files": ("mixed_files", "JSON lines and Parquet", mixed),
    "other schema": ("schemas_differ", "b.parquet has other columns", schemas),
    "large group": ("group_too_large", "has 40 rows or more", lambda d: write(d / "a.parquet", rows(size=40))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_writes_nothing(name, tmp_path, capsys):
    kind, words, make = REFUSED[name]
    source = tmp_path / "in"
    source.mkdir()
    given_ = make(source)
    out = tmp_path / "out.jsonl"
    with pytest.raises(gk.GrpokitError) as caught:
        filter_files(given_, out, RLOO, max_group_rows=30)
    assert caught.value.kind == kind, caught.value
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == [source]
    arguments = [str(path) for path in given_] if isinstance(given_, list) else [str(given_)]
    assert main(["filter", *arguments, "-o", str(out), "--recipe", "rloo", "--max-group-rows", "30"]) == 2
    assert words in capsys.readouterr().err


def test_outputs_are_refused(tmp_path):
    path = write(tmp_path / "in.parquet", rows())
    link = tmp_path / "link.parquet"
    link.symlink_to(path)
    for target in (path, link):
        with pytest.raises(gk.FileError, match="it is an input") as caught:
            filter_files(path, target, RLOO, overwrite=True)
        assert caught.value.kind == "file_unwritable"
    with pytest.raises(gk.FileError, match="it is a directory"):
        filter_files(path, tmp_path, RLOO)
    with pytest.raises(gk.FileError, match="there is no directory"):
        filter_files(path, tmp_path / "no" / "out.parquet", RLOO)
    with pytest.raises(gk.InputError) as caught:
        filter_files(
            write(tmp_path / "b.parquet", rows() | {"advantage": [0.0] * 40}), tmp_path / "o", RLOO, advantages=True
        )
    assert caught.value.kind == "column_exists"
    with pytest.raises(gk.InputError) as caught:
        filter_files(
            write(tmp_path / "c.jsonl", {"group_id": [1, 2, 1], "reward": [1, 0, 1]}), None, RLOO, order="contiguous"
        )
    assert caught.value.kind == "not_contiguous"
    assert not (tmp_path / "o").exists()


def test_a_full_disk_is_a_clean_error(tmp_path):
    """The limit of a file's size stands for the disk."""
    path = write(tmp_path / "in.jsonl", rows(4000))
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "from grpokit.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "filter", str(path), "-o", str(tmp_path / "out.jsonl"), "--recipe", "rloo"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "cannot be written: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.jsonl"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY or os.name != "posix"


def test_a_file_that_changes_meanwhile(tmp_path):
    path = write(tmp_path / "in.jsonl", rows())

    def grow(what, count):
        # Reading is ahead and may see it; the last of these it cannot have seen.
        if what == "decided":
            with path.open("a") as file:
                file.write('{"group_id": "new", "reward": 1}\n')

    with pytest.raises(gk.FileError) as caught:
        filter_files(path, tmp_path / "out.jsonl", RLOO, progress=grow)
    assert caught.value.kind == "file_changed"
    assert not (tmp_path / "out.jsonl").exists()


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "BLOCK", 1000)
    path = bad(tmp_path / "in.jsonl", b'{"group_id": "a"}\n{"group_id": "' + b"x" * 5000 + b'"}\n')
    with pytest.raises(gk.InputError) as caught:
        list(jsonl.JsonLinesInput(path, max_line=4000).lines())
    assert caught.value.kind == "line_too_long"
    assert "line 2 is longer than 4,000 bytes" in str(caught.value)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    "chosen",
    [
        gk.recipe("rloo", beta=0.1),
        gk.recipe("remax"),
        gk.recipe("gpg"),
        gk.recipe("opo"),
        gk.recipe("rloo").replace(advantage=gk.GDPO("tokens")),
        gk.recipe("rloo").replace(advantage=gk.PKPO(2)),
    ],
    ids=lambda r: f"{r.name}-{type(r.advantage).__name__}",
)
def test_what_estimators_read_is_read_from_files(tmp_path, suffix, chosen):
    """Lists of log-probs, parts of rewards, baselines, lengths: as from a table in memory."""
    n = 24
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 5, n).tolist()
    table = rows(n) | {
        "step": [i // 12 for i in range(n)],
        "response_len": lengths,
        "baseline_reward": rng.normal(size=n).tolist(),
        "logp_old": [rng.normal(size=k).tolist() for k in lengths],
        "logp_ref": [rng.normal(size=k).tolist() for k in lengths],
        "reward_parts": [{"a": float(i % 3), "b": float(i % 5)} for i in range(n)],
    }
    out = tmp_path / f"out{suffix}"
    filter_files([write(tmp_path / f"in{suffix}", table)], out, chosen, advantages=True, keep_all=True)
    found = [row["advantage"] for row in read(out)]
    np.testing.assert_array_equal(found, gk.process(table, chosen).advantages)


def test_advantages_per_token_have_no_place_in_a_file(tmp_path, capsys):
    table = rows(4) | {"logp_old": [[-1.0]] * 4, "logp_ref": [[-1.0]] * 4, "step": [1] * 4}
    source, out = write(tmp_path / "in.jsonl", table), tmp_path / "out.jsonl"
    settings = ["--recipe", "reinforce_pp", "--set", "ddof=1", "--set", "eps=0.1"]
    assert main(["advantages", str(source), "-o", str(out), *settings]) == 2
    assert "GlobalNorm gives one advantage a token" in capsys.readouterr().err
    assert not out.exists()
    assert main(["filter", str(source), "-o", str(out), *settings]) == 0
    assert len(read(out)) == 4
