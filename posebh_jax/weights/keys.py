"""Tables of names: which torch entry fills which parameter, for every family of PoseBH's weights."""

from __future__ import annotations

from collections.abc import Sequence

from pose_common.weights.keys import CONV, DECONV, LINEAR, Rule, affine_rules, norm_rules

BLOCKS = "params/backbone/blocks"
BANK, CLUSTERS, CLUSTER_KEYPOINTS = (
    f"prototypes/{name}" for name in ("bank", "clusters/prototypes", "clusters/keypoint")
)
PROTOTYPES = {
    "proto_head.kpt_prototype.prototypes": BANK,
    "proto_head.cluster_prototype.prototypes": CLUSTERS,
}
"""The prototypes and, in checkpoints of the later stages, the cluster prototypes: {torch name: path}."""
LAYER = ("layer",)


def posebh_rules(datasets: Sequence[str]) -> list[Rule]:
    """The original code's names for `PoseBH`, of PoseBH, ViTPose++ and single-dataset checkpoints alike.

    Args:
      datasets: names of the heads in order. The first is `keypoint_head`, the others are associate heads.
    """
    rules = backbone_rules("backbone.")
    for i, name in enumerate(datasets):
        prefix = "keypoint_head." if i == 0 else f"associate_keypoint_heads.{i - 1}."
        rules += head_rules(prefix, f"heads/{name}")
    return rules + embedding_rules("proto_head.") + [Rule(name, path) for name, path in PROTOTYPES.items()]


def backbone_rules(prefix: str = "") -> list[Rule]:
    """ViT with or without experts."""

    def block(source: str, target: str) -> list[Rule]:
        return affine_rules(f"{prefix}blocks.{{layer}}.{source}", f"{BLOCKS}/{target}", LINEAR, LAYER)

    experts = affine_rules(
        f"{prefix}blocks.{{layer}}.mlp.experts.{{expert}}",
        f"{BLOCKS}/mlp/experts",
        LINEAR,
        ("layer", "expert"),
    )
    return [
        Rule(f"{prefix}pos_embed", "params/backbone/pos_embed"),
        *affine_rules(f"{prefix}patch_embed.proj", "params/backbone/patch_embed", CONV),
        *norm_rules(f"{prefix}blocks.{{layer}}.norm1", f"{BLOCKS}/norm1", LAYER),
        *block("attn.qkv", "attn/qkv"),
        *block("attn.proj", "attn/proj"),
        *norm_rules(f"{prefix}blocks.{{layer}}.norm2", f"{BLOCKS}/norm2", LAYER),
        *block("mlp.fc1", "mlp/fc1"),
        *block("mlp.fc2", "mlp/fc2"),
        *experts,
        *norm_rules(f"{prefix}last_norm", "params/backbone/last_norm"),
    ]


def head_rules(prefix: str, target: str) -> list[Rule]:
    """A heatmap head; `target` is its path without the collection."""
    return _upsampling(prefix, target) + affine_rules(f"{prefix}final_layer", f"params/{target}/final", CONV)


def embedding_rules(prefix: str, target: str = "embedding") -> list[Rule]:
    """The embedding head with any neck: a model has the targets of one of them, and the rules of the others rest."""
    return [
        *_upsampling(prefix, target),
        *_residual_block(f"{prefix}neck.", f"{target}/neck"),
        *_residual_block(f"{prefix}neck.0.", f"{target}/neck1"),
        *_residual_block(f"{prefix}neck.1.", f"{target}/neck2"),
        *affine_rules(f"{prefix}neck.0", f"params/{target}/neck_conv", CONV),
        *_batch_norm(f"{prefix}neck.1", f"{target}/neck_norm"),
        *affine_rules(f"{prefix}head.0", f"params/{target}/conv", CONV),
        *_batch_norm(f"{prefix}head.1", f"{target}/norm"),
        *affine_rules(f"{prefix}head.3", f"params/{target}/final", CONV),
    ]


