"""What the prediction commands of both methods have in common: flags, progress, files, weights by name."""

from __future__ import annotations

import argparse
import csv
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tqdm

from pose_common.evaluation import draw
from pose_common.prediction.pictures import count_of
from pose_common.prediction.result import Result
from pose_common.training import distributed, restore

HUB = "hf://"
KINDS = ("images", "json", "csv")
COMPILATION_CACHE = "~/.cache/posebh_jax/jax"


def parser(description: str | None, batch_size: int = 16) -> argparse.ArgumentParser:
    """The flags that both commands have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("source", help="a picture, a folder, a pattern such as 'holiday/*.jpg', or a video")
    made.add_argument(
        "--checkpoint", required=True, help="a run, a checkpoint, a folder or file of weights, or hf://owner/name"
    )
    made.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("poses"), help="where results go (default: poses)"
    )
    made.add_argument(
        "--save", default="images,json", help=f"what to write, of {','.join(KINDS)} (default: images,json)"
    )
    made.add_argument("--batch_size", type=int, default=batch_size)
    made.add_argument(
        "--draw_threshold", type=float, default=0.3, help="smallest confidence of a keypoint that is drawn"
    )
    made.add_argument("--debug", action="store_true", help="show errors with their traceback")
    return made


def run(args: argparse.Namespace, predict: Callable[[argparse.Namespace], tuple[str, Iterator[list[Result]]]]) -> int:
    """Predicts, shows progress, writes; returns the exit status.

    Args:
      predict: flags -> (what the weights are, results of every picture, one a skeleton).
    """
    kinds = args.save.split(",")
    try:
        if unknown := set(kinds) - set(KINDS):
            raise ValueError(f"--save={args.save}: {', '.join(sorted(unknown))} is none of {', '.join(KINDS)}")
        if args.batch_size < 1:
            raise ValueError(f"--batch_size={args.batch_size}: expected 1 or more")
        distributed.use_compilation_cache(COMPILATION_CACHE)
        total = count_of(args.source)
        title, results = predict(args)
        print(title)
        pictures, found, seconds = _write(results, args, kinds, total)
    except (ValueError, KeyError, OSError) as error:
        if args.debug:
            raise
        print(f"error: {' '.join(str(error.args[0] if error.args else error).split())}", file=sys.stderr)
        return 1
    rate = pictures / max(seconds, 1e-9)
    print(f"{pictures} pictures, {found} poses, {rate:.2f} pictures a second; results in {args.out}/")
    return 0


def _write(
    results: Iterator[list[Result]], args: argparse.Namespace, kinds: Sequence[str], total: int | None
) -> tuple[int, int, float]:
    args.out.mkdir(parents=True, exist_ok=True)
    entries: dict[str, list[dict[str, Any]]] = {}
    rows: list[dict[str, Any]] = []
    pictures, poses, began = 0, 0, time.perf_counter()
    for number, of_picture in enumerate(tqdm.tqdm(results, total=total, unit="picture", dynamic_ncols=True)):
        for result in of_picture:
            entries.setdefault(result.dataset, []).extend(result.to_coco(image_id=number))
            rows += result.to_rows() if "csv" in kinds else []
            poses += len(result)
            if "images" in kinds:
                suffix = f"_{result.dataset}" if len(of_picture) > 1 else ""
                draw.save_image(args.out / f"{_stem(result.name)}{suffix}.png", result.draw(args.draw_threshold))
        pictures += 1
    if "json" in kinds:
        for dataset, of_dataset in entries.items():
            (args.out / f"poses_{dataset}.json").write_text(json.dumps(of_dataset, indent=1), encoding="utf8")
    if "csv" in kinds and rows:
        with (args.out / "poses.csv").open("w", newline="", encoding="utf8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return pictures, poses, time.perf_counter() - began


def _stem(name: str) -> str:
    return pathlib.PurePath(name).stem or "picture"


def local_path(source: str | pathlib.Path) -> str:
    """`source`, or the folder into which the Hugging Face hub's files of hf://owner/name were brought.

    Raises:
      ValueError: huggingface_hub is not installed, or there is no such repository within reach.
    """
    text = str(source)
    if not text.startswith(HUB):
        return text
    try:
        import huggingface_hub
    except ImportError as error:
        raise ValueError(f"{text}: weights of the hub need huggingface_hub: pip install huggingface_hub") from error
    name = text[len(HUB) :]
    try:
        return huggingface_hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors"])
    except Exception as error:
        raise ValueError(f"{text}: not in the cache, and could not be downloaded: {error}") from error


def saved_configuration(path: str, methods: Sequence[str]) -> dict[str, Any] | None:
    """The configuration of the run whose working directory or checkpoint `path` is; None where it is none."""
    found = restore.find_run(path, methods)
    return found.config if found else None
