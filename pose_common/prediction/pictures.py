"""Pictures to predict on, whatever they come as, one after the other.

A picture is what a person sees: the orientation that a camera notes in the file (EXIF) is applied, and results are in
the coordinates of the picture so turned. (Evaluation reads the files of a dataset as its annotations were made, see
`data_pipelines.top_down.crops.decode`.)
"""

from __future__ import annotations

import fnmatch
import glob
import io
import logging
import os
import pathlib
import queue
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
from PIL import Image, ImageOps

from data_pipelines.fields import Fault
from data_pipelines.picture_formats import MAX_PIXELS, SUFFIXES, eight_bits

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".gif")
RATE = 30
"""Frames a second of a video that does not say it."""
T = TypeVar("T")


class Picture(NamedTuple):
    """One picture.

    Attributes:
      name: its file's name, or its path below the folder of all files where names of several would be one; of a
        video's frame that without a suffix, and `_<number>`; of others `picture_<number>`.
      image: uint8 [H, W, 3] RGB.
      time: of a video's frame, in seconds; None for a still.
      path: of its file as it was named, to tell apart boxes that fit the name; None where it has none.
    """

    name: str
    image: np.ndarray
    time: float | None = None
    path: pathlib.Path | None = None

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        return f"<Picture: {self.name}, {width}x{height}>"


class PictureError(ValueError):
    """Something that is no picture; names it."""


class FramesLost(PictureError):
    """Of a video whose other frames were given: frames are numbered without those that are lost."""


def is_single(source: Any) -> bool:
    """Whether `source` stands for exactly one picture."""
    if isinstance(source, (str, os.PathLike)):
        path = pathlib.Path(source)
        several = path.is_dir() or (glob.has_magic(str(path)) and not path.exists())
        return path.suffix.lower() not in VIDEO_SUFFIXES and not several
    if isinstance(source, Picture) or _is_array(source) or _is_pillow(source) or _is_encoded(source):
        return True
    return not isinstance(source, Iterable)  # nothing at all, of which one is asked to get the error


def pictures_of(source: Any, left_out: Callable[[PictureError], None] | None = None) -> Iterator[Picture]:
    """The pictures that `source` stands for, one after the other.

    Args:
      source: a file, a folder (its pictures, or its videos where it has no picture, by name, 2.jpg before 10.jpg; not
        those of subfolders; what is not taken is logged), a glob, a video, an RGB or grey array, a Pillow image, the
        bytes of a picture's file or one opened to read them, or any iterable of these.
      left_out: given the error of each of several pictures that cannot be read; without, it is raised.

    Raises:
      PictureError: nothing there, or not a picture.
    """
    if isinstance(source, Picture):
        yield source
    elif (paths := _paths(source)) is not None:
        files = _files(source)
        _log_what_is_not_taken(paths)
        yield from _from_files(files, None if is_single(source) else left_out)
    elif _is_array(source):
        yield Picture("picture_0", _from_array(source))
    elif _is_pillow(source):
        yield Picture("picture_0", _from_pillow(source, "a Pillow image"))
    elif _is_encoded(source):
        data = source.read() if hasattr(source, "read") else bytes(source)
        yield Picture("picture_0", _decode(data, "a picture's bytes"))
    elif isinstance(source, Iterable):
        for number, item in enumerate(source):
            try:
                for picture in pictures_of(item, left_out):
                    named = picture.name != "picture_0"
                    yield picture if named else picture._replace(name=f"picture_{number}")
            except PictureError as error:
                if left_out is None:
                    raise
                left_out(error)
    else:
        raise PictureError(f"{type(source).__name__} is no picture: give a path, an array, a Pillow image or several")


def count_of(source: Any) -> int | None:
    """How many pictures there will be, with those that cannot be read, where that is known beforehand."""
    if is_single(source):
        return 1
    if _paths(source) is not None:
        files = _files(source)
        return None if any(map(_is_video, files)) else len(files)
    if not hasattr(source, "__len__"):
        return None
    items = ([item] if isinstance(item, (str, os.PathLike)) else item for item in source)  # which may not be there
    known = [count for item in items if (count := count_of(item)) is not None]
    return sum(known) if len(known) == len(source) else None


