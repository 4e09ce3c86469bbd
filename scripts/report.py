"""Writes one HTML file about a run, or several to compare: figures, curves, errors of keypoints, pictures, settings.

    python -m scripts.report workdir/base
    python -m scripts.report workdir/base workdir/other --out=comparison.html
    python -m scripts.report workdir/base/results/step_2000 workdir/base

Each argument is a working directory, of which the newest evaluation is shown, or one evaluation in it. The page needs
no network and no other file; docs/reports.md says what its figures mean.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from data_pipelines.paths import as_file, write_whole
from pose_common.console import outlive_console
from pose_common.report.ending import FILE
from pose_common.report.page import MAX_PICTURES, make_page
from pose_common.report.runs import read_runs


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    outlive_console()
    parser = argparse.ArgumentParser(
        "python -m scripts.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", nargs="+", help="a working directory, or an evaluation, <workdir>/results/step_<n>")
    parser.add_argument("--out", type=as_file, default=FILE, help="the file to write")
    parser.add_argument(
        "--max_mb", type=float, default=MAX_PICTURES / 1e6, help="megabytes that the pictures may take (%(default)g)"
    )
    args = parser.parse_args(argv)
    try:
        if not args.max_mb >= 0:
            raise ValueError(f"--max_mb={args.max_mb:g}: expected a number from 0")
        page = make_page(read_runs(args.workdir), 1e6 * args.max_mb)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(args.out, page)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: {len(page.encode()) / 1e6:.1f} MB; open it in a browser")
    return 0


if __name__ == "__main__":
    sys.exit(main())
