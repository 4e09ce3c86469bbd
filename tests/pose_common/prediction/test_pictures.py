"""Pictures as people have them."""

from __future__ import annotations

import io
import os
import pathlib
import struct

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

from pose_common.prediction import command
from pose_common.prediction.pictures import Picture, PictureError, read_picture
from pose_common.prediction.sources import count_of, is_single, pictures_of, refuse_to_replace, require_one_clip
from pose_common.prediction.video import video_writer

PILLOW_HAS_AVIF = ".avif" in Image.registered_extensions()


def image(height=6, width=9, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), image(seed=number)[..., ::-1])
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_every_form_gives_the_same_picture(folder):
    expected = image()
    data = (folder / "0.png").read_bytes()
    forms = [folder / "0.png", str(folder / "0.png"), expected, Image.fromarray(expected), Picture("a", expected)]
    forms += [data, bytearray(data), memoryview(data), io.BytesIO(data)]
    forms += [next(entry for entry in os.scandir(folder) if entry.name == "0.png"), epath.Path(folder / "0.png")]
    for form in forms:
        assert is_single(form) and count_of(form) == 1
        (picture,) = pictures_of(form)
        np.testing.assert_array_equal(picture.image, expected)
    grey = expected[..., 0]
    (picture,) = pictures_of(grey)
    np.testing.assert_array_equal(picture.image, np.stack([grey] * 3, axis=-1))


def test_a_camera_may_fill_one_array_again_and_again():
    """Pictures are read ahead: those not drawn yet would all be the newest."""
    frames, buffer = [image(seed=number) for number in range(3)], image()

    def camera():
        for frame in frames:
            buffer[:] = frame
            yield buffer

    for picture, frame in zip(list(pictures_of(camera())), frames, strict=True):
        np.testing.assert_array_equal(picture.image, frame)


def test_arrays_of_other_libraries_and_deep_pillow_images(tmp_path):
    expected = image()
    (picture,) = pictures_of(jnp.asarray(expected))
    np.testing.assert_array_equal(picture.image, expected)
    assert is_single(jnp.asarray(expected)) and not is_single([expected])
    ramp = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), ramp)
    with Image.open(tmp_path / "deep.png") as opened:
        (by_pillow,) = pictures_of(opened)
    (by_path,) = pictures_of(tmp_path / "deep.png")
    # The upper 8 of 16 bits, and a rounded quotient: a level apart.
    np.testing.assert_allclose(by_pillow.image.astype(int), by_path.image.astype(int), atol=1)
    with pytest.raises(PictureError, match="mode F have no known range"):
        next(pictures_of(Image.fromarray(ramp.astype(np.float32))))


@pytest.mark.parametrize("largest", [15, 255, 1023, 4095, 65535])
def test_a_pgm_of_any_depth(tmp_path, largest):
    """Cameras write their 10 or 12 bits so: as bright as any picture, not nearly black."""
    ramp = np.linspace(0, largest, 64 * 48).round().reshape(48, 64)
    head = f"P5\n64 48\n{largest}\n".encode()
    (tmp_path / "a.pgm").write_bytes(head + ramp.astype(">u2" if largest > 255 else "u1").tobytes())
    expected = np.repeat(255 * ramp[..., None] / largest, 3, axis=2)
    (opened,) = pictures_of(Image.open(tmp_path / "a.pgm"))
    for found in (read_picture(tmp_path / "a.pgm"), opened.image):
        np.testing.assert_allclose(found, expected, atol=1)  # rounded, of 16 bits the upper 8


def test_what_joins_pictures_to_one_film_takes_one_film(folder):
    require_one_clip(str(folder / "*.png"), "--track")
    (folder / "a.mp4").touch()
    require_one_clip(str(folder / "a.mp4"), "--track")
    with pytest.raises(PictureError, match="--track is for one video at a time, and a.mp4 is one of 4 files"):
        require_one_clip(str(folder / "*.[pm]*"), "--track")


