"""Recipes inside verl: found by its own plugin loader, and its own `compute_advantage` gives those of `process`."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

import grpokit as gk

pytest.importorskip("verl")

from verl.protocol import DataProto
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
from verl.trainer.ppo.ray_trainer import compute_advantage

import grpokit.adapters.verl  # noqa: F401 it registers the recipes

from .verl_step import EXAMPLES_OF, configured, overrides

ROOT = Path(__file__).parents[2]


def plugin(directory):
    """An installation of the checkout: what an installer would write of pyproject's entry points."""
    entries = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    info = directory / "grpokit-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: grpokit\nVersion: 0.1.0\n")
    lines = [f"[{group}]\n" + "".join(f"{k}={v}\n" for k, v in found.items()) for group, found in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    path = os.pathsep.join([str(directory), str(ROOT / "python"), str(ROOT / ".peers")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(("policy", "known"), [("auto", True), ("grpokit", True), ("none", False), ("others", False)])
def test_verl_finds_the_recipes_itself(policy, known, tmp_path):
    code = (
        "import verl, sys; from verl.trainer.ppo import core_algos as c;"
        "print(sorted(n for n in c.POLICY_LOSS_REGISTRY if 'grpokit' in n) == "
        "sorted(n for n in c.ADV_ESTIMATOR_REGISTRY if 'grpokit' in n), 'grpokit/gspo' in c.POLICY_LOSS_REGISTRY)"
    )
    environment = plugin(tmp_path) | {"VERL_USE_EXTERNAL_PLUGINS": policy}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["True", str(known)], done.stderr[-2000:]


def test_a_plugin_that_fails_leaves_verl_alone(tmp_path):
    """Another verl, without the registers that the plugin needs."""
    code = (
        "import types, sys; m = types.ModuleType('verl.trainer.ppo.core_algos'); sys.modules[m.__name__] = m\n"
        "import verl; print(verl.__version__)\n"
        "try: import grpokit.adapters.verl\n"
        "except Exception as problem: print(type(problem).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=plugin(tmp_path), capture_output=True, text=True
    )
    assert done.stdout.split()[0] == "0.9.1", done.stderr[-2000:]
    assert len(done.stdout.split()) == 2


RAY = """
import logging, ray
quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
ray.init(num_cpus=1, object_store_memory=80 * 2**20, **quiet)
@ray.remote
def known():
    import verl
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn
    return get_policy_loss_fn("grpokit/gspo").func.__module__, get_adv_estimator_fn("grpokit/rloo").func.__module__
print(*ray.get(known.remote()))
ray.shutdown()
"""


def test_a_worker_of_ray_knows_them_as_well(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RAY], env=plugin(tmp_path), capture_output=True, text=True
    )
    assert done.stdout.split() == ["grpokit.adapters.verl"] * 2, done.stderr[-2000:]


ROWS = ["grpo", "dr_grpo", "nord", "dapo", "rloo", "opo", "gpg", "gspo", "cispo", "reinforce_pp_baseline"]
UIDS = np.array(["b", "a", "b", "a", "c", "a", "b", "c"], dtype=object)
REWARDS = [1.0, 0.0, 0.5, 2.0, 0.98, 0.0, 0.0, 0.98]
LENGTHS = [3, 5, 1, 4, 2, 5, 3, 4]


def batch_of(rewards=REWARDS, lengths=LENGTHS, uids=UIDS):
    mask = (torch.arange(5) < torch.tensor(lengths)[:, None]).long()
    last = torch.tensor(lengths) - 1
    scores = torch.zeros(len(rewards), 5).scatter_(1, last[:, None], torch.tensor(rewards)[:, None])
    tensors = {"token_level_rewards": scores, "response_mask": mask}
    return DataProto.from_dict(tensors=tensors, non_tensors={"uid": uids})


@pytest.mark.filterwarnings("ignore:recipe")
@pytest.mark.parametrize("name", ROWS)
def test_advantages_are_those_of_process(name):
    config = configured(*overrides(name)).algorithm
    data = compute_advantage(batch_of(), config.adv_estimator, config=config)
    rewards = np.float32(REWARDS).astype(np.float64)
    table = {"group_id": UIDS.astype(str), "reward": rewards, "response_len": LENGTHS}
    expected = gk.process(table, name, **EXAMPLES_OF[name]).advantages
    mask = data.batch["response_mask"]
    np.testing.assert_allclose(data.batch["advantages"], expected[:, None] * mask.numpy(), rtol=1e-6, atol=1e-7)
    if name in ("grpo", "gspo", "dapo", "rloo"):
        assert (data.batch["advantages"][UIDS == "c"] == 0).all()
    assert data.batch["advantages"].dtype == torch.float32
    assert data.batch["returns"] is not None


def test_dropped_rows_are_said():
    config = configured(*overrides("dapo")).algorithm
    with pytest.warns(
        UserWarning, match=r"'dapo' drops rows \(no_signal\), which verl cannot leave out.*filter_groups"
    ):
        compute_advantage(batch_of(), config.adv_estimator, config=config)


def test_what_estimators_do_not_get_is_said():
    config = configured().algorithm
    for name, words in [
        ("reinforce_pp", ["GlobalNorm", "'logp_old'"]),
        ("remax", ["'baseline_reward'"]),
        ("ppo_clip", ["gae"]),
    ]:
        parameters = configured(*overrides(name)).algorithm
        with pytest.raises(gk.InputError) as caught:
            compute_advantage(batch_of(), f"grpokit/{name}", config=parameters)
        assert caught.value.kind == "not_handed_over"
        for word in words:
            assert word in str(caught.value), str(caught.value)
    with pytest.raises(gk.InputError, match=r"grpokit/dapo \(algorithm\) needs max_len.*\+algorithm.grpokit.max_len="):
        compute_advantage(batch_of(), "grpokit/dapo", config=config)
    with pytest.raises(gk.InputError, match="no parameter 'maxlen'. Did you mean 'max_len'"):
        compute_advantage(batch_of(), "grpokit/dapo", config=configured("+algorithm.grpokit.maxlen=5").algorithm)
    with pytest.raises(gk.InputError, match="norm_adv_by_std_in_grpo=False.*dr_grpo"):
        config = configured("algorithm.norm_adv_by_std_in_grpo=False").algorithm
        compute_advantage(batch_of(), "grpokit/grpo", config=config)
    with pytest.raises(gk.InputError, match="NaN or infinite in 1 rows"):
        compute_advantage(batch_of([float("nan"), *REWARDS[1:]]), "grpokit/grpo", config=None)
    with pytest.raises(gk.InputError, match="uid"):
        get_adv_estimator_fn("grpokit/grpo")(token_level_rewards=torch.ones(2, 1), response_mask=torch.ones(2, 1))


def test_a_greedy_answers_reward_is_taken_where_it_is_given():
    data = batch_of()
    data.batch["reward_baselines"] = torch.full((8,), 0.25)
    found = compute_advantage(data, "grpokit/remax").batch["advantages"]
    np.testing.assert_allclose(found[0, :3], 0.75)
