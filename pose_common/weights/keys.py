"""Carries weights between torch state dicts and Flax trees, from a table.

A family of checkpoints is a list of `Rule`s. The engine compares what the rules expect with what is there, in
both directions, before it touches a number: every source entry is used or deliberately dropped, every target
is filled or deliberately left for initialisation, and everything that does not fit is reported at once.

Trees are flat here: {"params/backbone/blocks/attn/qkv/kernel": array}. `flatten` and `unflatten` convert.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import flax.traverse_util
import ml_dtypes
import numpy as np

# target axis i is source axis AXES[i]
LINEAR = (1, 0)  # [out, in] -> [in, out]
CONV = (2, 3, 1, 0)  # [out, in, kh, kw] -> [kh, kw, in, out]
DECONV = (2, 3, 0, 1)  # [in, out, kh, kw] -> [kh, kw, in, out]

VARIANCE, COUNTER = ".running_var", ".num_batches_tracked"

EXTRAS = (
    rf".*\{COUNTER}",  # of torch's batch norms
    r"data_preprocessor\..*",  # MMPose 1.x's mean and deviation of pixels
    r"ema_.*|n_averaged|steps",  # running means of the weights that a trainer keeps beside them, and their numbers
)
"""Regular expressions of entries that carry no weights of a model; they are left out wherever they are."""

METHODS = (
    "PoseBH, ViTPose and ViTPose++ (names of the original codes, MMPose 1.x or Hugging Face), vision transformers "
    "of MAE or alike, BoIR, HRNet's ImageNet weights"
)
# What names tell of weights that no method here has.
LOOKS = {
    r"backbone\.stage2\.0\.branches\..*": "an HRNet with a head that is not BoIR's",
    r"(backbone\.)?layer1\.0\.conv1\.weight": "a ResNet or alike",
    r".*\.relative_position_bias_table": "a Swin transformer",
    r"(\w+\.)?(embeddings\.cls_token|encoder\.layer\.\d+\..*)": "a Hugging Face transformer other than VitPose",
    r"(vision_model|text_model|visual)\..*": "CLIP",
    r"params/.*": "arrays of this project's own names outside their folder",
    r"\w+\.backbone\..*": "a model inside another object, with entries of that: save the model's own state_dict",
}

COLLECTIONS: Mapping[str, Mapping[str, Any]] = {"params": {}, "batch_stats": {}, "prototypes": {}}
"""Of a model's weights; those that it has none of are empty."""

Shapes = Mapping[str, tuple[int, ...]]
"""Of the entries of a state dict."""

_PLACEHOLDER = re.compile(r"\{(\w+)(?:\+(\d+))?\}")


class ConversionError(ValueError):
    """Weights that do not fit; `summary` says what is wrong, `problems` lists every reason."""

    def __init__(self, summary: str, problems: Sequence[str]):
        super().__init__("\n  ".join([f"{summary} ({len(problems)} problems):", *problems]))
        self.summary, self.problems = summary, tuple(problems)


@contextlib.contextmanager
def naming(path: str | pathlib.Path) -> Iterator[None]:
    """A `ConversionError` of the block says which file or folder it is of."""
    try:
        yield
    except ConversionError as error:
        if str(path) in str(error):
            raise
        raise ConversionError(f"{path}: {error.summary}", error.problems) from error


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a table.

    Attributes:
      source: torch name. A placeholder stands for the position along a stacked axis:
        "blocks.{layer}.norm1.weight"; "{block+1}" counts from 1.
      target: path of the target.
      axes: target axis i (after the stacked ones) is source axis axes[i]; None leaves them.
      stack: placeholders of the target's leading axes, in their order.
      part: (i, n) when the source is the i-th of n equal parts of the target's last axis.
    """

    source: str
    target: str
    axes: tuple[int, ...] | None = None
    stack: tuple[str, ...] = ()
    part: tuple[int, int] | None = None


def affine_rules(
    source: str,
    target: str,
    axes: tuple[int, ...],
    stack: tuple[str, ...] = (),
    part: tuple[int, int] | None = None,
) -> list[Rule]:
    """Of a linear layer or convolution; see `Rule`."""
    return [
        Rule(f"{source}.weight", f"{target}/kernel", axes, stack, part),
        Rule(f"{source}.bias", f"{target}/bias", None, stack, part),
    ]


def norm_rules(source: str, target: str, stack: tuple[str, ...] = ()) -> list[Rule]:
    """Of what a norm learns; see `Rule`."""
    return [
        Rule(f"{source}.weight", f"{target}/scale", stack=stack),
        Rule(f"{source}.bias", f"{target}/bias", stack=stack),
    ]


@dataclasses.dataclass(frozen=True)
class Slot:
    """The place of one source entry inside a target."""

    rule: Rule
    index: tuple[int, ...]

    def view(self, target: np.ndarray) -> np.ndarray:
        """The slot of `target`, in the source's layout; writing to it writes to the target."""
        view = target[self.index]
        if self.rule.part is not None:
            position, count = self.rule.part
            width = view.shape[-1] // count
            view = view[..., position * width : (position + 1) * width]
        return view if self.rule.axes is None else view.transpose(np.argsort(self.rule.axes))