def test_results_never_replace_what_they_are_of(folder, tmp_path_factory, capsys):
    def refused(source, out, save="images"):
        flags = command.parser(None).parse_args([str(source), f"--out={out}", f"--save={save}"])
        status = command.run(flags, lambda _: ("a model", iter([])))
        printed = capsys.readouterr()
        assert status == 0 or "give another --out" in printed.err
        return status == 1

    (folder / "3.jpg").write_bytes((folder / "0.png").read_bytes())
    (folder / "poses.mp4").write_bytes(b"")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    assert refused(folder, folder) and refused(folder / "0.png", folder) and refused(folder / "*.png", f"{folder}/")
    assert refused(folder / "poses.mp4", folder, "video")
    assert not refused(folder / "3.jpg", folder) and not refused(folder, folder, "json")
    assert not refused(folder / "poses.mp4", folder) and not refused(folder, elsewhere)
    (elsewhere / "0.png").symlink_to(folder / "0.png")
    assert refused(folder, elsewhere)


def test_folders_patterns_and_lists(folder):
    for source in (
        folder,
        str(folder / "*.png"),
        [folder / f"{n}.png" for n in range(3)],
        [image(seed=n) for n in range(3)],
    ):
        assert not is_single(source) and count_of(source) == 3
        pictures = list(pictures_of(source))
        for number, picture in enumerate(pictures):
            np.testing.assert_array_equal(picture.image, image(seed=number))
        assert len({picture.name for picture in pictures}) == 3
    assert count_of([folder, image()]) == 4 and count_of([folder, iter([])]) is None


def test_a_command_takes_what_the_shell_makes_of_a_pattern(folder, tmp_path_factory, capsys):
    def run(*source):
        flags = command.parser(None).parse_args([*map(str, source), f"--out={tmp_path_factory.mktemp('out')}"])
        names = []

        def predict(args):
            total.append(count_of(args.source))
            names.extend(picture.name for picture in pictures_of(args.source, args.left_out.append))
            return "a model", iter([])

        status = command.run(flags, predict)
        return status, names, capsys.readouterr().err

    total = []
    (folder / "more").mkdir()
    cv2.imwrite(str(folder / "more" / "9.png"), image()[..., ::-1])
    (folder / "3.jpg").write_bytes(b"no picture")
    sources = [folder / "2.png", folder / "0.png", folder / "more", folder / "?.jpg"]
    status, names, said = run(*sources)
    assert status == 1 and names == ["0.png", "2.png", "9.png"] and total == [4] and "left out: " in said
    overlapping = [folder / "?.png", folder / "more" / "9.png", folder / "more", f"{folder}/more/../2.png"]
    assert run(*overlapping)[:2] == (0, ["0.png", "1.png", "2.png", "9.png"]) and total[-1] == 4
    assert run(folder / "3.jpg")[2].startswith("error: ")
    absent = folder / "absent.png"
    assert run(absent)[2] == f"error: {absent}: there is no such file or folder, and no file fits it as a pattern\n"
    assert run("https://example.org/a.jpg")[2].endswith("addresses are not fetched; download it, and name the file\n")
    for both_or_none in (["--demo", folder], []):
        assert run(*both_or_none)[::2] == (1, "error: give either pictures, folders, patterns or videos, or --demo\n")


def test_what_a_folder_has_beside_its_pictures_is_said(folder, caplog):
    coded = [name for name in ("b.avif", "c.jp2") if cv2.haveImageWriter(name)]
    for name in coded:
        cv2.imwrite(str(folder / name), image(64, 64))
    for name in ("a.heic", "clip.mp4", ".hidden", "._0.png"):
        (folder / name).touch()
    for name in ("frames.jpg", "frames.mp4"):
        (folder / name).mkdir()
    assert len(list(pictures_of(folder))) == count_of(folder) == 3 + len(coded)
    assert [record.message for record in caplog.records] == [
        f"{folder}: files that are not taken: clip.mp4, a.heic, notes.txt; give videos by name or pattern, as "
        f"'{folder}/*.mp4'"
    ]