def files_of(paths: Sequence[str]) -> list[pathlib.Path]:
    """What several paths, folders and patterns stand for, each once, where it comes first; see `pictures_of`."""
    _log_what_is_not_taken(paths)
    files: dict[str, pathlib.Path] = {}
    for file in _files(paths):
        files.setdefault(os.path.abspath(file), file)
    return list(files.values())


def require_one_clip(source: Any, what: str) -> None:
    """Raises PictureError for a video among other pictures, or several, which `what` would join to one."""
    files = _files(source)
    if len(files) > 1 and (clip := next(filter(_is_video, files), None)):
        raise PictureError(f"{what} is for one video at a time, and {clip.name} is one of {len(files)} files")


def refuse_to_replace(source: Any, folder: pathlib.Path, patterns: Sequence[str]) -> None:
    """Raises PictureError for a picture or video that lies in `folder` under a name of results, such as `*.png`."""
    for path in filter(pathlib.Path.exists, _files(source)):
        there = folder / path.name
        named = any(fnmatch.fnmatch(path.name.lower(), pattern) for pattern in patterns)
        if named and there.exists() and there.samefile(path):
            raise PictureError(f"--out={folder}: results would replace {path}; give another --out")


def _paths(source: Any) -> list[str] | None:
    """What `source` names where it is a path, a folder, a pattern or a list of them; else None."""
    if isinstance(source, (str, os.PathLike)):
        return [os.fspath(source)]
    named = isinstance(source, (list, tuple)) and all(isinstance(item, (str, os.PathLike)) for item in source)
    return list(map(os.fspath, source)) if named else None


