"""Prepares a downloaded dataset: checks every picture and annotation and writes them as ArrayRecord.

    python -m scripts.prepare_data coco --raw_dir=/datasets                      # every split that is there
    python -m scripts.prepare_data ap10k --raw_dir=/datasets --split=val-split1  # one split
    python -m scripts.prepare_data coco --split=val --annotations=test_coco.json --images=pictures/
    python -m scripts.prepare_data synthetic_coco                                # rendered: needs no download
    python -m scripts.prepare_data custom --name=mine --annotations=my.json --images=pictures/  # a custom one
    python -m scripts.prepare_data custom --name=mouse --annotations=openfield --val_share=0.2  # of a label tool

`--raw_dir` is the folder of all downloads or the dataset's own; docs/datasets.md has every layout. Broken
entries are left out and reported with file and id, in the output and in `summary.json` beside the records;
`--strict` stops at the first instead. Finished splits are kept as they are (`--overwrite` makes them again),
so the command can be repeated after an interruption.

The exit status is 1 if a split could not be prepared, also because nobody in it can be learned from or judged, and 3 if
under half of its people can; `--allow_loss` takes both as they are.
"""

from __future__ import annotations

import argparse
import datetime
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import rich.box
import rich.console
import rich.markup
import rich.table

from data_pipelines import importers, orientation, records
from data_pipelines.builders import BUILDERS
from data_pipelines.builders.coco_format import CocoFormatBuilder
from data_pipelines.builders.custom import METRICS, Custom, SkeletonOptions, require_defined
from data_pipelines.builders.report import NoAnnotations, RawDataError
from data_pipelines.builders.summary import advice, finished_splits, read_summary
from data_pipelines.paths import as_folder
from pose_common.console import outlive_console

