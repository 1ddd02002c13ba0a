"""What docs/adapters.md shows does run, and its lists are complete."""

import re
import shlex
from pathlib import Path

import pytest

import grpokit as gk

pytest.importorskip("trl")
pytest.importorskip("verl")

from trl import GRPOConfig

from grpokit.adapters import trl_options, verl_options

from . import tiny
from .test_verl_adapter import batch_of, compute_advantage
from .test_verl_losses import REFUSED
from .verl_step import Step, actor, configured

PAGE = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_snippet_of_trl_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    directory = tiny.save(tmp_path / "tiny")
    sizes = {"max_completion_length": 6, "max_steps": 1, "use_cpu": True, "bf16": False, "report_to": "none"}
    sizes |= {"save_strategy": "no", "per_device_train_batch_size": 4}
    import trl

    monkeypatch.setattr(trl, "GRPOConfig", lambda **given: GRPOConfig(**given, **sizes))
    (code,) = blocks("python trl")
    exec(code, {"model": directory, "reward": tiny.reward, "dataset": tiny.dataset()})
    assert "8 rows in 1 groups" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:recipe")
def test_the_commands_of_verl_configure_it():
    commands = blocks("sh")
    assert len(commands) == 2
    for command in commands:
        typed = shlex.split(command.replace("\\\n", " "))
        assert typed[:3] == ["python", "-m", "verl.trainer.main_ppo"]
        config = configured(*typed[3:]).algorithm
        assert compute_advantage(batch_of(), config.adv_estimator, config=config).batch["advantages"].any()
        assert Step().verl(actor(*typed[3:]))[1].norm() > 0


def test_a_recipe_of_ones_own():
    (code,) = blocks("python verl")
    space = {}
    exec(code, space)
    found = Step().verl(actor("actor_rollout_ref.actor.policy_loss.loss_mode=mine"))[1]
    expected = Step().expected(space["recipe"])[1]
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


def test_what_is_refused_is_listed():
    ours, theirs = PAGE.split("\n## verl\n")
    for option in trl_options.REFUSED:
        kin = option.startswith(("sapo_", "vespo_", "entropy_", "use_adaptive", "vllm_importance_sampling_c"))
        assert kin or f"`{option}`" in ours, option
    for option in (*verl_options.REFUSED, *REFUSED):
        assert f"`{option}`" in theirs, option
    assert gk.recipe_names().keys() >= REFUSED.keys()
