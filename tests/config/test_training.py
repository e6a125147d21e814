"""A recipe states the resources that it needs."""

from __future__ import annotations

import pytest

from tests.support.recipes import RECIPE


@pytest.mark.parametrize(
    ("workers", "per_worker", "cpus"),
    [
        (3, 0.5, 2),
        (2, 0.5, 1),
        (1, 0.25, 1),
        (3, 1.0, 3),
        (10, 0.1, 1),
        (3, 0.1, 1),
        (100, 1.1, 110),  # in floats the product is 110.00000000000001
        (3, 1.1, 4),
    ],
)
def test_the_cpus_of_all_workers_are_rounded_up(workers, per_worker, cpus):
    changes = {"workers": workers, "resources_per_worker": {"CPU": per_worker}}
    assert RECIPE.model_copy(update=changes).cpus == cpus


def test_without_a_number_of_cpus_each_worker_needs_one():
    changes = {"workers": 3, "resources_per_worker": {"GPU": 1.0}}
    assert RECIPE.model_copy(update=changes).cpus == 3
