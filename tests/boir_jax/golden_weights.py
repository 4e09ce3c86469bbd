"""Loads recorded torch parameters into flax trees."""

from __future__ import annotations

import itertools

import numpy as np

from tests.golden_files import golden


def conv_norms(width_modules=(1, 4, 3), blocks=4):
    """(flax path, torch convolution, torch norm, stacking ranges) of every ConvNorm of the model."""
    out = []
    def add(path, conv, norm, ranges=()):
        out.append((path, conv, norm, ranges))
    b = "backbone."
    add("backbone/stem1", b + "conv1", b + "bn1")
    add("backbone/stem2", b + "conv2", b + "bn2")
    for k in (1, 2, 3):
        add(f"backbone/layer1_first/conv{k}", b + f"layer1.0.conv{k}", b + f"layer1.0.bn{k}")
        p = b + "layer1.{}."
        add(f"backbone/layer1_rest/conv{k}", p + f"conv{k}", p + f"bn{k}", (range(1, 4),))
    add("backbone/layer1_first/shortcut", b + "layer1.0.downsample.0", b + "layer1.0.downsample.1")
    add("backbone/transition1_0", b + "transition1.0.0", b + "transition1.0.1")
    for s, modules in enumerate(width_modules, start=1):
        add(f"backbone/transition{s}_{s}", b + f"transition{s}.{s}.0.0", b + f"transition{s}.{s}.0.1")
        t, f, m = b + f"stage{s + 1}.{{}}.", f"backbone/stage{s + 1}/", range(modules)
        for br in range(s + 1):
            for k in (1, 2):
                p = t + f"branches.{br}.{{}}."
                add(f + f"branch_{br}/conv{k}", p + f"conv{k}", p + f"bn{k}", (m, range(blocks)))
        for i, j in itertools.permutations(range(s + 1), 2):
            p = t + f"fuse_layers.{i}.{j}."
            if j > i:
                add(f + f"up_{j}_{i}", p + "0", p + "1", (m,))
            else:
                for step in range(i - j):
                    add(f + f"down_{j}_{i}_{step}", p + f"{step}.0", p + f"{step}.1", (m,))
    n = "multihead.neck.0."
    add("neck/point", n + "convs.0.0", n + "convs.0.1")
    for k, d in enumerate((12, 24, 36), start=1):
        add(f"neck/dilated_{d}", n + f"convs.{k}.0", n + f"convs.{k}.1")
    add("neck/pooled", n + "convs.4.1", n + "convs.4.2")
    add("neck/project", n + "project.0", n + "project.1")
    for flax, torch in HEADS.items():
        p = f"multihead.{torch}.head.0."
        for k in (1, 2):
            add(f"{flax}/block/conv{k}", p + f"conv{k}", p + f"bn{k}")
        add(f"{flax}/block/shortcut", p + "downsample.conv", p + "downsample.norm_layer")
    return out


HEADS = {
    "centre_head": "center_head",
    "keypoint_head": "buk_head",
    "embedding_head": "emb_head",
    "box_head": "bbox_head",
}


def leaves(training_heads=True):
    """(collection, flax path, torch name, stacking ranges, kind)."""
    heads = HEADS if training_heads else {"centre_head": HEADS["centre_head"]}
    out = []
    for path, conv, norm, ranges in conv_norms():
        if path.split("/")[0] in HEADS and path.split("/")[0] not in heads:
            continue
        out.append(("params", path + "/conv/kernel", conv + ".weight", ranges, "conv"))
        for leaf, name in (("scale", "weight"), ("bias", "bias"), ("mean", "running_mean"), ("var", "running_var")):
            collection = "batch_stats" if leaf in ("mean", "var") else "params"
            out.append((collection, f"{path}/norm/{leaf}", f"{norm}.{name}", ranges, "same"))
    for flax, torch in heads.items():
        out.append(("params", f"{flax}/output/kernel", f"multihead.{torch}.head.1.weight", (), "conv"))
        out.append(("params", f"{flax}/output/bias", f"multihead.{torch}.head.1.bias", (), "same"))
    i, k = "instance_head/", "kpt_head."
    for flax, torch in (("reduce", "conv_down"), ("mask", "s_attn.conv"), ("output", "heatmap_conv")):
        out.append(("params", i + flax + "/kernel", k + torch + ".weight", (), "conv"))
        out.append(("params", i + flax + "/bias", k + torch + ".bias", (), "same"))
    for flax, torch in (("channel", "c_attn"), ("spatial", "s_attn")):
        out.append(("params", i + flax + "_dense/kernel", k + torch + ".atn.0.weight", (), "dense"))
        out.append(("params", i + flax + "_dense/bias", k + torch + ".atn.0.bias", (), "same"))
        out.append(("params", i + flax + "_norm/scale", k + torch + ".atn.1.weight", (), "same"))
        out.append(("params", i + flax + "_norm/bias", k + torch + ".atn.1.bias", (), "same"))
    out.append(("params", i + "fuse_kernel", k + "fuse_attn.0.weight", (), "flat"))
    out.append(("params", i + "fuse_bias", k + "fuse_attn.0.bias", (), "same"))
    return out


MOVES = {
    "conv": lambda a: a.transpose(2, 3, 1, 0),
    "dense": lambda a: a.T,
    "flat": lambda a: a[:, :, 0, 0].T,
    "same": lambda a: a,
}


def stacked(state, name, ranges, kind):
    if not ranges:
        return MOVES[kind](state[name])
    shape = [len(r) for r in ranges]
    arrays = [MOVES[kind](state[name.format(*index)]) for index in itertools.product(*ranges)]
    return np.stack(arrays).reshape(*shape, *arrays[0].shape)


def state_dict(name):
    """torch name -> array, of a golden archive."""
    return {key[6:]: value for key, value in golden(name).items() if key.startswith("param:")}


def variables(state, training_heads=True, only=()):
    """{'params': ..., 'batch_stats': ...} from torch names (without the archive's 'param:')."""
    tree = {"params": {}, "batch_stats": {}}
    for collection, path, name, ranges, kind in leaves(training_heads):
        keys = path.split("/")
        if only and keys[0] not in only:
            continue
        node = tree[collection]
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = stacked(state, name, ranges, kind)
    return tree
