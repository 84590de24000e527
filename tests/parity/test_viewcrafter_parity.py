"""ViewCrafter's generation from a render to decoded frames, for every ``viewcrafter_synthesis_*`` kit.

The original ran end to end with small networks, recorded noise, and stubs in the place of the CLIP encoders and of the
point renderer. Here it is our own ``ReconXDiffusion``, loaded and set up as the release is.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from golden_kits import Held, golden_kits, not_held
from golden_kits import read_kit as read
from golden_networks import autoencoder_config, stub_vision, unet_config
from torch import Tensor, nn

from reconx_pl.diffusion.autoencoder import KLAutoencoder
from reconx_pl.diffusion.conditioning.conditions import Conditions
from reconx_pl.diffusion.conditioning.image_tokens import ClipImageTokens
from reconx_pl.diffusion.conditioning.resampler import ResamplerConfig
from reconx_pl.diffusion.model import ReconXDiffusion
from reconx_pl.diffusion.render_sources import told_apart
from reconx_pl.diffusion.sampling.ddim import DDIMSampler
from reconx_pl.diffusion.sampling.guidance import ConditionSets, Denoise, Guidance
from reconx_pl.diffusion.sampling.schedule import ScheduleConfig
from reconx_pl.diffusion.sampling.solvers import make_sampler
from reconx_pl.diffusion.weights import load_state
from reconx_pl.diffusion.weights.released import AUTOENCODER, PARTS, split_released
from reconx_pl.diffusion.weights.releases import Release, release_of
from reconx_pl.geometry.rendering.rendered import Rendered
from reconx_pl.types import ClipRenders

logger = logging.getLogger(__name__)  # figures: pytest --log-cli-level=INFO

KITS = golden_kits("viewcrafter_synthesis_*.json")
# The kits' hint, of the largest magnitude; decoded frames, in [-1, 1], absolutely.
VIDEO, Z, CONTEXT, UNET, STEP, DECODED, FINAL, FRAMES = 3e-7, 5e-5, 1e-5, 1e-4, 1e-4, 1e-4, 3e-3, 2e-2
RELEASE: Release = release_of("viewcrafter-25-sparse")

pytestmark = pytest.mark.skipif(
    not KITS, reason="needs golden kits viewcrafter_synthesis_*: set RECONX_GOLDEN to the whole collection"
)


class StubText(nn.Module):
    """The recorded tokens of the prompt, and of no prompt; there are no others."""

    def __init__(self, prompt: str, tokens: Tensor, empty: Tensor) -> None:
        super().__init__()
        self.table, self.empty = {prompt: tokens}, empty

    def forward(self, captions: list[str]) -> Tensor:
        return torch.stack([self.table[caption] for caption in captions])

    def null(self) -> Tensor:
        return self.empty[None]


class StubImage(nn.Module):
    """The recorded tokens of each clip's first frame, a photograph, and of the mid-grey image."""

    def __init__(self, photographs: Tensor, tokens: Tensor, grey: Tensor) -> None:
        super().__init__()
        self.photographs, self.tokens, self.grey = photographs, tokens, grey

    def forward(self, images: Tensor) -> Tensor:
        numbers = [[torch.equal(image, one) for one in self.photographs].index(True) for image in images]
        return self.tokens[numbers]

    def null(self) -> Tensor:
        return self.grey[None]


