"""Mixtures: what is drawn how often, in which order."""

from __future__ import annotations

import collections
import itertools
import pickle

import numpy as np
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


class People(list):
    """Numbers; the tens say whose picture."""

    pictures = property(lambda self: np.array([number // 10 % 10 for number in self]))


PICTURES = [People([0, 1, 2, 10, 20, 21]), People([100, 101, 102, 103, 104, 110])]


@pytest.mark.parametrize("kind", ["concat", "balanced"])
def test_people_of_a_picture_follow_each_other(kind):
    stream = mixture.mix(PICTURES, kind, 0, together=2)
    length = 12
    for number in range(3):
        items = epoch(stream, number, length)
        assert sorted(items) == sorted(sum(PICTURES, []))
        for wanted in PICTURES:
            own = [item for item in items if item in wanted]
            runs = [len(list(run)) for _, run in itertools.groupby(own, lambda item: item // 10)]
            # Two runs of one picture may happen to meet; a lone person between two others of a picture may not be.
            assert len(runs) <= sum(-(-count // 2) for count in collections.Counter(i // 10 for i in own).values())
    assert epoch(stream, 0, length) != epoch(stream, 1, length)
    again = pickle.loads(pickle.dumps(mixture.mix(PICTURES, kind, 0, together=2)))  # as worker processes get it
    assert epoch(again, 2, length) == epoch(stream, 2, length), "from any position"
    assert epoch(stream, 0, length) == epoch(again, 0, length)


def test_runs_are_as_long_as_asked_and_in_random_places():
    pictures = np.repeat(np.arange(40), 5)
    orders = [mixture.order_of_runs(pictures, 3, seed) for seed in range(200)]
    lengths = collections.Counter()
    for order in orders:
        assert sorted(order) == list(range(len(pictures)))
        lengths.update(len(list(run)) for _, run in itertools.groupby(pictures[order]))
    # Of five people a run of three and one of two, which meet once in 40 times.
    assert lengths[3] == pytest.approx(lengths[2], rel=0.02) and lengths[5] < 0.05 * lengths[3]
    assert not lengths[1] and not lengths[4]
    # Everybody is everywhere: the mean place of 200 orders, with a deviation of 200 / sqrt(12) / sqrt(200) = 4.1.
    assert np.abs(np.argsort(orders, axis=1).mean(0) - 99.5).max() < 5 * 4.1


def test_nobody_together_is_refused():
    with pytest.raises(ValueError, match="0 people of a picture together"):
        mixture.mix(SOURCES, "concat", 0, together=0)
