"""What a report says, as data: the JSON twin."""

import json
import math

import numpy as np
import pytest

from grpokit.doctor import RULES, Finding
from grpokit.record import read_record
from grpokit.report import content, to_markdown
from grpokit.report.decimate import decimated
from grpokit.report.visible import excerpt, line, visible

FOUND = Finding(
    "D001",
    "dead-scorer",
    "The scorer | is dead",
    "error",
    "Every reward of 3 steps is 0.",
    {"share": 1.0, "bound": 0.99, "where": "math"},
    (2, 4),
    "It raised.",
    "Mend `it` <b>.",
    "arXiv:0000.00000",
)


def of(*paths, **how):
    return content([read_record(path, **how) for path in paths])


def panel(said, name):
    return next(one for one in said["panels"] if one["id"] == name)


def test_a_run_has_all_parts(run):
    said = of(run)
    json.dumps(said, allow_nan=False)
    assert [one["id"] for one in said["panels"]] == [
        *("reward", "functions", "held_out", "zero_variance", "kept", "length", "truncated", "entropy", "clip", "kl"),
        *("gradient", "gap", "ratio", "ess", "staleness", "time", "rewards", "pass_rates"),
    ]
    assert said["schema_version"] == 1
    (told,) = said["runs"]
    assert (said["verdict"], told["status"], told["problems"]) == ("nothing found", "finished", [])
    facts = {fact["name"]: fact["value"] for fact in told["facts"]}
    assert facts["held-out pass@1"] == "0.300 ± 0.020 → 0.800 ± 0.020"
    assert facts["completions used"] == "3,200 of 4,000"
    commands = [step["command"] for step in told["reproduce"]]
    assert commands[0] == "grpokit train --set 'task.name=sorting'"
    assert commands[1].startswith("grpokit train --config ")


def test_numbers_are_the_metrics(run):
    reward = panel(of(run), "reward")["series"][0]
    steps, values = read_record(run).metrics.trained().there("reward")
    np.testing.assert_allclose(reward["values"], values, rtol=1e-8)
    assert reward["steps"] == steps.tolist()
    np.testing.assert_allclose(reward["high"], values + 0.3, rtol=1e-8)
    assert (reward["lowest"], reward["lowest_step"]) == (
        pytest.approx(values.min()),
        int(steps[values.argmin()]),
    )
    kept = panel(of(run), "kept")["series"]
    assert [one["label"] for one in kept] == ["kept", "no signal", "truncated"]
    np.testing.assert_allclose(np.sum([one["values"] for one in kept], axis=0), 1.0)
    assert panel(of(run), "held_out")["series"][0]["steps"] == [0, 10, 20, 30, 40]


def test_what_differs_from_the_default(writer):
    assert [row["name"] for row in of(writer("a"))["runs"][0]["settings"] if row["changed"]] == [
        "steps",
        "num_generations",
    ]
    changed = [row for row in of(writer("b", recipe="grpo", seed=4))["runs"][0]["settings"] if row["changed"]]
    assert {row["name"]: (row["value"], row["default"]) for row in changed} == {
        "recipe": ("grpo", "dapo"),
        "seed": (4, 0),
        "steps": (40, 100),
        "num_generations": (4, 8),
    }


