"""Batches: the contract, sharding, resuming, padding; on pictures of noise."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time

import grain
import numpy as np
import pytest

from data_pipelines import geometry, records
from data_pipelines.builders import BUILDERS, synthetic
from data_pipelines.reading import Reading
from data_pipelines.sharing import Share
from data_pipelines.top_down import crops, instances, loader
from data_pipelines.top_down.loader import EvalLoader
from tests.data_pipelines import fakes
from tests.golden_files import shared_path
from tests.settings import AUGMENTATION

SIZE = fakes.INPUT_SIZE
DIRECT = Reading(num_threads=0)


def mixed_sources():
    return [
        fakes.random_source("coco", dataset_index=0, seed=1),
        fakes.random_source("aic", num_images=2, dataset_index=1, seed=2),
    ]


def training(sources=None, batch_size=8, reading=DIRECT, **options):
    return loader.train_iterator(
        sources or mixed_sources(),
        batch_size=batch_size,
        input_size=SIZE,
        **({"seed": 0, "augmentation": AUGMENTATION} | options),
        reading=reading,
    )


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def joined(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_training_batches_follow_the_contract():
    batch = next(training())
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == {
        "image": ((8, 64, 48, 3), "uint8"),
        "keypoints": ((8, 17, 2), "float32"),
        "visible": ((8, 17), "float32"),
        "dataset": ((8,), "int32"),
        "valid": ((8,), "bool"),
    }
    assert batch["valid"].all() and set(batch["dataset"]) == {0, 1}
    assert not batch["visible"][batch["dataset"] == 1, 14:].any()
    assert training().num_examples == 14


@pytest.mark.parametrize(("mixture", "together"), [("concat", 1), ("balanced", 1), ("concat", 3), ("balanced", 3)])
@pytest.mark.parametrize("processes", [2, 8])  # of 8 rows
def test_global_batches_do_not_depend_on_the_number_of_processes(mixture, together, processes):
    order = {"mixture": mixture, "together": together}
    whole = take(training(**order), 5)
    shards = [take(training(**order, share=Share(index, processes)), 5) for index in range(processes)]
    assert all(len(batch["image"]) == 8 // processes for batch in shards[0])
    assert_same(whole, [joined(parts) for parts in zip(*shards, strict=True)])


def test_threads_do_not_change_batches():
    threaded = training(reading=Reading(num_threads=3, prefetch=2))
    assert_same(take(training(), 6), take(threaded, 6))
    threaded.close()
    with pytest.raises(ValueError, match="closed"):
        next(threaded)


@pytest.mark.parametrize("together", [1, 3])
def test_resuming_continues_exactly(together):
    """Also in the middle of an epoch, with other threads, and on another number of processes."""
    own = functools.partial(training, together=together)
    straight = take(own(), 7)
    first = own(reading=Reading(num_threads=2))
    assert_same(straight[:3], take(first, 3))
    state = first.get_state()
    first.close()
    resumed = own()
    resumed.set_state(state)
    assert_same(straight[3:], take(resumed, 4))
    resumed.set_state(state)  # backwards, on a running iterator
    assert_same(straight[3:5], take(resumed, 2))
    resumed.set_state({"next_index": 3})  # as older checkpoints say it
    assert_same(straight[3:5], take(resumed, 2))
    halves = [own(share=Share(index, 2)) for index in range(2)]
    for half in halves:
        half.set_state(state)
    assert_same(straight[3:], [joined(parts) for parts in zip(*(take(half, 4) for half in halves), strict=True)])


def test_resuming_with_another_batch_size_goes_on_at_the_next_example():
    straight, small = joined(take(training(batch_size=8), 3)), training(batch_size=6)
    first = take(small, 2)
    large = training(batch_size=4)
    large.set_state(small.get_state())
    again = joined([*first, *take(large, 3)])
    for name, values in straight.items():
        np.testing.assert_array_equal(again[name], values, err_msg=name)


def test_epochs_repeat_instances_but_not_augmentation():
    source = fakes.random_source("coco", num_images=2)  # four people: an epoch is a batch
    epochs = take(training([source], batch_size=4), 3)
    # Mean colour of a crop is little more than noise, but no crop may come back unchanged.
    crops = [image.tobytes() for batch in epochs for image in batch["image"]]
    assert len(set(crops)) == len(crops)


def test_every_instance_is_trained_on_each_epoch():
    source = fakes.random_source("coco", num_images=4)
    plain = [source.describe(index)["visible"].sum() for index in range(8)]
    for batch in take(training([source], batch_size=8), 3):
        assert sorted(batch["visible"].sum(axis=1)) == sorted(plain)


def test_the_seed_decides():
    first, same, other = (next(training(seed=seed)) for seed in (3, 3, 4))
    assert_same([first], [same])
    assert (first["image"] != other["image"]).any()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 9, "share": Share(0, 2)}, "batch of 9 cannot be shared equally by 2"),
        ({"share": Share(2, 2)}, "no process 2 of 2"),
        ({"sources": [fakes.random_source(dataset_index=1)]}, r"numbered from 0, got \[\('coco', 1\)\]"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        training(**options)


def test_a_bad_picture_stops_training_and_is_named():
    source = fakes.random_source("coco", num_images=1)
    source.records.images[0] = b"junk"
    with pytest.raises(ValueError, match="image '000000.jpg'.*cannot be decoded"):
        next(training([source], batch_size=2, reading=Reading(num_threads=2)))


class WorkerProbe:
    """A source that tells how its process is set up."""

    def __init__(self):
        self.parent = os.getpid()

    def __len__(self):
        return 8

    def __getitem__(self, index):
        import jax

        return {
            "row": np.array(index),
            "elsewhere": np.array(os.getpid() != self.parent),
            "jax": np.array(jax.config.jax_platforms == "cpu"),
            "cuda": np.array(os.environ["CUDA_VISIBLE_DEVICES"] == ""),
        }


@pytest.mark.slow  # starts worker processes
def test_workers_keep_off_accelerators_and_do_not_change_batches(monkeypatch):
    """Two spawned processes, which inherit an environment that names accelerators."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    elements = grain.MapDataset.source(WorkerProbe()).repeat()
    reader = loader.TrainIterator(elements, 4, Share(), Reading(num_threads=1, num_workers=2), 8)
    taken = take(reader, 3)
    np.testing.assert_array_equal(np.concatenate([batch["row"] for batch in taken]), [*range(8), *range(4)])
    assert reader.get_state()["next_example"] == 12
    reader.close()
    assert all(batch[name].all() for batch in taken for name in ("elsewhere", "jax", "cuda"))


