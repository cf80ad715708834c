"""A leak is told from noise, spikes, warming up and steps between two levels."""

import random

import pytest

from .trend import trend

SECONDS = [10.0 * number for number in range(300)]


def noise(seed: int = 1) -> list[float]:
    dice = random.Random(seed)
    return [dice.gauss(0, 1) for _ in SECONDS]


def along(values: list[float]) -> list[tuple[float, float]]:
    return list(zip(SECONDS, values, strict=True))


def test_a_leak_below_the_noise_of_one_sample_is_found() -> None:
    found = trend(along([50 + at * 0.002 + one for at, one in zip(SECONDS, noise(), strict=True)]))
    assert found.grows(3.0)
    assert found.per_hour == pytest.approx(7.2, rel=0.2)


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_is_no_leak(seed: int) -> None:
    assert not trend(along([50 + one for one in noise(seed)])).grows(0.5)


def test_spikes_in_every_third_sample_do_not_bend_the_slope() -> None:
    values = [50 + one + (500 * index / 300 if index % 3 == 0 else 0) for index, one in enumerate(noise())]
    assert trend(along(values)).growth < 2


def test_warming_up_is_no_leak() -> None:
    values = [50 - 30 * max(0.0, 1 - index / 50) + one for index, one in enumerate(noise())]
    assert not trend(along(values)).grows(1.0)


def test_two_levels_by_turns_are_no_leak() -> None:
    assert not trend(along([20.0 + index // 10 % 2 for index in range(300)])).grows(0.5)


def test_one_descriptor_a_minute_is_a_leak_and_a_constant_is_none() -> None:
    assert trend(along([20.0 + at // 60 for at in SECONDS])).grows(3.0)
    assert not trend(along([20.0] * 300)).grows(0.0)


def test_what_shrinks_does_not_grow() -> None:
    assert not trend(along([50 - at * 0.01 for at in SECONDS])).grows(0.0)


def test_too_few_samples_are_said_to_be_too_few() -> None:
    with pytest.raises(ValueError, match="2 samples tell no trend"):
        trend([(0.0, 1.0), (1.0, 2.0)])
