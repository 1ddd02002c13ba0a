"""Reward functions in real processes: what they return, what they raise, how they hang and crash, and who ends them."""

import functools
import os
import signal
import subprocess
import sys
from time import monotonic

import pytest

import grpokit as gk
from grpokit.trainer.chat import MESSAGES
from grpokit.trainer.config import RewardConfig
from grpokit.trainer.reward_functions import checked, source_of
from grpokit.trainer.rewards import Rewards, functions_of
from grpokit.trainer.task_sorting import Sorting

FILE = """
import os, signal, subprocess, sys, time

def length(prompts, completions, answer):
    return [float(len(c)) for c in completions]

def together(completions, **columns):
    return [float(len(completions))] * len(completions)

def process(completions):
    return [float(os.getpid())] * len(completions)

def bad(completions, **columns):
    print("talk that is no result")
    for c in completions:
        if c == "hang":
            while True:
                pass
        if c == "exit":
            os._exit(3)
        if c == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if c == "leave":
            sys.exit("enough")
        if c == "raise":
            raise KeyError("gold")
    return [1.0 if c == "yes" else 0.0 for c in completions]

def children(completions):
    child = subprocess.Popen(["sleep", "1000"])
    with open("children", "a") as file:
        print(child.pid, os.getpid(), file=file)
    time.sleep(1000)

async def later(completions):
    return [2.0 for c in completions]

def short(completions): return [1.0]
def text(completions): return "ab"
def word(completions): return [1.0, "yes"]
def nan(completions): return [float("nan"), 1.0]
def infinite(completions): return [1.0, float("inf")]
def nothing(completions): return None
def named(completions): return {"a": 1.0, "b": 2.0}
def sometimes(completions): return [None if c == "no" else 10.0 for c in completions]
def gold(completions, solution): return [0.0 for c in completions]
class Judge:
    pass
"""
ITEMS = [{"prompt": "a", "answer": 1}, {"prompt": "b", "answer": 2}]


