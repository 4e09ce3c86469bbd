"""Writes a video frame by frame, by PyAV, with the frames' own times."""

from __future__ import annotations

import contextlib
import fractions
import os
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

TICK = fractions.Fraction(1, 60_000)
"""Seconds; times are kept to it. MPEG-4, where PyAV has no encoder of H.264, knows up to 65,535 of them a second."""


@contextlib.contextmanager
def video_writer(path: pathlib.Path, rate: int = 30) -> Iterator[Callable[[np.ndarray, float | None], None]]:
    """A function (RGB picture, its time in seconds or None) that appends a frame to an MP4 file.

    All frames have the first one's size, cut to even sides; without times they follow each other at `rate`. One that is
    not later than the frame before it comes a `TICK` after that. After an error the file has the frames before it.

    Raises:
      ValueError: PyAV is not installed, or a frame of another size, or of one pixel a side.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError("writing videos needs PyAV: pip install av") from error
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    with av.open(os.path.abspath(partial), "w") as container:  # FFmpeg takes what precedes a colon for a protocol
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream = container.add_stream(codec, rate=rate)
        stream.time_base = stream.codec_context.time_base = TICK
        size: tuple[int, int] | None = None
        untimed = 0
        last: int | None = None  # ticks of the frame before

        def append(image: np.ndarray, time: float | None) -> None:
            nonlocal size, untimed, last
            height, width = (side // 2 * 2 for side in image.shape[:2])
            if not (width and height):
                raise ValueError(
                    f"a frame of {image.shape[1]}x{image.shape[0]}: a video has two pixels a side at least"
                )
            if size is None:
                size = stream.width, stream.height = width, height
                stream.pix_fmt = "yuv420p"
            if (width, height) != size:
                raise ValueError(f"a frame of {width}x{height} in a video of {size[0]}x{size[1]}; all have one size")
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]), format="rgb24")
            ticks = round((untimed / rate if time is None else time) / TICK)
            untimed += time is None
            last = ticks if last is None else max(ticks, last + 1)
            frame.pts, frame.time_base = last, TICK
            container.mux(stream.encode(frame))

        try:
            yield append
        finally:
            if last is not None:
                container.mux(stream.encode())
                container.close()
                partial.replace(path)
