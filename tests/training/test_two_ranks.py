"""Two processes train one model: on different clips, to the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml
from golden_kits import REPOSITORY
from tiny_run import tiny_config

from reconx_pl.data.procedural import write_procedural


def test_ranks_see_different_clips_and_end_with_the_same_weights(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    write_procedural(shards, count=16, frames=4, size=(32, 32), points=64, clips_per_shard=2)
    path = tiny_config(tmp_path, shards, "base", steps=2, checkpoint_every=2)
    config = yaml.safe_load(path.read_text())
    config["trainer"] |= {"devices": 2, "strategy": "ddp"}
    config["trainer"]["callbacks"].append(
        {"class_path": "key_recorder.KeyRecorder", "init_args": {"folder": str(tmp_path)}}
    )
    path.write_text(yaml.safe_dump(config))
    result = subprocess.run(
        [sys.executable, str(REPOSITORY / "train.py"), "fit", "-c", str(path)],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    seen = [
        [key for line in (tmp_path / f"rank{rank}.jsonl").read_text().splitlines() for key in json.loads(line)[1]]
        for rank in (0, 1)
    ]
    assert [len(keys) for keys in seen] == [8, 8]  # 2 steps of 4 clips on each rank
    assert len(set(seen[0]) | set(seen[1])) == 16  # one epoch of 16 clips, none twice
    weights = [(tmp_path / f"rank{rank}.weights").read_text() for rank in (0, 1)]
    assert weights[0] == weights[1]