@dataclasses.dataclass(frozen=True)
class Converted:
    """A filled tree and what happened on the way.

    Attributes:
      tree: flat tree of float32 arrays, without the targets left to initialisation.
      used, dropped: source names.
      initialised: targets without a source, left for initialisation.
    """

    tree: dict[str, np.ndarray]
    used: tuple[str, ...]
    dropped: tuple[str, ...]
    initialised: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A file of weights, recognised and converted.

    Attributes:
      title: what it was recognised as, and what was guessed.
      weights: nested {"params": ..., "batch_stats": ..., "prototypes": ...}.
      manifest: JSON-able description from which the model can be built.
      converted: what happened to each entry.
    """

    title: str
    weights: dict[str, Any]
    manifest: dict[str, Any]
    converted: Converted


def own_weights(weights: dict[str, Any], manifest: dict[str, Any]) -> Conversion:
    """Weights that have this project's names already, as what a conversion yields."""
    return Conversion(
        manifest["family"], {**COLLECTIONS, **weights}, manifest, Converted({}, tuple(flatten(weights)), (), ())
    )


def unrecognised(names: Iterable[str]) -> str:
    """What weights of no known method look like, and what is accepted."""
    names = list(names)
    looks = [look for pattern, look in LOOKS.items() if any(re.fullmatch(pattern, name) for name in names)]
    examples = ", ".join(map(repr, names[:3]))
    return (
        f"{len(names)} entries such as {examples}, which look like {looks[0] if looks else 'nothing that is known'}; "
        f"accepted are {METHODS}"
    )


def shapes_of(state: Mapping[str, np.ndarray]) -> Shapes:
    """Torch name -> shape."""
    return {name: tuple(value.shape) for name, value in state.items()}


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """{"a": {"b": x}} -> {"a/b": x}."""
    return flax.traverse_util.flatten_dict(tree, sep="/")


def unflatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b": x} -> {"a": {"b": x}}."""
    return flax.traverse_util.unflatten_dict(tree, sep="/")


def expected_sources(rules: Iterable[Rule], targets: Mapping[str, Any]) -> dict[str, Slot]:
    """The source names that the rules expect for these targets, and where each belongs.

    Rules whose target is absent expect nothing. Stacked axes are as long as the target says.
    """
    slots: dict[str, Slot] = {}
    for rule in rules:
        if rule.target not in targets:
            continue
        lengths = targets[rule.target].shape[: len(rule.stack)]
        for index in itertools.product(*map(range, lengths)):
            name = _source_name(rule, index)
            if name in slots:
                raise ValueError(f"the table uses {name!r} twice")
            slots[name] = Slot(rule, index)
    return slots


def _source_name(rule: Rule, index: tuple[int, ...]) -> str:
    position = dict(zip(rule.stack, index, strict=True))
    return _PLACEHOLDER.sub(lambda match: str(position[match[1]] + int(match[2] or 0)), rule.source)


def to_flax(
    state: MutableMapping[str, np.ndarray],
    rules: Iterable[Rule],
    targets: Mapping[str, Any],
    *,
    dropped: Sequence[str] = (),
    initialised: Sequence[str] = (),
) -> Converted:
    """Fills the targets from a state dict.

    Args:
      state: torch name -> array of a floating type. Entries are removed as they are used, so that the
        two copies of the weights never exist side by side.
      rules: the table.
      targets: flat tree of anything with a shape.
      dropped: regular expressions of the source names that are deliberately not used.
      initialised: regular expressions of the targets that may stay without a source.

    Raises:
      ConversionError: names every entry that is missing, unexpected, of another shape or type, or not finite.
    """
    slots = expected_sources(rules, targets)
    present = {slot.rule.target for name, slot in slots.items() if name in state}
    left_initial = tuple(path for path in targets if path not in present and _matches(path, initialised))
    slots = {name: slot for name, slot in slots.items() if slot.rule.target not in left_initial}
    surplus = tuple(name for name in state if name not in slots)
    left_out = tuple(name for name in surplus if _matches(name, dropped))
    unfilled = set(targets) - set(left_initial) - {slot.rule.target for slot in slots.values()}

    problems = [f"no rule fills {path} {_shape(targets[path])}" for path in sorted(unfilled)]
    problems += [
        f"unexpected {name} {_shape(state[name])}" for name in sorted(set(surplus) - set(left_out), key=_natural)
    ]
    for name, slot in slots.items():
        problems += _misfit(name, slot, state, targets[slot.rule.target].shape)
    problems += _odd_types(state, slots) + _odd_counters(state)
    if problems:
        raise ConversionError("the weights do not fit", problems)
    for name in left_out:
        del state[name]
    return Converted(_fill(state, slots, targets), tuple(slots), left_out, left_initial)


