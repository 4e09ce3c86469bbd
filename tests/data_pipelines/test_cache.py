"""Copies of splits on a local disk: whole, made once, replaced when the source is another one."""

from __future__ import annotations

import concurrent.futures
import logging
import os
import pathlib
import shutil
import time

import pytest

from data_pipelines import cache, records
from data_pipelines.cache import cached
from data_pipelines.datasets import definition_path


@pytest.fixture
def source(tmp_path):
    """A data directory with one split of a custom dataset."""
    folder = records.split_dir("mine", "val", tmp_path / "data")
    folder.mkdir(parents=True)
    (folder / "mine-val.array_record-00000-of-00001").write_bytes(os.urandom(2**22 + 17))
    (folder / records.SUMMARY_FILE).write_text("{}")
    definition_path("mine", tmp_path / "data").write_text("{}")
    return tmp_path / "data"


def contents(data_dir):
    folder = records.split_dir("mine", "val", data_dir)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_one_copies_and_the_others_wait(source, tmp_path, caplog, monkeypatch):
    with concurrent.futures.ThreadPoolExecutor(4) as pool, caplog.at_level(logging.INFO):
        roots = set(pool.map(lambda _: cached("mine", "val", source, str(tmp_path / "ssd")), range(4)))
    (root,) = roots
    assert contents(root) == contents(source) and caplog.text.count("copied to") == 1
    assert definition_path("mine", root).read_text() == "{}"
    assert cached("mine", "val", source, "") == source
    with pytest.raises(records.DatasetNotPrepared, match=rf"--data_dir={source} --split=train"):
        cached("mine", "train", source, str(tmp_path / "ssd"))
    other = shutil.copytree(source, tmp_path / "other")
    assert cached("mine", "val", other, str(tmp_path / "ssd")) != root
    roots = set()
    shutil.copytree(source, tmp_path / "another" / "data")
    for folder in (tmp_path, tmp_path / "another"):  # the same name from elsewhere is another directory
        monkeypatch.chdir(folder)
        roots.add(cached("mine", "val", "data", str(tmp_path / "ssd")))
    assert len(roots) == 2 and root in roots


def test_the_definition_of_two_splits_is_copied_by_one_at_a_time(source, tmp_path, monkeypatch):
    shutil.copytree(records.split_dir("mine", "val", source), records.split_dir("mine", "train", source))
    copy, copying, most = cache._copy_definition, [], []

    def slowly(*paths):
        copying.append(paths)
        most.append(len(copying))
        time.sleep(0.1)
        copy(*paths)
        copying.pop()

    monkeypatch.setattr(cache, "_copy_definition", slowly)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda split: cached("mine", split, source, str(tmp_path / "ssd")), ("train", "val")))
    assert most == [1, 1]


def test_what_was_prepared_again_is_copied_again(source, tmp_path):
    root = cached("mine", "val", source, str(tmp_path))
    (file,) = records.split_dir("mine", "val", source).glob("*array_record*")
    file.write_bytes(b"other")
    assert contents(cached("mine", "val", source, str(tmp_path))) != contents(source), "it goes by the summary"
    file.with_name(records.SUMMARY_FILE).write_text('{"prepared": "again"}')
    assert contents(cached("mine", "val", source, str(tmp_path))) == contents(source) == contents(root)


def test_half_a_copy_is_never_used(source, tmp_path, monkeypatch):
    place = records.split_dir("mine", "val", tmp_path / "x").relative_to(tmp_path / "x")
    copy_file = cache._copy_file

    def fail(source: pathlib.Path, target: pathlib.Path) -> None:
        target.write_bytes(source.read_bytes()[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "_copy_file", fail)
    with pytest.raises(KeyboardInterrupt):
        cached("mine", "val", source, str(tmp_path / "ssd"))
    assert not list((tmp_path / "ssd").glob(f"*/{place}"))
    monkeypatch.setattr(cache, "_copy_file", copy_file)
    assert contents(cached("mine", "val", source, str(tmp_path / "ssd"))) == contents(source)


def test_a_disk_that_forgets_or_is_full_is_named(source, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(cache.os, "fsync", lambda file: os.pwrite(file, b"\0\0\0\0\0\0\0\0", 0))
        with pytest.raises(OSError, match=r"config.data_cache: .* is not what was read from .*: is the disk damaged"):
            cached("mine", "val", source, str(tmp_path / "ssd"))
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(OSError, match=r"config.data_cache: .* has 4.0 MiB, .* has room for 0.0 MiB"):
        cached("mine", "val", source, str(tmp_path / "ssd"))
