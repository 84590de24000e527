"""The complete layout of the released 512 checkpoint: every key has its place, at full size."""

from __future__ import annotations

import math
import mmap
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from golden_kits import named_kit
from released_checkpoints import schedule_buffers
from torch import Tensor

from reconx_pl.diffusion.model import ReconXDiffusion
from reconx_pl.diffusion.sampling.schedule import ScheduleConfig
from reconx_pl.diffusion.weights.building import build_network
from reconx_pl.diffusion.weights.load import fitting_state, is_structure, load_network, read_network
from reconx_pl.diffusion.weights.pretrained import convert
from reconx_pl.diffusion.weights.released import SCHEDULE_BUFFERS, UNUSED, split_released
from reconx_pl.diffusion.weights.releases import release_config, release_of
from reconx_pl.types import ClipRenders

RELEASE = "dynamicrafter-512-interp"
GB = 1e9


@pytest.fixture(scope="module")
def layout(golden_dir: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each of the 2,520 tensors, by official name."""
    return {name: tuple(shape) for name, (shape, _) in named_kit("unet_512_interp_keys.json").items()}


def network(frames: int) -> ReconXDiffusion:
    """The full-size network with structure guidance, on the meta device."""
    return build_network(release_config(RELEASE, frames), RELEASE)


@pytest.mark.parametrize("frames", [16, 32])
def test_every_key_of_the_layout_has_its_place(frames: int, layout: dict[str, tuple[int, ...]]) -> None:
    state = {name: torch.empty(shape, device="meta") for name, shape in layout.items()}
    state |= schedule_buffers(ScheduleConfig())
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == layout
    split = split_released(state, "layout")
    assert split.schedule.keys() == SCHEDULE_BUFFERS and split.unused.keys() == UNUSED
    assert len(split.tensors) + len(SCHEDULE_BUFFERS) + len(UNUSED) == len(layout) == 2520
    target = network(frames)
    fitted = fitting_state(target, split, "layout", with_frozen_encoders=True)
    own = {name: tensor.shape for name, tensor in target.state_dict().items() if not is_structure(name)}
    assert {name: tensor.shape for name, tensor in fitted.items()} == own and len(own) == 2500
    assert fitted["image_tokens.resampler.latents"].shape == (1, 16 * frames, 1024)
    unused = sum(math.prod(layout[name]) for name in (UNUSED | SCHEDULE_BUFFERS))
    assert sum(tensor.numel() for tensor in split.tensors.values()) + unused == 2_609_142_405


@pytest.fixture(scope="module")
def rendered() -> ReconXDiffusion:
    """The full-size network of ViewCrafter, on the meta device."""
    return build_network(release_config("viewcrafter-25-sparse"), "viewcrafter-25-sparse").eval()


def test_guidance_by_renders_adds_no_key(rendered: ReconXDiffusion, layout: dict[str, tuple[int, ...]]) -> None:
    state = {name: torch.empty(shape, device="meta") for name, shape in layout.items()}
    split = split_released(state | schedule_buffers(ScheduleConfig(rescale_end=0.3)), "layout")
    own = {name: tensor.shape for name, tensor in rendered.state_dict().items()}
    assert own == {name: tensor.shape for name, tensor in split.tensors.items()}
    assert len(own) + len(SCHEDULE_BUFFERS) + len(UNUSED) == len(layout) == 2520
    assert fitting_state(rendered, split, "layout", with_frozen_encoders=True).keys() == own.keys()


@torch.no_grad()
def test_guidance_by_renders_runs_at_the_size_of_the_release(rendered: ReconXDiffusion) -> None:
    """From renders and two photographs of 576 x 1024 pixels to frames: shapes alone."""
    release = release_of("viewcrafter-25-sparse")
    frames, size = 25, (release.height, release.width)
    with torch.device("meta"):
        renders = ClipRenders(torch.empty(1, 1, frames, 3, *size), torch.empty(1, 1, frames, *size))
        sets = rendered.condition_sets(torch.empty(1, 2, 3, *size), torch.empty(1), frames, renders=renders)
        assert sets.full.concat_latents.shape == (1, 4, frames, 72, 128)
        assert sets.full.image_tokens.shape == sets.null.image_tokens.shape == (1, 256, 1024)
        output = rendered(torch.empty(1, 4, frames, 72, 128), torch.empty(1, dtype=torch.int64), sets.full)
        assert output.shape == (1, 4, frames, 72, 128)
        assert rendered.decode(output).shape == (1, frames, 3, *size)


# --- at full size: 10.4 GB written, loaded, converted; python -m pytest -m slow


def write_random(layout: dict[str, tuple[int, ...]], path: Path) -> None:
    """A torch file of all tensors: laid out without data first, then filled in place through a shared mapping."""
    state = {name: torch.empty(shape) for name, shape in layout.items()}  # memory that is never touched
    with torch.serialization.skip_data():
        torch.save({"state_dict": state, "global_step": 1}, path)
    del state
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        mapped = torch.load(path, mmap=True, weights_only=True)["state_dict"]
    schedule = schedule_buffers(ScheduleConfig())
    pool = torch.randn(2**22, generator=torch.Generator().manual_seed(0)) * 0.02
    for index, (name, tensor) in enumerate(mapped.items()):
        flat = tensor.view(-1)
        if name in schedule:
            flat.copy_(schedule[name])
            continue
        for part in flat.split(2**21):
            start = (index * 7919) % 2**21  # neighbours differ
            part.copy_(pool[start : start + part.numel()])


def own_memory() -> float:
    """Bytes of this process that no file backs."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


@torch.no_grad()
def one_step(model: ReconXDiffusion) -> Tensor:
    """One forward pass of everything but the decoder: 4 of the 32 frames, 8 x 8 latents, a small cloud of 2,048."""
    generator = torch.Generator().manual_seed(1)
    view = torch.rand(1, 3, 64, 64, generator=generator)
    latent = model.encode(view[:, None])[:, :, 0]  # [1, 4, 8, 8]
    points = torch.rand(1, 2048, 3, generator=generator) + 1
    full = model.conditions(view, latent, latent, torch.tensor([5.0]), 32, points, ["a room"])
    x = torch.randn(1, 4, 4, 8, 8, generator=generator)
    return model.unet(
        torch.cat([x, full.concat_latents[:, :, :4]], dim=1),
        torch.tensor([500]),
        text_tokens=full.text_tokens,
        image_tokens=full.image_tokens[:, :4],
        fps=full.fps,
        structure_tokens=full.structure_tokens,
    )


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[Path]:
    """A folder with 25 GB to spare, emptied whatever happens."""
    if shutil.disk_usage(tmp_path).free < 25 * GB:
        pytest.skip("needs 25 GB of disk under the temporary folder")
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.slow
def test_a_full_size_checkpoint_is_loaded_converted_and_loaded_again(
    layout: dict[str, tuple[int, ...]], roomy: Path
) -> None:
    path, out = roomy / "model.ckpt", roomy / "net"
    write_random(layout, path)
    assert path.stat().st_size > 10.4 * GB
    before = own_memory()
    first = network(32)
    load_network(first, path, with_frozen_encoders=True, assign=True)
    assert not any(tensor.is_meta for tensor in first.state_dict().values())
    assert own_memory() - before < 2 * GB  # the file is mapped, only the structure branch is new
    expected = one_step(first.eval())
    assert expected.shape == (1, 4, 4, 8, 8) and expected.isfinite().all() and expected.std() > 0
    del first
    before = own_memory()
    convert(path, out, RELEASE)
    assert own_memory() - before < 2 * GB
    second = ReconXDiffusion.from_pretrained(out)
    assert own_memory() - before < 2 * GB
    stored, source = (
        second.state_dict(),
        fitting_state(second, read_network(path), str(path), with_frozen_encoders=True),
    )
    assert all(torch.equal(stored[name], tensor) for name, tensor in source.items())
    del source
    path.unlink()
    # the structure branch is closed: its random values do not count
    torch.testing.assert_close(one_step(second), expected, rtol=1e-5, atol=1e-6)
