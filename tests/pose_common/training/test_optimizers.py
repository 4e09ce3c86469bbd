"""Schedules and AdamW against the numbers of the original training code."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pose_common.training.optimizers import GroupedAdamW, cosine_schedule, step_schedule
from tests.golden_files import golden, golden_config
from tests.settings import ADAM

pytestmark = pytest.mark.slow  # compiles an update of every parameter


def test_posebh_schedule():
    recorded, config = golden("posebh/lr_schedule.npz"), golden_config("posebh/lr_schedule.npz")
    per_epoch = int(recorded["iters_per_epoch"])
    for column, base in enumerate(config["base_lrs"]):
        schedule = step_schedule(
            base, [e * per_epoch for e in config["step"]], 0.1, config["warmup_iters"], config["warmup_ratio"]
        )
        rates = np.array([schedule(i, xp=np) for i in range(len(recorded["lr"]))])
        np.testing.assert_allclose(rates, recorded["lr"][:, column], atol=1e-12, rtol=0)  # float64 on both sides
        # On the device the rate is float32: half a unit in the last place of 1e-3 is 6e-11.
        np.testing.assert_allclose(schedule(jnp.arange(len(rates))), recorded["lr"][:, column], rtol=1e-6)


@pytest.mark.parametrize("case", range(3))
def test_boir_schedule(case):
    recorded = golden("boir/schedule_optim.npz")[f"lr{case}"]
    c = golden_config("boir/schedule_optim.npz")["cosine"][case]
    per_epoch = c["niter_per_ep"]
    schedule = cosine_schedule(
        c["base_value"],
        c["final_value"],
        c["epochs"] * per_epoch,
        c["warmup_epochs"] * per_epoch,
        c["start_warmup_value"],
    )
    np.testing.assert_allclose([schedule(i, xp=np) for i in range(len(recorded))], recorded, rtol=1e-12)


def test_posebh_adamw_with_a_thaw():
    """Three steps; the heads have no gradient in the first two: no move, no decay, no share in the norm."""
    recorded, config = golden("posebh/adamw_steps.npz"), golden_config("posebh/adamw_steps.npz")
    scales = json.loads(str(recorded["lr_scale_json"]))
    heads = [name for name in scales if name.startswith(("keypoint_head", "associate"))]
    groups = {"heads": heads, "rest": [name for name in scales if name not in heads]}
    params = {g: {n: jnp.asarray(recorded[f"param0:{n}"]) for n in names} for g, names in groups.items()}
    lr = recorded["lr_base"]
    optimizer = GroupedAdamW(
        lambda step: jnp.asarray(lr)[step],
        **ADAM,
        weight_decay=config["weight_decay"],
        clip_norm=config["max_norm"],
        factors={g: {n: scales[n][0] for n in names} for g, names in groups.items()},
        decayed={g: {n: float(scales[n][1] > 0) for n in names} for g, names in groups.items()},
    )
    update, state = jax.jit(optimizer.update), {}
    for step, training in enumerate((["rest"], ["rest"], ["rest", "heads"])):
        state = optimizer.init(params, training, old=state)
        grads = {g: {n: jnp.asarray(recorded[f"grad{step + 1}:{n}"]) for n in groups[g]} for g in training}
        new, state, metrics = update(grads, state, params, jnp.asarray(step))
        params = {**params, **new}
        np.testing.assert_allclose(metrics["grad_norm"], recorded[f"grad_norm_before_clip{step + 1}"], rtol=1e-5)
        for name, value in {**params["heads"], **params["rest"]}.items():
            if f"param{step + 1}:{name}" in recorded:
                np.testing.assert_allclose(value, recorded[f"param{step + 1}:{name}"], atol=2e-6, err_msg=name)


def test_boir_adamw_and_clip():
    recorded, config = golden("boir/schedule_optim.npz"), golden_config("boir/schedule_optim.npz")
    names = [k.split(":")[0] for k in recorded if k.endswith(":init")]
    params = {"all": {n: jnp.asarray(recorded[f"{n}:init"]) for n in names}}
    lrs = recorded["lrs"]
    optimizer = GroupedAdamW(
        lambda step: jnp.asarray(lrs, jnp.float32)[step],
        **ADAM,
        weight_decay=config["adamw"]["weight_decay"],
        clip_norm=config["clip_grad"],
    )
    state = optimizer.init(params, ["all"])
    for step in range(config["steps"]):
        grads = {"all": {n: jnp.asarray(recorded[f"{n}:grad{step}"]) for n in names}}
        params, state, metrics = optimizer.update(grads, state, params, jnp.asarray(step))
        np.testing.assert_allclose(metrics["grad_norm"], recorded["norms"][step], rtol=1e-6)
        for name, value in params["all"].items():
            # float32 rounding of moments whose scale changed by 1e5 within four steps
            np.testing.assert_allclose(value, recorded[f"{name}:after{step}"], rtol=1e-6, atol=1e-6, err_msg=name)
