"""The command that measures an accelerator: the smallest network on the CPU, and what happens when a part fails."""

from __future__ import annotations

import json

import pytest

from scripts.benchmarks import accelerator


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow  # compiles a training step and a prediction
def test_the_smallest_network_is_measured(tmp_path):
    options = "--sizes=tiny --boir= --batch=2 --inference_batches=1 --steps=1 --parts=kernels,predict,profile"
    found = accelerator.main([f"--out={tmp_path}", *options.split()])
    (backbone, convolution), (prediction,), (trace,) = found["kernels"], found["predict"], found["profile"]
    assert backbone == {  # off a TPU both sides are the same program
        "not measured": "kernels of ViT tiny: they run on a TPU alone, here both sides are the plain form"
    }
    # A convolution's sides add up in another order.
    assert float(convolution["largest relative difference of a gradient"]) < 1e-5
    assert prediction["model"] == "PoseBH tiny" and prediction["a second"] > 0
    assert list((tmp_path / "profile").rglob("*.xplane.pb")) and trace["profile"].startswith(str(tmp_path))
    assert [row["part"] for row in rows_of(tmp_path / "rows.jsonl")] == ["kernels", "kernels", "predict", "profile"]
    assert "| PoseBH tiny |" in (tmp_path / "tables.md").read_text()


def test_what_fails_is_a_row_and_the_rest_goes_on(tmp_path, monkeypatch):
    def fails():
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory\ntraceback")

    parts = {"first": lambda settings: iter([fails]), "second": lambda settings: iter([lambda: [{"ms": 1}]])}
    monkeypatch.setattr(accelerator, "PARTS", parts)
    found = accelerator.main([f"--out={tmp_path}", "--parts=first,second"])
    assert found == {"first": [{"failed": "first 0: RESOURCE_EXHAUSTED: out of memory"}], "second": [{"ms": 1}]}
    assert accelerator.main([f"--out={tmp_path}", "--parts=second", "--minutes=0"]) == {
        "second": [{"not measured": "second 0: out of time"}]
    }


def test_an_unknown_part_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        accelerator.main([f"--out={tmp_path}", "--parts=train,prediction"])
    assert "there is no 'prediction'; known: parity, kernels, train, predict" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--sizes=tiny,bsae", "--sizes: there is no 'bsae'; known: tiny, small"),
        ("--boir=coco_w23", "--boir: --config=boir:coco_w23: configs/boir.py:coco_w23: expected coco_w32"),
    ],
)
def test_an_unknown_model_is_named_before_anything_is_measured(flag, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        accelerator.main([f"--out={tmp_path}", flag])
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())
