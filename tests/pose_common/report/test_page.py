"""The page says what the runs say, is well formed, asks no network and stays within its size."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import re

import pytest

from pose_common.report.page import make_page
from pose_common.report.runs import read_runs
from tests.pose_common.report.cases import NOTE, REMARK, make_run

VOID = {"meta", "link", "input", "br", "col", "hr", "img"}


class Reader(html.parser.HTMLParser):
    """Collects what a page has and complains about elements that are not closed."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.ids, self.links, self.text, self.scripts = [], [], [], [], []
        self.feed(page)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [(tag, name, found[name]) for name in ("href", "src") if name in found]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> in {self.open}"

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    return read_runs([make_run(folder / "one"), make_run(folder / "two", seed=1, hidden="</script><b>")])


def test_one_run(runs):
    page = make_page(runs[:1])
    read = Reader(page)
    assert len(read.ids) == len(set(read.ids))
    assert {"results", "curves", "errors", "gallery", "settings"} <= set(read.ids)
    assert "differences" not in read.ids
    (row, _) = runs[0].rows
    total = runs[0].analyses["coco val heads"]["total"]
    for text in (
        row["ours"],
        row["published"],
        REMARK,
        NOTE,
        "losses.momentum",
        "left_wrist",
        "a from step 0, b from step 20",
    ):
        assert text in read.words, text
    assert f"{100 * total['pck@0.1']:.1f}" in read.words


def test_nothing_is_asked_from_the_network(runs):
    page = make_page(runs)
    for tag, name, target in Reader(page).links:
        assert target.startswith(("#", "data:")), (tag, name, target)
    assert "default-src 'none'" in page and not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", page)


def test_the_gallery_is_what_evaluation_kept(runs):
    data = json.loads(Reader(make_page(runs)).scripts[0])
    kept = sum(len(gallery["items"]) for run in runs for gallery in run.galleries.values())
    assert len(data["items"]) == kept and data["runs"] == ["one", "two"]
    assert [set(own) for own in data["skeletons"]] == [{"coco val heads", "coco val prototypes"}] * 2
    item = data["items"][0]
    (source,) = [i for i in runs[0].galleries["coco val heads"]["items"] if i["id"] == item["id"]]
    assert item == {"run": 0, "result": "coco val heads", "step": 40, **source}


def test_pictures_stay_within_their_bytes_and_it_is_said(runs):
    whole = json.loads(Reader(make_page(runs[:1])).scripts[0])["items"]
    size = sum(len(item["picture"]) for item in whole)
    page = make_page(runs[:1], size / 2)
    read = Reader(page)
    items = json.loads(read.scripts[0])["items"]
    assert 0 < sum(len(item["picture"]) for item in items) <= size / 2
    assert f"{len(whole) - len(items)} more pictures were left out" in read.words
    assert {item["result"] for item in items} == {item["result"] for item in whole}, "every result keeps some"
    assert items[0]["oks"] == whole[0]["oks"], "the worst is kept"


def test_two_runs_are_compared(runs):
    read = Reader(make_page(runs))
    assert "differences" in read.ids
    before, after = (100 * run.rows[0]["metrics"]["AP"] for run in runs)
    assert f"{after - before:+.1f}" in read.words
    different = read.words[read.words.index("Differences Settings") : read.words.index("Every metric")]
    assert "hidden '</script><b>'" in different and "seed 0 1" in different and "losses.momentum" not in different


def test_what_is_not_there_has_no_section(runs, tmp_path):
    bare = dataclasses.replace(runs[0], analyses={}, galleries={}, panels=[], stages=[], settings={})
    read = Reader(make_page([bare]))
    assert "results" in read.ids and not {"errors", "gallery", "curves", "settings"} & set(read.ids)
    Reader(make_page([bare, runs[1]]))
