"""GPUs, their driver, what compiles gsplat's kernels, and the processor."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Iterator

import torch

from reconx_pl.cli.doctor.findings import Finding, Use, lacking, need_of
from reconx_pl.devices import bfloat16_is_native, free_memory
from reconx_pl.errors import BackendUnavailableError
from reconx_pl.splatting.renderers.gsplat_build import check_gsplat, check_toolkit, compiled_kernels

TOPIC = "machine"
_GIB = 1024**3
_BFLOAT16 = (8, 0)  # compute capability from which GPUs have it
_COMPILE = 'python -c "from reconx_pl.splatting.renderers.gsplat_build import load_kernels; load_kernels()"'


def machine(use: Use) -> Iterator[Finding]:
    """The processor, the GPUs, and gsplat on them."""
    gpu = torch.cuda.is_available()
    yield _processor(gpu, use)
    if gpu:
        yield from (_gpu(index) for index in range(torch.cuda.device_count()))
        yield _kernels()
    else:
        yield _no_gpu(use)
        yield _toolkit()


def _processor(gpu: bool, use: Use) -> Finding:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{count} cores, {torch.backends.cpu.get_cpu_capability()}"
    if (free := free_memory("cpu")) is not None:
        text += f", {free / _GIB:.1f} GiB of memory free"
    if bfloat16_is_native():
        return Finding(TOPIC, "processor", "ok", f"{text}; bfloat16 is native")
    text += "; bfloat16 is emulated, many times slower than float32"
    if gpu or need_of(use, {"train": "useful"}) is None:
        return Finding(TOPIC, "processor", "ok", f"{text}; {'no matter on a GPU' if gpu else 'the demo does without'}")
    return Finding(TOPIC, "processor", "warning", text, "train with --trainer.precision 32-true")


def _gpu(index: int) -> Finding:
    """A GPU that this build of torch has code for."""
    name, found = f"GPU {index}", torch.cuda.get_device_properties(index)
    capability = (found.major, found.minor)
    text = (
        f"{found.name}, {found.total_memory / _GIB:.1f} GiB, compute capability {found.major}.{found.minor}, driver "
        f"{_driver() or 'unknown'}, CUDA {torch.version.cuda} of torch"
    )
    built = torch.cuda.get_arch_list()
    if built and not any(_runs_on(architecture, capability) for architecture in built):
        text += f"; this torch was built for {', '.join(built)} only"
        return Finding(TOPIC, name, "missing", text, "install a torch built for this GPU: https://pytorch.org")
    if capability < _BFLOAT16:
        return Finding(TOPIC, name, "warning", f"{text}; it has no bfloat16", "train with --trainer.precision 32-true")
    return Finding(TOPIC, name, "ok", text)


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for ``architecture`` (``sm_90``: machine code; ``compute_90``: compiled when loaded) runs there."""
    kind, _, number = architecture.partition("_")
    digits = "".join(filter(str.isdigit, number))
    if not digits:
        return True  # a name of another vendor
    major, minor = int(digits[:-1]), int(digits[-1])
    return (major, minor) <= capability and (kind == "compute" or major == capability[0])


def _driver() -> str | None:
    """Version of NVIDIA's driver, by its own tool; None where that is not there or fails."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n", 1)[0].strip() or None


def _no_gpu(use: Use) -> Finding:
    """Why torch sees no GPU, which a demo does not need."""
    need = need_of(use, {"train": "required", "evaluate": "useful", "reconstruct": "useful"})
    driver = _driver()
    if driver is None:
        text, remedy = "none (no NVIDIA driver)", "use a machine with an NVIDIA GPU and its driver"
    elif torch.version.cuda is None:
        text = f"driver {driver} is there, and torch was built without CUDA"
        remedy = "install a CUDA build of torch: https://pytorch.org"
    elif os.environ.get("CUDA_VISIBLE_DEVICES", "unset") in ("", "-1"):
        text, remedy = "hidden by CUDA_VISIBLE_DEVICES", "unset CUDA_VISIBLE_DEVICES"
    else:
        text = f"driver {driver} is there and torch, built for CUDA {torch.version.cuda}, sees no GPU"
        remedy = "update the driver, or install a torch of an older CUDA: https://pytorch.org"
    if need is None and driver is None:
        return Finding(TOPIC, "GPU", "ok", f"{text}; the demo trains and renders on the CPU")
    if need == "required":
        text += "; training at full size needs one"
    return Finding(TOPIC, "GPU", lacking(need or "useful"), text, remedy)


def _kernels() -> Finding:
    """gsplat's kernels where there is a GPU."""
    try:
        version = check_gsplat()
    except BackendUnavailableError as error:
        what, remedy = _split(str(error))
        return Finding(TOPIC, "gsplat kernels", "warning", f"{what}; scenes are rendered on the CPU", remedy)
    where = compiled_kernels()
    if where is not None:
        return Finding(TOPIC, "gsplat kernels", "ok", f"gsplat {version}, compiled: {where}")
    text = f"gsplat {version} can compile them, which the first rendering does in minutes"
    return Finding(TOPIC, "gsplat kernels", "warning", text, _COMPILE)


def _toolkit() -> Finding:
    """The CUDA toolkit where there is no GPU: of interest on a login node, needed nowhere."""
    logger = logging.getLogger("torch.utils.cpp_extension")  # warns of what the line about the GPU says
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        text = f"CUDA toolkit at {check_toolkit()} could compile gsplat's kernels for a GPU"
    except BackendUnavailableError as error:
        text = f"none is needed without a GPU ({_split(str(error))[0]})"
    finally:
        logger.setLevel(before)
    return Finding(TOPIC, "nvcc", "ok", text)


def _split(message: str) -> tuple[str, str]:
    """What is wrong, and what mends it: the messages of ``gsplat_build`` have a colon between the two."""
    what, _, remedy = message.partition(": ")
    return what, remedy or message
