"""``benchmarks.views``: which photographs it takes, what it calls worse, and one scene from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.reconstruct import write_room
from benchmarks.views import chosen_views, losses, main
from reconx_pl.errors import BadSceneError


@pytest.mark.parametrize("total", [9, 14, 18, 50])
def test_any_count_is_scored_on_the_same_photographs(total: int) -> None:
    choices = [chosen_views(total, count) for count in (2, 3, 6)]
    given, held_out = choices[0]
    assert all(other[1] == held_out for other in choices) and len(held_out) >= 2
    for chosen, _ in choices:
        assert (chosen[0], chosen[-1]) == (given[0], given[-1]), "all span the same stretch"
        assert not set(chosen) & set(held_out) and chosen == sorted(set(chosen))
        assert chosen[0] < min(held_out) and max(held_out) < chosen[-1]


def test_too_few_photographs_are_said() -> None:
    with pytest.raises(BadSceneError, match="7 of 9 photographs are not held out, fewer than 8"):
        chosen_views(9, 8)


def test_what_counts_as_worse() -> None:
    def row(count: int, psnr: float) -> dict[str, float]:
        return {"count": count, "posed_psnr": psnr}

    assert losses([row(2, 20.0), row(3, 19.8), row(4, 21.0)]) == []
    assert losses([row(4, 18.0), row(2, 20.0), row(8, 19.6)]) == [
        "4 photographs: 2.00 dB worse than 2",
        "8 photographs: 0.40 dB worse than 2",
    ]
    assert losses([row(2, 20.0), {"count": 3, "failed": "why"}]) == ["3 photographs: no scene than 2"]
    assert losses([{"count": 2, "failed": "why"}, row(3, 10.0)]) == []


def test_a_room_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_room(tmp_path / "room", 3000001)
    options = ["--root", str(tmp_path), "--scenes", "room", "--counts", "3", "9", "--steps", "30", "--size", "48"]
    main(
        [
            *options,
            "--out",
            str(tmp_path / "out"),
            "--json",
            str(tmp_path / "views.json"),
            "--plot",
            str(tmp_path / "p.png"),
        ]
    )
    three, nine = json.loads((tmp_path / "views.json").read_text())["scenes"]["room"]
    assert three["count"] == 3 and three["posed_psnr"] > three["nearest_psnr"] + 1.5
    assert three["rotation_degrees"] < 0.3 and abs(three["focal"]) < 0.05
    assert nine == {"count": 9, "failed": "7 of 9 photographs are not held out, fewer than 9"}
    assert "room: 9 photographs: no scene than 3" in capsys.readouterr().out
    assert (tmp_path / "p.png").stat().st_size > 1000
