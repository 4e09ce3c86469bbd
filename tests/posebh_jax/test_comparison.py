"""The comparison in bands, with its own gradient, against the plain form that stores every similarity."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posebh_jax import comparison
from posebh_jax.keypoint_index import KeypointIndex
from posebh_jax.prototypes import Labels, Observed, assign, update_prototypes
from tests.posebh_jax.method_cases import close
from tests.programs import products
from tests.settings import PROTOTYPES

INDEX = KeypointIndex((3, 1, 5))
PER_KEYPOINT, DIM = 3, 8


def example(height: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Embeddings [4, height, 5, D], one of them zero; prototypes, two of them equal; labels [4, height, 5, 3]."""
    keys = jax.random.split(jax.random.key(height), 3)
    embedding = 2 * jax.random.normal(keys[0], (4, height, 5, DIM))
    prototypes = jax.random.normal(keys[1], (INDEX.total, PER_KEYPOINT, DIM))
    local = jax.random.randint(keys[2], (4, height, 5, INDEX.num_datasets), -1, np.array(INDEX.counts))
    keypoint = jnp.where(local >= 0, local + INDEX.starts, -1)
    return embedding.at[0, 0, 0].set(0), prototypes.at[2, 1].set(prototypes[2, 0]), keypoint


def similarities(embedding, prototypes):
    """|cos| of every pixel and prototype, [B, h, w, M, T]."""
    unit, bank = (comparison.unit_length(x) for x in (embedding, jax.lax.stop_gradient(prototypes)))
    return jnp.abs(jnp.einsum("bhwd,tmd->bhwmt", unit, bank, precision=comparison.PRECISE))


def plainly(embedding, prototypes, keypoint_index):
    similarity = similarities(embedding, prototypes)
    mass = jnp.exp(similarity).sum(axis=-2)
    return comparison.Comparison(similarity.max(axis=-2), jnp.log(mass @ keypoint_index.one_hot))


def labels_plainly(embedding, prototypes, keypoint, members):
    """One comparison with every keypoint a slot."""
    labelled = (keypoint[..., None] == jnp.arange(len(prototypes))) & (members.swapaxes(1, 2) > 0)[:, None, None]
    return jnp.einsum("bhwmt,bhwgt->bhwmg", similarities(embedding, prototypes), labelled.astype(jnp.float32))


