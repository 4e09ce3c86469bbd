"""Archives are whole, or refused with the entry's name."""

from __future__ import annotations

import warnings
import zipfile

import pytest

from pose_common.weights.zip_integrity import verify_zip

ENTRIES = {"w/data.pkl": b"pickle" * 9, "w/data/0": b"numbers" * 50, "w/version": b"3\n"}


def write(path, entries=ENTRIES.items(), compression=zipfile.ZIP_STORED):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of names that are written twice
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name, (2024, 5, 17, 12, 30, 2)), content, compression)
    return path


def contents(path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_whole_archive_passes(tmp_path):
    verify_zip(write(tmp_path / "w.zip"))


@pytest.mark.parametrize("mask", [0x01, 0x15, 0x80])
def test_a_damaged_byte_is_noticed_or_has_changed_no_entry(tmp_path, mask):
    path = write(tmp_path / "w.zip")
    raw, noticed = path.read_bytes(), 0
    for position in range(len(raw)):
        damaged = bytearray(raw)
        damaged[position] ^= mask
        path.write_bytes(damaged)
        try:
            verify_zip(path)
        except ValueError as error:
            assert "archive" in str(error)
            noticed += 1
        else:
            # An entry that the directory has lost is missed by PyTorch.
            assert contents(path).items() <= ENTRIES.items()
    assert noticed > sum(map(len, ENTRIES.values()))  # every byte of data, and what says where it is


def test_every_cut_is_noticed(tmp_path):
    path = write(tmp_path / "w.zip")
    raw = path.read_bytes()
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises(ValueError, match="archive"):
            verify_zip(path)


def test_the_damaged_entry_is_named(tmp_path):
    path = write(tmp_path / "w.zip")
    path.write_bytes(path.read_bytes().replace(b"numbersnumbers", b"numbersNumbers", 1))
    with pytest.raises(ValueError, match="entry 'w/data/0' has not its checksum"):
        verify_zip(path)


def test_two_entries_of_one_name_are_refused(tmp_path):
    path = write(tmp_path / "w.zip", [*ENTRIES.items(), ("w/data/0", b"others")])
    with pytest.raises(ValueError, match="entry 'w/data/0' twice"):
        verify_zip(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_entries_are_refused(tmp_path, compression):
    with pytest.raises(ValueError, match="entry 'w/data.pkl' is compressed"):
        verify_zip(write(tmp_path / "w.zip", compression=compression))


def test_entries_that_share_their_bytes_are_refused(tmp_path):
    """Twenty entries of the directory that all point to the first one's data."""
    path, name = tmp_path / "w.zip", b"w/data/00"
    write(path, [("w/data.pkl", b"x"), *((f"w/data/{i:02}", b"numbers" * 50) for i in range(20))])
    raw = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start, first = archive.start_dir, archive.getinfo(name.decode()).header_offset
        second = archive.getinfo("w/data/01").header_offset
        pickle = archive.getinfo("w/data.pkl")
    directory = bytearray(raw[start:])
    for i in range(20):  # the offset is the last of the 46 bytes before a name
        at = directory.index(f"w/data/{i:02}".encode())
        directory[at - 4 : at] = first.to_bytes(4, "little")
    end = directory.index(b"PK\x05\x06")
    directory[end + 16 : end + 20] = second.to_bytes(4, "little")
    path.write_bytes(raw[:second] + directory)
    assert pickle.header_offset == 0
    with pytest.raises(ValueError, match="its entries claim 7001 bytes, the file has"):
        verify_zip(path)


def test_archives_of_others_are_refused(tmp_path):
    with pytest.raises(ValueError, match="^PyTorch did not write it: it has no data.pkl but .*a.npy.*unpack"):
        verify_zip(write(tmp_path / "w.zip", [("a.npy", b"x")]))
    program = [("w/data.pkl", b"x"), ("w/code/__torch__.py", b"x")]
    with pytest.raises(ValueError, match="^a TorchScript program.*give the file of weights"):
        verify_zip(write(tmp_path / "w.zip", program))
    with pytest.raises(ValueError, match="PyTorch did not write it"):
        verify_zip(write(tmp_path / "w.zip", []))