_SHOWN_CASES = 3
HEAVY_LOSS = 3
"""The exit status where all was prepared, but under half of the people of a split are usable."""
_CUSTOM_OPTIONS = ("name", "format", "val_share", "keypoints", "sigmas", "mirror", "upper_body", "metric")
_COLUMNS = {  # heading -> entry of the summary
    "images": "images",
    "empty": "images_without_instances",
    "instances": "instances",
    "crowds": "crowds",
    "unlabelled": "without_keypoints",
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; exits with a message where arguments do not fit together."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.prepare_data",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("dataset", choices=sorted(BUILDERS), metavar="dataset", help=", ".join(sorted(BUILDERS)))
    parser.add_argument("--raw_dir", type=os.path.expanduser, help="folder of all downloads, or the dataset's own")
    parser.add_argument(
        "--data_dir", type=as_folder, default="data", help="where prepared datasets lie (default: %(default)s)"
    )
    parser.add_argument("--split", action="append", help="a split to prepare; may be repeated (default: all found)")
    parser.add_argument(
        "--annotations", type=os.path.expanduser, help="this split's annotation file, if it is elsewhere"
    )
    parser.add_argument("--images", type=os.path.expanduser, help="this split's picture folder, if it is elsewhere")
    _add_custom_options(parser)
    parser.add_argument("--strict", action="store_true", help="stop at the first broken entry")
    parser.add_argument("--decode", action="store_true", help="also decode every picture (slower)")
    parser.add_argument(
        "--orientation",
        choices=orientation.CHOICES,
        help="how pictures are read: as stored, or turned upright by their EXIF orientation\n"
        "(default: as stored; of one's own as the annotated sizes tell)",
    )
    parser.add_argument(
        "--allow_loss", action="store_true", help="no error if under half of the people, or nobody, is usable"
    )
    parser.add_argument(
        "--seed", type=int, help="of rendered pictures (default: their own), or of --val_share (default: 0)"
    )
    parser.add_argument("--overwrite", action="store_true", help="make finished splits again")
    args = parser.parse_args(argv)
    for split in args.split or ():
        if "/" in split or not any(map(str.isalnum, split)):
            parser.error(f"--split={split}: the name of a folder is needed, such as val")
    if args.dataset == Custom.dataset:
        _check_custom(parser, args)
    elif unfit := [name for name in _CUSTOM_OPTIONS if getattr(args, name) is not None]:
        parser.error(f"--{unfit[0]} is for custom datasets: `custom`")
    elif _reads_files(args) and args.raw_dir is None and not (args.annotations and args.images):
        parser.error("give --raw_dir, or both --annotations and --images")
    if not _reads_files(args) and (args.seed or 0) < 0:
        parser.error(f"--seed={args.seed}: pictures are rendered by a number from 0")
    if not _reads_files(args) and (args.raw_dir or args.annotations or args.images):
        parser.error(f"{args.dataset} is rendered: it takes no --raw_dir, --annotations or --images")
    if args.seed is not None and _reads_files(args) and args.val_share is None:
        parser.error("--seed is of rendered pictures, or of the choice by --val_share")
    if args.dataset != Custom.dataset and (args.annotations or args.images) and len(args.split or ()) != 1:
        parser.error("--annotations and --images belong to one split: give --split once")
    return args


def _check_custom(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exits with a message where the arguments of a custom dataset do not fit together."""
    if not (args.name and args.annotations) or args.raw_dir:
        parser.error("a custom dataset needs --name and --annotations, a file or a folder, and no --raw_dir")
    if args.val_share is not None and args.split:
        parser.error("--val_share makes the splits train and val: leave --split out")
    if args.val_share is not None and not 0 < args.val_share < 1:
        parser.error(f"--val_share={args.val_share:g}: a share between 0 and 1 is needed, such as 0.2")


def _add_custom_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "custom", "labels with a skeleton of their own, in COCO's format or a label tool's"
    )
    group.add_argument("--name", help="the new dataset's name: letters, digits, underscores")
    group.add_argument("--format", choices=sorted(importers.FORMATS), help="of --annotations (default: recognised)")
    group.add_argument("--val_share", type=float, help="split these pictures in two: 0.2 are val, the others train")
    group.add_argument("--keypoints", type=_words, help="names in order, if the labels do not say them: a,b,c")
    group.add_argument("--sigmas", type=_numbers, help="for OKS: one number, or one a keypoint: 0.03,0.05,...")
    group.add_argument(
        "--mirror", type=_pairs, help="names that a mirror image exchanges: a:b,c:d (default: by left, right)"
    )
    group.add_argument(
        "--upper_body", type=_words, help="keypoints of the upper body, for the half-body augmentation (default: none)"
    )
    group.add_argument("--metric", choices=METRICS, help="coco (AP, AR by OKS; default) or hand (PCK, AUC, EPE)")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in _words(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers, 0.03,0.05") from None


def _pairs(text: str) -> list[tuple[str, str]]:
    pairs = [tuple(name.strip() for name in word.split(":")) for word in _words(text)]
    if any(len(pair) != 2 for pair in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not pairs of names, a:b,c:d")
    return pairs


def prepare_splits(args: argparse.Namespace) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Prepares the splits asked for: ({split: summary}, {split: what went wrong})."""
    summaries: dict[str, dict[str, Any]] = {}
    errors: dict[str, str] = {}
    missing: dict[str, str] = {}
    try:
        splits = _splits(args)
        if args.dataset == Custom.dataset:
            _check_definition(args)
            _check_others(args, splits)
    except RawDataError as error:
        return {}, {"": str(error)}
    for split in splits:  # all of them before one is written: new parts may have pictures in common with finished ones
        try:
            _check_finished(args, split)
        except RawDataError as error:
            errors[split] = str(error)
    if errors:
        return {}, errors
    for split in splits:
        try:
            summaries[split] = _prepare_split(args, split)
        except NoAnnotations as error:
            missing[split] = str(error)
        except (RawDataError, OSError) as error:
            errors[split] = str(error)
    # Of the splits that a dataset may have, a user downloads some; asked for by name, a split must be there. Those of
    # one's own were named by its file, as label tools do also of splits that are empty.
    if args.split or not (summaries or errors):
        return summaries, errors | missing
    for split, error in missing.items() if args.dataset == Custom.dataset else ():
        print(f"{_name(args)} ({split}) is left out: {error}", file=sys.stderr)
    return summaries, errors


def _splits(args: argparse.Namespace) -> Sequence[str]:
    """The splits to prepare: those asked for, or of a label tool's files those that they have, or else train."""
    if args.dataset != Custom.dataset:
        return args.split or BUILDERS[args.dataset].splits
    if args.val_share is not None:
        return "train", "val"
    own = importers.own_splits(args.annotations, args.format)
    if len(args.split or ()) > 1 and not own:
        raise RawDataError("--annotations belong to one split: give --split once, or --val_share to make two of them")
    return args.split or own or ("train",)


def print_summaries(dataset: str, summaries: dict[str, dict[str, Any]]) -> None:
    """One table for all splits; below it what was dropped or is unusual, by reason, with the first cases."""
    # A width of its own, or rich would cut the columns to a terminal's, which it takes for 80 letters in a log.
    console = rich.console.Console(width=160, soft_wrap=True, highlight=False)
    table = rich.table.Table(title=dataset, box=rich.box.SIMPLE, caption="dropped: images / instances")
    for name in ("split", *_COLUMNS, "usable", "dropped", "MB"):
        table.add_column(name, justify="left" if name == "split" else "right", no_wrap=True)
    for split, summary in summaries.items():
        dropped = [str(sum(tally["count"] for tally in tallies.values())) for tallies in summary["dropped"].values()]
        table.add_row(
            split,
            *(str(summary[key]) for key in _COLUMNS.values()),
            str(summary.get("usable", {}).get("training", "-")),
            " / ".join(dropped),
            f"{summary['bytes'] / 1e6:.1f}",
        )
    console.print(table)
    for split, summary in summaries.items():
        for line in _cases(split, summary["dropped"] | {"remarks": summary["remarks"]}):
            console.print(rich.markup.escape(line))
        for line in _findings(summary):
            console.print(rich.markup.escape(f"{split}: {line}"))
    console.print("All cases are in summary.json beside the records.")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    outlive_console()
    args = parse_args(argv)
    summaries, errors = prepare_splits(args)
    if summaries:
        print_summaries(_name(args), summaries)
    for split, error in errors.items():
        print(f"{_name(args)}{f' ({split})' if split else ''} was not prepared: {error}", file=sys.stderr)
    lossy = [split for split, summary in summaries.items() if summary.get("usable", {}).get("heavy_loss")]
    for split in () if args.allow_loss else lossy:
        print(
            f"{_name(args)} ({split}): under half of the people are usable (--allow_loss accepts it)", file=sys.stderr
        )
    return 1 if errors else HEAVY_LOSS if lossy and not args.allow_loss else 0


def _findings(summary: dict[str, Any]) -> list[str]:
    """Lines on the whole split: who is usable, what a mirror exchanges, what of it is odd, the metadata."""
    lines = []
    usable = summary.get("usable")
    if usable == {}:
        lines.append("pictures without annotations: nothing to learn from or to judge by")
    if usable:
        why = ", ".join(f"{reason} {count}" for reason, count in usable["left_out"].items())
        lines.append(
            f"of {usable['annotated']} people, {usable['training']} can be learned from and "
            f"{usable['evaluation']} judged"
            + (f"; kept but left out: {why}" if why else "")
            + advice(usable["left_out"])
        )
    if pairs := summary.get("mirror_pairs"):
        lines.append(f"mirror pairs: {', '.join(pairs)}")
    if odd := summary.get("mirror_pairs_against_names"):
        lines.append(f"mirror pairs that their names say otherwise: {', '.join(odd)}")
    if unpaired := summary.get("unpaired_sides"):
        lines.append(f"no counterpart in the mirror: {', '.join(unpaired)}")
    return [*lines, *(f"{key}: {value}" for key, value in summary["metadata"].items())]


def _cases(split: str, report: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What was dropped or is unusual (`Report.as_dict`), by reason, with the first cases."""
    headings = {"images": "dropped images", "instances": "dropped instances", "remarks": "remark"}
    return [
        line
        for kind, heading in headings.items()
        for reason, tally in report[kind].items()
        for line in (
            f"{split}: {heading}: {reason}: {tally['count']}",
            *map(_case, tally["examples"][:_SHOWN_CASES]),
        )
    ]


def _case(example: dict[str, Any]) -> str:
    where = [example["file"]]
    if example["id"] not in (None, ""):
        where.append(example["id"] if isinstance(example["id"], str) else f"id {example['id']}")
    return f"    {', '.join(where)}" + (f": {example['detail']}" if example["detail"] else "")


def _is_finished(args: argparse.Namespace, split: str) -> bool:
    return records.is_prepared(_name(args), split, args.data_dir) and not args.overwrite


def _check_finished(args: argparse.Namespace, split: str) -> None:
    """Raises RawDataError for a finished split that was made otherwise than is asked for now."""
    if not _is_finished(args, split):
        return
    directory = records.split_dir(_name(args), split, args.data_dir)
    summary = read_summary(directory)
    read_as = summary.get("orientation", orientation.STORED)
    if args.orientation not in (None, read_as):
        raise RawDataError(f"{directory} is prepared with --orientation={read_as}; --overwrite makes it again")
    # Two parts of different choices would have pictures in common.
    part, share = _val_share(args), summary.get("source", {}).get("val_share")
    if part is not None and str(part) != share:
        how = f"with {share}" if share else "without --val_share"
        raise RawDataError(f"{directory} is prepared {how}; --overwrite makes it again")
    rendered_with = summary.get("source", {}).get("seed")
    if rendered_with is not None and args.seed not in (None, int(rendered_with)):
        raise RawDataError(f"{directory} is rendered with --seed={rendered_with}; --overwrite makes it again")


def _check_definition(args: argparse.Namespace) -> None:
    """Raises RawDataError for options that would change the figures of a custom dataset's finished splits unasked."""
    if not args.overwrite and finished_splits(args.name, args.data_dir):
        require_defined(args.name, args.data_dir, _options(args))


def _check_others(args: argparse.Namespace, splits: Sequence[str]) -> None:
    """Raises RawDataError for another finished split that shares out the same labels otherwise: for common pictures."""
    asked = "" if args.val_share is None else str(_val_share(args))
    ours = pathlib.Path(args.annotations).resolve()
    for split, summary in finished_splits(args.name, args.data_dir).items():
        theirs, share = pathlib.Path(summary["source"]["annotations"]).resolve(), summary["source"].get("val_share", "")
        same = ours.is_relative_to(theirs) or theirs.is_relative_to(ours)  # a folder, or the file of labels in it
        if split not in splits and same and share != asked:
            directory = records.split_dir(args.name, split, args.data_dir)
            made = f"with {share}" if share else "without --val_share"
            raise RawDataError(
                f"{directory} is made of the same labels {made} and could have the same pictures; give the same here,"
                " or remove that folder"
            )


def _options(args: argparse.Namespace) -> SkeletonOptions:
    return SkeletonOptions(args.keypoints, args.sigmas, args.mirror, args.upper_body, args.metric)


def _prepare_split(args: argparse.Namespace, split: str) -> dict[str, Any]:
    if _is_finished(args, split):
        directory = records.split_dir(_name(args), split, args.data_dir)
        summary = read_summary(directory)
        source = summary["source"].get("annotations")
        made = f", made of {source}" if source else ""
        print(f"{_name(args)} ({split}) is finished already{made}: {directory} (--overwrite makes it again)")
        if source and (outdated := _outdated(source, summary.get("prepared"), args.annotations)):
            print(f"{_name(args)} ({split}) is kept as it was: {outdated}; --overwrite takes it in", file=sys.stderr)
        return summary
    files = {"annotations": args.annotations, "images": args.images}
    if args.dataset == Custom.dataset:
        special = files | {"dataset": args.name, "options": _options(args), "format": args.format}
        special["val_share"] = _val_share(args)
    else:
        special = files | {"raw_dir": args.raw_dir} if _reads_files(args) else {"seed": args.seed}
    builder = BUILDERS[args.dataset](
        split,
        data_dir=args.data_dir,
        strict=args.strict,
        decode=args.decode,
        orientation=args.orientation,
        allow_loss=args.allow_loss,
        **special,
    )
    try:
        return builder.prepare(overwrite=args.overwrite)
    except (RawDataError, OSError):
        # The summary that would have them is not written.
        for line in _cases(split, builder.report.as_dict()):
            print(line, file=sys.stderr)
        raise


def _outdated(source: str, prepared: str | None, asked: str | None) -> str:
    """What a finished split, made of `source` at that time (older ones do not say it), does not have, or ''."""
    if asked and os.path.realpath(asked) != os.path.realpath(source):
        return f"{asked} is other labels"
    if prepared is None:
        return ""
    path = pathlib.Path(source)
    files = path.rglob("*") if path.is_dir() else [path]
    newest = max((file.stat().st_mtime for file in files if file.is_file()), default=0)
    return f"{source} is newer" if newest > datetime.datetime.fromisoformat(prepared).timestamp() else ""


def _val_share(args: argparse.Namespace) -> importers.ValShare | None:
    return None if args.val_share is None else importers.ValShare(args.val_share, args.seed or 0)


def _name(args: argparse.Namespace) -> str:
    """The dataset's name on disk."""
    return args.name or args.dataset


def _reads_files(args: argparse.Namespace) -> bool:
    """Whether the dataset comes from a download; the synthetic ones are rendered."""
    return issubclass(BUILDERS[args.dataset], CocoFormatBuilder)


if __name__ == "__main__":
    sys.exit(main())
