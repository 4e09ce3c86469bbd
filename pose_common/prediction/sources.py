"""The pictures that a file, a folder, a pattern, a video, an array and more stand for, one after the other."""

from __future__ import annotations

import fnmatch
import glob
import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from data_pipelines.picture_formats import SUFFIXES
from pose_common.prediction.pictures import Picture, PictureError, decode, from_array, from_pillow, read_picture
from pose_common.prediction.video import frames_of

VIDEO_SUFFIXES = (
    *(".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".gif"),
    *(".wmv", ".flv", ".ts", ".mts", ".m2ts", ".3gp", ".ogv"),
)


def is_single(source: Any) -> bool:
    """Whether `source` stands for exactly one picture."""
    if isinstance(source, (str, os.PathLike)):
        path = pathlib.Path(source)
        several = path.is_dir() or (glob.has_magic(str(path)) and not path.exists())
        return path.suffix.lower() not in VIDEO_SUFFIXES and not several
    if isinstance(source, Picture) or _is_array(source) or _is_pillow(source) or _is_encoded(source):
        return True
    return not isinstance(source, Iterable)  # nothing at all, of which one is asked to get the error


def pictures_of(
    source: Any, left_out: Callable[[PictureError], None] | None = None, place: tuple[int, ...] = ()
) -> Iterator[Picture]:
    """The pictures that `source` stands for, one after the other.

    Args:
      source: a file, a folder (its pictures, or its videos where it has no picture, by name, 2.jpg before 10.jpg; not
        those of subfolders; what is not taken is logged), a glob, a video, an RGB or grey array, a Pillow image, the
        bytes of a picture's file or one opened to read them, or any iterable of these.
      left_out: given the error of each of several pictures that cannot be read; without, it is raised.
      place: of `source` among others, in each of the iterables that it is in; names what has no other name.

    Raises:
      PictureError: nothing there, or not a picture.
    """
    name = _name_of(place)
    if isinstance(source, Picture):
        yield source._replace(name=name) if source.name == _name_of() else source
    elif (paths := _paths(source)) is not None:
        files = _files(source)
        _log_what_is_not_taken(paths)
        yield from _from_files(files, None if is_single(source) else left_out)
    elif _is_array(source):
        yield Picture(name, from_array(source))
    elif _is_pillow(source):
        yield Picture(name, from_pillow(source, "a Pillow image"))
    elif _is_encoded(source):
        yield Picture(name, decode(_bytes_of(source), "a picture's bytes"))
    elif isinstance(source, Iterable):
        for number, item in enumerate(source):
            try:
                yield from pictures_of(item, left_out, (*place, number))
            except PictureError as error:
                # What is not of a file has no other name than its place, which those inside an iterable have by now.
                has_name = _paths(item) is not None or not is_single(item)
                placed = error if has_name else PictureError(f"{_name_of((*place, number))}: {error}")
                if left_out is not None:
                    left_out(placed)
                elif placed is error:
                    raise
                else:
                    raise placed from error
    else:
        raise PictureError(f"{type(source).__name__} is no picture: give a path, an array, a Pillow image or several")


def _name_of(place: tuple[int, ...] = ()) -> str:
    """Of a picture that has no name of its own."""
    return "_".join(map(str, ("picture", *(place or (0,)))))


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


def image_ids(source: Any) -> dict[pathlib.Path, int]:
    """{file: the `image_id` of its results} where all files are stills, else {}: the number that is its name where all
    are called by numbers of their own, as COCO's are by their ids; its place among them, counted from 0, where not."""
    files = _files(source)
    if any(map(_is_video, files)):
        return {}
    numbers = [int(path.stem) for path in files if path.stem.isdecimal()]
    return dict(zip(files, numbers if len(set(numbers)) == len(files) else range(len(files)), strict=True))


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
                yield from frames_of(path, name, left_out or _warn)
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
    if not source:  # pathlib's is the current folder
        raise PictureError("the name of the pictures is empty; . is the current folder")
    if path.is_dir():
        if not (found := _taken_of(path)):
            raise PictureError(f"{source}: the folder has no pictures ({', '.join(SUFFIXES)}) and no videos")
    elif path.exists():
        found = [path]
    else:
        found = sorted(map(pathlib.Path, glob.glob(source, recursive=True)), key=by_number)
        if not found:
            if source.startswith("file:/"):
                raise PictureError(f"{source}: give the path alone, without file://")
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


def _is_array(source: Any) -> bool:
    """Of NumPy, or what NumPy can make one of: JAX's, PyTorch's on the CPU."""
    return isinstance(source, np.ndarray) or all(hasattr(source, name) for name in ("__array__", "ndim", "dtype"))


def _is_pillow(source: Any) -> bool:
    return hasattr(source, "getexif") and hasattr(source, "convert")


def _is_encoded(source: Any) -> bool:
    return isinstance(source, (bytes, bytearray, memoryview)) or hasattr(source, "read")


def _bytes_of(source: Any) -> bytes:
    """Of a picture's file. Raises PictureError for what else can be read: `cv2.VideoCapture`, a file opened as text."""
    if not hasattr(source, "read"):
        return bytes(source)
    try:
        data = source.read()
    except ValueError as error:  # closed, or opened as text
        raise PictureError(f"{type(source).__name__}: cannot be read as a picture's bytes: {error}") from error
    if not isinstance(data, bytes):
        raise PictureError(
            f"{type(source).__name__}: reading gives a {type(data).__name__}, not a picture's bytes: give the path of "
            "a picture or a video, a file opened by 'rb', or frames as RGB arrays"
        )
    return data


def _warn(error: PictureError) -> None:
    logging.warning("%s", error)