def evaluation(source=None, batch_size=4, **options):
    source = source or fakes.random_source("coco", num_images=5)
    return EvalLoader(source, batch_size, SIZE, **({"reading": DIRECT} | options))


def test_evaluation_keeps_every_instance_and_pads_the_last_batch():
    batches = evaluation()
    taken = list(batches)
    assert len(taken) == len(batches) == 3
    whole = joined(taken)
    np.testing.assert_array_equal(whole["valid"], [True] * 10 + [False] * 2)
    np.testing.assert_array_equal(whole["instance_id"][:10], np.arange(10))
    np.testing.assert_array_equal(whole["image_id"][:10], np.repeat(np.arange(5), 2))
    for name in ("image", "visible", "box_score", "area", "image_id"):
        assert not whole[name][10:].any()
    assert {name: (value.shape[1:], value.dtype.name) for name, value in whole.items()} == {
        "image": ((64, 48, 3), "uint8"),
        "keypoints": ((17, 2), "float32"),
        "visible": ((17,), "float32"),
        "dataset": ((), "int32"),
        "valid": ((), "bool"),
        "inverse_warp": ((2, 3), "float32"),
        "image_id": ((), "int64"),
        "instance_id": ((), "int64"),
        "box_score": ((), "float32"),
        "area": ((), "float32"),
    }
    assert_same(taken, list(batches))  # can be run again


