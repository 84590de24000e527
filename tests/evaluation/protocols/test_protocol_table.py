"""The table of a protocol: our rows, theirs, and what is missing from ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from reconx_pl.evaluation.protocols.files import load_protocol
from reconx_pl.evaluation.protocols.table import protocol_table, write_table


def scene(key: str, psnr: float) -> dict[str, Any]:
    mean = {"psnr": psnr, "ssim": 0.5, "lpips": 0.25}
    scores = {"reconx": {"mean": mean}, "nearest_input": {"mean": mean}}
    return {"key": key, "scene": key, "scores": scores, "files": {}}


def results(**changes: Any) -> dict[str, Any]:
    content = {
        "complete": True,
        "expected": 7,
        "finished": 7,
        "failed": {},
        "missing": [],
        "mean": {
            "reconx": {"psnr": 23.456, "ssim": 0.8, "lpips": 0.1},
            "nearest_input": {"psnr": 12.0, "ssim": 0.4, "lpips": 0.5},
        },
        "methods": {"reconx": "ReconX: splats", "generated": "Generated", "nearest_input": "Nearest | copied"},
        "metrics": ["psnr", "ssim", "lpips"],
        "absent": {},
        "geometry": {"points found by X": 7},
        "config_hash": "c" * 64,
        "model": "view generator 1",
        "estimator": "X 1",
        "version": "0.1",
        "scenes": [scene(f"s{number}", 20.0 + number) for number in (3, 0, 6, 1, 4, 2, 5)],
    }
    return {**content, **changes}


def table(name: str = "re10k-hard", of: int = 7, **changes: Any) -> str:
    return protocol_table(results(**changes), load_protocol(name), "runs/mine", of)


def test_our_rows_stand_above_the_published_ones() -> None:
    lines = table().splitlines()
    start = lines.index("| method | PSNR ↑ | SSIM ↑ | LPIPS ↓ |")
    assert lines[start + 2 : start + 7] == [
        "| ReconX: splats | 23.46 | 0.800 | 0.100 |",
        "| Nearest \\| copied | 12.00 | 0.400 | 0.500 |",
        "| *published:* pixelSplat | 19.62 | 0.730 | 0.270 |",
        "| *published:* MVSplat | 19.97 | 0.732 | 0.245 |",
        "| *published:* ReconX | 23.70 | 0.867 | 0.143 |",
    ]
    assert table("dl3dv-6").count("| *published:* ReconX | 17.45 | – | – |") == 1


def test_covered_and_uncovered_pixels_stand_beside_the_whole() -> None:
    split = {"mean_covered": {"reconx": {"psnr": 25.0}}, "mean_uncovered": {"reconx": {"psnr": 18.0}}}
    scenes = {"covered": {"reconx": 7, "nearest_input": 7}, "uncovered": {"reconx": 5}}
    split["coverage"] = {"share": 0.91, "by": {"their depth": 7}, "least": 0.005, "scenes": scenes}
    split["left_out"] = {"filled_render": {"no depth": 2}}
    text = table(**split)
    assert "| method | PSNR ↑ | SSIM ↑ | LPIPS ↓ | PSNR, covered | PSNR, uncovered |" in text
    assert "| ReconX: splats | 23.46 | 0.800 | 0.100 | 25.00 | 18.00 |" in text
    assert "| *published:* MVSplat | 19.97 | 0.732 | 0.245 | – | – |" in text
    assert "of covered pixels over 7 of 7 scenes and of uncovered pixels over 5 of 7 scenes" in text
    assert "91.0 %" in text and "at least 0.5 %" in text and "not of 2 scenes, no depth" in text


def test_what_the_numbers_depend_on_is_said() -> None:
    text, protocol = table(), load_protocol("re10k-hard")
    for part in (
        protocol.hash,
        "`runs/mine`",
        "`view generator 1`",
        "`X 1`",
        "c" * 64,
        "reconx_pl 0.1",
        str(protocol.poses),
    ):
        assert part in text
    assert "7 scored of 7 asked for; the protocol has 7" in text and "points found by X (7 entries)" in text
    assert "does not list them" in text  # the notes
    assert "Not complete" not in text and "A part of" not in text


def test_worst_and_best_entries() -> None:
    worst, best = table().split("## Best entries by PSNR")
    worst = worst.split("## Worst entries by PSNR")[1]
    assert [line.split(" | ")[0] for line in worst.splitlines() if line.startswith("| s")] == [
        f"| s{number}" for number in (0, 1, 2, 3, 4)
    ]
    assert [line.split(" | ")[0] for line in best.splitlines() if line.startswith("| s")] == [
        f"| s{number}" for number in (6, 5, 4, 3, 2)
    ]
    assert "| s0 | s0 | 20.00 | 0.500 | 0.250 |" in worst
    assert "## Worst" not in table(scenes=[scene("only", 1.0)])
    pictured = {**scene("a/b", 1.0), "files": {"contact_sheet": "contact_sheet.png"}}
    assert re.search(r"\| \[a/b\]\(scenes/a_b-\w{8}/contact_sheet.png\) \|", table(scenes=[pictured, scene("s1", 2.0)]))


def test_an_incomplete_run_says_so_first_and_names_everything() -> None:
    text = table(complete=False, finished=4, failed={"b": "BadSceneError: no\n| points"}, missing=["c", "d"])
    assert text.index("Not complete: 4 of 7 entries scored") < text.index("| method |")
    assert "1 that failed and 2 that are missing" in text
    assert "> - b failed: BadSceneError: no \\| points\n> - c is missing\n> - d is missing" in text
    many = table(complete=False, finished=0, missing=[f"m{number:03d}" for number in range(80)])
    assert "m049 is missing" in many and "m050 is missing" not in many and "and 30 more" in many


def test_a_part_of_a_benchmark_says_so() -> None:
    assert "**A part of the protocol: 7 of 192 entries.**" in table(of=192)


def test_a_metric_that_could_not_be_measured_has_no_column() -> None:
    text = table(absent={"lpips": "no weights"})
    assert "**No LPIPS:** no weights" in text and "| method | PSNR ↑ | SSIM ↑ |\n" in text
    assert "| *published:* ReconX | 23.70 | 0.867 |\n" in text


def test_nothing_scored_at_all(tmp_path: Path) -> None:
    empty = results(complete=False, finished=0, mean={}, scenes=[], geometry={}, failed={"a": "x"})
    path = write_table(tmp_path / "out", empty, load_protocol("llff"), "runs/mine", 8)
    assert path.name == "table.md" and "0 of 7 entries scored" in path.read_text()
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["table.md"]
