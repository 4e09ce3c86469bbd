"""What the prediction commands of both methods have in common: flags, progress, files, weights by name."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import itertools
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from data_pipelines.paths import as_folder, write_whole
from data_pipelines.picture_formats import SUFFIXES
from data_pipelines.synthetic_world.scene import render_scene
from pose_common.console import outlive_console
from pose_common.evaluation import draw
from pose_common.prediction import tracking
from pose_common.prediction.batches import require_batch_size, require_number
from pose_common.prediction.interruption import Interruption
from pose_common.prediction.pictures import Picture
from pose_common.prediction.result import FIELDS, Result
from pose_common.prediction.sources import (
    by_number,
    count_of,
    files_of,
    image_ids,
    refuse_to_replace,
    require_one_clip,
)
from pose_common.prediction.video import video_writer
from pose_common.products import DTYPES
from pose_common.training import distributed, logs
from pose_common.training.processes import one_line
from pose_common.weights.embedded import NOTICE

KINDS = ("images", "json", "csv", "video")
LONGEST_NAME = 240
"""Bytes of a drawing's name: file systems take 255, and a number and the suffix follow."""
COMPILATION_CACHE = "~/.cache/posebh_jax/jax"


def parser(
    description: str | None, batch_size: int = 16, threshold: float | None = None, name: str | None = None
) -> argparse.ArgumentParser:
    """The flags that both commands have, with a method's own defaults; `name` is how the command is started."""
    made = argparse.ArgumentParser(name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "source",
        nargs="*",
        type=os.path.expanduser,
        help="pictures, folders, patterns such as 'holiday/*.jpg', or videos; any number of them",
    )
    made.add_argument("--demo", action="store_true", help="on rendered pictures, with the embedded models")
    made.add_argument(
        "--checkpoint",
        help="a run, a checkpoint, a folder or file of weights, or hf://owner/name; else the embedded model",
    )
    made.add_argument("--out", type=as_folder, default="poses", help="where results go (default: %(default)s)")
    made.add_argument(
        "--save", default="images,json", help=f"what to write, of {','.join(KINDS)} (default: images,json)"
    )
    made.add_argument("--track", action="store_true", help="the same people keep their numbers from frame to frame")
    made.add_argument("--smooth", action="store_true", help="smooth tracked keypoints (One-Euro filter)")
    made.add_argument(
        "--threshold", type=float, default=threshold, help=f"smallest score of a pose (default: {threshold or 'all'})"
    )
    made.add_argument(
        "--batch_size",
        type=int,
        default=batch_size,
        help="crops (BoIR: pictures of one size) that go through the network together (default: %(default)s)",
    )
    made.add_argument("--device", help="where to compute, such as cpu, gpu, cuda:1 (default: the first that JAX has)")
    made.add_argument(
        "--dtype", default="float32", help=f"{' or '.join(DTYPES)}: of the network's products (default: %(default)s)"
    )
    made.add_argument("--draw_threshold", type=float, help="smallest confidence of a keypoint that is drawn")
    made.add_argument("--debug", action="store_true", help="show errors with their traceback")
    return made


def find_device(device: str | jax.Device | None) -> jax.Device | None:
    """The device that a name such as "cpu" or "cuda:1" means; None stays None.

    Raises:
      ValueError: there is none.
    """
    if not isinstance(device, str):
        return device
    platform, _, number = device.partition(":")
    try:
        return jax.devices(platform)[int(number or 0)]
    except (RuntimeError, ValueError, IndexError) as error:
        there = ", ".join(f"{found.platform}:{found.id}" for found in jax.devices())
        raise ValueError(f"device {device!r}: there are {there}") from error


def find_dtype(name: str) -> Any:
    """The dtype of a network's products that a name means.

    Raises:
      ValueError: it is none of `DTYPES`.
    """
    if name not in DTYPES:
        raise ValueError(f"dtype={name!r}: expected {' or '.join(DTYPES)}")
    return jnp.dtype(name)