class Kit:
    """A kit, the network that it describes, and what this network is told of each clip."""

    def __init__(self, path: Path) -> None:
        self.info, self.tensors = read(path)
        self.inference = self.info["inference"]
        self.frames: int = self.inference["video_length"]
        self.clips = range(self.inference["photographs"] - 1)
        rescales = self.inference["guidance_rescale"]
        self.rescales: list[float] = rescales if isinstance(rescales, list) else [rescales]
        self.photographs = self["photos"].movedim(-1, 1)  # [P, 3, H, W]
        self.network = self._network()

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def _network(self) -> ReconXDiffusion:
        config = self.info["config"]
        unet = unet_config(config["unet_config"]["params"])
        autoencoder = autoencoder_config(config["first_stage_config"]["params"]["ddconfig"], config["scale_factor"])
        resampler = ResamplerConfig(**config["image_proj_stage_config"]["params"])
        vision = stub_vision(resampler.embedding_dim)
        self.shared = self.frames != resampler.video_length  # else the original gives every frame tokens of its own
        image = ClipImageTokens(vision, resampler, random_init=True, shared=self.shared)
        image.encoder = StubImage(self.photographs, self["clip_image_tokens"], self["clip_image_tokens_zero"])
        prompt = self.inference["prompt"]
        network = ReconXDiffusion(
            unet,
            KLAutoencoder(autoencoder, random_init=True),
            image,
            StubText(prompt, self["text_tokens"], self["text_tokens_empty"]),
            schedule=ScheduleConfig(rescale_end=config["base_scale"]),
            caption=prompt,
            captions="fixed",
            guidance="render",
            render=RELEASE.render,
        )
        prefixes = (AUTOENCODER, "model.diffusion_model.", *PARTS)
        state = {name: value for name, value in self.tensors.items() if name.startswith(prefixes)}
        load_state(network, split_released(state, "the kit"), "the kit", with_frozen_encoders=True)
        return network.eval()

    def of_clip(self, clip: int) -> slice:
        """Its frames in the video: neighbouring clips share a photograph."""
        return slice(clip * (self.frames - 1), (clip + 1) * (self.frames - 1) + 1)

    def renders(self, clip: int) -> ClipRenders:
        """The render video, smaller than the frames, as a renderer of ours would give it."""
        dark = self["render"][self.of_clip(clip)].movedim(-1, 1)  # [T, 3, h, w]
        covered = (dark > 0).any(dim=1).float()
        seen = Rendered(dark, covered, covered)
        color, coverage = told_apart(seen, self.inference["height"], self.inference["width"])
        return ClipRenders(color[None, None].clamp(0, 1), coverage[None, None])

    def state_of(self, clip: str, prediction: str, t: int) -> Tensor:
        """What the network was given for a prediction, which its description names: the first run's, unless it says."""
        told = self.info.get("tensors", {}).get(f"{prediction}.cond", {}).get("meaning", "")
        run = re.search(r"(gr[\d.]*\d)\.x\[", told)
        states = self[f"{clip}.{run[1] if run else f'gr{self.rescales[0]}'}.x"]
        return states[self.info["timesteps_executed"].index(t)]

    @cache  # noqa: B019 kits are as few as their files
    def sets(self, clip: int) -> ConditionSets:
        network, views = self.network, self.photographs[clip : clip + 2][None]
        seen_fps = self.inference.get("fs_seen_by_unet", [RELEASE.fps])
        network.render_latents = partial(  # type: ignore[method-assign]
            ReconXDiffusion.render_latents, network, noise=self[f"clip{clip}.posterior_noise"]
        )
        fps = torch.tensor([seen_fps[0]])
        with torch.no_grad():
            return network.condition_sets(
                views, fps, self.frames, captions=["a caption of its own"], renders=self.renders(clip)
            )

    def sampler(self) -> DDIMSampler:
        own, told = RELEASE.sampling, self.inference
        eta, spacing = told.get("ddim_eta", own.eta), told.get("timestep_spacing", own.spacing).removeprefix("uniform_")
        sampler = make_sampler(self.network.schedule, own.sampler, told["ddim_steps"], eta, own.last_step, spacing)
        assert isinstance(sampler, DDIMSampler)
        return sampler

    def denoiser(self, clip: int, rescale: float, sets: ConditionSets | None = None) -> Denoise:
        scale = self.inference.get("unconditional_guidance_scale", RELEASE.sampling.guidance_scale)
        guidance = Guidance(scale, guidance_rescale=rescale)
        return guidance.denoiser(self.network.bind, sets or self.sets(clip))


read_kit = cache(Kit)


@pytest.fixture
def kit(request: pytest.FixtureRequest) -> Kit:
    return read_kit(request.param)


each_kit = pytest.mark.parametrize("kit", KITS, ids=lambda path: path.stem, indirect=True)


def error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, of the largest magnitude."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def context(conditions: Conditions) -> Tensor:
    """Text and image tokens in one row, as the original hands them on."""
    image = conditions.image_tokens
    return torch.cat([conditions.text_tokens, image if image.ndim == 3 else image.flatten(1, 2)], dim=1)


