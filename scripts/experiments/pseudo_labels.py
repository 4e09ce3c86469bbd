"""How good are the labels that cross-type supervision makes? (PoseBH, section 3.4)

    python -m scripts.experiments.pseudo_labels --out=docs/results --seeds=2

The multi-head model and the first stage of `scripts.experiments.posebh`, then the pseudo labels of validation crops:
how many keypoints of other skeletons are chosen; how often head, prototype map and the label made of both are right,
where truth is known; and how many are chosen on figures that do not have them (people's keypoints on animals).
"""

from __future__ import annotations

import argparse
import functools
import logging
import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from pose_common import heatmaps
from pose_common.images import normalise_pixels
from pose_common.training import logs
from pose_common.training.state import TrainState
from posebh_jax.comparison import best_similarities
from posebh_jax.losses.cross_type import pseudo_labels
from posebh_jax.method import BANK, PoseBHMethod
from posebh_jax.prototypes import prototype_heatmaps
from scripts.experiments import lines, posebh
from scripts.experiments.training import Clock, Judged, Trainer, pck, starts

NAME = "pseudo_labels"


@functools.partial(jax.jit, static_argnums=0)
def see(method: PoseBHMethod, weights, image, inverse_warp, dataset) -> dict[str, jax.Array]:
    """{"head", "prototypes", "label": [B, T, 3]}: x, y in image pixels; peaks, and of labels their weight."""
    variables = {"params": weights["params"], "batch_stats": weights["batch_stats"]}
    run = functools.partial(method.model.apply, variables)
    features = run(normalise_pixels(image), dataset, method="features")
    heads = run(features, method="heatmaps")
    best = best_similarities(run(features, method="embed"), weights["prototypes"][BANK])
    maps = prototype_heatmaps(best)
    made = pseudo_labels(heads, maps, dataset, method.keypoint_index, method.losses)
    size = {"input_size": method.input_size, "heatmap_size": method.heatmap_size}
    place = heatmaps.to_image(heatmaps.to_crop(made.position, True, **size), inverse_warp)
    decoded = {"udp": True, "input_size": method.input_size, "kernel": method.losses.cross_type_kernel}
    return {
        "head": heatmaps.decode(heads, inverse_warp, **decoded),
        "prototypes": heatmaps.decode(maps, inverse_warp, **decoded),
        "label": jnp.concatenate([place, made.weight[..., None]], axis=-1),
    }


def figures(method: PoseBHMethod, state: TrainState, pictures: Mapping[str, posebh.Pictures]) -> dict[str, float]:
    """Percent, over all keypoints of other skeletons: `chosen` of them; of the chosen, PCK@0.1 of each source."""
    place = starts(method.datasets)
    hits: dict[str, list[np.ndarray]] = {}
    for number, dataset in enumerate(method.datasets):
        crops: Judged = pictures[dataset.name].crops
        found = see_all(method, state, crops, number)
        for head in (head for head in place if head != dataset.name):
            truth = pictures[dataset.name].truth.get(head)
            kind = "people" if dataset.name in posebh.PEOPLE else "animals"
            if truth is None:
                chosen = found["label"][:, place[head], 2] > 0
                hits.setdefault(f"{kind}, other kind's keypoints/chosen", []).append(chosen.reshape(-1))
                continue
            for name, values in hits_of(found, place[head], truth, crops.size).items():
                hits.setdefault(f"{kind}/{name}", []).append(values)
    return {name: percent_of(values) for name, values in hits.items()}


def see_all(method: PoseBHMethod, state: TrainState, crops: Judged, dataset: int) -> dict[str, np.ndarray]:
    """`see` of crops that go as a dataset's."""
    which = jnp.full(len(crops.image), dataset)
    found = see(method, state.weights, crops.image, crops.inverse_warp, which)
    return {name: np.asarray(value) for name, value in found.items()}


def hits_of(
    found: Mapping[str, np.ndarray], keypoints: slice | np.ndarray, truth: np.ndarray, size: np.ndarray
) -> dict[str, np.ndarray]:
    """Of some keypoints whose truth is known, whether each is `chosen`; of these, whether each source is right.

    Args:
      found: see `see_all`.
      keypoints: which of all.
      truth, size: see `pck`.
    """
    chosen = found["label"][:, keypoints, 2] > 0
    hits = {"chosen": chosen[truth[..., 2] > 0]}
    for source, points in found.items():
        right, labelled = pck(points[:, keypoints], truth, size)
        hits[source] = right[chosen & labelled]
    return hits


def percent_of(hits: Sequence[np.ndarray]) -> float:
    """The share of all hits, percent; NaN where there is nothing to hit."""
    every = np.concatenate(hits)
    return 100 * float(every.mean()) if every.size else float("nan")


def run(out: pathlib.Path, data: pathlib.Path, seed: int, trainer: Trainer) -> None:
    """One seed, a line."""
    path, size = out / f"{NAME}.jsonl", posebh.Size()
    if lines.find(lines.read(path), arm=posebh.FIRST_STAGE, seed=seed):
        return
    one, method, clock = posebh.Seed(out, size, trainer, seed, data), trainer.method(), Clock()
    base, _ = trainer.train(method, trainer.init(method, seed), posebh.MULTI_HEAD, one.data(0), size.base, clock)
    contrast = trainer.method(**posebh.FIRST_LOSSES)
    state, _ = trainer.train(contrast, base, posebh.FIRST, one.data(1), size.first, clock)
    found = {name: round(value, 3) for name, value in figures(method, state, one.pictures).items()}
    row = {"arm": posebh.FIRST_STAGE, "seed": seed, "steps": size.base + size.first, "seconds": round(clock.seconds, 1)}
    lines.append(path, row | {"figures": found})
    logging.info("seed %d: %s", seed, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="lines and table")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("workdir/experiments"), help="pictures")
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    logs.start_logging()
    trainer = Trainer(posebh.configuration(), posebh.MULTI_HEAD)
    for seed in range(args.seeds):
        run(args.out, args.data, seed, trainer)
    rows = lines.read(args.out / f"{NAME}.jsonl")
    table = [("percent", "mean over seeds")]
    table += [(name, lines.mean(rows, name, posebh.FIRST_STAGE)) for name in rows[0]["figures"]]
    (args.out / f"{NAME}.md").write_text(lines.markdown(table), encoding="utf8")


if __name__ == "__main__":
    main()
