"""Tables of names: which torch entry fills which parameter, for BoIR's and HRNet's ImageNet weights."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from boir_jax.aspp import DILATIONS
from pose_common.weights.keys import CONV, LINEAR, Rule, affine_rules, norm_rules

# What the ImageNet classifier has beyond the backbone, under HRNet's own names or all in one `head`, as in the
# file of W32 that the original trains from.
CLASSIFIER = r"(incre_modules|downsamp_modules|final_layer|classifier|head)\..*"

# Parts whose shape depends on the skeleton, left for initialisation when a model moves to another one.
SKELETON = r"params/(keypoint_head/output/.*|instance_head/output(/kernel|_bias))"

HEADS = {
    "centre_head": "center_head",
    "keypoint_head": "buk_head",
    "embedding_head": "emb_head",
    "box_head": "bbox_head",
}


def boir_rules(dilations: Sequence[int] = DILATIONS) -> list[Rule]:
    """The original code's names, of training and test-time checkpoints alike; `dilations` of the neck."""
    rules = backbone_rules("backbone.") + neck_rules(dilations)
    for ours, theirs in HEADS.items():
        prefix = f"multihead.{theirs}.head"
        rules += _block(f"{prefix}.0", f"{ours}/block")
        shortcut = f"{prefix}.0.downsample"
        rules += _conv_norm(f"{shortcut}.conv", f"{shortcut}.norm_layer", f"{ours}/block/shortcut")
        rules += affine_rules(f"{prefix}.1", f"params/{ours}/output", CONV)
    return rules + instance_head_rules()


def backbone_rules(prefix: str = "") -> list[Rule]:
    """HRNet; with an empty prefix the names of the ImageNet weights."""
    rules = []
    for i in (1, 2):
        rules += _conv_norm(f"{prefix}conv{i}", f"{prefix}bn{i}", f"backbone/stem{i}")
    for i in (1, 2, 3):
        first, rest = f"{prefix}layer1.0", f"{prefix}layer1.{{block+1}}"
        rules += _conv_norm(f"{first}.conv{i}", f"{first}.bn{i}", f"backbone/layer1_first/conv{i}")
        rules += _conv_norm(f"{rest}.conv{i}", f"{rest}.bn{i}", f"backbone/layer1_rest/conv{i}", ("block",))
    shortcut = f"{prefix}layer1.0.downsample"
    rules += _conv_norm(f"{shortcut}.0", f"{shortcut}.1", "backbone/layer1_first/shortcut")
    rules += _pair(f"{prefix}transition1.0", "backbone/transition1_0")
    for stage in (1, 2, 3):
        rules += _pair(f"{prefix}transition{stage}.{stage}.0", f"backbone/transition{stage}_{stage}")
        rules += _stage_rules(f"{prefix}stage{stage + 1}.{{module}}", f"backbone/stage{stage + 1}", stage + 1)
    return rules


def neck_rules(dilations: Sequence[int] = DILATIONS) -> list[Rule]:
    """The neck."""
    prefix = "multihead.neck.0"
    rules = _pair(f"{prefix}.convs.0", "neck/point") + _pair(f"{prefix}.project", "neck/project")
    for i, dilation in enumerate(dilations, start=1):
        rules += _pair(f"{prefix}.convs.{i}", f"neck/dilated_{dilation}")
    pooled = f"{prefix}.convs.{len(dilations) + 1}"
    return rules + _conv_norm(f"{pooled}.1", f"{pooled}.2", "neck/pooled")


def instance_head_rules() -> list[Rule]:
    """The head that draws a person's keypoints."""
    target = "params/instance_head"
    convolutions = {
        "reduce": "conv_down",
        "mask": "s_attn.conv",
        "fuse": "fuse_attn.0",
        "output": "heatmap_conv",
    }
    rules = []
    for ours, theirs in convolutions.items():
        kernel = f"{target}/fuse_kernel" if ours == "fuse" else f"{target}/{ours}/kernel"
        rules.append(Rule(f"kpt_head.{theirs}.weight", kernel, CONV))
        rules.append(Rule(f"kpt_head.{theirs}.bias", f"{target}/{ours}_bias"))
    for ours, theirs in (("channel", "c_attn"), ("spatial", "s_attn")):
        rules += affine_rules(f"kpt_head.{theirs}.atn.0", f"{target}/{ours}_dense", LINEAR)
        rules += norm_rules(f"kpt_head.{theirs}.atn.1", f"{target}/{ours}_norm")
    return rules


def _stage_rules(source: str, target: str, branches: int) -> list[Rule]:
    stack = ("module",)
    rules = []
    for branch in range(branches):
        block = f"{source}.branches.{branch}.{{block}}"
        rules += _block(block, f"{target}/branch_{branch}", (*stack, "block"))
    # The original counts from the receiving branch.
    for receiver, giver in itertools.permutations(range(branches), 2):
        exchange = f"{source}.fuse_layers.{receiver}.{giver}"
        if giver > receiver:
            rules += _pair(exchange, f"{target}/up_{giver}_{receiver}", stack)
        for step in range(receiver - giver):
            rules += _pair(f"{exchange}.{step}", f"{target}/down_{giver}_{receiver}_{step}", stack)
    return rules


def _block(source: str, target: str, stack: tuple[str, ...] = ()) -> list[Rule]:
    """Two convolutions with their norms."""
    return [
        rule for i in (1, 2) for rule in _conv_norm(f"{source}.conv{i}", f"{source}.bn{i}", f"{target}/conv{i}", stack)
    ]


def _pair(source: str, target: str, stack: tuple[str, ...] = ()) -> list[Rule]:
    """A convolution and its norm as the first two of a sequence."""
    return _conv_norm(f"{source}.0", f"{source}.1", target, stack)


def _conv_norm(convolution: str, norm: str, target: str, stack: tuple[str, ...] = ()) -> list[Rule]:
    return [
        Rule(f"{convolution}.weight", f"params/{target}/conv/kernel", CONV, stack),
        *norm_rules(norm, f"params/{target}/norm", stack),
        Rule(f"{norm}.running_mean", f"batch_stats/{target}/norm/mean", stack=stack),
        Rule(f"{norm}.running_var", f"batch_stats/{target}/norm/var", stack=stack),
    ]
