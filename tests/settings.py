"""The released settings, from the shipped configurations, for tests that vary one of them or need any."""

from __future__ import annotations

from boir_jax.losses import LossConfig
from boir_jax.proposals import ProposalConfig
from configs import boir, mdt
from posebh_jax import configuration
from posebh_jax.clusters import ClusterConfig
from posebh_jax.prototypes import PrototypeConfig

_POSEBH, _BOIR = mdt.get_config("base"), boir.get_config("coco_w32")

ADAM = _POSEBH.adam.to_dict()
PROTOTYPES = PrototypeConfig(**_POSEBH.losses)
CLUSTERS = ClusterConfig(**_POSEBH.clusters)
AUGMENTATION = configuration.augmentation(_POSEBH)
SIGMA, DARK_KERNEL = _POSEBH.heatmap_sigma, _POSEBH.dark_kernel
LOSSES = LossConfig(**_BOIR.losses)
PROPOSALS = ProposalConfig(smoothing=_BOIR.smoothing.default, **_BOIR.proposals)
# Rates of tests that do not warm up.
NO_WARMUP = {"warmup_steps": 0, "warmup_ratio": _POSEBH.warmup_ratio}
POSES = {"confidence_threshold": 0.2, "suppression": "hard", "oks_threshold": 0.9}
