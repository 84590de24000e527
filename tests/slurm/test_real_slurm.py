"""A job of two tasks under a real Slurm: preempted, saved, requeued, resumed, and equal to a run without all that."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cluster import Cluster, SlurmUnavailable, require_slurm
from golden_kits import REPOSITORY
from interrupted import complete, curves, keys, prepared, start
from tiny_run import logged

from reconx_pl.data.procedural import write_procedural

STEPS = 24
GRACE = 120  # seconds; a busy machine takes its time
SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=train
#SBATCH --partition=low
#SBATCH --ntasks-per-node=2
#SBATCH --nodes=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@20
srun --kill-on-bad-exit=1 {python} {train} fit -c {config} -c {root}/configs/slurm.yaml \\
  --trainer.accelerator cpu --trainer.strategy ddp \\
  --trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$SLURM_NTASKS_PER_NODE"
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="slurm"))  # a short path: munge's socket is in it
    try:
        require_slurm()
        with Cluster(folder, GRACE) as running:
            yield running
    except SlurmUnavailable as reason:
        pytest.skip(str(reason))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def until_step(folder: Path, step: int, cluster: Cluster, job: str) -> None:
    end = time.monotonic() + 180
    while not (folder / "rank0.curves.jsonl").exists() or max(curves(folder), default=0) < step:
        assert time.monotonic() < end and cluster.state(job) in ("PENDING", "RUNNING"), output(folder)
        time.sleep(0.2)


def output(folder: Path) -> str:
    log = folder / "job.log"
    return log.read_text()[-4000:] if log.exists() else "no output"


def test_a_preempted_job_ends_as_if_it_had_not_been(tmp_path: Path, cluster: Cluster) -> None:
    shards = tmp_path / "shards"
    write_procedural(shards, count=8, first_seed=0, frames=4, size=(32, 32), points=64, clips_per_shard=2)
    whole, preempted = (prepared(tmp_path / name, shards, STEPS, checkpoint_every=100) for name in ("whole", "job"))
    config = yaml.safe_load(preempted.read_text())
    config["trainer"]["callbacks"].append({"class_path": "slow_steps.SlowSteps", "init_args": {"seconds": 0.3}})
    preempted.write_text(yaml.safe_dump(config))
    folder = preempted.parent
    script = folder / "job.sh"
    script.write_text(
        SCRIPT.format(python=sys.executable, train=REPOSITORY / "train.py", config=preempted, root=REPOSITORY)
    )
    paths = os.pathsep.join([str(Path(__file__).parent), str(REPOSITORY / "tests" / "support")])
    cluster.environment |= {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    job = cluster.submit(script, f"--output={folder}/job.log", f"--chdir={REPOSITORY}")

    until_step(folder, 3, cluster, job)
    urgent = folder / "urgent.sh"
    urgent.write_text("#!/bin/bash\n#SBATCH -p high -n 2\nsleep 1\n")
    other = cluster.submit(urgent, f"--output={folder}/urgent.log")
    assert cluster.wait(other, "COMPLETED", seconds=GRACE + 60) == "COMPLETED", output(folder)
    assert cluster.restarts(job) == 1, output(folder)
    stopped = max(curves(folder))
    assert 3 <= stopped < STEPS, "it was not interrupted"
    cluster.start_now(job, seconds=60)
    assert cluster.wait(job, "COMPLETED", "FAILED", "CANCELLED", seconds=240) == "COMPLETED", output(folder)

    printed = (folder / "job.log").read_text()
    assert f"SIGUSR1: saved at step {stopped}, stopping" in printed and "Traceback" not in printed, printed[-4000:]
    complete(start(whole, "--trainer.devices", "2", "--trainer.strategy", "ddp"))
    for rank in (0, 1):
        assert keys(folder, rank) == keys(whole.parent, rank) and len(keys(folder, rank)) == STEPS
        found, expected = curves(folder, rank), curves(whole.parent, rank)
        assert found.keys() == expected.keys()
        assert all(found[step] == pytest.approx(expected[step], abs=1e-6) for step in expected)
    # each step was done once, in one folder, with one configuration
    lines = (folder / "rank0.curves.jsonl").read_text().splitlines()
    assert len(lines) == STEPS
    assert len(logged(folder / "base", "train/loss")) == STEPS
    assert [path.name for path in (folder / "base").glob("config*.yaml")] == ["config.yaml"]
