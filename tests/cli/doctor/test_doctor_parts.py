"""What the doctor says of packages, GPUs and disks that this machine does not have."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections import namedtuple
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from reconx_pl.cli.doctor import machine, packages, storage
from reconx_pl.cli.doctor.findings import Finding, Use
from reconx_pl.errors import BackendUnavailableError

REQUIRED = [
    "torch!=2.13.0,>=2.11",
    "torchvision",
    "jsonargparse[signatures]>=4.40",
    "av>=15",
    'pycolmap>=4.2; sys_platform != "nowhere"',
    'ninja; extra == "gpu"',
    "viser>=1.1",
    'pytest>=8; extra == "dev"',
]
VERSIONS = {
    "reconx_pl": "0.1.0", "packaging": "26.0", "torch": "2.11.0+cu130", "torchvision": "0.26.0", "jsonargparse": "4.53",
    "av": "18.1.0", "pycolmap": "4.2.1", "viser": "1.1.1",
}  # fmt: skip


def look(monkeypatch: pytest.MonkeyPatch, use: Use = "basics", asks: str = "torch==2.11.0", **changed: Any) -> dict:
    """Findings by name where these versions are installed; None is not installed."""
    versions = {name: version for name, version in (VERSIONS | changed).items() if version}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(packages.metadata, "version", version)
    monkeypatch.setattr(packages.metadata, "requires", lambda name: REQUIRED if name == "reconx_pl" else [asks])
    monkeypatch.setattr(packages.importlib, "import_module", lambda name: None)
    return {finding.name: finding for finding in packages.packages(use)}


def test_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    found = look(monkeypatch)
    assert all(finding.status == "ok" for finding in found.values())
    assert set(found) == {"python", *VERSIONS, "torch + torchvision"} - {"packaging", "pycolmap", "viser"}
    assert {"pycolmap", "viser"} <= set(look(monkeypatch, "reconstruct"))


@pytest.mark.parametrize(
    ("changed", "use", "name", "status", "text", "remedy"),
    [
        ({"av": None}, "basics", "av", "missing", "not installed", "pip install 'av>=15'"),
        ({"av": "14.2"}, "basics", "av", "missing", "14.2, needed is >=15", "pip install 'av>=15'"),
        ({"jsonargparse": None}, "basics", "jsonargparse", "missing", "not installed",
         "pip install 'jsonargparse[signatures]>=4.40'"),
        ({"torch": "2.13.0+cpu"}, "basics", "torch", "missing", "2.13.0", "pip install --upgrade torch torchvision"),
        ({"torchvision": "0.25", "torch": "2.12.0"}, "basics", "torch + torchvision", "missing",
         "2.12.0 and 0.25 do not match: torchvision asks for torch==2.11.0", "pip install --upgrade torch torchvision"),
        ({"pycolmap": None}, "reconstruct", "pycolmap", "missing", "not installed", "pip install 'pycolmap>=4.2'"),
        ({"pycolmap": None}, "train", "pycolmap", "warning", "not installed", "pip install 'pycolmap>=4.2'"),
        ({"viser": "1.0"}, "reconstruct", "viser", "missing", "1.0", "pip install 'viser>=1.1'"),
        ({"reconx_pl": None}, "basics", "reconx_pl", "missing", "not installed", "pip install -e ."),
        ({"packaging": None}, "basics", "packaging", "missing", "not installed", "make setup"),
    ],
)  # fmt: skip
def test_packages_that_are_not_right(
    changed: dict[str, Any], use: Use, name: str, status: str, text: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = look(monkeypatch, use, **changed)[name]
    assert (finding.status, finding.remedy) == (status, remedy) and text in finding.text


@pytest.mark.parametrize(("version", "status"), [((3, 10), "missing"), ((3, 12), "ok"), ((3, 14), "warning")])
def test_python(version: tuple[int, int], status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.sys, "version_info", (*version, 0))
    assert packages._python().status == status


# --- GPUs


def with_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], built: list[str]) -> None:
    gpu = SimpleNamespace(name="NVIDIA H200", total_memory=141 * 1024**3, major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(machine, "_driver", lambda: "580.65")
    monkeypatch.setattr(machine, "check_gsplat", lambda: "1.5.3")
    monkeypatch.setattr(machine, "compiled_kernels", lambda: None)


def lines(use: Use) -> dict[str, Finding]:
    return {finding.name: finding for finding in machine.machine(use)}


@pytest.mark.parametrize(
    ("capability", "built", "status", "remedy"),
    [
        ((9, 0), ["sm_80", "sm_90"], "ok", ""),
        ((8, 6), ["sm_80"], "ok", ""),
        ((12, 0), ["sm_90", "compute_90"], "ok", ""),
        ((12, 0), ["sm_90a", "sm_100"], "missing", "install a torch built for this GPU"),
        ((6, 1), ["sm_75", "compute_75"], "missing", "install a torch built for this GPU"),
        ((7, 5), ["sm_75"], "warning", "train with --trainer.precision 32-true"),
    ],
)
def test_a_gpu_that_this_torch_has_code_for(
    capability: tuple[int, int], built: list[str], status: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpu(monkeypatch, capability, built)
    finding = lines("train")["GPU 0"]
    assert finding.status == status and finding.remedy.startswith(remedy)
    assert "NVIDIA H200, 141.0 GiB" in finding.text and "driver 580.65, CUDA 13.0" in finding.text


def test_kernels_of_gsplat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_gpu(monkeypatch, (9, 0), ["sm_90"])
    finding = lines("evaluate")["gsplat kernels"]
    assert finding.status == "warning" and "load_kernels()" in finding.remedy
    monkeypatch.setattr(machine, "compiled_kernels", lambda: tmp_path / "gsplat_cuda.so")
    assert lines("evaluate")["gsplat kernels"].text == f"gsplat 1.5.3, compiled: {tmp_path / 'gsplat_cuda.so'}"

    def refused() -> str:
        raise BackendUnavailableError("found no ninja: pip install ninja; or render on the CPU")

    monkeypatch.setattr(machine, "check_gsplat", refused)
    finding = lines("evaluate")["gsplat kernels"]
    assert finding.text.startswith("found no ninja") and finding.remedy == "pip install ninja; or render on the CPU"


@pytest.mark.parametrize(
    ("use", "driver", "cuda", "visible", "status", "text", "remedy"),
    [
        ("basics", None, "13.0", None, "ok", "the demo trains and renders on the CPU", ""),
        ("evaluate", None, "13.0", None, "warning", "no NVIDIA driver", "use a machine with"),
        ("train", None, "13.0", None, "missing", "training at full size needs one", "use a machine with"),
        ("basics", "580", None, None, "warning", "built without CUDA", "install a CUDA build of torch"),
        ("train", "580", "13.0", "", "missing", "hidden by CUDA_VISIBLE_DEVICES", "unset CUDA_VISIBLE_DEVICES"),
        (
            "train",
            "470",
            "13.0",
            "0",
            "missing",
            "driver 470 is there and torch, built for CUDA 13.0",
            "update the driver",
        ),
    ],
)
def test_why_there_is_no_gpu(
    use: Use,
    driver: str | None,
    cuda: str | None,
    visible: str | None,
    status: str,
    text: str,
    remedy: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(machine, "_driver", lambda: driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    finding = lines(use)["GPU"]
    assert finding.status == status and text in finding.text and finding.remedy.startswith(remedy)


@pytest.mark.parametrize(
    ("capability", "use", "status"), [("AVX512", "train", "ok"), ("AVX2", "train", "warning"), ("AVX2", "basics", "ok")]
)
def test_emulated_bfloat16(capability: str, use: Use, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    finding = lines(use)["processor"]
    assert finding.status == status and ("emulated" in finding.text) == (capability == "AVX2")


# --- disk

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    ("free", "needed", "status"),
    [(72.0, 0, "ok"), (0.5, 0, "warning"), (8.0, 10.4, "missing"), (11.0, 10.4, "ok"), (0.5, 0.2, "warning")],
)
def test_free_disk(free: float, needed: float, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free * 1e9))
    finding = storage.place("weights", tmp_path / "a" / "b", "name another", round(needed * 1e9))
    assert finding.status == status and f"{free} GB free" in finding.text
    assert ("10.4 GB are yet to be fetched" in finding.text) == (status == "missing")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("why", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_place_that_cannot_be_written_to(why: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> None:
        assert dir == tmp_path  # the nearest that is there
        raise OSError(why, "the reason")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    finding = storage.place("cache", tmp_path / "reconx_pl" / "lpips", "set XDG_CACHE_HOME")
    assert finding.status == "missing" and "not writable (the reason)" in finding.text
    assert finding.remedy == f"chmod u+w {tmp_path}, or set XDG_CACHE_HOME"