@pytest.mark.parametrize("processes", [2, 4])
def test_evaluation_shards_have_equal_numbers_of_batches(processes):
    shards = [list(evaluation(share=Share(index, processes))) for index in range(processes)]
    assert {len(shard) for shard in shards} == {3}
    assert_same(list(evaluation()), [joined(parts) for parts in zip(*shards, strict=True)])


@pytest.mark.parametrize("name", ["coco", "aic"])  # one of each codec
def test_keypoints_lead_back_to_the_image(name):
    source = fakes.random_source(name, num_images=3)
    batch = joined(list(EvalLoader(source, 6, SIZE, reading=DIRECT)))
    for row in range(6):
        back = geometry.transform(batch["inverse_warp"][row], batch["keypoints"][row])
        sample = source.describe(row)
        seen = sample["visible"] > 0
        np.testing.assert_allclose(back[seen], sample["keypoints"][seen], atol=1e-3)  # float32
        np.testing.assert_allclose(batch["area"][row], np.prod(200 * sample["scale"]), rtol=1e-6)
        np.testing.assert_array_equal(batch["visible"][row], sample["visible"])


def test_evaluation_decodes_neighbours_once():
    source = fakes.random_source("coco", num_images=2, people_per_image=10)
    list(evaluation(source, batch_size=20))
    assert source.records.reads == 2


@pytest.mark.parametrize("mixture", ["concat", "balanced"])
def test_people_together_share_a_decoded_picture(mixture, monkeypatch):
    """The crops are those of anybody who decodes for himself."""
    decoded, decode = [], crops.decode
    monkeypatch.setattr(crops, "decode", lambda *args: decoded.append(args) or decode(*args))
    sources = [fakes.random_source("coco", dataset_index=i, num_images=2, people_per_image=10) for i in (0, 1)]
    batches = take(training(sources, batch_size=20, mixture=mixture, together=10), 2)
    assert len(decoded) == 4
    monkeypatch.setattr(crops.LastPictures, "decode", lambda self, *args: decode(*args))
    assert_same(batches, take(training(sources, batch_size=20, mixture=mixture, together=10), 2))