def with_gradient(function, embedding):
    """The values, and the gradient that random cotangents of them give; one program."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(function, embedding))
    keys = jax.random.split(jax.random.key(9), len(leaves))
    back = jax.tree.unflatten(tree, [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])

    @jax.jit
    def both(embedding):
        values, pull = jax.vjp(function, embedding)
        return values, pull(back)[0]

    return both(embedding)


def same_with_gradient(ours, plain, embedding):
    """float32 values and gradients: sums of at most 27 products and exponentials differ by a few roundings."""
    (values, gradient), (expected, plain_gradient) = (with_gradient(f, embedding) for f in (ours, plain))
    jax.tree.map(lambda a, b: close(a, b, atol=1e-6), values, expected)
    # A cosine of 0 passes no gradient on, as in PyTorch; JAX's own abs would, divided by a length of 1e-12.
    assert not gradient[0, 0, 0].any() and jnp.abs(plain_gradient[0, 0, 0]).max() > 1e6
    close(gradient, plain_gradient.at[0, 0, 0].set(0), rel=1e-5)


@pytest.mark.parametrize("labelled", [(True, True), (False, True), (True, False)])
def test_several_banks_and_labels_at_once_are_as_each_alone(labelled):
    embedding, prototypes, keypoint = example(7)
    keys = jax.random.split(jax.random.key(1))
    banks = [(prototypes, INDEX), (jax.random.normal(keys[0], (4, PER_KEYPOINT, DIM)), KeypointIndex((4,)))]
    own = comparison.Slots(keypoint, jnp.broadcast_to(INDEX.one_hot, (4, INDEX.total, INDEX.num_datasets)))
    of_other = comparison.Slots(jax.random.randint(keys[1], (4, 7, 5, 1), -1, 4), jnp.ones((4, 4, 1)))
    slots = [labels if asked else None for labels, asked in zip((own, of_other), labelled, strict=True)]

    def ours(x):
        found, similarities = comparison.compare_each(x, banks, slots)
        assert [s.shape[-1] for s in similarities] == [s.keypoint.shape[-1] if s else 0 for s in slots]
        return found, similarities

    def plain(x):
        found = [plainly(x, *bank) for bank in banks]
        return found, [
            labels_plainly(x, bank[0], *(labels or (keypoint[..., :0], jnp.ones((4, bank[1].total, 0)))))
            for bank, labels in zip(banks, slots, strict=True)
        ]

    same_with_gradient(ours, plain, embedding)


@pytest.mark.parametrize("height", [16, 7, 1])  # bands of two rows, of one, and a single one
def test_comparison_and_its_gradient(height):
    embedding, prototypes, _ = example(height)
    same_with_gradient(
        lambda x: comparison.compare(x, prototypes, INDEX), lambda x: plainly(x, prototypes, INDEX), embedding
    )
    best = jax.jit(comparison.best_similarities)(embedding, prototypes)
    close(best, jax.jit(plainly, static_argnums=2)(embedding, prototypes, INDEX).best, atol=1e-6)


@pytest.mark.parametrize("slots", ["a slot a dataset", "one slot"])
def test_label_similarities_and_their_gradient(slots):
    embedding, prototypes, keypoint = example(16)
    members = jnp.broadcast_to(INDEX.one_hot, (4, INDEX.total, INDEX.num_datasets))
    if slots == "one slot":  # the images' own datasets
        own = jnp.array([0, 2, 1, 2])
        keypoint = jnp.take_along_axis(keypoint, own[:, None, None, None], axis=-1)
        members = INDEX.own(own)[..., None].astype(jnp.float32)
    same_with_gradient(
        lambda x: comparison.label_similarities(x, prototypes, keypoint, members),
        lambda x: labels_plainly(x, prototypes, keypoint, members),
        embedding,
    )


def test_a_tpus_cosines_are_of_full_precision():
    """Against float64: what the two operands hold is as exact as plain float32 products are, and their product on this
    processor by a rounding for each of the six products' 64 sums at most, whatever its order (some have instructions
    for bfloat16 that add one pair after the other). Products of bfloat16 are off by 30 times that.
    """
    keys = jax.random.split(jax.random.key(0))
    unit = comparison.unit_length(jax.random.normal(keys[0], (2, 4, 5, 64)))
    bank = list(comparison.unit_length(jax.random.normal(keys[1], (3, 9, 64))))

    def exactly(unit, bank):
        return np.einsum("bhwd,mtd->mbhwt", np.float64(unit), np.float64(bank))

    def error(cosines):
        return np.abs(np.float64(cosines) - exactly(unit, bank)).max()

    plain, ours = (error(jax.jit(f)(unit, bank)) for f in (comparison._plain_cosines, comparison._side_by_side))
    held = error(exactly(comparison._of_pixels(unit), jnp.stack(list(map(comparison._of_prototypes, bank)))))
    rounded = [x.astype(jnp.bfloat16).astype(jnp.float32) for x in (unit, *bank)]
    limit = 6 * 64 * 2**-24
    assert held <= plain and ours <= limit and 30 * limit < error(comparison._plain_cosines(rounded[0], rounded[1:]))
    parts = comparison._three_parts(unit)
    assert all((part.astype(jnp.bfloat16) == part).all() for part in parts)
    np.testing.assert_array_equal(sum(np.float64(part) for part in parts), unit)


def test_only_what_chooses_has_less_than_full_precision():
    """A TPU rounds an operand of less to bfloat16. CPUs take no notice, so that numbers cannot show it here."""
    embedding, prototypes, keypoint = example(height=16)
    members = jnp.ones((4, INDEX.total, 3))  # of zeros and ones, as `one_hot` and whether a pixel stands for a keypoint
    labels = Labels(keypoint, jnp.ones(keypoint.shape), jnp.tile(jnp.arange(3), (4, 1)))
    one_slot = jax.tree.map(lambda x: x[..., :1], labels)

    def programs(x):
        slots = comparison.Slots(keypoint, members)
        compared = comparison.compare_each(x, [(prototypes, INDEX)], [slots])
        labelled = comparison.label_similarities(x, prototypes, *slots)
        assigned = assign(labelled, labels, keypoint_index=INDEX, config=PROTOTYPES)
        observed = Observed(x, one_slot, assigned[..., 0], one_slot.confidence[..., 0])
        return compared, labelled, update_prototypes(prototypes, observed, assigned[..., 0], momentum=0.9)

    def total(x):
        return sum(part.sum() for part in jax.tree.leaves(programs(x)[:2]))

    choices = {members.shape, INDEX.one_hot.shape, (4, 16, 5, INDEX.total)}
    rounded = 0
    per_keypoint = prototypes.shape[1]
    # Products of gradients are of the platform's default: a pixel's from each prototype, and before that a label's from
    # its slot, of both functions; and a keypoint's from its dataset.
    for program, of_gradients in ((jax.grad(total), 4 * per_keypoint + 1), (programs, 0)):
        with jax.default_matmul_precision("tensorfloat32"):
            found = list(products(jax.make_jaxpr(program)(embedding)))
        ours = [product for product in found if product[1] != (jax.lax.Precision.HIGH,) * 2]
        assert len(found) - len(ours) == of_gradients
        for operands, precisions in ours:
            for operand, precision in zip(operands, precisions, strict=True):
                if precision != comparison.PRECISE:
                    rounded += 1
                    assert operand.shape in choices or precisions == (comparison.CHOICE,) * 2, (operands, precisions)
    assert rounded > 8


@pytest.mark.parametrize(("keypoints", "passes"), [(256, comparison.CHOICE), (257, comparison.PRECISE)])
def test_numbers_of_keypoints_are_whole_in_bfloat16_up_to_256(keypoints, passes):
    members = jnp.ones((1, keypoints, 1))
    label = jnp.full((1, 1, 1, 1), keypoints - 1)
    ((_, precisions),) = products(jax.make_jaxpr(comparison.pixel_matrix)(label, members))
    assert precisions == (passes, comparison.CHOICE) and float(jnp.bfloat16(256)) == 256
    assert int(comparison.pixel_matrix(label, members).argmax()) == keypoints - 1


def test_bfloat16_embeddings_get_bfloat16_gradients():
    embedding, prototypes, _ = example(4)
    half = embedding.astype(jnp.bfloat16)
    gradient_of = jax.jit(jax.grad(lambda x: comparison.compare(x, prototypes, INDEX).best.sum()))
    gradient, whole = gradient_of(half), gradient_of(half.astype(jnp.float32))
    assert gradient.dtype == jnp.bfloat16
    close(gradient, whole.astype(jnp.bfloat16), rel=0)