def to_torch(tree: Mapping[str, np.ndarray], rules: Iterable[Rule]) -> dict[str, np.ndarray]:
    """The state dict of a flat tree: the inverse of `to_flax`.

    Raises:
      ConversionError: lists the entries that no rule knows.
    """
    slots = expected_sources(rules, tree)
    unknown = sorted(set(tree) - {slot.rule.target for slot in slots.values()})
    if unknown:
        raise ConversionError("no torch name", [f"{path} {_shape(tree[path])}" for path in unknown])
    return {name: np.ascontiguousarray(slot.view(tree[slot.rule.target])) for name, slot in slots.items()}


def counters_of(names: Iterable[str]) -> list[str]:
    """Names of the batch counters that torch's batch norms have beside their statistics."""
    return [name.replace(VARIANCE, COUNTER) for name in names if name.endswith(VARIANCE)]


def require_fit(weights: Mapping[str, Any], targets: Mapping[str, Any]) -> None:
    """Checks that the names and shapes of two flat trees are the same.

    Raises:
      ConversionError: names everything that is missing, unexpected or of another shape.
    """
    problems = [f"missing {path} {_shape(targets[path])}" for path in targets if path not in weights]
    problems += [f"unexpected {path} {_shape(weights[path])}" for path in weights if path not in targets]
    problems += [
        f"{path} has shape {_shape(weights[path])}, expected {_shape(target)}"
        for path, target in targets.items()
        if path in weights and tuple(weights[path].shape) != tuple(target.shape)
    ]
    if problems:
        raise ConversionError("the weights do not fit", problems)


def _misfit(name: str, slot: Slot, state: Mapping[str, np.ndarray], target_shape: tuple[int, ...]) -> list[str]:
    """What is wrong with the source of a slot, as far as that shows without reading its numbers."""
    shape = slot.view(np.broadcast_to(np.float32(0), target_shape)).shape
    if name not in state:
        return [f"missing {name} {_dimensions(shape)}"]
    if state[name].shape != shape:
        return [f"{name} has shape {_shape(state[name])}, expected {_dimensions(shape)}"]
    return []


def _odd_types(state: Mapping[str, np.ndarray], names: Iterable[str]) -> list[str]:
    """Entries that are no floating numbers; a file of mixed precision has several floating types."""
    types = {name: state[name].dtype for name in names if name in state}
    return [f"{name} has type {dtype}, expected a floating one" for name, dtype in types.items() if not is_float(dtype)]


def _odd_counters(state: Mapping[str, np.ndarray]) -> list[str]:
    """Batch counters of torch's batch norms that are damaged, or missing where the others are there."""
    if not any(name.endswith(COUNTER) for name in state):
        return []
    expected = counters_of(state)
    problems = [f"missing {name} []" for name in expected if name not in state]
    for name in expected:
        counter = state.get(name)
        if counter is not None and (counter.shape or not np.issubdtype(counter.dtype, np.integer)):
            problems.append(f"{name} is {counter.dtype} {_shape(counter)}, expected one integer")
    return problems


def _fill(
    state: MutableMapping[str, np.ndarray], slots: Mapping[str, Slot], targets: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    tree: dict[str, np.ndarray] = {}
    problems = []
    for name, slot in slots.items():
        path = slot.rule.target
        if path not in tree:
            tree[path] = np.empty(targets[path].shape, np.float32)
        source = state.pop(name)
        problems += not_finite(name, source)
        slot.view(tree[path])[...] = source
    if problems:
        raise ConversionError("weights that are not finite", problems)
    return tree


def is_float(dtype: Any) -> bool:
    """Whether a dtype is a floating one, bfloat16 included."""
    return np.issubdtype(dtype, np.floating) or dtype == ml_dtypes.bfloat16


def not_finite(name: str, values: np.ndarray) -> list[str]:
    """What to say of an array with NaN or infinite entries."""
    bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    return [f"{name} has {bad} of {values.size} entries that are NaN or infinite"] if bad else []


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _dimensions(shape: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _shape(value: Any) -> str:
    return _dimensions(value.shape)


def _natural(name: str) -> list:
    """Sort key that puts layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
