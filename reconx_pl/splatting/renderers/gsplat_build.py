"""What gsplat needs to run here, looked at before it is imported, and the compilation of its kernels, with progress.

gsplat's wheel has its kernels as sources. Its first import compiles them into torch's extension folder; every import
after that asks the toolkit and ninja again whether they are up to date. gsplat's own failures are obscure (it says that
it "will be disabled" and then raises AttributeError), so that what it needs is checked here.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import torch

from reconx_pl.errors import BackendUnavailableError

_LOG = logging.getLogger(__name__)

GSPLAT = (1, 5, 3), (2,)  # from, and below which
TORCH = (2, 11)  # gsplat's sources compiled with it and with later ones
LIBRARY = "gsplat_cuda.so"
_PERIOD = 30.0  # seconds between two lines of progress
_OR_CPU = "or render on the CPU with CpuRenderer (device cpu)"


def version_numbers(version: str) -> tuple[int, ...]:
    """Leading numbers of a version, without what follows a letter or a plus: (2, 11, 0) of "2.11.0+cu130"."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def check_gsplat() -> str:
    """Return gsplat's version if it can run here; does not import it.

    Raises:
        BackendUnavailableError: gsplat is not installed or of a version that was not tried, torch is too old or built
            without CUDA, there is no CUDA device, or there is nothing that could compile the kernels (see
            ``check_toolkit``); the message names the remedy.
    """
    line = f"pip install 'gsplat>={'.'.join(map(str, GSPLAT[0]))},<{GSPLAT[1][0]}' ninja"
    try:
        version = metadata.version("gsplat")
    except metadata.PackageNotFoundError:
        raise BackendUnavailableError(f"gsplat is not installed: {line}; {_OR_CPU}") from None
    if not GSPLAT[0] <= version_numbers(version) < GSPLAT[1]:
        raise BackendUnavailableError(f"gsplat {version} is not supported: {line}; {_OR_CPU}")
    if version_numbers(torch.__version__) < TORCH:
        raise BackendUnavailableError(
            f"gsplat's kernels need torch >= {'.'.join(map(str, TORCH))}, this is {torch.__version__}: "
            f"pip install --upgrade torch torchvision; {_OR_CPU}"
        )
    if torch.version.cuda is None:
        raise BackendUnavailableError(
            f"torch {torch.__version__} is a build without CUDA: install a CUDA build of torch (pytorch.org), {_OR_CPU}"
        )
    if not torch.cuda.is_available():
        raise BackendUnavailableError(
            f"gsplat needs a CUDA device and torch sees none: check nvidia-smi and CUDA_VISIBLE_DEVICES, {_OR_CPU}"
        )
    if not _shipped_kernels():
        check_toolkit()
    return version


def _shipped_kernels() -> bool:
    """Whether this gsplat was installed with compiled kernels, as it is by a build from source."""
    return any(
        file.name.startswith("csrc.") and file.suffix in (".so", ".pyd") for file in metadata.files("gsplat") or []
    )


def check_toolkit() -> Path:
    """Return the folder of the CUDA toolkit that torch will compile with.

    Raises:
        BackendUnavailableError: no nvcc where torch looks, an nvcc without its headers (a script on the PATH that calls
            another), one that does not run, of another major version than torch's CUDA, no C++ compiler, no ninja; the
            message names the remedy.
    """
    from torch.utils import cpp_extension  # its CUDA_HOME is what torch compiles with; chosen when it is imported

    wanted = torch.version.cuda
    home = Path(cpp_extension.CUDA_HOME) if cpp_extension.CUDA_HOME else None
    task = "gsplat has to compile its CUDA kernels once for this machine"
    remedy = (
        f"install the CUDA toolkit {wanted} (torch's own version) and set CUDA_HOME to the folder with its bin/nvcc"
    )
    if home is None or not (home / "bin" / "nvcc").is_file():
        where = "CUDA_HOME is not set" if home is None else f"CUDA_HOME is {home}"
        raise BackendUnavailableError(f"{task} and found no nvcc ({where}): {remedy}; {_OR_CPU}")
    nvcc = home / "bin" / "nvcc"
    release = re.search(r"release (\d+)\.(\d+)", _output(nvcc, "--version"))
    if release is None:
        raise BackendUnavailableError(f"{task}, and {nvcc} --version does not run: {remedy}; {_OR_CPU}")
    if not _has_headers(home):
        called = re.search(r"_HERE_=(.+)", _output(nvcc, "--dryrun", "-x", "cu", os.devnull))
        real = Path(called[1].strip()).parent if called else None
        found = real is not None and real != home and _has_headers(real)
        raise BackendUnavailableError(
            f"{task}, and {nvcc} has no headers beside it ({home}/include/cuda_runtime.h): "
            + (f"it calls the toolkit in {real}, so export CUDA_HOME={real}" if found else remedy)
            + f"; {_OR_CPU}"
        )
    if wanted is not None and int(release[1]) != version_numbers(wanted)[0]:
        raise BackendUnavailableError(
            f"{nvcc} is of CUDA {release[1]}.{release[2]} and torch {torch.__version__} was built with {wanted}; their "
            f"major versions must be the same: {remedy}, or install a torch built for CUDA {release[1]}; {_OR_CPU}"
        )
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler.split()[0]) is None:
        raise BackendUnavailableError(
            f"{task} and found no C++ compiler ({compiler}): install one, such as g++ (apt install g++), or name it in "
            f"CXX; {_OR_CPU}"
        )
    if _ninja() is None:
        raise BackendUnavailableError(f"{task} and found no ninja: pip install ninja; {_OR_CPU}")
    return home