def run(args: argparse.Namespace, predict: Callable[[argparse.Namespace], tuple[str, Iterator[list[Result]]]]) -> int:
    """Predicts, shows progress, writes; returns the exit status, after a signal 128 and its number.

    Args:
      predict: flags -> (what the weights are, results of every picture, one a skeleton). The errors of pictures that
        it leaves out go to the list `left_out` beside the flags; they are said at the end, and make the status 1. What
        its stages cost, in seconds by name, goes to `costs`.
    """
    args.left_out, args.costs = [], {}
    logs.hide_abandoned_tasks()
    outlive_console()
    with Interruption() as interruption, logging_redirect_tqdm():  # a message has a line of its own
        try:
            status = _run(args, predict, interruption)
        except KeyboardInterrupt:  # before the first picture, or a second signal
            print("interrupted", file=sys.stderr)
    return 128 + interruption.asked if interruption.asked else status


def _run(
    args: argparse.Namespace,
    predict: Callable[[argparse.Namespace], tuple[str, Iterator[list[Result]]]],
    interruption: Interruption,
) -> int:
    kinds = args.save.split(",")
    try:
        if unknown := set(kinds) - set(KINDS):
            raise ValueError(f"--save={args.save}: {', '.join(sorted(unknown))} is none of {', '.join(KINDS)}")
        require_batch_size(args.batch_size)
        for name in ("threshold", "box_threshold", "draw_threshold"):
            if getattr(args, name, None) is not None:  # NaN is a number to the parser
                require_number(f"--{name}", getattr(args, name))
        if bool(args.source) == args.demo:
            raise ValueError("give either pictures, folders, patterns or videos, or --demo")
        distributed.use_compilation_cache(COMPILATION_CACHE)
        if args.demo:
            args.source = rendered_pictures()
        elif len(args.source) == 1:  # alone, what cannot be read is an error
            (args.source,) = args.source
        else:  # the shell puts 10.jpg before 2.jpg, and its patterns overlap
            args.source = files_of(sorted(args.source, key=by_number))
        following = [f"--{name}" for name in ("track", "smooth") if getattr(args, name)]
        for what in [*following, *(["--save=video"] if "video" in kinds else [])]:
            require_one_clip(args.source, what)
        results_named = ["*.png"] * ("images" in kinds) + ["poses*.mp4"] * ("video" in kinds)
        refuse_to_replace(args.source, args.out, results_named)
        total = count_of(args.source)
        title, results = predict(args)
        print(title if args.checkpoint else f"{title}: {NOTICE}")
        if args.track or args.smooth:
            # What is shown by a threshold starts a track; without one, all is.
            weakest = min(tracking.MatchSettings.min_score, math.inf if args.threshold is None else args.threshold)
            results = _tracked(results, args.smooth, tracking.MatchSettings(min_score=weakest))
        pictures, found, seconds = _write(interruption.until(results), args, kinds, total)
    except (ValueError, KeyError, OSError, jax.errors.JaxRuntimeError) as error:
        if args.debug:
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    finally:
        for left_out in args.left_out:
            print(f"left out: {' '.join(str(left_out).split())}", file=sys.stderr)
    rate = pictures / max(seconds, 1e-9)
    for stage, spent in args.costs.items():
        print(f"{stage}: {spent:.1f} s of {seconds:.1f} s, {spent / max(pictures, 1):.2f} s a picture")
    begun = "interrupted after " if interruption.asked else ""
    written = f"results in {args.out}/" if pictures else f"nothing is written; any results in {args.out}/ are older"
    print(f"{begun}{pictures} pictures, {found} poses, {rate:.2f} pictures a second; {written}")
    return 1 if args.left_out else 0


def _write(
    results: Iterator[list[Result]], args: argparse.Namespace, kinds: Sequence[str], total: int | None
) -> tuple[int, int, float]:
    args.out.mkdir(parents=True, exist_ok=True)
    entries: dict[str, list[dict[str, Any]]] = {}
    rows: list[dict[str, Any]] = []
    ids = image_ids(args.source)
    pictures, poses, began = 0, 0, time.perf_counter()
    try:
        with contextlib.ExitStack() as open_files:
            drawings = _Drawings(args, kinds, open_files)
            for of_picture in tqdm.tqdm(results, total=total, unit="picture", dynamic_ncols=True):
                for result in of_picture:
                    path, image_id = result.picture.path, result.picture.image_id
                    if image_id is None:
                        image_id = pictures if path is None else ids.get(path, pictures)
                    entries.setdefault(result.dataset, []).extend(result.to_coco(image_id))
                    rows += result.to_rows() if "csv" in kinds else []
                    poses += len(result)
                drawings.add(of_picture)
                pictures += 1
    finally:  # what was found before an error is kept
        _write_numbers(args.out, kinds, entries, rows)
    return pictures, poses, time.perf_counter() - began


