import dataclasses
import json
import math
import statistics
import subprocess
import sys
from importlib.util import find_spec
from typing import NamedTuple

import pytest

import grpokit as gk
from grpokit.cli import main
from grpokit.trainer import TrainConfig, Trainer
from grpokit.trainer.built_in import BUILT_IN
from grpokit.trainer.config_tables import Evaluation, LoRA, Snapshots, TinyModel
from grpokit.trainer.engine import InProcess
from grpokit.trainer.evaluate import Passed, evaluate
from grpokit.trainer.evaluate_run import evaluate_run
from grpokit.trainer.models import load
from grpokit.trainer.prompt_file import PromptFile
from grpokit.trainer.rewards import Rewards
from grpokit.trainer.run import RunDirectory

SMALL = [
    "tiny.hidden_size=16", "tiny.intermediate_size=32", "tiny.layers=1", "tiny.heads=2", "evaluation.prompts=12",
    "evaluation.samples=4", "warm_start.steps=20", "warm_start.batch_size=8", "prompts_per_step=2", "steps=2",
    "recipe=rloo", "snapshots.every=1", "snapshots.keep_last=9",
]  # fmt: skip


class Letters:
    """A letter's case is right or wrong; its answer is the letter, whatever stands around it."""

    def prompts(self, rng, n):
        return [{"prompt": f"{rng.randrange(1000)}>"} for _ in range(n)]

    def score(self, completion, item):
        if completion.startswith("9"):
            return None
        return float(completion[:1] < "m")

    def answer(self, completion):
        return completion[:1]