def _has_headers(toolkit: Path) -> bool:
    folders = (toolkit / "include", *toolkit.glob("targets/*/include"))
    return any((folder / "cuda_runtime.h").is_file() for folder in folders)


def _output(*command: str | Path) -> str:
    """What a command prints, empty if it cannot run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def _ninja() -> Path | None:
    """Ninja on the PATH, or where pip put it: beside this interpreter, which is on the PATH only in an active venv."""
    beside = Path(sys.executable).parent
    found = shutil.which("ninja") or shutil.which("ninja", path=str(beside))
    return Path(found) if found else None


def compiled_kernels() -> Path | None:
    """Where the compiled kernels of this gsplat, Python and torch are; None where they have yet to be compiled."""
    if _shipped_kernels():
        return Path(str(metadata.distribution("gsplat").locate_file("gsplat")))
    from torch.utils.cpp_extension import _get_build_directory

    try:
        library = Path(_get_build_directory("gsplat_cuda", verbose=False)) / LIBRARY
    except OSError:
        return None
    return library if library.is_file() else None


def load_kernels() -> None:
    """Import gsplat, which compiles its kernels where they are not yet; progress goes to the log.

    Processes that start together take turns, because gsplat clears the folder in which another may be compiling.

    Raises:
        BackendUnavailableError: the compiler failed, there is no folder to compile into, or gsplat found no toolkit.
    """
    if "gsplat.cuda._backend" in sys.modules or _shipped_kernels():
        return _import_backend()
    from filelock import FileLock  # torch brings it
    from torch.utils.cpp_extension import _get_build_directory

    try:
        folder = Path(_get_build_directory("gsplat_cuda", verbose=False))
    except OSError as error:
        raise BackendUnavailableError(_not_writable(Path(str(error.filename)))) from error
    if not os.access(folder.parent, os.W_OK) or not os.access(folder, os.W_OK):
        if not (folder / LIBRARY).is_file():
            raise BackendUnavailableError(_not_writable(folder))
        return _import_backend()  # compiled by somebody else for everybody
    with FileLock(folder.parent / "gsplat_cuda.reconx.lock"), _ninja_on_path(), progress(folder):
        _import_backend()


def _not_writable(folder: Path) -> str:
    return (
        f"gsplat's kernels cannot be compiled into {folder}, which is not writable: set TORCH_EXTENSIONS_DIR to a "
        f"folder that is; {_OR_CPU}"
    )


def _import_backend() -> None:
    try:
        from gsplat.cuda import _backend
    except (ImportError, RuntimeError, OSError) as error:
        raise BackendUnavailableError(
            f"gsplat's CUDA kernels did not compile or load ({error}); they need the CUDA toolkit {torch.version.cuda} "
            "in CUDA_HOME and a C++ compiler that it supports. VERBOSE=1 lets the compiler say more; where it was "
            f"killed, memory was short, so set MAX_JOBS=2; {_OR_CPU}"
        ) from error
    if _backend._C is None:
        raise BackendUnavailableError(
            f"gsplat found no CUDA toolkit when it was imported: set CUDA_HOME to the folder of toolkit "
            f"{torch.version.cuda} that holds bin/nvcc and start again; {_OR_CPU}"
        )


@contextmanager
def _ninja_on_path() -> Iterator[None]:
    before = os.environ.get("PATH", "")
    ninja = _ninja()
    if ninja is not None:
        os.environ["PATH"] = f"{before}{os.pathsep}{ninja.parent}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


@contextmanager
def progress(folder: Path, period: float = _PERIOD) -> Iterator[None]:
    """While the block runs, log how much of a compilation in ``folder`` is done.

    Nothing is logged if it ends within a period and the kernels were there before; torch may find that they are of an
    older torch and compile them anew.
    """
    if not (folder / LIBRARY).is_file():
        _LOG.warning(
            "gsplat: compiling its CUDA kernels into %s, once for this machine and version of torch. It takes minutes; "
            "fewer with MAX_JOBS as high as there are cores (10 unless set; lower where memory is short) and with "
            "TORCH_CUDA_ARCH_LIST naming only the GPU in use, such as 9.0. Stopped half-way, it begins anew.",
            folder,
        )
    start, done = time.monotonic(), threading.Event()

    def watch() -> None:
        while not done.wait(period):
            built, total = compiled_objects(folder)
            amount = f"{built} of {total} files compiled" if total else "setting up"
            _LOG.warning("gsplat: %s after %d s", amount, time.monotonic() - start)

    watcher = threading.Thread(target=watch, name="gsplat-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    if time.monotonic() - start > period:
        _LOG.warning("gsplat: its kernels are ready after %d s", time.monotonic() - start)


def compiled_objects(folder: Path) -> tuple[int, int]:
    """How many object files of ninja's list in ``folder`` are there, and how many it lists (0 before it is written)."""
    try:
        listed = re.findall(r"^build (\S+\.o):", (folder / "build.ninja").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return 0, 0
    return sum((folder / name).is_file() for name in listed), len(listed)
