"""math-verify and reasoning-gym: for real where they are installed, and what is said where they are not."""

from importlib.util import find_spec
from random import Random

import pytest

import grpokit as gk
from grpokit.trainer.built_in import make_task
from grpokit.trainer.config import RewardConfig, TaskConfig
from grpokit.trainer.rewards import Rewards, functions_of
from grpokit.trainer.task_sorting import Sorting
from grpokit.trainer.tasks import draw

VERIFY, GYM = find_spec("math_verify"), find_spec("reasoning_gym")


def verified(answers, completions):
    config = RewardConfig(functions=["math_verify"], workers=1, seconds=60)
    items = [{"prompt": "a", "answer": answer} for answer in answers]
    with Rewards(Sorting(), functions_of(config, None), config) as scorer:
        return [scored.reward for scored in scorer(items, completions)]


@pytest.mark.skipif(VERIFY is not None, reason="math-verify is installed")
def test_without_math_verify():
    with pytest.raises(gk.InputError, match=r"'math_verify' needs math-verify, .*'grpokit\[verify\]'") as caught:
        verified(["1"], ["1"])
    assert caught.value.kind == "missing_extra"


@pytest.mark.skipif(GYM is not None, reason="reasoning-gym is installed")
def test_without_reasoning_gym():
    with pytest.raises(gk.InputError, match=r"needs reasoning-gym, .*'grpokit\[gym\]'"):
        make_task(TaskConfig(name="reasoning_gym:chain_sum").resolve(), rewarded=False)


@pytest.mark.slow
@pytest.mark.skipif(VERIFY is None, reason="math-verify is not installed: pip install 'grpokit[verify]'")
def test_math_verify():
    gold = [r"\frac{1}{2}", "0.5", r"$x^2+1$", 7, "", "3", r"2\pi", r"2\pi"]
    said = ["so it is $0.5$", r"\boxed{\frac{2}{4}}", "$1+x^2$", "The answer is 8.", "7", "", "$2$", r"$\pi 2$"]
    assert verified(gold, said) == [1.0, 1.0, 1.0, 0.0, None, 0.0, 0.0, 1.0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::SyntaxWarning")  # a dependency's
@pytest.mark.skipif(GYM is None, reason="reasoning-gym is not installed: pip install 'grpokit[gym]'")
def test_reasoning_gym():
    task = make_task(TaskConfig(name="reasoning_gym:chain_sum").resolve(), rewarded=False)
    items = draw(task, Random(0), 20, held_out=False)
    assert items == draw(task, Random(0), 20, held_out=False)
    assert len({item["prompt"] for item in items}) == 20
    assert {task.score(f" {item['answer']}\n", item) for item in items} == {1.0}
    assert all(task.score("no", item) < 1 for item in items)
    with pytest.raises(gk.InputError, match="no task 'reasoning_gym:chain_sums'. Did you mean 'chain_sum'") as caught:
        make_task(TaskConfig(name="reasoning_gym:chain_sums").resolve(), rewarded=False)
    assert caught.value.kind == "unknown_task"
