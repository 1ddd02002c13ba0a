from collections import Counter
from random import Random

import pytest

import grpokit as gk
from grpokit.trainer import rewards
from grpokit.trainer.tasks import Sorting, draw, is_held_out


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


ITEMS = [{"prompt": "a", "answer": 1}, {"prompt": "b", "answer": 2}]


def test_a_reward_function_is_called_as_trl_calls_it():
    seen = {}

    def reward(prompts, completions, answer, **columns):
        seen.update(prompts=prompts, completions=completions, answer=answer, columns=columns)
        return [1, None]

    assert rewards.call(reward, ITEMS, ["x", "y"]) == [1.0, None]
    assert seen == {"prompts": ["a", "b"], "completions": ["x", "y"], "answer": [1, 2], "columns": {}}


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "returned 1 values; expected a list of 2 finite numbers or None"),
        ("ab", "returned 'ab'"),
        (None, "returned None"),
        ([1.0, "yes"], "returned 'yes' for completion 1"),
        ([float("nan"), 1.0], "returned nan for completion 0"),
        ([1.0, float("inf")], "returned inf for completion 1"),
    ],
)
def test_what_is_no_reward(returned, message):
    with pytest.raises(gk.InputError, match=message):
        rewards.call(lambda prompts, completions, **columns: returned, ITEMS, ["x", "y"])


def test_an_exception_is_never_a_reward():
    def reward(prompts, completions, **columns):
        raise KeyError("gold")

    with pytest.raises(
        gk.InputError, match=r"raised KeyError\('gold'\) on a batch of 2 completions, the first 'x'"
    ) as caught:
        rewards.call(reward, ITEMS, ["x", "y"])
    assert caught.value.kind == "reward_failed"
    assert isinstance(caught.value.__cause__, KeyError)

    class Task(Sorting):
        def score(self, completion, item):
            return 1 / len(completion)

    with pytest.raises(gk.InputError, match=r"raised ZeroDivisionError.* on completion 1, ''"):
        rewards.score(Task(), ITEMS, ["x", ""])


def test_items_must_have_the_same_fields():
    with pytest.raises(gk.InputError, match="record 1 lacks the field 'answer'"):
        rewards.call(lambda *a, **k: [0, 0], [ITEMS[0], {"prompt": "b"}], ["x", "y"])