@pytest.fixture(autouse=True)
def where(tmp_path, monkeypatch):
    (tmp_path / "rewards_of_mine.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)


def rewards(*names, notes=None, task=None, **config):
    given = [name if not isinstance(name, str) else f"rewards_of_mine.py:{name}" for name in names]
    config = RewardConfig(**({"workers": 1, "seconds": 20.0} | config))
    return Rewards(task or Sorting(), functions_of(config, given), config, [].append if notes is None else notes.append)


def numbers(*names, completions=("x", "yy"), items=ITEMS, **options):
    with rewards(*names, **options) as scorer:
        return [scored.reward for scored in scorer(items, completions)]


def items(n):
    return [{"prompt": f"{i // 4}"} for i in range(n)]


def gone(pid):
    """Whether a process has ended; one that nobody has waited for has."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return state.strip()[:1] in ("", "Z")


def test_a_function_is_called_as_trl_calls_it():
    seen = {}

    def mine(prompts, completions, answer, **columns):
        seen.update(prompts=prompts, completions=completions, answer=answer, columns=columns)
        return [1, None]

    assert numbers(mine) == [1.0, None]
    assert seen == {"prompts": ["a", "b"], "completions": ["x", "yy"], "answer": [1, 2], "columns": {}}
    # Columns that it does not take are not forced on it, nor prompts.
    assert numbers(lambda completions: [len(c) for c in completions]) == [1.0, 2.0]
    chat = [{"prompt": "hi", MESSAGES: [{"role": "user", "content": "hi"}]}]
    numbers(lambda prompts, completions, **c: seen.update(prompts=prompts, completions=completions) or [0],
            completions=["x"], items=chat)  # fmt: skip
    assert seen["prompts"] == [[{"role": "user", "content": "hi"}]]
    assert seen["completions"] == [[{"role": "assistant", "content": "x"}]]


def test_where_functions_run():
    assert numbers("process") != [os.getpid()] * 2
    assert numbers(lambda completions: [os.getpid()] * len(completions)) == [os.getpid()] * 2
    assert source_of(checked) == "grpokit.trainer.reward_functions:checked"
    assert isinstance(source_of(functools.partial(checked, n=1)), bytes)
    assert source_of(lambda: 0) is None
    notes = []
    numbers(lambda completions: [0, 0], notes=notes)
    assert notes == ["the reward function '<lambda>' runs in this process, without a time limit"]


def test_several_with_weights():
    def constant(completions):
        return [None, 100.0]

    with rewards(("rewards_of_mine.py:sometimes", 2.0), "length", (constant, -1.0)) as scorer:
        scored = scorer(ITEMS, ["no", "yes"])
        metrics = scorer.metrics(scored)
    assert [s.reward for s in scored] == [2.0, 2 * 10.0 + 3.0 - 100.0]
    assert scored[0].parts == {"sometimes": None, "length": 2.0, "constant": None}
    assert metrics["rewards/length/mean"] == 2.5
    assert metrics["rewards/sometimes/mean"] == 10.0
    assert (metrics["rewards/failed"], metrics["rewards/timeouts"]) == (0, 0)
    assert numbers("sometimes", completions=["no", "x"]) == [None, 10.0]
    # Twice the same name.
    with rewards("length", "length") as scorer:
        assert list(scorer(ITEMS, ["no", "yes"])[0].parts) == ["length", "length_2"]


def test_a_call_has_the_completions_of_a_prompt_whatever_the_number_of_processes():
    asked = [item for item in ({"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}) for _ in range(4)]
    for workers in (1, 3):
        assert numbers("together", items=asked, completions=["x"] * 12, workers=workers) == [4.0] * 12
    assert numbers("together", items=asked, completions=["x"] * 12, groups_per_call=2) == [8.0] * 8 + [4.0] * 4
    assert numbers("together", items=[], completions=[]) == []


def test_scalars_and_coroutines_are_rewards():
    numpy, torch = pytest.importorskip("numpy"), pytest.importorskip("torch")
    assert checked(numpy.array([1, 2], numpy.float32), 2) == [1.0, 2.0]
    assert checked([numpy.bool_(True), torch.tensor(0.5)], 2) == [1.0, 0.5]
    assert checked(torch.tensor([0.25, 1.0]), 2) == [0.25, 1.0]
    assert "tensor([0., 0.]) for completion 0" in checked(torch.zeros(2, 2), 2).given
    assert numbers("later") == [2.0, 2.0]


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", "returned 1 values; expected a list of 2 finite numbers or None"),
        ("text", "returned 'ab'"),
        ("nothing", "returned None"),
        ("named", "returned {'a': 1.0, 'b': 2.0}"),
        ("word", "returned 'yes' for completion 1"),
        ("nan", "returned nan for completion 0"),
        ("infinite", "returned inf for completion 1"),
    ],
)
def test_what_is_no_reward_stops_the_run(name, message, here):
    space = {}
    exec(FILE, space)
    function = space[name] if here else name
    assert not here or source_of(function) is None
    with pytest.raises(gk.InputError, match=message) as caught:
        numbers(function, items=[ITEMS[0]] * 2, max_failures=1.0)
    assert caught.value.kind == "stage_result"


@pytest.mark.parametrize(
    ("what", "says", "kind"),
    [
        ("hang", "took more than 0.5 s and was killed", "time-out"),
        ("exit", "ended its process with exit code 3, and was replaced", "crash"),
        ("segfault", "was ended by SIGSEGV, and was replaced", "crash"),
        ("raise", "raised KeyError('gold')", "KeyError"),
        ("leave", "raised SystemExit('enough')", "SystemExit"),
    ],
)
def test_one_bad_completion_does_not_cost_the_others(what, says, kind):
    notes = []
    asked, completions = [{"prompt": "a"}] * 8, ["yes", "no", what, "yes", "no", "yes", what, "yes"]
    with rewards("bad", notes=notes, seconds=0.5, max_failures=0.25, workers=2) as scorer:
        scored = scorer(asked, completions)
        assert [s.reward for s in scored] == [1.0, 0.0, None, 1.0, 0.0, 1.0, None, 1.0]
        metrics = scorer.metrics(scored)
        assert metrics["rewards/failed"] == 2
        assert metrics["rewards/timeouts"] == 2 * (kind == "time-out")
        # Once a kind; and the processes are as good as new.
        assert notes == [f"the reward function 'bad' {says} on {what!r}: no reward there, and no 0"]
        assert [s.reward for s in scorer(asked[:2], ["yes", "no"])] == [1.0, 0.0]


def test_a_failure_in_this_process_is_none_as_well():
    def fails(completions):
        return [1 / len(c) for c in completions]

    notes = []
    assert numbers(fails, completions=["", "ab"], notes=notes, max_failures=0.5) == [None, 0.5]
    assert "raised ZeroDivisionError('division by zero') on ''" in notes[-1]

    class Task(Sorting):
        def score(self, completion, item):
            return 1 / len(completion)

    with rewards(task=Task(), max_failures=0.5) as scorer:
        assert [s.reward for s in scorer(ITEMS, ["", "ab"])] == [None, 0.5]
        assert scorer.judge(ITEMS, ["", "ab"]) == [None, 0.5]
        assert scorer.metrics([])["rewards/failed"] == 1


def test_a_failed_part_leaves_no_sum_without_it():
    """Else a failure of the heavier function would be its 0."""
    with rewards("bad", "length", max_failures=1.0) as scorer:
        scored = scorer(ITEMS, ["yes", "raise"])
    assert [s.reward for s in scored] == [4.0, None]
    assert scored[1].parts == {"bad": None, "length": 5.0}


def test_too_many_failures_stop_the_run_and_soon():
    started = monotonic()
    with pytest.raises(gk.InputError) as caught:
        numbers("bad", items=items(64), completions=["hang"] * 64, seconds=0.3, max_failures=0.05)
    assert caught.value.kind == "reward_failed"
    message = str(caught.value)
    assert "the reward function 'bad' failed on 4 of 64 completions" in message
    assert "rewards.max_failures=0.05" in message
    assert "it took more than 0.3 s and was killed on 'hang'" in message
    # 16 calls hang; 64 limits would be 20 s.
    assert monotonic() - started < 19

    def fails(completions):
        raise KeyError("gold")

    with pytest.raises(gk.InputError, match=r"'fails' failed on 1 of 2 .* it raised KeyError\('gold'\) on 'x'"):
        numbers(fails)


def test_failures_are_counted_over_the_step():
    with rewards("bad", max_failures=0.2) as scorer:
        scorer(items(8), ["yes"] * 8)
        assert [s.reward for s in scorer(items(2), ["raise", "yes"])] == [None, 1.0]  # 1 of 10
        scorer.begin()
        with pytest.raises(gk.InputError, match="on 1 of 2"):
            scorer(items(2), ["raise", "yes"])


def test_a_slow_import_is_no_slow_call(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import time; time.sleep(1.2)\ndef f(completions): return [0.0] * len(completions)"
    )
    config = RewardConfig(functions=["slow.py:f"], seconds=0.5, workers=1)
    with Rewards(Sorting(), functions_of(config, None), config) as scorer:
        assert [s.reward for s in scorer(ITEMS, ["x", "y"])] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("rewards_of_mine.py:lenght", "rewards_of_mine.py has no lenght. Did you mean 'length'?"),
        ("rewards_of_mine.py:Judge", "it is a class, not a function"),
        ("none.py:f", "FileNotFoundError('none.py')"),
        ("nowhere_at_all:f", "No module named 'nowhere_at_all'"),
        ("length", "it is not written so"),
        ("ends.py:f", "the process that imports it ended its process with exit code 4"),
        ("broken.py:f", "ZeroDivisionError"),
    ],
)
def test_a_function_that_cannot_be_had(given, message, tmp_path):
    (tmp_path / "ends.py").write_text("import os; os._exit(4)")
    (tmp_path / "broken.py").write_text("1 / 0")
    config = RewardConfig(functions=[given], workers=1)
    with pytest.raises(gk.InputError) as caught, Rewards(Sorting(), functions_of(config, None), config):
        pass
    assert caught.value.kind == "reward_unloadable"
    assert message in str(caught.value)
    assert f"the reward function {given!r} cannot be loaded" in str(caught.value)
    assert "Write package.module:name" in str(caught.value)


def test_columns_that_are_missing():
    with pytest.raises(gk.InputError, match="'gold' needs 'solution', .* have: answer.* Add the column") as caught:
        numbers("gold")
    assert caught.value.kind == "reward_column"
    with pytest.raises(gk.InputError, match="record 1 lacks the field 'answer'"):
        numbers(lambda **k: [0, 0], items=[ITEMS[0], {"prompt": "b"}])
    with pytest.raises(gk.InputError, match="returned an item that cannot be sent to another process .*lambda"):
        numbers("together", items=[{"prompt": "a", "check": lambda text: True}], completions=["x"])


def test_what_cannot_be_meant():
    with pytest.raises(gk.InputError, match=r"reward=3; expected a function f\(prompts"):
        functions_of(RewardConfig(), 3)
    for config, message in (
        ({"weights": [1.0]}, "expected one for each of the 0 functions"),
        ({"functions": ["a:b"], "weights": [float("inf")]}, "expected finite numbers"),
        ({"functions": "a:b"}, "expected a list, each a text"),
        ({"max_failures": 1.5}, "expected a share, from 0 to 1"),
        ({"seconds": 0}, "expected a number above 0"),
    ):
        with pytest.raises(gk.InputError, match=message):
            RewardConfig(**config)
    with pytest.raises(gk.InputError, match=r"reward function 'mine' was given in Python.*Trainer\(config, reward="):
        functions_of(RewardConfig(functions=["python:mine"]), None)


def test_no_process_is_left_nor_what_one_has_started(tmp_path):
    with rewards("process", workers=2) as scorer:
        found = {int(s.reward) for s in scorer(items(16), ["x"] * 16)}
    assert all(map(gone, found))
    with pytest.raises(gk.InputError, match="took more than 0.5 s"):
        numbers("children", items=ITEMS[:1] * 2, workers=2, seconds=0.5, max_failures=0)
    started = [int(pid) for pid in (tmp_path / "children").read_text().split()]
    assert len(started) >= 4
    assert all(map(gone, started))


SLEEPS = """
import os, sys, time
def sleeps(completions):
    print("pid", os.getpid(), file=sys.stderr, flush=True)
    time.sleep(1000)
"""
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from grpokit.trainer.config import RewardConfig
from grpokit.trainer.rewards import Rewards, functions_of
from grpokit.trainer.task_sorting import Sorting
config = RewardConfig(functions=["sleeps.py:sleeps"], workers=2)
# Without a guard for __main__: the processes do not import this script again.
with Rewards(Sorting(), functions_of(config, None), config) as scorer:
    scorer([{"prompt": "a"}, {"prompt": "b"}], ["x", "y"])
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_the_program_ends_the_processes(tmp_path, how):
    if how == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux tells a process of its parent's death")
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    (tmp_path / "program.py").write_text(PROGRAM)
    with subprocess.Popen([sys.executable, "program.py"], stderr=subprocess.PIPE, text=True) as program:
        pids = [int(program.stderr.readline().split()[1]) for _ in range(2)]
        program.send_signal(how)
        program.communicate()  # until the last process that holds the pipe has ended
    assert all(map(gone, pids))
