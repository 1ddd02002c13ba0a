import dataclasses
import subprocess
import sys
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

import grpokit as gk
from grpokit.trainer.config import Evaluation, RewardConfig, TaskConfig, TinyModel, TrainConfig, WarmStart

from .conftest import parameters_of


def test_the_written_file_is_read_back_equal(tmp_path):
    config = TrainConfig(
        recipe="grpo",
        recipe_parameters={"beta": 1e-3, "low": 0.3},
        steps=7,
        learning_rate=2.5e-05,
        task=TaskConfig(name="chain", difficulty="hard"),
        rewards=RewardConfig(functions=["a.b:c", "d.py:e"], weights=[1, 0.5], seconds=2),
        tiny=TinyModel(layers=1),
        warm_start=WarmStart(steps=0),
        evaluation=Evaluation(every=0),
    ).resolve()
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert TrainConfig.from_file(path) == config
    assert TrainConfig.from_dict(config.to_dict()) == config
    assert config.resolve() == config


@given(
    st.floats(min_value=1e-300, max_value=1e300),
    st.integers(0, 2**62),
    st.text(st.characters(codec="utf-8", exclude_characters="\x7f")),
)
def test_toml_keeps_every_number_and_text(number, whole, text):
    config = TrainConfig(
        learning_rate=number, seed=whole, recipe=text, recipe_parameters={"x": number, "y": [text, 1, True]}
    )
    import tomllib

    assert TrainConfig.from_dict(tomllib.loads(config.to_toml())) == config


def test_settings_are_typed_by_the_annotation():
    config = TrainConfig().with_settings(
        ["steps=5", "learning_rate=1e-4", "temperature=2", "recipe=grpo", "tiny.layers=3", "warm_start.learning_rate=1"]
    )
    assert (config.steps, config.learning_rate, config.recipe, config.tiny.layers) == (5, 1e-4, "grpo", 3)
    assert isinstance(config.temperature, float)
    assert isinstance(config.warm_start.learning_rate, float)


def test_a_new_recipe_drops_the_parameters_of_the_former_one():
    config = TrainConfig().with_settings(["recipe.high=0.3", "recipe=grpo", "recipe.beta=0"])
    assert config.recipe_parameters == {"beta": 0}
    assert config.make_recipe() == gk.recipe("grpo", beta=0)


def test_what_belongs_to_the_run_is_filled_in():
    assert TrainConfig(max_completion_length=20).make_recipe() == gk.recipe("dapo", max_len=20)
    assert TrainConfig(recipe_parameters={"max_len": 15}).make_recipe() == gk.recipe("dapo", max_len=15)
    assert TrainConfig().resolve().recipe_parameters == {"low": 0.2, "high": 0.28}


def test_a_resolved_file_still_follows_a_changed_length(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(TrainConfig().resolve().to_toml())
    longer = TrainConfig.from_file(path).with_settings(["max_completion_length=40"])
    assert longer.make_recipe().shape[0].max_len == 40


@pytest.mark.parametrize("name", gk.recipe_names())
def test_every_recipe_can_be_configured(name):
    given = TrainConfig(recipe=name, recipe_parameters=parameters_of(name))
    config = given.resolve()
    assert config.make_recipe() == given.make_recipe()
    assert TrainConfig.from_dict(tomllib.loads(config.to_toml())) == config


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("stps=3", "no parameter 'stps'. Did you mean 'steps'"),
        ("tinny.layers=3", "Did you mean 'tiny'"),
        ("tiny.layer=3", "TinyModel has no parameter 'layer'. Did you mean 'layers'"),
        ("steps=3.0", "steps=3.0; expected a whole number, 0 or more"),
        ("steps=true", "steps=True; expected a whole number"),
        ("steps=many", "steps='many'; expected a whole number"),
        ("steps=-1", "expected a whole number, 0 or more"),
        ("learning_rate=fast", "learning_rate='fast'; expected a number above 0"),
        ("learning_rate=nan", "expected a number above 0"),
        ("learning_rate=0", "expected a number above 0"),
        ("recipe=3", "recipe=3; expected a text"),
        ("tiny=3", "tiny=3; expected a table, TinyModel"),
        ("recipe_parameters=3", "expected a table"),
        ("seed.x=3", "expected seed=..., no table"),
        ("steps", "expected key=value"),
        ("evaluation.prompts=1", "expected a whole number, 2 or more"),
        ("tiny.hidden_size=65", "expected a multiple of 8"),
        ("task.nmae=chain", "TaskConfig has no parameter 'nmae'. Did you mean 'name'"),
        ("rewards.functions=[1]", "expected a list, each a text"),
        ("rewards.weights=[true]", "expected a list, each a number"),
        ("updates_per_step=17", "expected at most prompts_per_step, 16"),
    ],
)
def test_a_setting_that_cannot_be_meant(setting, message):
    with pytest.raises(gk.InputError, match=message.replace("(", r"\(")):
        TrainConfig().with_settings([setting])