def _is_video(path: pathlib.Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _from_files(files: Sequence[pathlib.Path], left_out: Callable[[PictureError], None] | None) -> Iterator[Picture]:
    for path, name in zip(files, _names(files), strict=True):
        try:
            _files_of(str(path))  # an error for what a list names without its being there
            if _is_video(path):
                yield from _frames(path, name, left_out or _warn)
            else:
                yield Picture(name, read_picture(path), path=path)
        except PictureError as error:
            if left_out is None:
                raise
            left_out(error)


def _files(source: Any) -> list[pathlib.Path]:
    """What a path, folder, pattern or list of them stands for; an entry of a list where there is nothing, for itself.
    Raises PictureError where there is nothing and `source` is no list."""
    if isinstance(source, (str, os.PathLike)):
        return _files_of(os.fspath(source))
    files: list[pathlib.Path] = []
    for path in _paths(source) or ():
        try:
            files += _files_of(path)
        except PictureError:  # it is told in its place, and costs no other
            files.append(pathlib.Path(path))
    return files


def _files_of(source: str) -> list[pathlib.Path]:
    path = pathlib.Path(source)
    if path.is_dir():
        if not (found := _taken_of(path)):
            raise PictureError(f"{source}: the folder has no pictures ({', '.join(SUFFIXES)}) and no videos")
    elif path.exists():
        found = [path]
    else:
        found = sorted(map(pathlib.Path, glob.glob(source, recursive=True)), key=by_number)
        if not found:
            if re.match(r"\w{2,}:/", source):  # a path has one slash of the two
                raise PictureError(f"{source}: addresses are not fetched; download it, and name the file")
            raise PictureError(f"{source}: there is no such file or folder, and no file fits it as a pattern")
    return found


def _taken_of(folder: pathlib.Path) -> list[pathlib.Path]:
    """Its pictures, or its videos where it has none, by name; as of a pattern no hidden ones, such as the `._1.jpg`
    that a Mac puts beside `1.jpg` on other systems' disks."""
    files = (child for child in folder.iterdir() if child.name[0] != "." and not child.is_dir())
    inside = sorted(files, key=by_number)
    return [child for child in inside if child.suffix.lower() in SUFFIXES] or list(filter(_is_video, inside))


def _names(files: Sequence[pathlib.Path]) -> list[str]:
    """What the files are called in results: as short as they differ."""
    full = [pathlib.Path(os.path.abspath(path)) for path in files]
    plain = [path.stem if _is_video(path) else path.name for path in full]
    if len(set(plain)) == len(set(full)):
        return plain
    folder = os.path.commonpath([path.parent for path in full])
    below = [path.relative_to(folder) for path in full]
    frames = [(path.with_suffix("") if _is_video(path) else path).as_posix() for path in below]
    # Two videos may differ by their suffixes alone.
    return frames if len(set(frames)) == len(set(full)) else [path.as_posix() for path in below]


def _log_what_is_not_taken(paths: Iterable[str]) -> None:
    """Of folders, apart from subfolders and hidden files."""
    for folder in filter(pathlib.Path.is_dir, map(pathlib.Path, paths)):
        taken = set(_taken_of(folder))
        rest = [path for path in folder.iterdir() if path.is_file() and path.name[0] != "." and path not in taken]
        rest.sort(key=lambda path: (not _is_video(path), by_number(path)))
        if rest and taken:
            listed = ", ".join(path.name for path in rest[:5]) + f" and {len(rest) - 5} more" * (len(rest) > 5)
            how = f"; give videos by name or pattern, as '{folder}/*{rest[0].suffix}'" if _is_video(rest[0]) else ""
            logging.warning("%s: files that are not taken: %s%s", folder, listed, how)


def by_number(path: str | pathlib.Path) -> tuple[list[list[str | int]], str]:
    """Sorts as people count: 2.jpg before 10.jpg."""
    pieces = (re.split(r"(\d+)", part) for part in pathlib.Path(path).parts)  # text and digits take turns
    return [[int(piece) if piece.isdecimal() else piece for piece in of_part] for of_part in pieces], str(path)


def read_picture(path: str | pathlib.Path) -> np.ndarray:
    """A file as uint8 [H, W, 3] RGB, turned upright.

    Raises:
      PictureError: it cannot be read or decoded, or has, or claims to have, more than `MAX_PIXELS`.
    """
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise PictureError(f"{path}: cannot be read as a picture: {error}") from error
    return _decode(data, str(path))


def _decode(data: bytes, name: str) -> np.ndarray:
    """As `read_picture`, of a file's bytes; `name` is what errors call them."""
    # OpenCV does not turn an AVIF upright, and darkens what is transparent in a TIFF; preparation reads both so.
    if _format_of(data, name) in ("AVIF", "TIFF"):
        return _from_pillow(Image.open(io.BytesIO(data)), name)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    except (TypeError, cv2.error) as error:
        raise PictureError(f"{name}: cannot be read as a picture: {error}") from error
    if image is None:
        raise PictureError(f"{name}: cannot be decoded as a picture ({len(data)} bytes)")
    return np.ascontiguousarray(image[..., ::-1])


def _format_of(data: bytes, name: str) -> str | None:
    """Pillow's name of the file's format; None of what it does not know, which is left to OpenCV and its own bound.
    Raises PictureError for more than `MAX_PIXELS`, by the file's header."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as header:
            (width, height), kind = header.size, header.format
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name}: {error}") from error
    except Exception:  # whatever a damaged header makes Pillow's readers do
        return None
    if width * height > MAX_PIXELS:
        raise PictureError(f"{name}: {width}x{height}; at most {MAX_PIXELS:,} pixels are read")
    return kind


def _from_pillow(image: Any, name: str) -> np.ndarray:
    try:
        return _from_array(eight_bits(ImageOps.exif_transpose(image)))
    except Fault as error:
        raise PictureError(f"{name}: {error.detail}") from error
    except Exception as error:  # whatever damage makes Pillow's readers do, which open a file before they read it
        raise PictureError(f"{name}: cannot be read as a picture: {error}") from error


def _from_array(source: Any) -> np.ndarray:
    source = np.asarray(source)
    if source.ndim == 2:
        source = np.repeat(source[..., None], 3, axis=2)
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
        raise PictureError(
            f"an array {source.dtype} {list(source.shape)} is no picture: give uint8 [height, width, 3], RGB"
        )
    return np.ascontiguousarray(source)


def _is_array(source: Any) -> bool:
    """Of NumPy, or what NumPy can make one of: JAX's, PyTorch's on the CPU."""
    return isinstance(source, np.ndarray) or all(hasattr(source, name) for name in ("__array__", "ndim", "dtype"))


def _is_pillow(source: Any) -> bool:
    return hasattr(source, "getexif") and hasattr(source, "convert")


def _is_encoded(source: Any) -> bool:
    return isinstance(source, (bytes, bytearray, memoryview)) or hasattr(source, "read")


def _warn(error: PictureError) -> None:
    logging.warning("%s", error)


def _frames(path: pathlib.Path, name: str, left_out: Callable[[PictureError], None]) -> Iterator[Picture]:
    """One frame at a time; `left_out` is told once how many could not be decoded. Needs PyAV."""
    try:
        import av
    except ImportError as error:
        raise PictureError(f"{path}: reading videos needs PyAV: pip install av") from error
    given = packets = 0
    damage: Exception | None = None
    try:
        with av.open(os.path.abspath(path)) as container:  # FFmpeg takes what precedes a colon for a protocol
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
                    seconds = given / (stream.average_rate or RATE) if frame.time is None else frame.time
                    yield Picture(f"{name}_{given:06d}", turned, float(seconds), path)
                    given += 1
            announced = _announced(container, stream)
    except (av.error.FFmpegError, IndexError) as error:
        if given:
            raise FramesLost(f"{path}: ends after {given} frames: {error}") from error
        raise PictureError(f"{path}: cannot be read as a video: {error}") from error
    if not given:
        raise PictureError(f"{path}: cannot be read as a video: {damage or 'it has no frames'}") from damage
    expected = max(packets, announced)  # a file may be cut off
    if damage or packets < expected:
        left_out(FramesLost(f"{path}: {max(expected - given, 1)} of {expected} frames are damaged or missing"))


def _announced(container: Any, stream: Any) -> int:
    """How many frames are to be shown, as the file's header says; 0 where it does not.

    One that was trimmed without encoding it again, as phones do, still has, and counts, the frames that were cut away.
    Its edit list leaves them out of the index, which in these formats is whole from the start.
    """
    index = getattr(stream, "index_entries", None)  # of PyAV since 17
    if index is None or "mov" not in container.format.name.split(","):
        return stream.frames
    return sum(not entry.is_discard for entry in index)


def ahead(items: Iterable[T], size: int = 8, most_bytes: int = 2**28) -> Iterator[T]:
    """The items, made by a thread up to `size` ahead, so that decoding does not wait for the device.

    Items with `nbytes` are fewer where they are large: as many as have `most_bytes` together, or one. Where a program
    ends before it took all, the item that is being made is waited for.
    """
    ready: queue.Queue = queue.Queue(size)
    stop, end = threading.Event(), object()
    made, taken = 0, 0  # bytes so far, each counted by one thread alone

    def wanted() -> bool:
        return not stop.is_set() and threading.main_thread().is_alive()

    def put(item, error=None) -> None:
        nonlocal made
        nbytes = getattr(item, "nbytes", 0)
        while wanted():
            if made > taken and made - taken + nbytes > most_bytes:
                time.sleep(0.01)
                continue
            try:
                ready.put((item, error), timeout=0.1)
                made += nbytes
                return
            except queue.Full:
                continue

    def fill() -> None:
        try:
            for item in items:
                put(item)
                if not wanted():
                    return
            put(end)
        except BaseException as error:  # handed to the reader, whatever it is
            put(end, error)

    # No daemon: one that comes out of OpenCV while the interpreter ends aborts the process.
    threading.Thread(target=fill).start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is end:
                return
            taken += getattr(item, "nbytes", 0)
            yield item
    finally:
        stop.set()