def test_evaluation_names_its_boxes(tmp_path):
    source = fakes.random_source("coco", num_images=2)
    path = tmp_path / "detections.json"
    path.write_text('[{"image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 30], "score": 0.75}]')
    chosen = instances.detections(path, source.annotations, source.dataset, SIZE)
    source.instances = chosen
    batches = evaluation(source, batch_size=2)
    (batch,) = batches
    assert batches.boxes == str(path) and evaluation().boxes == "ground_truth"
    np.testing.assert_array_equal(batch["valid"], [True, False])
    np.testing.assert_allclose(batch["box_score"], [0.75, 0])
    assert batch["image_id"][0] == 1 and not batch["visible"].any() and batch["image"][0].any()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Records on disk: two skeletons of the synthetic world."""
    folder = tmp_path_factory.mktemp("records")
    synthetic.prepare_synthetic(folder, ["synthetic_coco", "synthetic_aic"], num_train=3, num_val=3)
    return folder


def test_data_that_were_prepared_anew_are_told_where_a_run_goes_on(prepared, tmp_path, caplog):
    """By dataset and split; not where the same was prepared again, elsewhere, nor of checkpoints of before."""
    entries = [loader.Entry("synthetic_coco"), loader.Entry("synthetic_aic")]

    def start(data_dir):
        return loader.train_loader(entries, data_dir=data_dir, batch_size=2, input_size=SIZE, seed=0)

    state = json.loads(json.dumps(start(prepared).get_state()))  # as a checkpoint keeps it
    synthetic.prepare_synthetic(tmp_path, ["synthetic_coco", "synthetic_aic"], num_train=3, num_val=0)
    for known in (state, {"next_example": 2}):
        start(tmp_path).set_state(known)
    assert not caplog.messages
    synthetic.prepare_synthetic(tmp_path, ["synthetic_coco"], num_train=3, num_val=0, seed=8)
    start(tmp_path).set_state(state)
    (said,) = caplog.messages
    assert said.startswith("synthetic_coco (train): not the data that the run was trained on")


def started_since(before):
    return set(multiprocessing.active_children()) - set(before)


@pytest.mark.slow  # starts worker processes
@pytest.mark.parametrize("together", [1, 3])
def test_prepared_datasets_train_and_resume_in_worker_processes(together, prepared, tmp_path):
    """By name, from copies, in two spawned processes: the batches of the calling process to the last bit."""

    def start(reading):
        return loader.train_loader(
            [loader.Entry("synthetic_coco"), loader.Entry("synthetic_aic")],
            seed=5,
            together=together,
            augmentation=AUGMENTATION,
            data_dir=prepared,
            batch_size=4,
            input_size=SIZE,
            reading=reading,
        )

    expected = take(start(DIRECT), 5)
    assert {0, 1} == set(np.concatenate([batch["dataset"] for batch in expected]))
    before = multiprocessing.active_children()
    worked = start(Reading(num_threads=1, num_workers=2, cache=str(tmp_path)))
    worked.set_state({"next_index": 2})
    worked.start_prefetch()
    until = time.monotonic() + 60
    while len(workers := started_since(before)) < 2:
        assert time.monotonic() < until
        time.sleep(0.01)
    for begun in range(3):  # while they start, and while they work
        for worker in workers:  # as Ctrl-C or a scheduler does, after which a run still saves
            for asked in (signal.SIGINT, signal.SIGTERM):
                os.kill(worker.pid, asked)
        assert_same(expected[2 + begun : 3 + begun], take(worked, 1))
    worked.close()
    assert not started_since(before)


@pytest.mark.slow  # starts worker processes
def test_closing_ends_workers_that_have_not_begun():
    before = multiprocessing.active_children()
    elements = grain.MapDataset.source(WorkerProbe()).repeat()
    reader = loader.TrainIterator(elements, 4, Share(), Reading(num_threads=1, num_workers=2), 8)
    reader.start_prefetch()
    reader.close()
    assert not started_since(before)


@pytest.mark.slow  # starts worker processes
def test_workers_end_with_a_process_that_is_killed(tmp_path):
    code = """
        import os, signal
        import grain, numpy
        from data_pipelines.reading import Reading
        batches = grain.MapDataset.source([{"image": numpy.zeros((600, 600))}]).repeat()
        reader = Reading(num_threads=1, num_workers=1).start(batches)
        print(next(reader)["image"].shape, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    # It returns when nobody has the output open any more, and workers have what their parent has.
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL and done.stdout == "(600, 600)\n"
    assert not list(tmp_path.iterdir()), "nor does what they were sent stay"


@pytest.mark.slow  # starts worker processes
def test_what_workers_have_read_to_the_end_leaves_no_shared_memory():
    """Python would warn of it when the program ends."""
    code = """
        import gc
        import time
        import numpy
        from data_pipelines.reading import Reading
        gc.disable()  # else chance would have it
        read = Reading(num_threads=1, num_workers=1).each([{"image": numpy.zeros((600, 600))}] * 2)
        print(sum(batch["image"].shape[0] for batch in read))
        time.sleep(2)  # memory that nothing holds any more is given back by a thread of Grain's
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert (done.returncode, done.stdout) == (0, "1200\n") and "leaked" not in done.stderr, done.stderr


@pytest.mark.slow  # starts worker processes
@pytest.mark.parametrize("file", ["program.py", None])
def test_a_program_that_workers_cannot_import_ends_with_one_error(file, tmp_path):
    """Without `if __name__ == "__main__"`, or from standard input, they end before they read what they were sent."""
    code = """
        import numpy
        from data_pipelines.reading import Reading
        batches = [{"image": numpy.zeros((600, 600))}] * 2  # more than a pipe holds
        for batch in Reading(num_threads=1, num_workers=2).each(batches):
            print(batch["image"].shape)
    """
    program = tmp_path / (file or "elsewhere.py")
    program.write_text(textwrap.dedent(code))
    command = [sys.executable, str(program) if file else "-"]
    sent = tmp_path / "sent"
    sent.mkdir()
    with program.open() as source:
        environment = os.environ | {"TMPDIR": str(sent)}
        done = subprocess.run(
            command, env=environment, stdin=source, capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 1 and not done.stdout and not list(sent.iterdir())
    assert done.stderr.count("Traceback") == 1 and "under `if __name__ == '__main__':`" in done.stderr, done.stderr


def test_prepared_datasets_are_evaluated_whole(prepared):
    batches = loader.eval_loader(
        "synthetic_coco",
        "val",
        data_dir=prepared,
        batch_size=4,
        input_size=SIZE,
        dataset_index=3,
        reading=Reading(num_threads=2),
    )
    whole = joined(list(batches))
    valid = whole["valid"]
    people = batches.annotations.num_instances
    assert valid.sum() == people == len(set(whole["instance_id"][valid].tolist()))
    assert (whole["dataset"] == 3).all() and whole["keypoints"].shape[1:] == (17, 2)
    assert set(whole["image_id"][valid]) <= set(batches.annotations.image_id)


@pytest.mark.parametrize(
    "name, split, options",
    [
        ("mpii", "train", {"annotations": "mpii/test_mpii.json", "images": "mpii"}),
        (
            "interhand2d",
            "test",
            {"annotations": "interhand2.6m/test_interhand2.6m_data.json", "images": "interhand2.6m"},
        ),
        ("coco", "test", {"annotations": "coco/test_coco.json", "images": "coco"}),
    ],
)
def test_sample_records_give_the_released_crops(tmp_path, name, split, options):
    """From raw files through builder and records; mpii's joints are in the release's training list only."""
    with np.load(shared_path("golden/data/db.npz")) as archive:
        expected = {
            key: archive[f"{name}/{split}/{key}"]
            for key in ("image", "center", "scale", "joints_3d", "joints_3d_visible")
        }
    paths = {key: shared_path(f"samples/{path}") for key, path in options.items()}
    BUILDERS[name]("val", raw_dir=None, data_dir=tmp_path, progress=False, **paths).prepare()
    source = loader.open_source(name, "val", data_dir=tmp_path, input_size=(192, 256))
    assert [source.describe(i)["origin"][2] for i in range(len(source))] == list(expected["image"])
    np.testing.assert_allclose(source.instances.centre, expected["center"], atol=1e-3)
    np.testing.assert_allclose(source.instances.scale, expected["scale"], atol=1e-5)
    for index in range(len(source)):
        sample = source.describe(index)
        np.testing.assert_array_equal(sample["visible"], expected["joints_3d_visible"][index])
        seen = sample["visible"] > 0
        np.testing.assert_allclose(sample["keypoints"][seen], expected["joints_3d"][index][seen], atol=1e-3)


def test_a_dataset_that_is_not_there_is_named(tmp_path):
    entries = [loader.Entry("coco")]
    with pytest.raises(records.DatasetNotPrepared, match="scripts.prepare_data coco"):
        loader.train_loader(entries, data_dir=tmp_path, batch_size=2, input_size=SIZE, seed=0)
    with pytest.raises(KeyError, match="unknown dataset 'cocoa'"):
        loader.eval_loader("cocoa", "val", data_dir=tmp_path, batch_size=2, input_size=SIZE)