def test_two_runs_are_laid_over_each_other(run, other):
    said = of(run, other)
    assert [one["run"] for one in panel(said, "reward")["series"]] == [0, 1]
    titles = [one["title"] for one in said["panels"]]
    assert {"Kept and dropped, A", "Kept and dropped, B", "Rewards at a few steps, B"} <= set(titles)
    assert len(set(titles)) == len(titles)
    assert {"kept", "kept-1", "time", "time-1", "rewards", "rewards-1"} <= {one["id"] for one in said["panels"]}
    assert {row["name"] for row in said["differences"]} >= {"recipe", "seed"}
    assert said["verdict"] == "A: nothing found; B: nothing found"
    assert "**A: nothing found; B: nothing found.**" in to_markdown(said)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_dump_gives_what_it_can(rows_writer, suffix):
    said = of(rows_writer(f"dump.{suffix}"))
    assert [one["id"] for one in said["panels"]] == [
        *("reward", "zero_variance", "kept", "length", "truncated", "rewards", "pass_rates")
    ]
    (told,) = said["runs"]
    assert (told["settings"], told["summary"], told["status"]) == (None, None, "rollout files")
    rows = read_record(told["path"]).rows
    first = rows["step"] == 1
    assert panel(said, "reward")["series"][0]["first"] == pytest.approx(rows["reward"][first].mean())
    spread = [np.std(rows["reward"][rows["group"] == g], ddof=1) for g in np.unique(rows["group"][first])]
    series = panel(said, "reward")["series"][0]
    assert series["high"][0] - series["values"][0] == pytest.approx(np.mean(spread))
    assert panel(said, "zero_variance")["series"][0]["first"] == np.mean(np.array(spread) == 0)
    assert sum(panel(said, "pass_rates")["series"][0]["shares"]) == pytest.approx(1)


def test_a_dump_without_steps_or_texts(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"uid": i // 4, "score": i % 3 / 7}) + "\n" for i in range(40)))
    said = of(path, columns={"group_id": "uid", "reward": "score"})
    assert [one["id"] for one in said["panels"]] == ["rewards", "pass_rates"]
    assert [one["step"] for one in panel(said, "rewards")["series"]] == [None]
    assert panel(said, "pass_rates")["title"] == "Groups’ mean rewards"
    assert said["runs"][0]["groups"]["best"][0]["completions"][0]["text"] is None


def test_rows_without_any_reward(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"group_id": 1, "reward": null, "step": 1}\n' * 3)
    said = of(path)
    assert said["panels"] == []
    assert said["runs"][0]["groups"]["best"] == []


SUSPECT = [
    ({"text": "the same " * 60, "reward": 1.0}, "again and again"),
    ({"text": "  ", "reward": 1.0}, "empty"),
    ({"text": "a\u202eb", "reward": 1.0}, "control characters"),
    ({"text": "cut", "reward": 1.0, "finish": "length"}, "cut off"),
    ({"text": "long", "reward": 1.0, "response_len": 4000}, "4,000 tokens; the median is 10"),
]


@pytest.mark.parametrize(("row", "why"), SUSPECT, ids=[why for _, why in SUSPECT])
def test_what_is_suspicious_says_why(tmp_path, row, why):
    base = [
        {"group_id": g, "text": f"t{g}{n}", "reward": float(n), "response_len": 10, "finish": "stop", "step": g}
        for g in range(60)
        for n in range(2)
    ]
    base[20 * 2 + 1] |= row
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in base))
    found = of(path)["runs"][0]["groups"]["suspicious"]
    if why in ("again and again", "empty", "control characters"):
        # What only its text tells is found where the text is looked at: among the last and the best.
        base[59 * 2 + 1] |= row
        path.write_text("".join(json.dumps(one) + "\n" for one in base))
        found = of(path)["runs"][0]["groups"]["suspicious"]
    assert any(why in said for one in found for said in one["why"]), found