def test_a_recipe_that_does_not_take_its_parameters():
    with pytest.raises(gk.InputError, match="no parameter 'lo'. Did you mean 'low'"):
        TrainConfig(recipe_parameters={"lo": 1}).resolve()
    with pytest.raises(gk.InputError, match="no recipe 'dapoo'. Did you mean 'dapo'"):
        TrainConfig(recipe="dapoo").resolve()
    with pytest.raises(gk.InputError, match="needs ddof, eps: .* as in --set recipe.ddof=... --set recipe.eps=..."):
        TrainConfig(recipe="reinforce_pp").resolve()


def test_settings_that_the_recipe_cannot_run_with():
    with pytest.raises(gk.InputError, match="'sapo' has no KL penalty whose coefficient could be steered"):
        TrainConfig(recipe="sapo").with_settings(["kl_control.target=0.1"]).resolve()
    TrainConfig(recipe="grpo").with_settings(["kl_control.target=0.1"]).resolve()
    with pytest.raises(
        gk.InputError, match="num_generations=1; expected 2 or more: recipe 'luffy' has a demonstration"
    ):
        TrainConfig(recipe="luffy", num_generations=1).resolve()


def test_a_file_that_is_not_there_or_not_toml(tmp_path):
    with pytest.raises(gk.FileError, match="No such file") as caught:
        TrainConfig.from_file(tmp_path / "none.toml")
    assert caught.value.kind == "file_unreadable"
    (tmp_path / "bad.toml").write_text("steps = \n")
    with pytest.raises(gk.FileError, match="line 1"):
        TrainConfig.from_file(tmp_path / "bad.toml")
    (tmp_path / "latin.toml").write_bytes(b"recipe = '\xff'")
    with pytest.raises(gk.FileError, match="cannot be read"):
        TrainConfig.from_file(tmp_path / "latin.toml")


def test_every_field_is_documented():
    for cls in (TrainConfig, TinyModel, WarmStart, Evaluation, TaskConfig, RewardConfig):
        for field in dataclasses.fields(cls):
            assert field.name in cls.__doc__.split("Raises")[0], f"{cls.__name__}.{field.name}"


def test_the_arithmetic_follows_from_the_numbers():
    amounts = TrainConfig(
        steps=10, prompts_per_step=5, num_generations=4, max_rounds=3, updates_per_step=2, max_completion_length=8,
        microbatch_tokens=40,
    ).arithmetic()  # fmt: skip
    assert amounts["completions a step, used at most"] == 20
    assert amounts["completions a step, sampled at most"] == 60
    assert amounts["completions an update"] == 12
    assert amounts["microbatches an update, at most"] == 3
    assert amounts["completion tokens sampled in all, at most"] == 10 * 60 * 8


def test_the_configuration_is_read_without_torch():
    code = (
        "import sys; from grpokit.trainer import TrainConfig; TrainConfig().resolve(); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
