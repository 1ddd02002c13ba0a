import json
import subprocess
import sys

import pytest

import grpokit as gk
from grpokit.cli import main

SMALL = [
    "tiny.hidden_size=16", "tiny.intermediate_size=32", "tiny.layers=1", "tiny.heads=2", "evaluation.prompts=4",
    "warm_start.steps=2", "warm_start.batch_size=4", "prompts_per_step=2", "num_generations=2", "max_rounds=1",
    "steps=2",
]  # fmt: skip


def small(*words):
    return ["train", *words, *(word for setting in SMALL for word in ("--set", setting))]


def test_help_imports_neither_numpy_nor_torch():
    code = (
        "import sys\nfrom grpokit.cli import main\n"
        "try: main(['train', '--help'])\nexcept SystemExit as end: assert end.code == 0\n"
        "print(sorted({'numpy', 'torch', 'transformers', 'rich', 'grpokit._native'} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"
    assert "--config FILE" in run.stdout


def test_the_module_is_a_program():
    run = subprocess.run([sys.executable, "-m", "grpokit", "recipes"], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in run.stdout.splitlines()] == list(gk.recipe_names())


def test_recipes(capsys):
    assert main(["recipes"]) == 0
    assert "\ndapo                   DAPO, arXiv:2503.14476\n" in capsys.readouterr().out
    assert main(["recipes", "dapo", "--set", "max_len=20480"]) == 0
    assert capsys.readouterr().out.strip() == gk.recipe("dapo", max_len=20_480).explain()


def test_recipes_as_json(capsys):
    main(["recipes", "--json"])
    assert json.loads(capsys.readouterr().out) == {"schema_version": 1, "recipes": gk.recipe_names()}
    main(["recipes", "grpo", "--set", "beta=0.1", "--json"])
    assert gk.Recipe.from_dict(json.loads(capsys.readouterr().out)["recipe"]) == gk.recipe("grpo", beta=0.1)


def test_a_dry_run_prints_the_file_that_would_be_written_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--dry-run", "--set", "recipe=grpo", "--set", "recipe.beta=0.1"]) == 0
    out = capsys.readouterr().out
    assert "# completions a step, used at most: 128\n" in out
    from grpokit.trainer import TrainConfig

    (tmp_path / "dry.toml").write_text(out)
    config = TrainConfig.from_file(tmp_path / "dry.toml")
    assert config == TrainConfig(recipe="grpo", recipe_parameters={"beta": 0.1}).resolve()
    main(["train", "--dry-run", "--config", "dry.toml", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["schema_version"] == 1
    assert TrainConfig.from_dict(printed["config"]) == config
    assert printed["arithmetic"] == config.arithmetic()
    assert [path.name for path in tmp_path.iterdir()] == ["dry.toml"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipes", "dapoo"], "there is no recipe 'dapoo'. Did you mean 'dapo'?"),
        (["recipes", "dapo"], "recipe('dapo') needs max_len"),
        (["recipes", "dapo", "--set", "max_len"], "expected key=value"),
        (["recipes", "--set", "max_len=3"], "expected a recipe's name first"),
        (["train", "--set", "stps=3"], "Did you mean 'steps'?"),
        (["train", "--set", "recipe.hihg=3"], "Did you mean 'high'?"),
        (["train", "--config", "none.toml"], "none.toml cannot be read: No such file or directory"),
        (["train", "--name", "../up"], "expected a name without slashes"),
        (["train", "--name", ".."], "expected a name without slashes"),
        (["train", "--name", ""], "expected a name without slashes"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(words, message, capsys):
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("grpokit: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err


def test_words_that_are_no_command_are_exit_code_2(capsys):
    for words in ([], ["tarin"], ["train", "--colour"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 2
    assert "usage: grpokit" in capsys.readouterr().err


def test_training_talks_to_stderr_and_prints_its_result(capsys, tmp_path):
    assert main(small("--runs", str(tmp_path), "--name", "a")) == 0
    printed = capsys.readouterr()
    assert "warm start     2/2" in printed.err
    assert "held-out pass@1" in printed.err
    assert "before dapo" in printed.out
    assert "it shows nothing yet" in printed.out  # two steps change nothing
    assert str(tmp_path / "a") in printed.out

    assert main(small("--runs", str(tmp_path), "--name", "a")) == 2
    assert "exists already. Choose another name, or say --overwrite" in capsys.readouterr().err

    assert main(small("--runs", str(tmp_path), "--name", "a", "--overwrite", "--json", "--set", "seed=3")) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["schema_version"], summary["status"], summary["seed"]) == (1, "finished", 3)


def test_the_default_name_says_when_what_and_which_seed(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(small("--set", "seed=7", "--set", "recipe=rloo")) == 0
    (run,) = (tmp_path / "runs").iterdir()
    day, time, *rest = run.name.split("-")
    assert (len(day), len(time), rest) == (8, 6, ["rloo", "seed7"])


def test_a_missing_package_is_named_with_its_remedy():
    code = "import sys; sys.modules['torch'] = None; from grpokit.cli import main; sys.exit(main(['train']))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    remedy = "Run: pip install 'grpokit[train]'."
    assert run.stderr == f"grpokit: the trainer needs torch, which is not installed. {remedy}\n"
    code = (
        "import sys; sys.modules['torch'] = None; import grpokit as gk\n"
        "try: gk.trainer.Trainer\nexcept gk.InputError as problem: print(problem.kind)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "missing_extra"


def test_an_unexpected_exception_keeps_its_traceback(monkeypatch, tmp_path):
    from grpokit.trainer.run import RunDirectory

    def broken(self, row):
        raise ZeroDivisionError

    monkeypatch.setattr(RunDirectory, "metrics", broken)
    with pytest.raises(ZeroDivisionError):
        main(small("--runs", str(tmp_path), "--name", "b"))
