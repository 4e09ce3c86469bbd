"""Tables and plots of the two PoseBH experiments, from their lines."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

from scripts.experiments import lines

Lines = Sequence[lines.Line]


def differences(rows: Lines, figures: Mapping[str, str], arms: Sequence[str], baseline: str) -> str:
    """A table with a row a figure: the baseline's mean, and every arm's paired difference from it.

    Args:
      figures: {name of the row: figure}.
    """
    runs = lines.mean(rows, next(iter(figures.values())), baseline).count
    table: list[Sequence[object]] = [("PCK@0.1", f"{baseline} ({runs} runs)", *arms)]
    for name, figure in figures.items():
        found = [signed(lines.paired(rows, figure, arm, baseline)) for arm in arms]
        table.append((name, f"{lines.mean(rows, figure, baseline).mean:.1f}", *found))
    return lines.markdown(table)


def signed(value: lines.Interval) -> str:
    """A difference with its sign; bold where the interval leaves out 0."""
    if value.count < 2:
        return f"{value.mean:+.1f}" if value.count else "-"
    text = f"{value.mean:+.1f} [{value.low:+.1f}, {value.high:+.1f}]"
    return f"**{text}**" if value.low > 0 or value.high < 0 else text


def plot(path: pathlib.Path, rows: Lines, figures: Mapping[str, str], arms: Sequence[str], baseline: str) -> None:
    """Paired differences of all arms from the baseline, by figure."""
    groups = {
        name: {arm: lines.paired(rows, figure, arm, baseline) for arm in arms} for name, figure in figures.items()
    }
    lines.plot(path, groups, ylabel=f"PCK@0.1 minus that of {baseline}, points", zero=True)


def times(rows: Lines, arms: Sequence[str]) -> str:
    """Steps and processor time of each arm."""
    table = [("arm", "steps", "processor seconds")]
    for arm in arms:
        steps, seconds = lines.mean(rows, "steps", arm), lines.mean(rows, "cpu_seconds", arm)
        if steps.count:
            table.append((arm, f"{steps.mean:.0f}", f"{seconds.mean:.0f}"))
    return lines.markdown(table)


POSEBH_FIGURES = {
    "own, coco": "own/synthetic_coco",
    "own, mpii": "own/synthetic_mpii",
    "own, ap10k": "own/synthetic_ap10k",
    "own, apt36k": "own/synthetic_apt36k",
    "other's people, picture's expert": "other/people/picture expert",
    "other's people, head's expert": "other/people/head expert",
    "unseen keypoints, picture's expert": "unseen/people/picture expert",
    "unseen keypoints, head's expert": "unseen/people/head expert",
    "other's animals, picture's expert": "other/animals/picture expert",
    "other's animals, head's expert": "other/animals/head expert",
}
MAPS_FIGURES = {
    "own, coco": "own/synthetic_coco/prototypes",
    "own, ap10k": "own/synthetic_ap10k/prototypes",
    "unseen keypoints, picture's expert": "unseen/people/picture expert/prototypes",
}
POOR_FIGURES = {
    "own, apt36k": "own/synthetic_apt36k",
    "other's animals, picture's expert": "other/animals/picture expert",
    "other's animals, head's expert": "other/animals/head expert",
    "own, coco": "own/synthetic_coco",
}
SPLIT_FIGURES = {
    "own expert": "own expert",
    "other expert": "other expert",
    "first half's joints, other expert": "other expert/a",
    "second half's joints, other expert": "other expert/b",
}
NAMESAKES = ("same_name_mrr", "same_name_top1", "same_name_chance")


def posebh(path: pathlib.Path, arms: Sequence[str], baselines: Sequence[str], usual: int) -> None:
    """`posebh.md`, `posebh.svg` and `posebh_terms.svg` beside `posebh.jsonl`, or what else the path is.

    Args:
      arms, baselines: in their order; the second baseline is compared with.
      usual: pictures of the data-poor set in the runs of all arms.
    """
    every = lines.read(path)
    rows = [row for row in every if row["poor"] == usual]
    others, against = [name for name in baselines if name != baselines[1]], baselines[1]
    text = ["Means, and paired differences with 95 % intervals; PCK@0.1, percent\n"]
    text.append(differences(rows, POSEBH_FIGURES, [*others, *arms], against))
    text += ["What the further terms add\n", differences(rows, POSEBH_FIGURES, arms[1:], arms[0])]
    text += ["By prototypes instead of heads, and namesakes (percent)\n", _maps(rows, arms)]
    for poor in sorted({row["poor"] for row in every}):
        some = [row for row in every if row["poor"] == poor]
        if not lines.mean(some, "steps", "all").count:
            continue
        text += [f"{poor} pictures of the data-poor set\n", differences(some, POOR_FIGURES, ["all"], against)]
    text.append(times(rows, [*baselines, *arms]))
    path.with_suffix(".md").write_text("\n".join(text), encoding="utf8")
    plot(path.with_suffix(".svg"), rows, POSEBH_FIGURES, [*others, *arms], against)
    plot(path.with_name(f"{path.stem}_terms.svg"), rows, POSEBH_FIGURES, arms[1:], arms[0])


def _maps(rows: Lines, arms: Sequence[str]) -> str:
    table = [("after", *MAPS_FIGURES, *NAMESAKES)]
    for arm in ("first stage", "first stage x4", *arms):
        maps = [lines.mean(rows, figure, arm) for figure in MAPS_FIGURES.values()]
        names = [lines.interval([100 * v for v in lines.values(rows, n, arm).values()]) for n in NAMESAKES]
        if maps[0].count:
            table.append((arm, *maps, *names))
    return lines.markdown(table)


def split_skeletons(out: pathlib.Path, arms: Sequence[str], baseline: str) -> None:
    """`split_skeletons.md` and a plot a split, from `split_skeletons.jsonl`."""
    every = lines.read(out / "split_skeletons.jsonl")
    text = []
    for world, split in dict.fromkeys((row["world"], row["split"]) for row in every):
        rows = [row for row in every if (row["world"], row["split"]) == (world, split)]
        text += [f"{world}, split {split}: PCK@0.1, percent; by prototypes below\n"]
        text.append(differences(rows, SPLIT_FIGURES, arms, baseline))
        maps = {name: f"{figure}/prototypes" for name, figure in SPLIT_FIGURES.items()}
        table = [("by prototypes", *maps)]
        for arm in ("first stage", *arms):
            found = [lines.mean(rows, figure, arm) for figure in maps.values()]
            if found[0].count:
                table.append((arm, *found))
        text += [lines.markdown(table), times(rows, [baseline, *arms])]
        plot(out / f"split_skeletons_{world}_{split}.svg", rows, SPLIT_FIGURES, arms, baseline)
    (out / "split_skeletons.md").write_text("\n".join(text), encoding="utf8")
