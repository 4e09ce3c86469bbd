"""What is in a state dict: which family of weights, and the sizes of its parts.

Sizes are taken by majority over the layers, so that one damaged entry does not change what the rest is
recognised as and is then reported by its name.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from typing import NamedTuple

from pose_common.weights.keys import ConversionError, Shapes
from posebh_jax.vit import size_name

ORIGINAL, BACKBONE, HUGGING_FACE, MMPOSE = "original", "backbone", "hugging face", "mmpose"

SIMPLE_DECODER = "its decoder is the simple one (no deconvolutions), which this model does not have"


class Embedding(NamedTuple):
    """What shows of an embedding head; see `posebh_jax.heads.EmbeddingHead`. Its activation does not."""

    dim: int
    channels: int
    neck: str
    kernel: int


@dataclasses.dataclass(frozen=True)
class Contents:
    """Sizes of what a state dict holds.

    Attributes:
      family: ORIGINAL (names of the PoseBH and ViTPose code), BACKBONE (a bare vision transformer),
        HUGGING_FACE or MMPOSE (names of its versions from 1.0 on).
      dim, depth: of the backbone.
      tokens: positions without the extra one.
      mlp_ratio: hidden width of the MLP over dim.
      num_experts, part_features: 0 without experts.
      folded: experts are there, but fc2 has all its rows already: one of them was folded in.
      keypoints: maps of each head.
      filters: channels of each of the two deconvolutions; 0 without heads.
      embedding: the embedding head, or None.
      prototypes: keypoints of the bank, 0 without one.
    """

    family: str
    dim: int
    depth: int
    tokens: int
    mlp_ratio: float
    num_experts: int
    part_features: int
    folded: bool
    keypoints: tuple[int, ...]
    filters: tuple[int, int]
    embedding: Embedding | None
    prototypes: int

    @property
    def size_name(self) -> str | None:
        """Name of the published size, or None."""
        return size_name(self.dim, self.depth)

    def title(self) -> str:
        """What it is, for people."""
        size = self.size_name or f"width {self.dim}, depth {self.depth}"
        if self.family == BACKBONE:
            return f"vision transformer backbone (MAE or alike), {size}"
        if self.family == HUGGING_FACE:
            return f"Hugging Face VitPose{'-plus' if self.num_experts else ''}, {size}"
        if self.family == MMPOSE:
            return f"ViTPose of MMPose 1.x, {size}"
        if not self.keypoints:
            return f"backbone of {'ViTPose++' if self.num_experts else 'ViTPose'}, {size}"
        if self.num_experts or len(self.keypoints) > 1:
            return f"{'PoseBH' if self.embedding else 'ViTPose++ multi-head'}, {size}"
        if self.embedding:
            return f"PoseBH for a single dataset, {size}"
        kind = "single-dataset split of ViTPose++" if self.folded else "ViTPose for a single dataset"
        return f"{kind}, {size}"


def recognise(shapes: Shapes) -> Contents | None:
    """The contents of a state dict, or None where it is none of this method's weights.

    Raises:
      ConversionError: it is, but without an entry that tells a size.
    """
    if _any(shapes, r"backbone\.(embeddings|encoder\.layer)\..*"):
        return _hugging_face(shapes)
    if _any(shapes, r"backbone\.layers\.\d+\.(attn|ffn|ln\d)\..*"):
        return _mmpose(shapes)
    if _any(shapes, r"backbone\.blocks\.\d+\..*"):
        return _original(shapes, "backbone.", ORIGINAL)
    if _any(shapes, r"blocks\.\d+\.(attn|mlp|norm\d)\..*"):
        return _original(shapes, "", BACKBONE)
    return None


def _original(shapes: Shapes, prefix: str, family: str) -> Contents:
    block = rf"{re.escape(prefix)}blocks\.\d+\."
    dim = _size(shapes, block + r"norm\d\.weight")
    num_experts = _count(shapes, block + r"mlp\.experts\.(\d+)\..*")
    folded = num_experts > 0 and _size(shapes, block + r"mlp\.fc2\.weight") == dim
    heads = 1 if _any(shapes, r"keypoint_head\..*") else 0
    if heads and not folded:
        heads += _count(shapes, r"associate_keypoint_heads\.(\d+)\..*")
    if heads and not _any(shapes, r"keypoint_head\.deconv_layers\.\d\..*"):
        raise ConversionError("recognised as ViTPose", [SIMPLE_DECODER])
    embedding = _embedding(shapes) if _any(shapes, r"proto_head\..*") else None
    first, second = (rf"\w+(\.\d+)?\.deconv_layers\.{layer}\.\w+" for layer in (1, 4))
    prototypes = shapes.get("proto_head.kpt_prototype.prototypes", (0,))
    return Contents(
        family=family,
        dim=dim,
        depth=_count(shapes, rf"{re.escape(prefix)}blocks\.(\d+)\..*"),
        tokens=_tokens(shapes, f"{prefix}pos_embed", dim),
        mlp_ratio=_ratio(_size(shapes, block + r"mlp\.fc1\.(weight|bias)"), dim),
        num_experts=0 if folded else num_experts,
        part_features=_size(shapes, block + r"mlp\.experts\.\d+\.weight") if num_experts and not folded else 0,
        folded=folded,
        keypoints=tuple(_maps(shapes, i) for i in range(heads)),
        filters=(_size(shapes, first), _size(shapes, second)) if heads or embedding else (0, 0),
        embedding=embedding,
        prototypes=prototypes[0] if prototypes else 0,
    )


def _hugging_face(shapes: Shapes) -> Contents:
    layer = r"backbone\.encoder\.layer\.\d+\."
    if not _any(shapes, r"head\.deconv\d\.weight"):
        raise ConversionError("recognised as Hugging Face VitPose", [SIMPLE_DECODER])
    dim = _size(shapes, layer + r"layernorm_\w+\.weight")
    num_experts = _count(shapes, layer + r"mlp\.experts\.(\d+)\..*")
    return Contents(
        family=HUGGING_FACE,
        dim=dim,
        depth=_count(shapes, r"backbone\.encoder\.layer\.(\d+)\..*"),
        tokens=_tokens(shapes, "backbone.embeddings.position_embeddings", dim),
        mlp_ratio=_ratio(_size(shapes, layer + r"mlp\.fc1\.(weight|bias)"), dim),
        num_experts=num_experts,
        part_features=_size(shapes, layer + r"mlp\.experts\.\d+\.weight") if num_experts else 0,
        folded=False,
        keypoints=(_size(shapes, r"head\.conv\.(bias|weight)"),),
        filters=(_size(shapes, r"head\.batchnorm1\.\w+"), _size(shapes, r"head\.batchnorm2\.\w+")),
        embedding=None,
        prototypes=0,
    )


def _mmpose(shapes: Shapes) -> Contents:
    layer, recognised = r"backbone\.layers\.\d+\.", "recognised as a vision transformer of MMPose 1.x"
    if not _any(shapes, r"head\..*"):
        raise ConversionError(
            recognised,
            ["it has no head (head.final_layer); a start from a backbone takes the file of MAE's authors"],
        )
    if not _any(shapes, r"head\.deconv_layers\.\d\..*"):
        raise ConversionError(recognised, [SIMPLE_DECODER])
    dim = _size(shapes, layer + r"ln\d\.weight")
    rows = _tokens(shapes, "backbone.pos_embed", dim) + 1
    return Contents(
        family=MMPOSE,
        dim=dim,
        depth=_count(shapes, r"backbone\.layers\.(\d+)\..*"),
        # With or without a row for the class token, which these models do not have.
        tokens=rows if grid(rows) and not grid_3_by_4(rows - 1) else rows - 1,
        mlp_ratio=_ratio(_size(shapes, layer + r"ffn\.layers\.0\.0\.(weight|bias)"), dim),
        num_experts=0,
        part_features=0,
        folded=False,
        keypoints=(_size(shapes, r"head\.final_layer\.(bias|weight)"),),
        filters=(
            _size(shapes, r"head\.deconv_layers\.1\.\w+"),
            _size(shapes, r"head\.deconv_layers\.4\.\w+"),
        ),
        embedding=None,
        prototypes=0,
    )


def _embedding(shapes: Shapes) -> Embedding:
    if _any(shapes, r"proto_head\.neck\.[01]\.(conv|bn|downsample).*"):
        neck = "res2"
    else:
        neck = "conv" if _any(shapes, r"proto_head\.neck\.[01]\.\w+") else "res"
    return Embedding(
        dim=_size(shapes, r"proto_head\.head\.3\.bias"),
        channels=_size(shapes, r"proto_head\.head\.0\.bias"),
        neck=neck,
        kernel=1 if shapes.get("proto_head.head.0.weight", ())[2:] == (1, 1) else 3,
    )


def _ratio(hidden: int, dim: int) -> float:
    """Their quotient, an integer where it is one."""
    return hidden // dim if hidden % dim == 0 else hidden / dim


def _maps(shapes: Shapes, head: int) -> int:
    name = "keypoint_head" if head == 0 else f"associate_keypoint_heads.{head - 1}"
    return _size(shapes, re.escape(name) + r"\.final_layer\.(bias|weight)")


def _tokens(shapes: Shapes, name: str, dim: int) -> int:
    if name not in shapes:
        raise ConversionError("recognised, but", [f"missing {name}"])
    return math.prod(shapes[name]) // dim - 1


def grid_3_by_4(tokens: int) -> tuple[int, int] | None:
    """(width, height) in patches of a 3:4 grid with so many of them, or None."""
    unit = int(round((tokens / 12) ** 0.5))
    return (3 * unit, 4 * unit) if unit and 12 * unit**2 == tokens else None


def grid(tokens: int) -> tuple[int, int] | None:
    """(width, height) in patches of so many positions, 3:4 or square, which no number can be both; None of others."""
    side = math.isqrt(tokens)
    return grid_3_by_4(tokens) or ((side, side) if side and side * side == tokens else None)


def _any(shapes: Shapes, pattern: str) -> bool:
    return any(re.fullmatch(pattern, name) for name in shapes)


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the largest index that the pattern's group matches; 0 without a match."""
    matches = (re.fullmatch(pattern, name) for name in shapes)
    return max((int(match[1]) + 1 for match in matches if match), default=0)


def _size(shapes: Shapes, pattern: str) -> int:
    """The commonest length of the first axis among the matching entries, the first on ties.

    Raises:
      ConversionError: no entry matches.
    """
    lengths = [shape[0] for name, shape in shapes.items() if shape and re.fullmatch(pattern, name)]
    if not lengths:
        raise ConversionError("recognised, but", [f"no usable entry of the form {pattern.replace(chr(92), '')}"])
    return collections.Counter(lengths).most_common(1)[0][0]