def hugging_face_rules(dataset: str) -> list[Rule]:
    """VitPose and VitPose-plus of `transformers`, with the classic (two deconvolutions) decoder."""
    prefix = "backbone.encoder.layer.{layer}."
    rules = [
        Rule("backbone.embeddings.position_embeddings", "params/backbone/pos_embed"),
        *affine_rules("backbone.embeddings.patch_embeddings.projection", "params/backbone/patch_embed", CONV),
        *norm_rules(f"{prefix}layernorm_before", f"{BLOCKS}/norm1", LAYER),
        *affine_rules(f"{prefix}attention.output.dense", f"{BLOCKS}/attn/proj", LINEAR, LAYER),
        *norm_rules(f"{prefix}layernorm_after", f"{BLOCKS}/norm2", LAYER),
        *affine_rules(f"{prefix}mlp.fc1", f"{BLOCKS}/mlp/fc1", LINEAR, LAYER),
        *affine_rules(f"{prefix}mlp.fc2", f"{BLOCKS}/mlp/fc2", LINEAR, LAYER),
        *affine_rules(f"{prefix}mlp.experts.{{expert}}", f"{BLOCKS}/mlp/experts", LINEAR, ("layer", "expert")),
        *norm_rules("backbone.layernorm", "params/backbone/last_norm"),
        *affine_rules("head.conv", f"params/heads/{dataset}/final", CONV),
    ]
    for i, name in enumerate(("query", "key", "value")):
        rules += affine_rules(f"{prefix}attention.attention.{name}", f"{BLOCKS}/attn/qkv", LINEAR, LAYER, part=(i, 3))
    for i in (1, 2):
        target = f"heads/{dataset}/upsampling"
        rules.append(Rule(f"head.deconv{i}.weight", f"params/{target}/deconv{i}/kernel", DECONV))
        rules += _batch_norm(f"head.batchnorm{i}", f"{target}/norm{i}")
    return rules


def mmpose_rules(dataset: str) -> list[Rule]:
    """ViTPose of MMPose 1.x with the classic decoder; its backbone is MMPretrain's `VisionTransformer`."""
    prefix = "backbone.layers.{layer}."
    return [
        Rule("backbone.pos_embed", "params/backbone/pos_embed"),
        *affine_rules("backbone.patch_embed.projection", "params/backbone/patch_embed", CONV),
        *norm_rules(f"{prefix}ln1", f"{BLOCKS}/norm1", LAYER),
        *affine_rules(f"{prefix}attn.qkv", f"{BLOCKS}/attn/qkv", LINEAR, LAYER),
        *affine_rules(f"{prefix}attn.proj", f"{BLOCKS}/attn/proj", LINEAR, LAYER),
        *norm_rules(f"{prefix}ln2", f"{BLOCKS}/norm2", LAYER),
        *affine_rules(f"{prefix}ffn.layers.0.0", f"{BLOCKS}/mlp/fc1", LINEAR, LAYER),
        *affine_rules(f"{prefix}ffn.layers.1", f"{BLOCKS}/mlp/fc2", LINEAR, LAYER),
        *norm_rules("backbone.ln1", "params/backbone/last_norm"),
        *head_rules("head.", f"heads/{dataset}"),
    ]


def _batch_norm(source: str, target: str) -> list[Rule]:
    return [
        *norm_rules(source, f"params/{target}"),
        Rule(f"{source}.running_mean", f"batch_stats/{target}/mean"),
        Rule(f"{source}.running_var", f"batch_stats/{target}/var"),
    ]


def _residual_block(prefix: str, target: str) -> list[Rule]:
    return [
        *affine_rules(f"{prefix}conv1", f"params/{target}/conv1", CONV),
        *_batch_norm(f"{prefix}bn1", f"{target}/norm1"),
        *affine_rules(f"{prefix}conv2", f"params/{target}/conv2", CONV),
        *_batch_norm(f"{prefix}bn2", f"{target}/norm2"),
        Rule(f"{prefix}downsample.0.weight", f"params/{target}/shortcut_conv/kernel", CONV),
        *_batch_norm(f"{prefix}downsample.1", f"{target}/shortcut_norm"),
    ]


def _upsampling(prefix: str, target: str) -> list[Rule]:
    rules = []
    for i, (deconvolution, norm) in enumerate(((0, 1), (3, 4)), start=1):
        path = f"{target}/upsampling"
        rules.append(Rule(f"{prefix}deconv_layers.{deconvolution}.weight", f"params/{path}/deconv{i}/kernel", DECONV))
        rules += _batch_norm(f"{prefix}deconv_layers.{norm}", f"{path}/norm{i}")
    return rules
