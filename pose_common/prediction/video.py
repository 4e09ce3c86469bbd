"""Reads and writes videos frame by frame, by PyAV, with the frames' own times."""

from __future__ import annotations

import contextlib
import fractions
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pose_common.prediction.pictures import FramesLost, Picture, PictureError

RATE = 30
"""Frames a second of a video that does not say it."""
TICK = fractions.Fraction(1, 60_000)
"""Seconds; times are kept to it. MPEG-4, where PyAV has no encoder of H.264, knows up to 65,535 of them a second."""


@contextlib.contextmanager
def video_writer(path: pathlib.Path) -> Iterator[Callable[[np.ndarray, float | None], None]]:
    """A function (RGB picture, its time in seconds or None) that appends a frame to an MP4 file.

    All frames have the first one's size, cut to even sides; without times they follow each other at `RATE`. One that is
    not later than the frame before it comes a `TICK` after that. After an error the file has the frames before it; but
    there is none, and none that takes room, where it is the file that cannot be written.

    Raises:
      ValueError: PyAV is not installed, or a frame of another size, or of one pixel a side.
      OSError: the file cannot be written.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError("writing videos needs PyAV: pip install av") from error
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        with av.open(os.path.abspath(partial), "w") as container:  # FFmpeg takes what precedes a colon for a protocol
            codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
            stream = container.add_stream(codec, rate=RATE)
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
                    raise ValueError(
                        f"a frame of {width}x{height} in a video of {size[0]}x{size[1]}; all have one size"
                    )
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]), format="rgb24")
                ticks = round((untimed / RATE if time is None else time) / TICK)
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
    except av.error.FFmpegError as error:
        raise OSError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def frames_of(path: pathlib.Path, name: str, left_out: Callable[[PictureError], None]) -> Iterator[Picture]:
    """The frames of a video, called `<name>_<number>`, one at a time and turned upright.

    Args:
      left_out: is told once how many could not be decoded.

    Raises:
      PictureError: PyAV is not installed, or it is no video; FramesLost where it ends before its end.
    """
    try:
        import av
    except ImportError as error:
        raise PictureError(f"{path}: reading videos needs PyAV: pip install av") from error
    given = packets = 0
    last = longest = 0.0  # seconds: of the last frame, and between two
    damage: Exception | None = None
    try:
        with av.open(os.path.abspath(path)) as container:  # FFmpeg takes what precedes a colon for a protocol
            if not container.streams.video:
                raise PictureError(f"{path}: cannot be read as a video: it has no pictures, only sound or data")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for packet in container.demux(stream):
                # The last, which empties the decoder, has no bytes; others are decoded for what follows alone.
                packets += packet.size > 0 and not getattr(packet, "is_discard", False)
                try:
                    frames = packet.decode()
                except av.error.FFmpegError as error:
                    damage = damage or error
                    continue
                for frame in frames:
                    image = frame.to_ndarray(format="rgb24")
                    turned = np.ascontiguousarray(np.rot90(image, (getattr(frame, "rotation", 0) // 90) % 4))
                    # Raw streams, as cameras and encoders write them, have no times.
                    seconds = float(given / (stream.average_rate or RATE) if frame.time is None else frame.time)
                    yield Picture(f"{name}_{given:06d}", turned, seconds, path)
                    last, longest = seconds, max(longest, seconds - last) if given else 0.0
                    given += 1
            announced = _announced(container, stream)
            if (cut := _end(stream) - last) > 1.5 * longest > 0:  # else it is the last frame's own duration
                announced = packets + round(cut * (stream.average_rate or RATE)) - 1
    except av.error.FFmpegError as error:
        if given:
            raise FramesLost(f"{path}: ends after {given} frames: {error}") from error
        raise PictureError(f"{path}: cannot be read as a video: {error}") from error
    if not given:
        raise PictureError(f"{path}: cannot be read as a video: {damage or 'it has no frames'}") from damage
    expected = max(packets, announced)  # a file may be cut off
    if damage or packets < expected:
        left_out(FramesLost(f"{path}: {max(expected - given, 1)} of {expected} frames are damaged or missing"))


def _end(stream: Any) -> float:
    """When the last frame ends, in seconds, as a Matroska file (MKV, WebM) has it at its front; 0 where it does not."""
    found = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))
    return sum(float(part) * unit for part, unit in zip(found.groups(), (3600, 60, 1), strict=True)) if found else 0.0


def _announced(container: Any, stream: Any) -> int:
    """How many frames are to be shown, as the file's header says; 0 where it does not.

    One that was trimmed without encoding it again, as phones do, still has, and counts, the frames that were cut away.
    Its edit list leaves them out of the index, which in these formats is whole from the start.
    """
    index = getattr(stream, "index_entries", None)  # of PyAV since 17
    if index is None or "mov" not in container.format.name.split(","):
        return stream.frames
    return sum(not entry.is_discard for entry in index)
