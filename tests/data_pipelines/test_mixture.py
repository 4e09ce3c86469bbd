"""Mixtures: what is drawn how often, in which order."""

from __future__ import annotations

import collections

import pytest

from data_pipelines import mixture

SOURCES = [list(range(0, 7)), list(range(100, 123)), [200]]


def epoch(stream, number=0, length=31):
    return [stream[index] for index in range(number * length, (number + 1) * length)]


def test_concat_shows_everything_once_an_epoch():
    stream = mixture.mix(SOURCES, "concat", seed=0)
    everything = sorted(sum(SOURCES, []))
    epochs = [epoch(stream, number) for number in range(4)]
    assert all(sorted(items) == everything for items in epochs)
    assert len({tuple(items) for items in epochs}) == 4  # each in an order of its own
    first_half = epochs[0][:16]
    assert any(item < 100 for item in first_half) and any(item >= 100 for item in first_half)


@pytest.mark.parametrize("weights", ["balanced", (1.0, 1.0, 1.0), (3.0, 2.0, 1.0), (0.5, 0.2, 0.3)])
def test_weights_are_met_exactly_and_everywhere(weights):
    stream = mixture.mix(SOURCES, weights, seed=0)
    shares = [1 / 3] * 3 if weights == "balanced" else [weight / sum(weights) for weight in weights]
    for first in (0, 5000):
        counts = collections.Counter(stream[index] // 100 for index in range(first, first + 300))
        for number, share in enumerate(shares):
            assert abs(counts[number] - 300 * share) <= 300 * 0.01 + 2


def test_a_weighted_dataset_runs_through_its_own_epochs():
    stream = mixture.mix(SOURCES, "balanced", seed=0)
    small = [item for item in (stream[index] for index in range(3 * 28)) if item < 100]
    epochs = [tuple(small[start : start + 7]) for start in range(0, 28, 7)]
    assert all(sorted(items) == SOURCES[0] for items in epochs) and len(set(epochs)) > 1


@pytest.mark.parametrize("kind", ["concat", "balanced"])
def test_order_is_the_seeds(kind):
    first, same, other = (epoch(mixture.mix(SOURCES, kind, seed)) for seed in (1, 1, 2))
    assert first == same != other
    # Neighbouring seeds must not give each other's later epochs.
    assert epoch(mixture.mix(SOURCES, kind, 1), 1) != other


@pytest.mark.parametrize("wrong", ["uniform", (1, 2), (1, 0, 1), (1, -1, 1), (1, float("nan"), 1)])
def test_bad_mixtures_are_refused(wrong):
    with pytest.raises(ValueError, match="mixture"):
        mixture.mix(SOURCES, wrong, seed=0)
