"""Time and memory of PoseBH's prototype, cluster and cross-type terms, alone, on the present device.

    python -m scripts.benchmarks.prototypes --batch=64

Each line is the compiled value and gradient of one set of terms (gradient to embedding and heads), at the sizes of the
paper unless told otherwise: six datasets, 214 keypoints with 3 prototypes in 64 dimensions, maps of 48 x 64.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from pose_common import host_memory
from pose_common.evaluation import result_table as tables
from pose_common.heatmaps import encode
from pose_common.training import configuration
from posebh_jax.clusters import ClusterBank
from posebh_jax.comparison import compare_each
from posebh_jax.keypoint_index import KeypointIndex
from posebh_jax.losses.cluster import cluster_slots, cluster_terms
from posebh_jax.losses.cross_type import cross_type_terms
from posebh_jax.losses.heatmap import head_terms
from posebh_jax.losses.prototype import prototype_terms
from posebh_jax.prototypes import PrototypeConfig, gumbel_noise, init_prototypes, own_slots, update_prototypes
from scripts.benchmarks.boir_losses import median_seconds

RELEASED = configuration.read("mdt")
PAPER_COUNTS = (17, 14, 16, 17, 17, 133)


def example_inputs(keypoint_index: KeypointIndex, batch: int, heatmap_size: tuple[int, int], dim: int = 64) -> dict:
    """Random embeddings; heads that resemble Gaussians at random keypoints of every skeleton."""
    keys = jax.random.split(jax.random.key(0), 6)
    width, height = heatmap_size
    at = jax.random.uniform(keys[0], (batch, keypoint_index.total, 2)) * jnp.array([width - 1, height - 1])
    maps, _ = encode(
        at,
        jnp.ones(at.shape[:2]),
        True,
        input_size=heatmap_size,
        heatmap_size=heatmap_size,
        sigma=RELEASED.heatmap_sigma,
    )
    dataset = jax.random.randint(keys[1], (batch,), 0, keypoint_index.num_datasets)
    weights = keypoint_index.own(dataset).astype(jnp.float32)
    return {
        "embedding": jax.random.normal(keys[2], (batch, height, width, dim)),
        "heads": 0.8 * maps,
        "targets": maps * weights[:, None, None, :],
        "weights": weights,
        "dataset": dataset,
        "prototypes": init_prototypes(keys[3], keypoint_index.total, 3, dim),
        "noise": gumbel_noise(jax.random.split(keys[4], batch), height, width, 3),
    }


def terms_by_name(keypoint_index: KeypointIndex, config: PrototypeConfig, clusters: int) -> dict[str, Callable]:
    """Name -> function of (embedding, heads, inputs) that returns losses and auxiliary values."""

    def heads(embedding, maps, x, compared):
        return {"heads": head_terms(maps, x["targets"], x["weights"], keypoint_index=keypoint_index).sum()}, {}

    def prototype(embedding, maps, x, compared, noise=None):
        own = x["targets"], x["weights"], x["dataset"]
        found, similarity = compared["prototypes"]
        losses, aux, observed = prototype_terms(
            embedding, found, *own, x["prototypes"], keypoint_index=keypoint_index, config=config, similarity=similarity
        )
        if noise is not None:
            aux["prototypes"], _ = update_prototypes(x["prototypes"], observed, noise, momentum=config.momentum)
        return losses, aux

    def moving(embedding, maps, x, compared):
        return prototype(embedding, maps, x, compared, noise=x["noise"])

    def cluster(embedding, maps, x, compared):
        labels = x["targets"], x["weights"]
        found, similarity = compared["clusters"]
        return cluster_terms(embedding, *labels, bank_of(x), config=config, compared=found, similarity=similarity)

    def cross_type(embedding, maps, x, compared):
        found, whose = compared["prototypes"][0], {"keypoint_index": keypoint_index, "config": config}
        return cross_type_terms(embedding, maps, found, x["dataset"], x["prototypes"], **whose)

    def bank_of(x):
        return ClusterBank(x["prototypes"][:clusters], jnp.arange(clusters))

    def made_of(*parts):
        def terms(embedding, maps, x):
            banks, slots = {}, []
            if set(parts) - {heads, cluster}:
                banks["prototypes"] = x["prototypes"], keypoint_index
                own = own_slots(x["targets"], x["dataset"], config.label_threshold, keypoint_index)
                slots.append(own if {moving, prototype} & set(parts) else None)
            if cluster in parts:
                banks["clusters"] = bank_of(x).prototypes, bank_of(x).keypoint_index
                slots.append(cluster_slots(x["targets"], bank_of(x), config))
            found = zip(*compare_each(embedding, list(banks.values()), slots), strict=True) if banks else []
            compared = dict(zip(banks, found, strict=True))
            losses, aux = {}, []
            for part in parts:
                found, extra = part(embedding, maps, x, compared)
                losses |= found
                aux.append(extra)
            return losses, aux

        return terms

    return {
        "heads alone": made_of(heads),
        "prototype terms, prototypes moving": made_of(moving),
        "prototype terms, prototypes frozen": made_of(prototype),
        "cluster terms": made_of(cluster),
        "cross-type terms": made_of(cross_type),
        "stage 2: heads, prototype, cluster, cross-type": made_of(heads, prototype, cluster, cross_type),
    }


def measure(terms: Callable, inputs: dict, repeats: int) -> tuple[float, float]:
    """Median seconds of a call, and the compiled program's temporary memory in MiB."""

    def total(embedding, heads, rest):
        losses, aux = terms(embedding, heads, rest)
        return sum(losses.values()), aux

    rest = dict(inputs)
    args = rest.pop("embedding"), rest.pop("heads"), rest
    step = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True)).lower(*args).compile()
    memory = step.memory_analysis().temp_size_in_bytes / 2**20
    return median_seconds(lambda: jax.block_until_ready(step(*args)), repeats), memory


def run(counts: Sequence[int], batch: int, heatmap_size: tuple[int, int], clusters: int, repeats: int) -> list[dict]:
    """Rows of the table."""
    keypoint_index = KeypointIndex(tuple(counts))
    inputs = example_inputs(keypoint_index, batch, heatmap_size)
    config = PrototypeConfig(**RELEASED.losses)
    rows = []
    for name, terms in terms_by_name(keypoint_index, config, min(clusters, keypoint_index.total)).items():
        seconds, memory = measure(terms, inputs, repeats)
        rows.append({"terms": name, "batch": batch, "ms": round(1e3 * seconds, 2), "temporary MiB": round(memory)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="images on this device")
    parser.add_argument("--counts", type=int, nargs="+", default=PAPER_COUNTS, help="keypoints per dataset")
    parser.add_argument("--heatmap_size", type=int, nargs=2, default=(48, 64), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--clusters", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    host_memory.keep()
    rows = run(args.counts, args.batch, tuple(args.heatmap_size), args.clusters, args.repeats)
    width, height = args.heatmap_size
    largest = args.batch * width * height * sum(args.counts) * 3 * 4 / 2**20
    tables.show(rows, title=f"{jax.devices()[0].device_kind}; all similarities are {largest:.0f} MiB")


if __name__ == "__main__":
    main()