@each_kit
def test_the_release_is_what_the_original_defaults_to(kit: Kit) -> None:
    theirs, own = kit.info["default_options"], RELEASE.sampling
    assert (RELEASE.height, RELEASE.width) == (theirs["height"], theirs["width"])
    assert (RELEASE.frames, RELEASE.fps) == (theirs["video_length"], theirs["frame_stride"])
    assert RELEASE.fps == kit.inference.get("fs_seen_by_unet", [theirs["frame_stride"]])[0]
    assert RELEASE.prompt == theirs["prompt"]
    assert RELEASE.rescale_end == kit.info["config"]["base_scale"]
    assert RELEASE.shared_tokens
    assert (own.num_inference_steps, own.eta) == (theirs["ddim_steps"], theirs["ddim_eta"])
    assert own.guidance_scale == theirs["unconditional_guidance_scale"]
    assert own.guidance_rescale == theirs["guidance_rescale"]
    assert f"uniform_{own.spacing}" == theirs["timestep_spacing"] and own.sampler == "ddim"


@each_kit
def test_condition_video_and_its_latents(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renders enlarged, photographs in their places, holes black; then every frame's latent, with recorded noise."""
    known = [kit.sets(clip) for clip in kit.clips]
    seen: list[Tensor] = []
    encode = kit.network.encode
    monkeypatch.setattr(kit.network, "encode", lambda frames, *rest: seen.append(frames) or encode(frames, *rest))
    with Held(kit.tensors) as held:
        for clip in kit.clips:
            noise = kit[f"clip{clip}.posterior_noise"]
            views = kit.photographs[clip : clip + 2][None]
            found = ReconXDiffusion.render_latents(kit.network, kit.renders(clip), views, noise=noise)
            encoded = seen.pop()[0]
            assert not seen and found.more is None and found.base is None and found.concat is not None
            for _, video in held.of(["video"]):
                assert float((encoded - video[kit.of_clip(clip)].movedim(-1, 1)).abs().max()) <= VIDEO
            errors = {name: error(found.concat, z) for name, z in held.of([f"clip{clip}.z"])}
            for _, concat in held.of([f"clip{clip}.c_concat"]):
                for name in ("view", "null", "full"):  # guidance never acts on renders
                    errors[f"c_concat, {name}"] = error(getattr(known[clip], name).concat_latents, concat)
            logger.info(f"clip {clip}: {errors}")
            assert max(errors.values(), default=0) <= Z, errors


@each_kit
def test_contexts(kit: Kit) -> None:
    with Held(kit.tensors) as held:
        for clip in kit.clips:
            sets = kit.sets(clip)
            assert sets.full.image_tokens.ndim == (3 if kit.shared else 4), "every frame sees all tokens"
            branches = {f"clip{clip}.context": sets.view, f"clip{clip}.context_uncond": sets.null}
            errors = {name: error(context(branches[name]), theirs) for name, theirs in held.of(branches)}
            logger.info(f"clip {clip}: {errors}")
            assert max(errors.values(), default=0) <= CONTEXT, errors


@each_kit
@torch.no_grad()
def test_predictions_of_both_branches(kit: Kit) -> None:
    recorded = [re.fullmatch(r"(clip(\d+))\.unet\.t(\d+)\.(cond|uncond)", name) for name in kit.tensors]
    found = [match for match in recorded if match]
    if not found:
        not_held("predictions clip*.unet.t*.cond", kit.tensors.kit)
    for match in found:
        clip, t = int(match[2]), int(match[3])
        x = kit.state_of(match[1], f"{match[1]}.unet.t{t}", t)
        branch = {"cond": "view", "uncond": "null"}[match[4]]
        output = kit.network(x, torch.tensor([t]), getattr(kit.sets(clip), branch))
        off = error(output, kit[match[0]])
        logger.info(f"clip {clip}, t = {t}, {match[4]}: {off:.1e}")
        assert off <= UNET


@each_kit
def test_steps_visited_and_their_tables(kit: Kit) -> None:
    sampler = kit.sampler()
    assert sampler.timesteps.flip(0).tolist() == kit.info["timesteps_executed"]
    scale, cumulative = kit.network.schedule.scale, kit.network.schedule.alphas_cumprod
    for name, ours in (("scale_arr", scale), ("alphas_cumprod", cumulative)):
        if (theirs := kit.tensors.get(f"schedule.{name}")) is not None:
            torch.testing.assert_close(ours, theirs[: len(ours)], atol=1e-7, rtol=0)
    tables = {
        "a": sampler.alphas, "ap": sampler.alphas_next, "sigma": sampler.sigmas, "sc": sampler.scales,
        "scp": sampler.scales_next,
    }  # fmt: skip
    for step in kit.info["schedule"]:
        for name, values in tables.items():
            assert float(values[step["index"]]) == pytest.approx(step[name], abs=1e-6), (step["t"], name)


@each_kit
def test_every_step_from_its_recorded_state(kit: Kit) -> None:
    sampler, last = kit.sampler(), len(kit.info["timesteps_executed"]) - 1
    with Held(kit.tensors) as held:
        for clip in kit.clips:
            for rescale in kit.rescales:
                if held.has(f"clip{clip}.step_noise", f"clip{clip}.gr{rescale}.x"):
                    check_steps(kit, sampler, last, clip, rescale, held)


def check_steps(kit: Kit, sampler: DDIMSampler, last: int, clip: int, rescale: float, held: Held) -> None:
    run, noise = f"clip{clip}.gr{rescale}", kit[f"clip{clip}.step_noise"]
    denoise, states = kit.denoiser(clip, rescale), kit[f"{run}.x"]
    clean = dict(held.of([f"{run}.pred_x0"])).get(f"{run}.pred_x0")
    for executed, x in enumerate(states[:-1]):
        index = last - executed
        with torch.no_grad():
            output = denoise(x, sampler.timesteps[index : index + 1])
        after, x0 = sampler.step(x, output, index, noise[executed])
        errors = {"latents": error(after, states[executed + 1])}
        if clean is not None:
            errors["clean"] = error(x0, clean[executed])
        logger.info(f"{run}, step {executed}: {errors}")
        assert max(errors.values()) <= STEP, (run, executed, errors)
    for _, expected in held.of([f"{run}.frames"]):
        frames = kit.network.decode(states[-1])[0].movedim(1, -1) * 2 - 1
        off = float((frames - expected).abs().max())
        logger.info(f"{run}, decoded: {off:.1e}")
        assert off <= DECODED, run


@each_kit
def test_a_whole_run_from_noise_to_frames(kit: Kit) -> None:
    with Held(kit.tensors) as held:
        for clip in kit.clips:
            start, noise = kit[f"clip{clip}.x_T"], kit[f"clip{clip}.step_noise"]
            # recorded: a run amplifies rounding, and that of the encoder differs between processors
            branches = {name: getattr(kit.sets(clip), name) for name in ("null", "view", "full")}
            recorded = kit[f"clip{clip}.c_concat"]
            sets = ConditionSets(**{name: replace(one, concat_latents=recorded) for name, one in branches.items()})
            for rescale in kit.rescales:
                denoise = kit.denoiser(clip, rescale, sets)
                final = kit.sampler().sample(denoise, tuple(start.shape), start=start, noise=noise)
                frames = kit.network.decode(final)[0].movedim(1, -1) * 2 - 1
                run = f"clip{clip}.gr{rescale}"
                for _, states in held.of([f"{run}.x"]):
                    logger.info(f"{run}: final latent {error(final, states[-1]):.1e}")
                    assert error(final, states[-1]) <= FINAL, run
                for _, expected in held.of([f"{run}.frames"]):
                    off = float((frames - expected).abs().max())
                    logger.info(f"{run}: frames {off:.1e}")
                    assert off <= FRAMES, run


@each_kit
@torch.no_grad()
def test_frames_have_tokens_of_their_own_and_the_default_frame_rate(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many frames as queries: the original then gives every frame its own, as our tokens do that are not shared."""
    network, full = kit.network, kit.sets(0).full
    frames: int = network.image_tokens.resampler.config.video_length
    if not kit.shared:
        not_held("a clip of another length than the queries'", kit.tensors.kit)
    expected = kit[f"T{frames}.unet.cond"]
    step = re.search(r"t=(\d+)", kit.info["tensors"][f"T{frames}.unet.cond"]["meaning"])
    t = int(step[1]) if step else 599
    x = kit.state_of("clip0", f"T{frames}.unet", t)[:, :, :frames]
    concat = kit["clip0.c_concat"][:, :, :frames]
    own = full.image_tokens.unflatten(1, (frames, -1))  # [1, T, Q, D]
    monkeypatch.setattr(network.image_tokens, "shared", False)
    torch.testing.assert_close(network.image_tokens(kit.photographs[:1]), own)
    output = network(x, torch.tensor([t]), replace(full, image_tokens=own, concat_latents=concat))
    assert error(output, expected) <= UNET
    shared = network(x, torch.tensor([t]), replace(full, concat_latents=concat))
    assert error(shared, expected) > 0.1, "all tokens to every frame is another model"
    noisy = torch.cat([x, concat], dim=1)
    silent = network.unet(noisy, torch.tensor([t]), text_tokens=full.text_tokens, image_tokens=own, fps=None)
    assert error(silent, kit[f"T{frames}.default_fs"]) <= UNET