def test_a_folder_of_videos_alone_stands_for_them(tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed")
    for name in ("a.mp4", "b.mp4"):
        with video_writer(tmp_path / name) as write:
            write(image(48, 64), None)
    assert [picture.name for picture in pictures_of(tmp_path)] == ["a_000000", "b_000000"]
    assert count_of(tmp_path) is None


def test_pictures_of_several_folders_are_told_apart(tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed")

    def names(*source):
        return [picture.name for picture in pictures_of(list(source) if len(source) > 1 else source[0])]

    files = [tmp_path / name for name in ("1.png", "a/1.png", "a/2.png", "b/c/1.png")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), image())
    below = ["a/1.png", "a/2.png", "b/c/1.png"]
    assert names(str(tmp_path / "**" / "*.png")) == ["1.png", *below] == names(*files)
    assert names(str(tmp_path / "a"), str(tmp_path / "b" / "*" / "*.png")) == below
    assert names(str(tmp_path / "*" / "2.png"), str(tmp_path / "1.png")) == ["2.png", "1.png"]
    for name in ("a/clip.mp4", "b/clip.mp4", "b/clip.avi"):
        with video_writer(tmp_path / name) as write:
            write(image(48, 64), None)
    assert names(str(tmp_path / "*" / "clip.mp4")) == ["a/clip_000000", "b/clip_000000"]
    assert names(str(tmp_path / "b" / "clip.*")) == ["clip.avi_000000", "clip.mp4_000000"]


def test_frames_come_as_people_count(tmp_path):
    names = ["2.png", "10.png", "a1b9.png", "a1b10.png", "a01b11.png"]
    for name in names:
        cv2.imwrite(str(tmp_path / name), image())
    for source in (tmp_path, str(tmp_path / "*.png")):
        assert [picture.name for picture in pictures_of(source)] == names


@pytest.mark.parametrize(
    "orientation, turns, mirrored", [(1, 0, False), (2, 0, True), (3, 2, False), (6, 3, False), (8, 1, False)]
)
def test_what_a_camera_notes_of_its_orientation_is_applied(tmp_path, orientation, turns, mirrored):
    stored = np.zeros((40, 64, 3), np.uint8)
    stored[:20, :32] = 255  # a bright corner that tells all turns apart
    upright = np.rot90(stored[:, ::-1] if mirrored else stored, turns)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for photo in (tmp_path / f"photo{suffix}" for suffix in (".jpg", ".tif", ".avif")[: 2 + PILLOW_HAS_AVIF]):
        Image.fromarray(stored).save(photo, exif=exif, **({} if photo.suffix == ".tif" else {"quality": 95}))
        found = read_picture(photo)
        assert found.shape == upright.shape
        assert np.abs(found.astype(int) - upright).mean() < 3  # what the codec loses
        (pillow,) = pictures_of(Image.open(photo))
        assert np.abs(found.astype(int) - pillow.image).mean() < 3


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_transparency_is_dropped(tmp_path, suffix):
    pixels = np.dstack([image(40, 60) // 32 * 32, np.full((40, 60), 128, np.uint8)])
    Image.fromarray(pixels).save(tmp_path / f"a{suffix}", **({"lossless": True} if suffix == ".webp" else {}))
    np.testing.assert_array_equal(read_picture(tmp_path / f"a{suffix}"), pixels[..., :3])


def test_a_tiff_that_cannot_be_read_is_named(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "deep.tif")
    Image.fromarray(image(48, 64)).save(tmp_path / "cut.tif")
    (tmp_path / "cut.tif").write_bytes((tmp_path / "cut.tif").read_bytes()[:-3000])
    for name, why in (("deep", "pixels of mode F have no known range"), ("cut", "cannot be read as a picture")):
        with pytest.raises(PictureError, match=f"/{name}.tif: {why}"):
            read_picture(tmp_path / f"{name}.tif")


@pytest.mark.skipif(not PILLOW_HAS_AVIF, reason="Pillow reads no AVIF")
def test_a_damaged_avif_is_no_picture(tmp_path):
    Image.fromarray(image(48, 64)).save(tmp_path / "cut.avif")
    content = (tmp_path / "cut.avif").read_bytes()
    for length in range(20, len(content) - 1, 97):
        (tmp_path / "cut.avif").write_bytes(content[:length])
        with pytest.raises(PictureError, match="cut.avif: cannot be (read|decoded) as a picture"):
            read_picture(tmp_path / "cut.avif")


@pytest.mark.parametrize("name", ["clip.mp4", "CLIP.MOV", "00012.MTS", "clip.wmv"])
def test_a_video_is_several_pictures_of_unknown_number(tmp_path, name):
    clip = tmp_path / name
    clip.touch()
    for source in (clip, str(clip)):
        assert not is_single(source) and count_of(source) is None


def test_films_and_folders_called_by_their_time(tmp_path, monkeypatch):
    pytest.importorskip("av", reason="PyAV is not installed")
    monkeypatch.chdir(tmp_path)
    clip = pathlib.Path("2024-01-05T12:30:00") / "poses.mp4"
    clip.parent.mkdir()
    with video_writer(clip) as append:
        append(image(16, 16), None)
    named = clip.rename("2024-01-05T12:30:00.mp4")
    assert len(list(pictures_of(named))) == 1


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    encoded_as_text = io.TextIOWrapper(io.BytesIO(b"\xff\xd8"), encoding="utf8")
    for source, message in (
        (tmp_path / "absent.jpg", "absent.jpg: there is no such file"),
        (tmp_path / "*.bmp", "bmp: there is no such file"),
        (tmp_path / "broken.jpg", "broken.jpg: cannot be decoded"),
        (np.zeros((4, 4, 4), np.uint8), "give uint8"),
        (np.zeros((4, 4, 3)), "float64"),
        (7, "int is no picture"),
        (b"no picture", r"a picture's bytes: cannot be decoded as a picture \(10 bytes\)"),
        (io.StringIO("no picture"), "StringIO: reading gives a str, not a picture's bytes: give the path"),
        (cv2.VideoCapture(), "VideoCapture: reading gives a tuple, .* or a video, .* or frames as RGB arrays"),
        (encoded_as_text, "TextIOWrapper: cannot be read as a picture's bytes: .*decode"),
        ("", "the name of the pictures is empty"),
        (f"file://{tmp_path}/broken.jpg", "broken.jpg: give the path alone, without file://"),
    ):
        with pytest.raises(PictureError, match=message):
            list(pictures_of(source))
    assert is_single(7) and is_single(None)  # so that asking for one gives the error, and no iterator that has it
    (tmp_path / "empty").mkdir()
    with pytest.raises(PictureError, match="has no pictures"):
        list(pictures_of(tmp_path / "empty"))


def test_what_is_no_picture_among_several_is_told_by_its_place(tmp_path):
    several = [image(4, 4), image(4, 4) / 255.0, tmp_path / "absent.jpg", None, image(4, 4)]
    with pytest.raises(PictureError, match=r"^picture_1: an array float64 \[4, 4, 3\] is no picture"):
        list(pictures_of(several))
    left_out = []
    assert [picture.name for picture in pictures_of(several, left_out.append)] == ["picture_0", "picture_4"]
    starts = ("picture_1: an array float64", f"{tmp_path}/absent.jpg: there is no", "picture_3: NoneType is no picture")
    assert len(left_out) == len(starts)
    assert all(str(error).startswith(start) for error, start in zip(left_out, starts, strict=True))


def test_pictures_in_lists_of_lists_have_names_of_their_own():
    two = [image(4, 4), image(4, 4)]
    names = [picture.name for picture in pictures_of([image(4, 4), two, [iter(two)]])]
    assert names == ["picture_0", "picture_1_0", "picture_1_1", "picture_2_0_0", "picture_2_0_1"]
    left_out = []
    found = pictures_of([[None, image(4, 4)], [image(4, 4), 7]], left_out.append)
    assert [picture.name for picture in found] == ["picture_0_1", "picture_1_0"]
    assert [str(error).partition(":")[0] for error in left_out] == ["picture_0_0", "picture_1_1"]


def test_a_video_is_read_frame_by_frame(tmp_path):
    av = pytest.importorskip("av", reason="PyAV is not installed")
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 50 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    pictures = list(pictures_of(path))
    assert [round(picture.time, 3) for picture in pictures] == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert [round(picture.image.mean() / 50) for picture in pictures] == [0, 1, 2, 3, 4]


def damaged_video(path):
    """A clip of 40 frames, a tenth of whose bytes are zeros."""
    with video_writer(path) as write:
        for number in range(40):
            write(image(48, 64, seed=number), None)
    return damage(path)


def damage(path):
    """Makes a tenth of a file zeros."""
    content = bytearray(path.read_bytes())  # of a length that depends on the encoder's threads
    first, tenth = len(content) * 45 // 100, len(content) // 10
    content[first : first + tenth] = bytes(tenth)
    path.write_bytes(content)
    return path


def test_damaged_frames_of_a_video_cost_themselves(tmp_path, caplog):
    pytest.importorskip("av", reason="PyAV is not installed")
    path = damaged_video(tmp_path / "clip.mp4")
    left_out = []
    times = [picture.time for picture in pictures_of(path, left_out.append)]
    assert 20 < len(times) < 40 and times == sorted(times) and times[-1] == pytest.approx(39 / 30)
    assert [str(error) for error in left_out] == [f"{path}: {40 - len(times)} of 40 frames are damaged or missing"]
    assert len(list(pictures_of(path))) == len(times) and "frames are damaged" in caplog.text


def test_a_matroska_film_that_is_cut_says_so(tmp_path):
    """It has no number of frames. One whose last frame stays long, or that begins late, is whole."""
    pytest.importorskip("av", reason="PyAV is not installed")
    times = {"even": [n / 30 for n in range(40)], "late": [5.0, 5.1, 5.2], "uneven": [0.0, 0.1, 0.15, 0.9, 1.5]}
    left_out = []
    for name, of_frames in times.items():
        with video_writer(tmp_path / f"{name}.mkv") as write:
            for number, time in enumerate(of_frames):
                write(image(48, 64, seed=number), time)
        assert len(list(pictures_of(tmp_path / f"{name}.mkv", left_out.append))) == len(of_frames) and not left_out
    content = (tmp_path / "even.mkv").read_bytes()
    (cut := tmp_path / "cut.mkv").write_bytes(content[: len(content) // 2])
    found = len(list(pictures_of(cut, left_out.append)))
    assert 10 < found < 30
    assert [str(error) for error in left_out] == [f"{cut}: {40 - found} of 40 frames are damaged or missing"]


def test_a_film_that_fills_the_disk_is_named_and_takes_no_room(tmp_path):
    """What was found can then still be written. /dev/full is a disk that has none left."""
    pytest.importorskip("av", reason="PyAV is not installed")
    (tmp_path / "poses.partial.mp4").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"/poses\.mp4 cannot be written: No space left"):
        with video_writer(tmp_path / "poses.mp4") as write:
            for number in range(10):
                write(image(480, 640, seed=number), None)
    assert not list(tmp_path.iterdir())


def test_a_film_of_sound_alone_is_named(tmp_path):
    av = pytest.importorskip("av", reason="PyAV is not installed")
    with av.open(str(tmp_path / "song.mov"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.rate, sound.pts = 8000, 0
        container.mux(stream.encode(sound))
    with pytest.raises(PictureError, match=r"song\.mov: .* no pictures, only sound"):
        list(pictures_of(tmp_path / "song.mov"))


def test_what_was_trimmed_off_a_video_is_not_missed(tmp_path):
    """By an edit list, as phones do: it shows the frames from the eleventh to the thirtieth alone."""
    av = pytest.importorskip("av", reason="PyAV is not installed")
    if "libx264" not in av.codecs_available or not hasattr(av.stream.Stream, "index_entries"):
        pytest.skip("PyAV has no encoder of H.264, or is older than 17 and shows no index")
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"g": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image(48, 64, seed=number), format="rgb24")))
        container.mux(stream.encode())
        third = round(1 / (3 * stream.time_base))
    content = bytearray(path.read_bytes())
    place = content.index(b"elst") + 4 + 8  # behind version and number of entries
    _, start = struct.unpack_from(">Ii", content, place)
    struct.pack_into(">Ii", content, place, 2000 // 3, start + third)  # milliseconds, and ticks of the track
    path.write_bytes(content)
    left_out = []
    assert len(list(pictures_of(path, left_out.append))) == 20 and not left_out
    found = len(list(pictures_of(damage(path), left_out.append)))
    assert [str(error) for error in left_out] == [f"{path}: {20 - found} of 20 frames are damaged or missing"]


def test_one_bad_file_of_a_folder_costs_itself(folder):
    (folder / "1.png").write_bytes(b"no picture")
    left_out = []
    names = [picture.name for picture in pictures_of(folder, left_out.append)]
    assert names == ["0.png", "2.png"] and "1.png" in str(left_out[0]) and len(left_out) == 1
    with pytest.raises(PictureError, match="1.png"):
        list(pictures_of(folder))
    left_out.clear()
    listed = [folder / "0.png", folder / "1.png", np.zeros((4, 4, 4)), folder / "2.png"]
    assert [picture.name for picture in pictures_of(listed, left_out.append)] == names and len(left_out) == 2
    with pytest.raises(PictureError, match="1.png"):  # asked for by name, nothing is left
        list(pictures_of(folder / "1.png", left_out.append))


def test_one_path_of_several_where_nothing_is_costs_itself(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    nowhere = [folder / "absent.png", str(empty), str(folder / "*.bmp"), "https://example.org/a.jpg"]
    said = ["there is no such file", "the folder has no pictures", "no file fits", "addresses are not fetched"]
    for first in (folder / "0.png", image()):  # paths alone, and paths among others
        source, left_out = [first, *nowhere, folder / "2.png"], []
        assert [picture.name for picture in pictures_of(source, left_out.append)][1:] == ["2.png"]
        assert all(words in str(error) for words, error in zip(said, left_out, strict=True))
        assert count_of(source) == 6, "each keeps its place"
        with pytest.raises(PictureError, match="absent.png"):
            list(pictures_of(source))
    for alone in nowhere[1:3]:
        with pytest.raises(PictureError):
            list(pictures_of(alone, left_out.append))
    (folder / "out").mkdir()
    (folder / "out" / "absent.png").touch()
    refuse_to_replace([folder / "0.png", *nowhere], folder / "out", ["*.png"])


@pytest.mark.parametrize("width, height", [(60_000, 60_000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_more_pixels_than_fit_are_refused_by_the_header(tmp_path, width, height):
    data = bytearray(cv2.imencode(".bmp", image())[1].tobytes())
    data[18:26] = np.array([width, height], "<i4").tobytes()
    (tmp_path / "bomb.bmp").write_bytes(data)
    with pytest.raises(PictureError, match="bomb.bmp"):
        read_picture(tmp_path / "bomb.bmp")


def turned_video(path, image, cosine, sine):
    """A clip of one picture whose track's display matrix says how it is to be turned."""
    with video_writer(path) as write:
        for number in range(3):
            write(image, number / 10)
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40  # behind version, times, track, duration, layer and volume
    matrix = [cosine, sine, 0, -sine, cosine, 0, 0, 0, 1 << 14]  # the last has 30 binary places, the others 16
    content[place : place + 36] = struct.pack(">9i", *(value << 16 for value in matrix))
    path.write_bytes(content)


@pytest.mark.parametrize("cosine, sine, quarters", [(1, 0, 0), (0, -1, 1), (-1, 0, 2), (0, 1, 3)])
def test_a_video_is_turned_as_players_turn_it(tmp_path, cosine, sine, quarters):
    """As ffmpeg shows clips with these matrices: -1 in the first row is a quarter against the clock."""
    image = np.zeros((64, 96, 3), np.uint8)
    image[:32, :48], image[:32, 48:] = (255, 0, 0), (0, 255, 0)
    turned_video(tmp_path / "clip.mp4", image, cosine, sine)
    for picture in pictures_of(tmp_path / "clip.mp4"):
        expected = np.rot90(image, quarters)
        assert picture.image.shape == expected.shape
        assert np.abs(picture.image.astype(int) - expected).mean() < 8, "what the codec loses, mostly at the edges"