class _Drawings:
    """Writes drawn pictures, each under a name of its own, and a video a skeleton."""

    def __init__(self, args: argparse.Namespace, kinds: Sequence[str], open_files: contextlib.ExitStack):
        self.args, self.kinds, self.open_files = args, kinds, open_files
        self.taken: dict[str, int] = {}
        self.videos: dict[str, Callable[[np.ndarray, float | None], None]] = {}

    def add(self, of_picture: Sequence[Result]) -> None:
        """One picture's results."""
        if not {"images", "video"} & set(self.kinds):
            return
        for result in of_picture:
            drawn = result.draw(self.args.draw_threshold)
            suffix = f"_{result.dataset}" if len(of_picture) > 1 else ""
            if "images" in self.kinds:
                draw.save_image(self.args.out / f"{self._free(_file_name(result.name, suffix))}.png", drawn)
            if "video" in self.kinds:
                if result.dataset not in self.videos:
                    writer = video_writer(self.args.out / f"poses{suffix}.mp4")
                    self.videos[result.dataset] = self.open_files.enter_context(writer)
                try:
                    self.videos[result.dataset](drawn, result.picture.time)
                except ValueError as error:  # of another size than the first
                    raise ValueError(f"--save=video: {result.name}: {error}") from error

    def _free(self, name: str) -> str:
        """`name`, with a number where another picture of this run has it (a.jpg and a.png)."""
        free, count = name, self.taken.get(name, 1)
        while free in self.taken:
            count += 1
            free = f"{name}_{count}"
        self.taken |= {name: count, free: 1} if free != name else {name: 1}
        return free


def _write_numbers(
    folder: pathlib.Path, kinds: Sequence[str], entries: dict[str, list[dict[str, Any]]], rows: list[dict[str, Any]]
) -> None:
    if "json" in kinds:
        for dataset, of_dataset in entries.items():
            write_whole(folder / f"poses_{dataset}.json", json.dumps(of_dataset, indent=1))
    if "csv" in kinds and entries:  # also where nobody was found, or that of another run would stay
        # A file's name may be no UTF-8; it is written as in the JSON file.
        with io.StringIO(newline="") as file:
            table = csv.DictWriter(file, FIELDS, restval="")
            table.writeheader()
            table.writerows(rows)
            write_whole(folder / "poses.csv", file.getvalue().encode(errors="backslashreplace"))


def _tracked(
    results: Iterator[list[Result]], smoothed: bool, settings: tracking.MatchSettings
) -> Iterator[list[Result]]:
    """Identities (and smooth keypoints), for each skeleton on its own."""
    first = next(results, None)
    if first is None:
        return
    copies = itertools.tee(itertools.chain([first], results), len(first))

    def of(number: int) -> Iterator[Result]:
        found = tracking.track((of_picture[number] for of_picture in copies[number]), settings)
        return tracking.smooth(found) if smoothed else found

    yield from (list(group) for group in zip(*map(of, range(len(first))), strict=True))


def rendered_pictures(count: int = 6) -> list[Picture]:
    """Crowds of the synthetic world, none of which is in a training set."""
    scenes = (render_scene("crowd", (2026,), index).image for index in range(count))
    return [Picture(f"rendered_{number}.png", image) for number, image in enumerate(scenes)]


def _file_name(picture: str, suffix: str) -> str:
    """What the drawing of a picture of this name is called, without `.png`; a long one loses its middle."""
    path = pathlib.PurePath(picture)  # a frame's name has no suffix, but may have a point
    last = path.stem if path.suffix.lower() in SUFFIXES else path.name
    name = "_".join([*path.parts[:-1], last]) or "picture"
    while len(os.fsencode(name + suffix)) > LONGEST_NAME:  # what tells names apart is at an end, such as a number
        name = name[: len(name) // 2] + name[len(name) // 2 + 1 :]
    return name + suffix
