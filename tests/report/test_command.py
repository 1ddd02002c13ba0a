"""`grpokit report` as it is typed."""

import json

import pytest

from grpokit.cli import main


def test_files_by_their_suffix(run, tmp_path, capsys):
    names = [tmp_path / name for name in ("a.html", "a.json", "a.md")]
    assert main(["report", str(run), *(word for name in names for word in ("-o", str(name)))]) == 0
    assert capsys.readouterr().out.splitlines() == [f"wrote {name}: nothing found" for name in names]
    assert names[0].read_text().startswith("<!doctype html>")
    assert json.loads(names[1].read_text())["schema_version"] == 1
    assert names[2].read_text().startswith("# grpokit report")
    assert main(["report", str(run), "-o", str(names[2])]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["report", str(run), "-o", str(names[2]), "--overwrite"]) == 0


def test_standard_output(run, capsys):
    assert main(["report", str(run), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["schema_version"], len(said["runs"])) == (1, 1)
    for way in (["--md"], ["-o", "-"]):
        assert main(["report", str(run), *way]) == 0
        assert capsys.readouterr().out.startswith("# grpokit report")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "a file .html, .json or .md"),
        (["-o", "a.pdf"], "end in .html, .json or .md"),
        (["-o", "a.md", "-o", "a.md"], "different files"),
        (["--md", "--json"], "one of --json and --md"),
        (["x", "y", "--md"], "two that are compared"),
        (["--md", "--column", "reward"], "WORD=NAME"),
        (["--md", "--reward", "a=b"], "NAME, or a=1"),
        (["-o", "no/where/a.html"], "there is no directory"),
    ],
)
def test_wrong_use(run, tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(run), *words]) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "damage", ["cut", "garbage", "versions", "no summary", "no metrics", "no config", "bad config"]
)
def test_what_can_be_read_is_read(writer, capsys, damage):
    place = writer("run")
    metrics = place / "metrics.jsonl"
    lines = metrics.read_text()
    if damage == "cut":
        metrics.write_text(lines[:-30])
    elif damage == "garbage":
        metrics.write_text("rubbish\n" + lines)
    elif damage == "versions":
        metrics.write_text('{"step": 1, "schema_version": 1}\n{"step": 2, "schema_version": 9}\n' + lines)
    else:
        {"no summary": place / "summary.json", "no metrics": metrics}.get(damage, place / "config.toml").unlink()
        if damage == "bad config":
            (place / "config.toml").write_text('recipe = "nobody"\nnew = 1\n[task]\nname = 3\n')
    assert main(["report", str(place), "--json"]) == 0
    heard = capsys.readouterr()
    said = json.loads(heard.out)["runs"][0]
    told = " ".join(said["problems"])
    assert {"cut": "cut off", "garbage": "left out: 1", "versions": "schema version 1, 9"}.get(damage, "") in told
    assert told[:50] in heard.err
    if damage == "no summary":
        assert said["status"] == "has no summary: it goes on, or was killed"
    if damage == "bad config":
        assert {row["name"]: row["default"] for row in said["settings"]}["new"] is None


def test_where_nothing_can_be_read(tmp_path, run, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    page = tmp_path / "a.html"
    for place in (empty, tmp_path / "nowhere"):
        assert main(["report", str(place), "-o", str(page)]) == 2
        assert "can be read" in capsys.readouterr().err
        assert not page.exists()
    assert main(["report", str(run), str(empty), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said["runs"]) == 1
    assert "can be read" in said["problems"][0]


def test_dumps_of_others(tmp_path, capsys):
    path = tmp_path / "dump.jsonl"
    path.write_text("".join(json.dumps({"uid": i // 4, "score": i % 2, "out": "x"}) + "\n" for i in range(16)))
    words = ["--column", "group_id=uid", "--column", "text=out", "--reward", "score"]
    assert main(["report", str(path), "--json", *words]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["runs"][0]["rows"]["groups"] == 4
    assert said["runs"][0]["groups"]["best"][0]["completions"][0]["text"]["text"] == "x"
    assert said["command"].endswith("--json --column group_id=uid --column text=out --reward score")
