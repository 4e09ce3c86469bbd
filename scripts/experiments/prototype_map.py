"""A picture of the prototypes of all skeletons: do the left shoulders meet?

    python -m scripts.experiments.prototype_map workdir/demo --out=map.png

Of a run, a checkpoint of it, or weights: similarities of all keypoints to each other, ordered by their names, and a
plane in which near keypoints are similar ones (classical scaling of 1 - similarity), namesakes of different skeletons
joined. Several arguments give several rows.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.datasets import find_dataset
from posebh_jax import sources
from posebh_jax.same_keypoints import keypoint_similarity, retrieval, same_name

MOST_NAMES = 90
"""Keypoints of a matrix that are named at its side; of more they would lie on each other."""


def plane(similarity: np.ndarray) -> np.ndarray:
    """[T, 2]: classical scaling of the distances 1 - similarity [T, T]."""
    centre = np.eye(len(similarity)) - 1 / len(similarity)
    product = -0.5 * centre @ np.square(1 - similarity) @ centre
    values, vectors = np.linalg.eigh(product)
    return vectors[:, :-3:-1] * np.sqrt(np.maximum(values[:-3:-1], 0.0))


def draw(path: pathlib.Path, banks: Mapping[str, np.ndarray], skeletons: Mapping[str, Sequence[str]]) -> None:
    """A row a bank.

    Args:
      path: of the picture.
      banks: {title: prototypes [T, M, D]}.
      skeletons: {dataset: its keypoints' names}, in the banks' order.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [same_name(name) for keypoints in skeletons.values() for name in keypoints]
    owners = [dataset for dataset, keypoints in skeletons.items() for _ in keypoints]
    order = np.argsort(np.asarray(names), kind="stable")
    shared = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    figure, axes = plt.subplots(len(banks), 2, figsize=(12, 5.6 * len(banks)), squeeze=False)
    for (left, right), (title, bank) in zip(axes, banks.items(), strict=True):
        similarity = keypoint_similarity(np.asarray(bank, np.float64))
        found = retrieval(bank, list(skeletons.values()))
        said = f"{title}: namesakes' MRR {found['same_name_mrr']:.2f}" if found else title
        left.imshow(similarity[np.ix_(order, order)], cmap="magma", vmin=0, vmax=1)
        left.set_title(f"{said} (chance {found['same_name_chance']:.2f})" if found else said, fontsize=9, loc="left")
        readable = [names[k] for k in order] if len(order) <= MOST_NAMES else [""] * len(order)
        left.set_yticks(range(len(order)), readable, fontsize=4)
        left.set_xticks([])
        points = plane(similarity)
        for name in shared:
            same = [k for k, other in enumerate(names) if other == name]
            for one, other in itertools.combinations(same, 2):
                right.plot(*points[[one, other]].T, color="0.8", linewidth=0.6, zorder=1)
            right.text(*points[same].mean(axis=0), name, fontsize=6, ha="center", zorder=3)
        for number, dataset in enumerate(skeletons):
            rows = [k for k, owner in enumerate(owners) if owner == dataset]
            colour = plt.get_cmap("tab10")(number % 10)
            right.scatter(*points[rows].T, s=14, color=colour, label=dataset, zorder=2)
        right.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        right.set_xticks([]), right.set_yticks([])
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("weights", nargs="+", help="runs, checkpoints or files with prototypes of the same skeletons")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the picture")
    parser.add_argument("--data_dir", default="data", help="where datasets of one's own are defined")
    args = parser.parse_args()
    banks, skeletons = {}, {}
    for source in args.weights:
        conversion = sources.read(source)
        if "bank" not in conversion.weights["prototypes"]:
            parser.error(f"{source} has no prototypes; give weights of PoseBH")
        found = {
            name: find_dataset(name, args.data_dir).keypoints.keypoints for name, _ in conversion.manifest["datasets"]
        }
        if skeletons and found != skeletons:
            parser.error(f"{source} has the skeletons {list(found)}, not {list(skeletons)}; draw it on its own")
        banks[source], skeletons = conversion.weights["prototypes"]["bank"], found
    draw(args.out, banks, skeletons)


if __name__ == "__main__":
    main()
