import json
from collections import Counter
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import grpokit as gk
from grpokit.trainer.chat import MESSAGES, rendered
from grpokit.trainer.policy import character_tokenizer
from grpokit.trainer.prompt_file import PromptFile
from grpokit.trainer.tasks import draw, is_held_out, progress

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]


def written(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture
def path(tmp_path):
    return written(
        tmp_path / "prompts.jsonl", [{"prompt": f"{n}+1=", "answer": n + 1, "kind": "sum"} for n in range(80)]
    )


def test_the_split_and_the_columns(path):
    task = PromptFile(path)
    assert len(task.training) + len(task.held_out) == 80
    assert all(is_held_out(item["prompt"]) for item in task.held_out)
    assert not any(is_held_out(item["prompt"]) for item in task.training)
    assert task.training[0] == {"prompt": "0+1=", "answer": 1, "kind": "sum"}
    assert (task.score(" 1\n", task.training[0]), task.score("11", task.training[0])) == (1.0, 0.0)
    assert task.demonstrate(Random(0), task.training[0]) == "1"
    held_out = draw(task, Random(0), len(task.held_out), held_out=True)
    assert len({item["prompt"] for item in held_out}) == len(task.held_out)
    with pytest.raises(
        gk.InputError, match=rf"gave {len(task.held_out)} held-out prompts where 70 .*evaluation.prompts"
    ):
        draw(task, Random(0), 70, held_out=True)


def test_no_prompt_is_lost_or_repeated_within_an_epoch(path):
    task, rng = PromptFile(path), Random("0 prompts")
    n = len(task.training)
    drawn = [item["prompt"] for _ in range(n) for item in draw(task, rng, 3, held_out=False)]
    for start in range(0, 3 * n - n + 1, n):
        assert Counter(drawn[start : start + n]) == Counter(item["prompt"] for item in task.training)
    assert drawn[:n] != drawn[n : 2 * n]
    assert progress(task, rng) == {"epoch": 3.0}
    # The same seed gives the same order; another generator, one of its own.
    other, again = Random(1), Random("0 prompts")
    draw(task, other, 5, held_out=False)
    assert [item["prompt"] for item in draw(PromptFile(path), again, 3 * n, held_out=False)] == drawn
    assert progress(task, other)["epoch"] == pytest.approx(5 / n)


def test_an_epoch_goes_on_where_it_was(path):
    task, rng = PromptFile(path), Random(5)
    draw(task, rng, 100, held_out=False)
    state, random = json.loads(json.dumps(task.state(rng))), rng.getstate()
    expected = [item["prompt"] for item in draw(task, rng, 90, held_out=False)]
    task, rng = PromptFile(path), Random()
    rng.setstate(random)
    task.restore(rng, state)
    assert [item["prompt"] for item in draw(task, rng, 90, held_out=False)] == expected
    with pytest.raises(gk.InputError, match="that of a file whose rows have the fingerprint"):
        task.restore(rng, state | {"fingerprint": "another"})


def test_parquet_and_jsonl_say_the_same(path, tmp_path):
    rows = [{"prompt": CHAT, "answer": "2", "n": 1}, {"prompt": [CHAT[1]], "answer": "2", "n": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "chat.parquet")
    written(tmp_path / "chat.jsonl", rows)
    first, second = (PromptFile(tmp_path / f"chat.{kind}") for kind in ("parquet", "jsonl"))
    assert first.training + first.held_out == second.training + second.held_out
    texts = {item["prompt"] for item in first.training + first.held_out}
    assert texts == {"system: Be brief.\nuser: 1+1?\nassistant:", "1+1?"}


def test_messages_are_written_by_the_template_where_there_is_one():
    items = [{"prompt": "plain"}, {"prompt": "1+1?", MESSAGES: CHAT}]
    tokenizer = character_tokenizer()
    assert rendered(tokenizer, items) == ["plain", "1+1?"]
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>"
        "{% endif %}{% if messages[0].role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    )
    assert rendered(tokenizer, items) == ["plain", "<system>Be brief.<user>1+1?<assistant>"]
    with pytest.raises(gk.InputError, match="chat template refuses the messages of 'x': no tools") as caught:
        rendered(tokenizer, [{"prompt": "x", MESSAGES: [{"role": "tool", "content": "x"}]}])
    assert caught.value.kind == "chat_template"


def test_columns_by_other_names(tmp_path):
    path = written(tmp_path / "a.jsonl", [{"question": "1+1=", "solution": "2"}])
    task = PromptFile(path, prompt="question", answer="solution")
    assert [*task.training, *task.held_out] == [{"prompt": "1+1=", "solution": "2", "answer": "2"}]


def test_without_answers_there_must_be_a_reward_function(tmp_path):
    path = written(tmp_path / "a.jsonl", [{"prompt": "1+1=", "anwser": "2"}, {"prompt": "2+2="}])
    with pytest.raises(
        gk.InputError, match=r"no column 'answer' \(it has: prompt, anwser\). Did you mean 'anwser'"
    ) as e:
        PromptFile(path)
    assert e.value.kind == "no_answers"
    assert "rewards.functions" in str(e.value)
    task = PromptFile(path, rewarded=True)
    item = task.training[0]
    assert (task.answered, task.score("2", item)) == (False, None)
    with pytest.raises(gk.InputError, match="PromptFile without an answer") as e:
        task.demonstrate(Random(0), item)
    # One that is named must be there.
    with pytest.raises(gk.InputError, match="no column 'solution'"):
        PromptFile(path, answer="solution", rewarded=True)
    # Rows lack what others have: None, as it is for a function of another kind of row.
    assert {i["anwser"] for i in (*task.training, *task.held_out)} == {"2", None}


def test_a_file_of_its_own_for_evaluation(path, tmp_path):
    held_out = written(tmp_path / "eval.jsonl", [{"prompt": f"{n}*2=", "answer": 2 * n} for n in range(9)])
    task = PromptFile(path, held_out)
    assert (len(task.training), len(task.held_out)) == (80, 9)
    written(held_out, [{"prompt": "7+1=", "answer": 8}])
    with pytest.raises(gk.InputError, match="1 prompts of .*eval.jsonl are in .* such as '7") as caught:
        PromptFile(path, held_out)
    assert caught.value.kind == "shared_prompts"


GOOD = {"prompt": "1+1=", "answer": "2"}


@pytest.mark.parametrize(
    ("rows", "kind", "message"),
    [
        ([], "file_unreadable", "it has no rows"),
        (["", "  "], "file_unreadable", "it has no rows"),
        ([GOOD, "{"], "bad_line", "line 2: it is no JSON"),
        ([GOOD, "", "[1]"], "bad_line", "line 3: it holds list, not an object"),
        (
            [GOOD, {"promt": "x", "answer": "2"}],
            "bad_prompt",
            "line 2: there is no 'prompt' (it has: promt, answer). Did",
        ),
        ([GOOD, {"prompt": " ", "answer": "2"}], "bad_prompt", "line 2: 'prompt' is empty"),
        ([GOOD, {"prompt": None, "answer": "2"}], "bad_prompt", "line 2: 'prompt' is None"),
        ([{"prompt": 3, "answer": "2"}], "bad_prompt", "line 1: 'prompt' is 3"),
        ([{"prompt": [], "answer": "2"}], "bad_prompt", "has the message []"),
        ([{"prompt": [{"role": "user"}], "answer": "2"}], "bad_prompt", "has the message {'role': 'user'}"),
        ([{"prompt": ["hi"], "answer": "2"}], "bad_prompt", "has the message 'hi'"),
        ([GOOD, {"prompt": "2+2="}], "bad_answer", "line 2: the answer is null or not there"),
        ([GOOD, {"prompt": "2+2=", "answer": ["4"]}], "bad_answer", "line 2: the answer is ['4']"),
        ([GOOD | {"completions": 1}], "column_exists", "column 'completions' already"),
    ],
)
def test_rows_that_cannot_be_meant(tmp_path, rows, kind, message):
    path = written(tmp_path / "bad.jsonl", rows)
    with pytest.raises(gk.GrpokitError) as caught:
        PromptFile(path)
    assert caught.value.kind == kind
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    cases = {"none.jsonl": (None, "No such file"), "latin.jsonl": (b'{"prompt": "\xff"}', "byte 13 is not UTF-8")}
    cases |= {
        "a.jsonl.gz": (b"\x1f\x8b\x08", "it is compressed"),
        "b.parquet": (b"PAR1 and no more", "no Parquet file"),
    }
    for name, (content, message) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(gk.GrpokitError, match=message):
            PromptFile(tmp_path / name)
    with pytest.raises(gk.FileError, match="Is a directory"):
        PromptFile(tmp_path)
    pq.write_table(pa.table({"prompt": ["1", None], "answer": ["1", "2"]}), tmp_path / "c.parquet")
    with pytest.raises(gk.InputError, match="row 1: 'prompt' is None"):
        PromptFile(tmp_path / "c.parquet")
    with pytest.raises(gk.InputError, match="has a column 'prompt' already. Rename it, or leave task.prompt"):
        PromptFile(written(tmp_path / "d.jsonl", [{"prompt": "1", "q": "2", "answer": "3"}]), prompt="q")
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "e.parquet")
    with pytest.raises(gk.FileError, match="it has no rows"):
        PromptFile(tmp_path / "e.parquet")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    import sys

    pq.write_table(pa.table({"prompt": ["1"], "answer": ["1"]}), tmp_path / "a.parquet")
    # Put back afterwards, as the package's attribute too.
    monkeypatch.setattr(gk, "io", sys.modules.get("grpokit.io"), raising=False)
    monkeypatch.delitem(sys.modules, "grpokit.io.parquet", raising=False)
    monkeypatch.delitem(sys.modules, "grpokit.io", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(gk.InputError, match=r"needs pyarrow, .* pip install 'grpokit\[io\]'"):
        PromptFile(tmp_path / "a.parquet")
