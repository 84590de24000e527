import time

import numpy as np
import pytest
import torch

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.farthest_point import farthest_point_order


def quadratic(points: torch.Tensor, count: int, start: int) -> list[int]:
    xyz = points.double().numpy()
    distance = np.full(len(xyz), np.inf)
    chosen = [start]
    for _ in range(count - 1):
        offset = xyz - xyz[chosen[-1]]
        distance = np.minimum(distance, offset[:, 0] ** 2 + offset[:, 1] ** 2 + offset[:, 2] ** 2)
        distance[chosen] = -1
        chosen.append(int(distance.argmax()))
    return chosen


@pytest.mark.parametrize("total,count,start", [(1, 1, 0), (5, 5, 3), (63, 40, 0), (700, 700, 699), (3000, 400, 17)])
def test_equals_the_quadratic_algorithm(total: int, count: int, start: int) -> None:
    points = torch.randn(total, 3, generator=torch.Generator().manual_seed(total))
    assert farthest_point_order(points, count, start).tolist() == quadratic(points, count, start)


def test_equals_it_on_a_lattice_full_of_ties_and_duplicates() -> None:
    axis = torch.arange(7.0)
    lattice = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    points = torch.cat([lattice, lattice[:50]])
    order = farthest_point_order(points, len(points), 5)
    assert order.tolist() == quadratic(points, len(points), 5)
    assert sorted(order.tolist()) == list(range(len(points)))


def test_a_prefix_is_the_answer_to_a_smaller_question() -> None:
    points = torch.rand(2000, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(farthest_point_order(points, 500)[:60], farthest_point_order(points, 60))


def test_a_prefix_covers_the_cloud_better_than_chance() -> None:
    generator = torch.Generator().manual_seed(2)
    points = torch.rand(4000, 3, generator=generator)
    spread = torch.cdist(points, points[farthest_point_order(points, 100)]).min(1).values.max()
    random = torch.cdist(points, points[torch.randperm(4000, generator=generator)[:100]]).min(1).values.max()
    assert spread < 0.75 * random


def test_errors_say_what_to_do() -> None:
    points = torch.zeros(4, 3)
    with pytest.raises(ConfigurationError, match="between 1 and 4"):
        farthest_point_order(points, 5)
    with pytest.raises(ConfigurationError, match="start 4"):
        farthest_point_order(points, 2, start=4)
    points[2, 1] = float("nan")
    with pytest.raises(BadSceneError, match="NaN"):
        farthest_point_order(points, 2)


def test_sixteen_thousand_of_a_hundred_thousand_take_no_coffee_break() -> None:
    points = torch.rand(100_000, 3, generator=torch.Generator().manual_seed(3))
    farthest_point_order(points[:100], 10)  # compile outside of the clock
    begin = time.process_time()
    order = farthest_point_order(points, 16384)
    assert time.process_time() - begin < 2  # 0.1 here; the quadratic algorithm in numpy takes more than 10
    assert len(set(order.tolist())) == 16384
