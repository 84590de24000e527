"""gsplat where it cannot run: every missing part is named with its remedy. Where it can: test_gpu_renderer."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from splat_scenes import random_gaussians, ring_cameras

from reconx_pl.errors import BackendUnavailableError, ConfigurationError
from reconx_pl.splatting.renderers import gsplat as gsplat_backend
from reconx_pl.splatting.renderers import gsplat_build
from reconx_pl.splatting.renderers.choose import default_renderer
from reconx_pl.splatting.renderers.gsplat import GsplatRenderer, gsplat_alpha_max
from reconx_pl.splatting.renderers.gsplat_build import (
    check_gsplat,
    check_toolkit,
    compiled_objects,
    load_kernels,
    progress,
)

# What nvcc says, in a shell script that needs no other program.
NVCC = """#!/bin/sh
case "$1" in
--version)
echo 'nvcc: NVIDIA (R) Cuda compiler driver'
echo 'Built on Wed_Aug_20_01:58:59_PM_PDT_2025'
echo 'Cuda compilation tools, release {release}, V{release}.88'
echo 'Build cuda_{release}.r{release}/compiler.36424714_0' ;;
--dryrun)
echo '#$ _NVVM_BRANCH_=nvvm' >&2
echo '#$ _HERE_={here}' >&2 ;;
esac
"""


def _script(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)


def _toolkit(folder: Path, release: str = "13.0", headers: bool = True, calls: Path | None = None) -> Path:
    """A stand-in for a CUDA toolkit: an nvcc that says its version, and a header."""
    _script(folder / "bin" / "nvcc", NVCC.format(release=release, here=(calls or folder) / "bin"))
    if headers:
        (folder / "include").mkdir()
        (folder / "include" / "cuda_runtime.h").touch()
    return folder


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with everything that gsplat needs, made of stand-ins; the folder of its toolkit."""
    versions = {"gsplat": "1.5.3"}
    monkeypatch.setattr(gsplat_build.metadata, "version", versions.__getitem__)
    monkeypatch.setattr(gsplat_build.metadata, "files", lambda name: [])
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    home = _toolkit(tmp_path / "cuda-13.0")
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", str(home))
    for tool in ("c++", "ninja"):
        _script(tmp_path / "tools" / tool, "#!/bin/sh\n")
    monkeypatch.setenv("PATH", str(tmp_path / "tools"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "python"))
    return home


def _home(monkeypatch: pytest.MonkeyPatch, home: Path | None) -> None:
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", None if home is None else str(home))


def _error() -> str:
    with pytest.raises(BackendUnavailableError) as caught:
        check_gsplat()
    return str(caught.value)


def test_complete_machine_passes(machine: Path) -> None:
    assert check_gsplat() == "1.5.3"
    assert check_toolkit() == machine


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_cuda_the_remedy_is_named() -> None:
    for make in (GsplatRenderer, check_gsplat, lambda: default_renderer("cuda")):
        with pytest.raises(BackendUnavailableError, match="CpuRenderer"):
            make()