def test_a_letter_that_python_does_not_know_yet_is_no_control_character(tmp_path):
    path = tmp_path / "d.jsonl"
    rows = [{"group_id": 1, "text": f"{n} \U0001fffa \u0378\r\n", "reward": float(n)} for n in range(2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert of(path)["runs"][0]["groups"]["suspicious"] == []


def test_the_same_text_with_two_rewards(rows_writer):
    found = of(rows_writer("d.jsonl", texts=["same"]))["runs"][0]["groups"]["suspicious"]
    assert "The same text got rewards from 0 to 1." in found[0]["why"]


def test_not_all_is_the_same_where_the_rest_has_no_reward(tmp_path):
    path = tmp_path / "d.jsonl"
    for other, same in (("b", False), ("a", True)):
        rows = [{"group_id": g, "text": "a" * 150 + "xyz" * 50, "reward": float(g)} for g in range(2)]
        rows += [{"group_id": g, "text": other * 150 + "xyz" * 50, "reward": None} for g in range(2)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        why = [why for one in of(path)["runs"][0]["groups"]["suspicious"] for why in one["why"]]
        assert ("All 2 completions are the same text." in why) == same


def test_step_0_of_a_dump_is_a_step(tmp_path):
    """Of a run it is the evaluation before the first; rows of it were sampled as those of any other."""
    path = tmp_path / "d.jsonl"
    for first in (0, 1):
        rows = [
            {"group_id": n // 4, "step": first + n // 8, "reward": float(n % 3), "response_len": n} for n in range(32)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        said = of(path)
        for name, values in (("reward", [0.875, 1, 1.125, 0.875]), ("length", [3.5, 11.5, 19.5, 27.5])):
            (series,) = panel(said, name)["series"]
            assert (series["steps"], series["values"]) == ([first + at for at in range(4)], values)
        assert {"name": "reward", "value": "0.875 → 0.875"} in said["runs"][0]["facts"]


def test_findings_are_told(run, monkeypatch):
    monkeypatch.setitem(RULES, "D001", lambda _: [FOUND])
    said = of(run)
    assert said["verdict"] == "1 error"
    assert said["runs"][0]["findings"] == [json.loads(json.dumps(FOUND.to_dict())) | {"steps": (2, 4)}]
    page = to_markdown(said)
    for words in (
        "**1 error.**",
        "### D001 The scorer \\| is dead",
        "error, steps 2 to 4",
        "Mend \\`it\\` \\<b\\>",
        "share 1",
    ):
        assert words in page


@pytest.mark.parametrize("n", [1, 2, 399, 400, 401, 1000, 99_999])
def test_decimation_keeps_the_ends_and_the_extremes(n):
    values = np.random.default_rng(n).standard_normal(n)
    at = decimated(values)
    assert len(at) <= 400
    assert at[0] == 0
    assert at[-1] == n - 1
    assert (np.diff(at) > 0).all()
    assert {values.argmin(), values.argmax()} <= set(at.tolist())
    if n <= 400:
        assert len(at) == n


def test_no_character_is_hidden():
    text = "".join(map(chr, [*range(0x300), 0x202E, 0x2066, 0xFEFF, 0xD800, 0xE0041, 0x2028, 0xFFFE, 0x1F600]))
    shown = visible(text)
    assert "⟨U+202E⟩" in shown
    assert "⟨U+D800⟩" in shown
    assert all(letter.isprintable() or letter in "\n\t" or letter == "\xa0" for letter in shown)
    shown.encode()
    assert "\n" not in line(text, 5000)
    assert len(line("x" * 999, 50)) == 50


@pytest.mark.parametrize("text", ["", "short", "x" * 50, "x" * 51, "\u202e" * 50, "y" * 10**6])
def test_excerpts_are_bounded(text):
    said = excerpt(text, 40, 10)
    assert len(said["text"]) <= 50
    assert len(said["tail"]) <= 10
    assert said["characters"] == len(text)
    assert bool(said["left_out"]) == (len(visible(text)) > 50)


def test_nothing_in_the_twin_is_nan(writer):
    place = writer("nan")
    lines = (place / "metrics.jsonl").read_text().splitlines()
    lines.append('{"step": 41, "reward": NaN, "kl": Infinity, "entropy": null, "grad_norm": "x"}')
    (place / "metrics.jsonl").write_text("\n".join(lines) + "\n")

    def walk(value):
        if isinstance(value, float):
            assert math.isfinite(value)
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            walk(part)

    walk(of(place))


def test_markdown_fits_an_issue_and_holds_no_markup(hostile):
    page = to_markdown(of(hostile))
    assert len(page) < 65_536
    outside, fence = [], None
    for text in page.splitlines():
        if fence is None and text.startswith("```"):
            fence = text.rstrip("sh")
        elif fence is not None and text == fence:
            fence = None
        elif fence is None:
            outside.append(text)
    assert fence is None
    assert not [
        text for text in outside if "<script" in text.replace("`", "") and "\\<" not in text and "`" not in text
    ]
    assert "\x1b" not in page
    assert "\u202e" not in page
