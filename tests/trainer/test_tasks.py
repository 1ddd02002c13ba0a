from collections import Counter
from random import Random

import pytest

import grpokit as gk
from grpokit.trainer.built_in import BUILT_IN, make_task
from grpokit.trainer.config import TaskConfig
from grpokit.trainer.config_tasks import DIFFICULTIES
from grpokit.trainer.policy import CHARACTERS
from grpokit.trainer.task_sorting import Sorting
from grpokit.trainer.tasks import draw, is_held_out


def test_training_and_evaluation_share_no_prompt():
    task = Sorting(min_letters=2, max_letters=2)  # 676 prompts, so that both sides meet nearly all of theirs
    train = {item["prompt"] for item in draw(task, Random(0), 5000, held_out=False)}
    held_out = {item["prompt"] for item in draw(task, Random(1), 1000, held_out=True)}
    assert not train & held_out
    assert len(train | held_out) > 650
    assert 0.08 < len(held_out) / len(train | held_out) < 0.18


def test_the_split_is_the_same_everywhere():
    # Fixed values: a different hash would let a model be evaluated on what an older version trained it on.
    assert [n for n in range(40) if is_held_out(f"{n}>")] == [9, 17, 25, 33, 35, 39]


def test_sorting_scores_the_sorted_letters_only():
    task = Sorting()
    for item in task.prompts(Random(3), 50):
        letters = item["prompt"][:-1]
        assert 5 <= len(letters) <= 8
        assert task.score("".join(sorted(letters)), item) == 1
        assert task.score("".join(sorted(letters)) + "a", item) == 0
        assert task.score("", item) == 0


def test_the_demonstrator_errs_as_often_as_it_says():
    task, rng = Sorting(error_rate=0.5), Random(0)
    right = [task.score(task.demonstrate(rng, item), item) for item in task.prompts(rng, 4000)]
    # Half are left alone; a swap of a place with itself or of equal letters spoils nothing.
    assert 0.5 < sum(right) / len(right) < 0.62
    item = task.prompts(rng, 1)[0]
    assert Counter(task.demonstrate(rng, item)) == Counter(item["answer"])


def test_the_same_seed_draws_the_same_prompts():
    first, second = (draw(Sorting(), Random(5), 20, held_out=True) for _ in range(2))
    assert first == second
    assert first != draw(Sorting(), Random(6), 20, held_out=True)


def test_too_few_prompts_and_things_that_are_no_items():
    class One:
        def prompts(self, rng, n):
            return [{"prompt": "9>"}] * n

    assert len(draw(One(), Random(0), 3, held_out=True)) == 3
    with pytest.raises(gk.InputError, match="gave 0 training prompts where 3 are needed") as caught:
        draw(One(), Random(0), 3, held_out=False)
    assert caught.value.kind == "too_few_prompts"

    class Texts:
        def prompts(self, rng, n):
            return ["1>"] * n

    with pytest.raises(gk.InputError, match=r"prompts\(\) returned '1>'; expected mappings with a text"):
        draw(Texts(), Random(0), 3, held_out=False)


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_task(name, difficulty):
    task = make_task(TaskConfig(name=name, difficulty=difficulty).resolve(), rewarded=False)
    items = draw(task, Random("0 prompts"), 200, held_out=False)
    assert items == draw(task, Random("0 prompts"), 200, held_out=False)
    assert len({item["prompt"] for item in items}) > 150
    assert len(draw(task, Random(0), 50, held_out=True)) == 50
    known = set(CHARACTERS)
    for item in items:
        assert set(item["prompt"]) | set(item["answer"]) <= known
        assert task.score(item["answer"], item) == 1.0
        assert {task.score(text, item) for text in ("", "?", item["answer"] + "0", "0" + item["answer"])} == {0.0}
    rng = Random(1)
    shown = [task.score(task.demonstrate(rng, item), item) for item in items]
    assert 0.1 < sum(shown) / len(shown) < 0.9
    assert all(set(task.demonstrate(rng, item)) <= known for item in items)


def test_answers_are_those_of_python():
    for difficulty in DIFFICULTIES:
        for item in BUILT_IN["arithmetic"][difficulty].prompts(Random(2), 100):
            assert int(item["answer"]) == eval(item["prompt"][:-1])
        for item in BUILT_IN["chain"][difficulty].prompts(Random(2), 100):
            assert int(item["answer"]) == eval(item["prompt"][:-1])
            totals = [int(total) for total in item["steps"].split(",")]
            assert totals[-1] == int(item["answer"])
            assert all(0 <= total <= 99 for total in totals)


def test_a_harder_task_has_longer_prompts():
    for tasks in BUILT_IN.values():
        lengths = [sum(len(i["prompt"]) for i in tasks[d].prompts(Random(0), 200)) for d in DIFFICULTIES]
        assert lengths == sorted(set(lengths))


def test_an_item_is_a_hash_of_its_number():
    """Fixed values: the same on any machine and in any version."""
    assert Sorting().item(7) == {"prompt": "dxhvtg>", "answer": "dghtvx"}
    # The default run draws from the run's generator itself.
    assert [i["prompt"] for i in Sorting().prompts(Random("0 prompts"), 3)] == ["qvptbi>", "rkpcc>", "adhbkm>"]
    task = BUILT_IN["arithmetic"]["easy"]
    assert task.prompts(Random(3), 2) == [task.item(number) for number in (10932295209482665981, 2405875930906139466)]


def test_tasks_by_name():
    assert TaskConfig().resolve().name == "sorting"
    assert make_task(TaskConfig().resolve(), rewarded=False) == Sorting()
    for config, kind, message in (
        ({"name": "sortign"}, "unknown_task", "Did you mean 'sorting'?"),
        ({"difficulty": "harder"}, "bad_parameter", "'easy', 'medium', 'hard'"),
        ({"name": "chain", "file": "a.jsonl"}, "bad_parameter", "the prompts come from one of both"),
        ({"evaluation_file": "a.jsonl"}, "bad_parameter", "none without file"),
    ):
        with pytest.raises(gk.InputError) as caught:
            TaskConfig(**config).resolve()
        assert caught.value.kind == kind
        assert message in str(caught.value)
    with pytest.raises(gk.InputError, match=r"task 'Mine' was given in Python.*Trainer\(config, task=") as caught:
        make_task(TaskConfig(name="python:Mine").resolve(), rewarded=False)
    assert caught.value.kind == "given_in_python"