def test_not_installed(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise gsplat_build.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(gsplat_build.metadata, "version", missing)
    with pytest.raises(BackendUnavailableError, match="pip install 'gsplat>=1.5.3,<2' ninja"):
        check_gsplat()


@pytest.mark.parametrize(("version", "good"), [("1.5.2", False), ("1.5.3", True), ("1.6.0rc1", True), ("2.0", False)])
def test_versions_of_gsplat(machine: Path, monkeypatch: pytest.MonkeyPatch, version: str, good: bool) -> None:
    monkeypatch.setattr(gsplat_build.metadata, "version", lambda name: version)
    if good:
        assert check_gsplat() == version
    else:
        with pytest.raises(BackendUnavailableError, match=rf"gsplat {version} is not supported: pip install"):
            check_gsplat()


@pytest.mark.parametrize(
    ("part", "name", "value", "words"),
    [
        (torch, "__version__", "2.9.1+cu130", r"torch >= 2\.11, this is 2\.9\.1"),
        (torch.version, "cuda", None, "build without CUDA: install a CUDA build"),
        (torch.cuda, "is_available", lambda: False, "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_torch_that_gsplat_cannot_use(
    machine: Path, monkeypatch: pytest.MonkeyPatch, part: Any, name: str, value: Any, words: str
) -> None:
    monkeypatch.setattr(part, name, value)
    with pytest.raises(BackendUnavailableError, match=words):
        check_gsplat()


def test_no_nvcc(machine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for home, said in ((None, "CUDA_HOME is not set"), (tmp_path / "empty", f"CUDA_HOME is {tmp_path}/empty")):
        _home(monkeypatch, home)
        with pytest.raises(BackendUnavailableError, match=rf"no nvcc \({said}\): install the CUDA toolkit 13\.0.*CpuR"):
            check_gsplat()


def test_script_that_calls_another_nvcc(machine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A script on the PATH makes torch take the folder above it for the toolkit."""
    _home(monkeypatch, _toolkit(tmp_path / "local", headers=False, calls=machine))
    with pytest.raises(BackendUnavailableError, match=rf"no headers beside it.*export CUDA_HOME={machine};"):
        check_gsplat()


def test_nvcc_without_headers_anywhere(machine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _home(monkeypatch, _toolkit(tmp_path / "local", headers=False))
    with pytest.raises(BackendUnavailableError, match=r"no headers beside it.*install the CUDA toolkit 13\.0"):
        check_gsplat()


def test_nvcc_that_does_not_run(machine: Path) -> None:
    (machine / "bin" / "nvcc").write_text("no program")
    with pytest.raises(BackendUnavailableError, match="--version does not run"):
        check_gsplat()


@pytest.mark.parametrize(("release", "good"), [("12.8", False), ("13.2", True)])
def test_release_of_nvcc(
    machine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, release: str, good: bool
) -> None:
    _home(monkeypatch, _toolkit(tmp_path / release, release))
    if good:
        assert check_gsplat() == "1.5.3"
    else:
        with pytest.raises(BackendUnavailableError, match=r"nvcc is of CUDA 12\.8 and torch 2\.11\.0\+cu130 was built"):
            check_gsplat()


def test_no_compiler(machine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "ccache g++-99")
    assert "no C++ compiler (ccache g++-99)" in _error()
    monkeypatch.delenv("CXX")
    (tmp_path / "tools" / "c++").unlink()
    assert "no C++ compiler (c++): install one" in _error()


def test_ninja_is_looked_for_beside_the_interpreter(machine: Path, tmp_path: Path) -> None:
    """Where pip put it, if the virtual environment is not on the PATH."""
    (tmp_path / "tools" / "ninja").unlink()
    assert "no ninja: pip install ninja" in _error()
    _script(tmp_path / "venv" / "ninja", "#!/bin/sh\n")
    assert check_gsplat() == "1.5.3"


def test_kernels_that_came_with_gsplat_need_no_toolkit(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _home(monkeypatch, None)
    monkeypatch.setattr(gsplat_build.metadata, "files", lambda name: [Path("gsplat/csrc.cpython-311-x86_64.so")])
    assert check_gsplat() == "1.5.3"


def test_progress_counts_what_ninja_lists(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert compiled_objects(tmp_path) == (0, 0)
    with caplog.at_level(logging.WARNING), progress(tmp_path, period=0.05):
        (tmp_path / "build.ninja").write_text(
            "rule cuda_compile\n  command = $nvcc\n\n"
            "build A.cuda.o: cuda_compile /a/A.cu\nbuild B.cuda.o: cuda_compile /a/B.cu\n"
            "build ext.o: compile /a/ext.cpp\n"
            "build gsplat_cuda.so: link A.cuda.o B.cuda.o ext.o\n"
        )
        (tmp_path / "A.cuda.o").touch()
        deadline = time.monotonic() + 10
        while "files compiled" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.02)
    lines = [record.getMessage() for record in caplog.records]
    assert "MAX_JOBS" in lines[0] and "TORCH_CUDA_ARCH_LIST" in lines[0] and str(tmp_path) in lines[0]
    assert any(line.startswith("gsplat: 1 of 3 files compiled after") for line in lines)
    assert "ready after" in lines[-1]


def test_nothing_is_said_where_the_kernels_are_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / gsplat_build.LIBRARY).touch()
    with caplog.at_level(logging.DEBUG), progress(tmp_path, period=60.0):
        pass
    assert not caplog.records


@pytest.fixture
def fake_gsplat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Makes a package gsplat whose ``cuda/_backend.py`` is the given text; takes it away afterwards."""

    def remove() -> dict[str, ModuleType]:
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "gsplat"}

    def make(backend: str) -> None:
        _script(tmp_path / "gsplat" / "__init__.py", "")
        _script(tmp_path / "gsplat" / "cuda" / "__init__.py", "")
        _script(tmp_path / "gsplat" / "cuda" / "_backend.py", backend)

    before = remove()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    yield make
    remove()
    sys.modules.update(before)


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        (
            "raise RuntimeError('Error building extension gsplat_cuda')",
            "did not compile or load .*Error building.*VERB",
        ),
        ("_C = None", "found no CUDA toolkit when it was imported"),
    ],
)
def test_failure_of_the_compilation(machine: Path, fake_gsplat: Callable[[str], None], backend: str, said: str) -> None:
    fake_gsplat(backend)
    for _ in range(2):  # the second time the module may be there already
        with pytest.raises(BackendUnavailableError, match=said):
            load_kernels()


def test_compilation_finds_ninja_and_leaves_the_path_alone(
    machine: Path, fake_gsplat: Callable[[str], None], tmp_path: Path
) -> None:
    (tmp_path / "tools" / "ninja").unlink()
    _script(tmp_path / "venv" / "ninja", "#!/bin/sh\n")
    fake_gsplat("import shutil\n_C = shutil.which('ninja')\n")
    load_kernels()
    found = sys.modules["gsplat.cuda._backend"]._C
    assert found == str(tmp_path / "venv" / "ninja")
    assert gsplat_build.os.environ["PATH"] == str(tmp_path / "tools")


def test_folder_that_cannot_be_written(
    machine: Path, fake_gsplat: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_gsplat("_C = 1")
    monkeypatch.setattr(gsplat_build.os, "access", lambda path, mode: False)
    with pytest.raises(BackendUnavailableError, match="TORCH_EXTENSIONS_DIR"):
        load_kernels()
    (tmp_path / "extensions" / "gsplat_cuda" / gsplat_build.LIBRARY).touch()
    load_kernels()  # compiled by somebody else
    file = tmp_path / "a file"
    file.touch()
    sys.modules.pop("gsplat.cuda._backend")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(file / "below"))
    with pytest.raises(BackendUnavailableError, match="TORCH_EXTENSIONS_DIR"):
        load_kernels()


def test_alpha_max_follows_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gsplat_alpha_max("1.5.3") == 0.999
    assert gsplat_alpha_max("1.6.0") == 0.99
    assert gsplat_alpha_max("1.10") == 0.99
    monkeypatch.setattr(gsplat_backend, "check_gsplat", lambda: "1.5.3")
    assert GsplatRenderer().alpha_max == 0.999
    with pytest.raises(ConfigurationError, match="0.999 built in"):
        GsplatRenderer(alpha_max=0.99)


def test_scene_on_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gsplat_backend, "check_gsplat", lambda: "1.5.3")
    with pytest.raises(BackendUnavailableError, match="CpuRenderer"):
        GsplatRenderer().render(random_gaussians(3), ring_cameras(1, 8))


def test_call_of_gsplat(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments and shapes that gsplat 1.5.3 takes, seen by a stand-in on the meta device."""
    seen: dict = {}

    def rasterization(*args: torch.Tensor, **options: object) -> tuple[torch.Tensor, torch.Tensor, dict]:
        seen.update(options, args=args)
        views, height, width = args[5].shape[0], args[8], args[7]
        return args[0].new_zeros(views, height, width, 4), args[0].new_zeros(views, height, width, 1), {}

    monkeypatch.setattr(gsplat_backend, "check_gsplat", lambda: "1.5.3")
    monkeypatch.setattr(gsplat_backend, "load_kernels", lambda: None)
    monkeypatch.setattr(gsplat_backend, "_is_cuda", lambda tensor: True)
    monkeypatch.setitem(sys.modules, "gsplat.rendering", SimpleNamespace(rasterization=rasterization))
    cameras, scene = ring_cameras(2, 12), random_gaussians(5)
    cameras = type(cameras)(cameras.world_to_camera, cameras.intrinsics, 12, 20)
    output = GsplatRenderer().render(scene, cameras, sh_degree=1)
    assert output.color.shape == (2, 3, 12, 20) and output.alpha.shape == output.depth.shape == (2, 12, 20)
    assert seen["sh_degree"] == 1 and seen["args"][4].shape == (5, 4, 3)  # only the bands in use
    torch.testing.assert_close(seen["args"][2], scene.log_scales.exp())
    torch.testing.assert_close(seen["args"][3], scene.opacity_logits.sigmoid())
    torch.testing.assert_close(seen["backgrounds"], scene.background.expand(2, 3))
    known = {"near_plane": 0.01, "eps2d": 0.3, "radius_clip": 0.0, "packed": False}
    known |= {"render_mode": "RGB+ED", "rasterize_mode": "classic"}
    assert known.items() <= seen.items()


def test_gsplat_has_the_arguments() -> None:
    """The signature of the installed gsplat; importing that module compiles nothing."""
    import inspect

    rasterization = pytest.importorskip("gsplat.rendering").rasterization
    names = set(inspect.signature(rasterization).parameters)
    assert {"near_plane", "far_plane", "radius_clip", "eps2d", "sh_degree", "packed", "backgrounds"} <= names
    assert {"render_mode", "rasterize_mode", "viewmats", "Ks"} <= names
