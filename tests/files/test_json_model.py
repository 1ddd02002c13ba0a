"""The JSON-lines reader gives what `json` gives line by line, in whatever blocks it reads."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.files.json_model import NAMES, check, jsonl

SEEDS = sorted((Path(__file__).parents[2] / "fuzz" / "seeds" / "jsonl").iterdir())
KEYS = st.sampled_from([f'"{name}"' for name in NAMES] + ['"gr\\u006fup_id"', '"x"', '"\\ud800"', "1"])
VALUES = st.sampled_from(
    ["1", "-0", "0.5", "1e999", "NaN", "-Infinity", "-NaN", "9007199254740993", "18446744073709551616", "01", "tru"]
    + [
        "true",
        "null",
        '"a"',
        '"\\ud83d\\ude00"',
        '"\\ud800"',
        '"é\\n"',
        '"\t"',
        "[]",
        "[NaN]",
        '{"reward": 7}',
        "[1",
        "",
    ]
)
FIELDS = st.lists(st.tuples(KEYS, VALUES).map(": ".join), max_size=4).map(", ".join)
LINES = FIELDS.map(lambda fields: "{" + fields + "}") | st.sampled_from(
    ["", " \r", "\x0b", "[]", "{} {}", "\ufeff{}", "1"]
)


@given(st.lists(LINES, max_size=8), st.integers(3, 80), st.data())
@settings(max_examples=300)
def test_any_lines_in_any_blocks(tmp_path_factory, lines, block, draw):
    content = bytearray("\n".join(lines).encode())
    for at in draw.draw(st.lists(st.integers(0, max(0, len(content) - 1)), max_size=2)) if content else ():
        content[at] = draw.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("lines") / "in.jsonl"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "BLOCK", block)
        check(path, bytes(content))


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: path.name)
def test_what_fuzzing_begins_with(tmp_path, seed, monkeypatch):
    block, content = seed.read_bytes()[0], seed.read_bytes()[1:]
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    monkeypatch.setattr(jsonl, "BLOCK", 3 + block)
    check(path, content)