@pytest.fixture(scope="module")
def policy():
    small = TinyModel(hidden_size=16, intermediate_size=32, layers=1, heads=2)
    return load(TrainConfig(tiny=small).resolve(), 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    words = [word for setting in SMALL for word in ("--set", setting)]
    assert main(["train", "--json", "--runs", str(place), "--name", "a", *words]) == 0
    return place / "a"


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def grpokit_eval(capsys):
    """The command, in this process."""

    def run(*words):
        code = main(["eval", *map(str, words)])
        return Done(code, *capsys.readouterr())

    return run


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def judged(policy, task, items, evaluation, **how):
    config = TrainConfig(max_completion_length=3)
    given = {"task": task, "items": items, "config": config, "evaluation": evaluation}
    return evaluate(InProcess(policy), policy, Rewards(task), **given, **how)


def test_the_estimates_are_what_their_completions_give(policy):
    """Against plain counting over the completions that come with them."""
    task, k, prompts = Letters(), 8, 40
    items = [{"prompt": f"{number}>"} for number in range(prompts)]
    config = Evaluation(prompts=prompts, samples=k, k=(3,))
    found = judged(policy, task, items, config, step=7)
    assert list(found.passed.estimates) == ["pass@1", "pass@3", "pass@8", "maj@3", "maj@8", "greedy"]
    assert (found.passed.step, found.passed.k, found.prompts) == (7, k, prompts)
    scores = [task.score(c.text, item) for c, item in zip(found.completions, found.items, strict=True)]
    assert scores == found.scores
    assert None in scores
    passes = [score is not None and score >= 1 for score in scores]
    groups = [passes[at : at + k] for at in range(0, prompts * k, k)]

    def expected(values):
        return statistics.fmean(values), statistics.stdev(values) / math.sqrt(prompts)

    estimates = found.passed.estimates
    assert estimates["pass@1"] == pytest.approx(expected([sum(group) / k for group in groups]))
    assert estimates["pass@8"] == pytest.approx(expected([any(group) for group in groups]))
    none = [math.comb(k - sum(group), 3) / math.comb(k, 3) for group in groups]
    assert estimates["pass@3"] == pytest.approx(expected([1 - share for share in none]))
    assert estimates["greedy"] == pytest.approx(expected([float(one) for one in passes[prompts * k :]]))
    answers = [completion.text[:1] for completion in found.completions[: prompts * k]]
    majority = gk.majority_at_k([float(one) for one in passes[: prompts * k]], [row // k for row in range(prompts * k)],
                                8, answers=answers)  # fmt: skip
    assert estimates["maj@8"] == (majority.mean, majority.standard_error)
    assert 0.05 < estimates["pass@1"].mean < 0.95
    assert estimates["pass@1"].mean < estimates["pass@3"].mean < estimates["pass@8"].mean


def test_a_task_says_what_an_answer_is(policy):
    """The same letter with another tail is another text and the same answer."""

    class Bare:
        prompts, score = Letters.prompts, Letters.score

    assert Rewards(Letters()).answer("abc") == "a"
    items = [{"prompt": f"{number}>"} for number in range(40)]
    found = []
    for task in (Letters(), Bare()):
        config = Evaluation(prompts=40, samples=8, greedy=False)
        found.append(judged(policy, task, items, config).passed)
    told, bare = found
    assert told.estimates["pass@8"] == bare.estimates["pass@8"]
    assert told.estimates["maj@8"] != bare.estimates["maj@8"]
    assert "greedy" not in told.estimates

    class Column(Bare):
        answer = "the name of a column, say"

    assert Rewards(Column()).answer(" ab") == " ab"

    class Wrong(Letters):
        def answer(self, completion):
            return 3

    with pytest.raises(gk.InputError, match=r"the task's answer\(\) .* a text") as caught:
        judged(policy, Wrong(), items, Evaluation(prompts=40))
    assert caught.value.kind == "stage_result"


def test_answers_of_the_tasks(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a", "answer": 1}\n')
    tasks = [BUILT_IN["arithmetic"]["easy"], PromptFile(tmp_path / "prompts.jsonl")]
    assert [task.answer(" 12\n") for task in tasks] == ["12", "12"]
    assert BUILT_IN["chain"]["easy"].answer("7,8, 12") == "12"
    assert Rewards(BUILT_IN["sorting"]["easy"]).answer(" ab") == " ab"  # white space is wrong there


def test_few_samples_have_no_majority(policy):
    items = [{"prompt": "1>"}, {"prompt": "2>"}]
    for samples, names in ((1, ["pass@1"]), (2, ["pass@1", "pass@2"]), (3, ["pass@1", "pass@2", "pass@3", "maj@3"])):
        config = Evaluation(samples=samples, greedy=False)
        found = judged(policy, Letters(), items, config)
        assert list(found.passed.estimates) == names
        assert set(found.passed.metrics()) == {f"eval/{n}{end}" for n in names for end in ("", "_stderr")}
        assert Passed.from_dict(json.loads(json.dumps(found.passed.to_dict()))) == found.passed


def test_k_is_one_of_the_samples():
    assert Evaluation(samples=8).drawn() == [1, 2, 4, 8]
    assert Evaluation(samples=6).drawn() == [1, 2, 4, 6]
    assert Evaluation(samples=64, k=(8,)).drawn() == [1, 8, 64]
    for k in (9, 0):
        with pytest.raises(gk.InputError, match=f"k=.{k}.*from 1 to samples=8"):
            Evaluation(k=(k,))


def test_the_command_repeats_the_last_evaluation_to_the_digit(run):
    """In a process of its own, as a user has it."""
    last = {name: value for name, value in lines(run / "metrics.jsonl")[-1].items() if name.startswith("eval/")}
    done = subprocess.run(
        [sys.executable, "-m", "grpokit", "eval", run, "--json"], capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout)
    assert (told["schema_version"], told["step"], told["prompts"], told["samples"]) == (1, 2, 12, 4)
    found = {f"eval/{name}": estimate["mean"] for name, estimate in told["estimates"].items()}
    found |= {f"eval/{name}_stderr": estimate["stderr"] for name, estimate in told["estimates"].items()}
    assert found == last
    first = lines(run / "metrics.jsonl")[0]
    zero = evaluate_run(run, snapshot=0).passed
    assert zero.step == 0
    assert zero.metrics() == {name: value for name, value in first.items() if name.startswith("eval/")}


def test_the_command_prints_a_table_and_writes_the_completions(run, tmp_path, grpokit_eval):
    done = grpokit_eval(
        run, "--samples", 3, "--k", "1,3", "--prompts", 5, "--temperature", 0.5, "-o", tmp_path / "a.jsonl"
    )
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    assert head == f"{run}, step 2: 5 held-out prompts, 3 completions each"
    assert [row.split()[0] for row in rows] == ["pass@1", "pass@3", "maj@3", "greedy"]
    assert all(" ± " in row for row in rows)
    written = lines(tmp_path / "a.jsonl")
    assert [row["source"] for row in written] == ["sampled"] * 15 + ["greedy"] * 5
    assert [row["group_id"] for row in written] == [number for number in range(5) for _ in range(3)] + [5, 6, 7, 8, 9]
    asked = [row["prompt"] for row in written[:15:3]]
    assert asked == [row["prompt"] for row in written[15:]]
    # Fewer prompts are the first of the run's own, and more begin with them.
    many = evaluate_run(run, settings={"prompts": 20, "greedy": False})
    assert [item["prompt"] for item in many.items[: 5 * 4 : 4]] == asked
    assert grpokit_eval(run, "--no-greedy", "--json", "-o", tmp_path / "a.jsonl").returncode == 2
    done = grpokit_eval(run, "--no-greedy", "--json", "-o", tmp_path / "a.parquet")
    assert "greedy" not in json.loads(done.stdout)["estimates"]
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "a.parquet")
    told = gk.pass_at_k([float(reward >= 1) for reward in table["reward"].to_pylist()], table["group_id"], 1)
    assert told.mean == json.loads(done.stdout)["estimates"]["pass@1"]["mean"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "a.parquet"]


def test_what_the_command_refuses(run, tmp_path, grpokit_eval):
    for words, said in (
        ((tmp_path,), "is not the directory of a run: it has no config.toml"),
        ((run, "--k", "8"), "k=[8]; expected from 1 to samples=4"),
        ((run, "--samples", "2", "--k", "4"), "from 1 to samples=2"),
        ((run, "--k", "a"), "expected whole numbers"),
        ((run, "--samples", "0"), "samples=0"),
        ((run, "--snapshot", "7"), "--snapshot=7; expected one of 0, 1, 2"),
        ((run, "-o", tmp_path / "no" / "a.jsonl"), "there is no directory"),
    ):
        done = grpokit_eval(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr
    with pytest.raises(gk.FileError) as caught:
        evaluate_run(tmp_path)
    assert caught.value.kind == "no_run"
    with pytest.raises(gk.InputError, match="'sampels'. Did you mean 'samples'"):
        evaluate_run(run, settings={"sampels": 3})


@pytest.mark.skipif(find_spec("reasoning_gym") is not None, reason="reasoning-gym is installed")
def test_a_run_whose_extra_is_missing(run, tmp_path, grpokit_eval):
    config = (run / "config.toml").read_text()
    assert 'name = "sorting"' in config
    (tmp_path / "config.toml").write_text(config.replace('name = "sorting"', 'name = "reasoning_gym:chain_sum"'))
    done = grpokit_eval(tmp_path)
    assert done.returncode == 2
    assert "pip install 'grpokit[gym]'" in done.stderr


@pytest.fixture
def mine(config, task, silent, tmp_path):
    """Runs whose task was given in Python."""

    def train(name="mine", **changes):
        chosen = dataclasses.replace(config, steps=1, snapshots=Snapshots(every=1), **changes)
        Trainer(chosen, task=task, console=silent, directory=tmp_path / name).train()
        return tmp_path / name

    return train


def test_a_task_given_in_python_is_to_be_given_again(mine, task, grpokit_eval):
    run = mine()
    with pytest.raises(gk.InputError, match=r"the task 'Echo' .* evaluate_run\(directory, task=\.\.\.\)") as caught:
        evaluate_run(run)
    assert caught.value.kind == "given_in_python"
    done = grpokit_eval(run)
    assert done.returncode == 2
    assert "the task 'Echo' was given in Python" in done.stderr
    last = lines(run / "metrics.jsonl")[-1]
    assert evaluate_run(run, task=task).passed.metrics().items() <= last.items()


@pytest.mark.parametrize("changes", [{"lora": LoRA(rank=2)}, {"precision": "bf16"}], ids=["lora", "bf16"])
def test_weights_that_are_no_whole_model_in_fp32(mine, task, changes):
    run = mine(**changes)
    last = lines(run / "metrics.jsonl")[-1]
    for snapshot in (None, 1):
        assert evaluate_run(run, task=task, snapshot=snapshot).passed.metrics().items() <= last.items()


def test_a_run_without_a_checkpoint_and_a_damaged_one(mine, task, tmp_path):
    run = mine()
    (run / "checkpoint").rename(tmp_path / "checkpoint")
    with pytest.raises(gk.FileError, match="wrote no checkpoint. Name a snapshot: one of 0, 1"):
        evaluate_run(run, task=task)
    (tmp_path / "checkpoint").rename(run / "checkpoint")
    (run / "snapshots" / "step-00000000" / "shards").mkdir()
    with pytest.raises(gk.FileError, match="it is of several ranks"):
        evaluate_run(run, task=task, snapshot=0)
    weights = run / "snapshots" / "step-00000001" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(gk.FileError, match="step-00000001 cannot be read"):
        evaluate_run(run, task=task, snapshot=1)
    (run / "checkpoint" / "model.safetensors").unlink()
    with pytest.raises(gk.InputError, match="model=.*checkpoint"):
        evaluate_run(run, task=task)
    (run / "summary.json").unlink()
    with pytest.raises(gk.FileError, match=r"summary.json cannot be read"):
        RunDirectory(run).steps()


def test_rewards_are_asked_only_where_the_task_has_no_answers(silent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def some(completions):\n    return [float(len(c) > 2) for c in completions]\n")
    for name, answer in (("bare", ""), ("answered", ', "answer": "1"')):
        rows = [f'{{"prompt": "{number}>"{answer}}}\n' for number in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
        settings = [f"task.file={name}.jsonl", 'rewards.functions=["mine.py:some"]', "evaluation.prompts=3"]
        settings += [s for s in SMALL if not s.startswith(("warm", "evaluation.prompts"))] + ["warm_start.steps=0"]
        config = TrainConfig().with_settings(settings)
        Trainer(config, console=silent, directory=name).train()
    last = lines(tmp_path / "bare" / "metrics.jsonl")[-1]
    found = evaluate_run("bare").passed.metrics()
    assert found.items() <= last.items()
    assert found["eval/pass@1"] > 0
    (tmp_path / "mine.py").unlink()
    assert (
        evaluate_run("answered").passed.metrics().items() <= lines(tmp_path / "answered" / "metrics.jsonl")[-1].items()
    )
    with pytest.raises(gk.InputError, match="'mine.py:some' cannot be loaded"):
        evaluate_run("bare")
