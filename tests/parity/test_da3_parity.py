"""Depth-Anything-3 against the original: every small kit, full-size probes, key tables, preparation and poses."""

from __future__ import annotations

import json
import logging
import math
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from da3_activations import activations
from da3_networks import stand_in, stand_in_cameras, stand_in_images
from golden_kits import golden_kits
from safetensors.torch import load_file
from torch import Tensor

from reconx_pl.geometry.alignment.state import quaternions
from reconx_pl.geometry.cameras import unproject
from reconx_pl.geometry.da3.cameras import decoded_cameras, encoded_cameras
from reconx_pl.geometry.da3.config import Da3Config
from reconx_pl.geometry.da3.head import Rays
from reconx_pl.geometry.da3.model import DepthAnything3
from reconx_pl.geometry.da3.names import UNUSED, canonical, to_official_name
from reconx_pl.geometry.da3.poses import centers_of, fitted_centers, normalised_poses, scale_of_prediction
from reconx_pl.geometry.da3.positions import position_code, resized_table, shared_positions, token_positions
from reconx_pl.geometry.da3.preprocess import Da3Preprocessing, cut_alike, normalised_images, prepare_image
from reconx_pl.geometry.da3.rays import cameras_of_rays
from reconx_pl.geometry.da3.reference import reference_view
from reconx_pl.geometry.da3.released import RELEASED
from reconx_pl.geometry.da3.weights import load_state
from reconx_pl.geometry.dust3r.rope import rotation_of
from reconx_pl.types import Cameras

logger = logging.getLogger(__name__)  # figures: pytest --log-cli-level=INFO

RELATIVE = 2e-5  # of the largest magnitude of a tensor: what the tiny kits suggest, where one suggests no other
HUGE_FOCAL, HUGE_RELATIVE = 1e4, 1e-3  # of fields of view that have failed
NEEDS = "needs golden kits {}: set RECONX_GOLDEN to a folder that has them"
TINY_KITS = [kit for kit in golden_kits("da3_tiny_*.json") if kit.with_name(f"{kit.stem}_io.safetensors").exists()]
KEY_TABLES = golden_kits("da3_*_keys.json")
PREPROCESSING = golden_kits("da3_preproc_*.json")
CASES = [(kit, case) for kit in TINY_KITS for case in json.loads(kit.read_text(encoding="utf-8"))["cases"]]
needs_tiny = pytest.mark.skipif(not CASES, reason=NEEDS.format("da3_tiny_*"))
needs_preprocessing = pytest.mark.skipif(not PREPROCESSING, reason=NEEDS.format("da3_preproc_*"))
each_tiny = pytest.mark.parametrize("kit", TINY_KITS, ids=lambda kit: kit.stem)
each_preprocessing = pytest.mark.parametrize("kit", PREPROCESSING, ids=lambda kit: kit.stem)


@cache
def read_kit(kit: Path) -> tuple[dict, dict[str, Tensor]]:
    return json.loads(kit.read_text(encoding="utf-8")), load_file(kit.with_name(f"{kit.stem}_io.safetensors"))


@cache
def network(kit: Path) -> DepthAnything3:
    official = read_kit(kit)[0]["config"]
    config = Da3Config(
        width=official["embed_dim"],
        depth=official["depth"],
        heads=official["num_heads"],
        mlp_ratio=official["mlp_ratio"],
        cross_view_start=official["alt_start"],
        taps=tuple(official["out_layers"]),
        image_size=official["img_size"],
        rope_base=official["rope_freq"],
        head_width=official["head_features"],
        head_level_widths=tuple(official["head_out_channels"]),
        camera_heads=official["cam_enc_heads"],
        camera_depth=official["cam_enc_depth"],
    )
    model = DepthAnything3(config).eval()
    path = kit.with_name(f"{kit.stem}_weights.safetensors")
    load_state(model, load_file(path), str(path))
    return model


def assert_close(actual: Tensor, expected: Tensor, name: str, relative: float = RELATIVE) -> float:
    assert actual.shape == expected.shape, (name, actual.shape, expected.shape)
    worst = ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()
    assert worst <= relative, (name, worst)
    return worst


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@needs_tiny
@pytest.mark.parametrize(("kit", "case"), CASES, ids=[f"{kit.stem}-{case}" for kit, case in CASES])
def test_every_tensor_of_a_case(kit: Path, case: str) -> None:
    info, tensors = read_kit(kit)
    settings, expected = info["cases"][case], part(tensors, f"{case}.")
    given = [expected.pop(f"in_{name}", None) for name in ("extrinsics", "intrinsics")]
    expected.pop("images", None)
    found = activations(network(kit), tensors[settings["images"]], *given, settings["strategy"])
    assert {"depth", "depth_conf", "extrinsics", "intrinsics"} <= expected.keys()
    if (chosen := expected.pop("reference_view", None)) is not None:
        assert found["reference_view"].equal(chosen) and chosen.tolist() == settings["reference_view"]
    suggested = re.search(r"<= (\S+) \* max", info["tolerance_suggestion"])
    relative = float(suggested[1]) if suggested else RELATIVE
    errors = {name: assert_close(found[name], value, name, relative) for name, value in expected.items()}
    worst = max(errors, key=errors.__getitem__)
    logger.info(f"{kit.stem} {case}: {len(errors)} tensors, {errors[worst]:.1e} of the largest value at most ({worst})")


@needs_tiny
@each_tiny
@torch.no_grad()
def test_positions(kit: Path) -> None:
    _, tensors = read_kit(kit)
    table = network(kit).backbone.table
    sizes = part(tensors, "unit.pos_embed.")
    for name, expected in sizes.items():
        rows, columns = map(int, name.split("x"))
        assert_close(resized_table(table, rows, columns)[0, :, : expected.shape[1]], expected, name)
    codes = part(tensors, "unit.head_pos.")
    for name, expected in codes.items():
        rows, columns, channels = map(int, name.split("x"))
        assert_close(position_code(channels, rows, columns, 84 / 56), expected, name)
    assert sizes and codes
    rope = part(tensors, "unit.rope.")
    rows, columns = rope["positions_local"].amax((0, 1, 2)).tolist()
    for kind, positions in (
        ("local", token_positions(rows, columns)),
        ("global", shared_positions(rows, columns)),
    ):
        assert positions.expand(rope[f"positions_{kind}"].shape[1:]).equal(rope[f"positions_{kind}"][0])
        turned = rotation_of(positions, rope["tokens"].shape[-1], 100.0)(rope["tokens"])
        assert_close(turned, rope[f"rotated_{kind}"], kind)


@needs_tiny
@each_tiny
@torch.no_grad()
def test_norms_have_their_epsilons(kit: Path) -> None:
    model, tensors = network(kit), part(read_kit(kit)[1], "unit.norm.")
    blocks, cameras = list(model.backbone.blocks), list(model.camera_encoder.blocks)
    norms = {  # the kit does not say of which block; one of them it is
        "block_norm1": [block.attention_norm for block in blocks],
        "q_norm": [block.attention.query_norm for block in blocks[model.config.cross_view_start :]],
        "final_norm": [model.backbone.norm],
        "head_norm": [model.head.norm],
        "aux_norm": [model.head.rays.norm],
        "cam_enc_block_norm1": [block.attention_norm for block in cameras],
        "cam_enc_token_norm": [model.camera_encoder.token_norm],
    }
    assert {name.rpartition(".")[0] for name in tensors} == norms.keys()
    for name, candidates in norms.items():
        value, expected = tensors[f"{name}.in"], tensors[f"{name}.out"]
        found = min((norm(value) for norm in candidates), key=lambda out: (out - expected).abs().max().item())
        assert_close(found, expected, name)


@needs_tiny
@each_tiny
def test_reference_views(kit: Path) -> None:
    tensors = part(read_kit(kit)[1], "unit.reference.")
    counted = 0
    for name, expected in tensors.items():
        choice, _, views = name.partition(".")
        if choice != "tokens":
            assert reference_view(tensors[f"tokens.{views}"][:, :, 0], choice).equal(expected), name  # type: ignore[arg-type]
            counted += 1
    assert counted >= 6


@needs_tiny
@each_tiny
def test_cameras_and_their_numbers(kit: Path) -> None:
    tensors = read_kit(kit)[1]
    pose = part(tensors, "unit.pose.")
    world_to_camera, intrinsics = decoded_cameras(pose["encoding"], 56, 84)
    assert_close(world_to_camera[..., :3, :], pose["world_to_camera"], "world_to_camera")
    sane = pose["intrinsics"].abs() <= HUGE_FOCAL
    assert_close(intrinsics[sane], pose["intrinsics"][sane], "intrinsics")
    assert_close(intrinsics[~sane], pose["intrinsics"][~sane], "failed intrinsics", HUGE_RELATIVE)
    rotations = part(tensors, "unit.quaternion.")
    found = quaternions(rotations["matrices"].flatten(0, 1))
    found = torch.where(found[:, 3:] < 0, -found, found)
    assert_close(found, rotations["xyzw"].flatten(0, 1), "quaternions")
    encode = part(tensors, "unit.encode.")
    encoding = encoded_cameras(encode["world_to_camera"], encode["intrinsics"], 56, 84)
    assert_close(encoding, encode["encoding"], "encoding")


# --- preparation and poses


@needs_preprocessing
@each_preprocessing
def test_preparation(kit: Path) -> None:
    info, tensors = json.loads(kit.read_text(encoding="utf-8")), load_file(kit.with_suffix(".safetensors"))
    assert info["cases"]
    for case in info["cases"]:
        name = f"{case['case']:02}"
        source = tensors[f"{name}.in"]
        settings = Da3Preprocessing(case["process_res"], case["process_res_method"])
        prepared = prepare_image(source.permute(2, 0, 1) / 255, settings)
        assert_same_pixels(prepared.pixels, tensors[f"{name}.out"], name)
        if (expected := tensors.get(f"{name}.tensor")) is not None:
            exact = (tensors[f"{name}.out"].permute(2, 0, 1) / 255).float()
            assert (normalised_images(exact) - expected).abs().max() < 1e-6
        if f"{name}.K_in" in tensors:
            cut = prepared.window.cut(camera(tensors[f"{name}.K_in"], source))
            assert torch.allclose(cut.intrinsics[0], tensors[f"{name}.K_out"], rtol=1e-5), name


@needs_preprocessing
@each_preprocessing
def test_images_of_different_sizes_in_one_call(kit: Path) -> None:
    info, tensors = json.loads(kit.read_text(encoding="utf-8")), load_file(kit.with_suffix(".safetensors"))
    for batch in info.get("batches", []):
        name, count = f"batch{batch['batch']}", len(batch["input_WH"])
        sources = [tensors[f"{name}.in.{index}"] for index in range(count)]
        settings = Da3Preprocessing(batch["process_res"])
        together = cut_alike([prepare_image(source.permute(2, 0, 1) / 255, settings) for source in sources])
        for index, (one, source) in enumerate(zip(together, sources, strict=True)):
            assert_same_pixels(one.pixels, tensors[f"{name}.out.{index}"], f"{name}.{index}")
            cut = one.window.cut(camera(tensors[f"{name}.K_in.{index}"], source))
            assert torch.allclose(cut.intrinsics[0], tensors[f"{name}.K_out.{index}"], rtol=1e-5), name


def assert_same_pixels(pixels: Tensor, expected: Tensor, name: str) -> None:
    found = (pixels * 255).round().permute(1, 2, 0)
    assert found.shape == expected.shape, name
    difference = (found - expected.float()).abs()
    assert difference.max() <= 1 and difference.mean() < 1e-3, (name, difference.max(), difference.mean())


def camera(intrinsics: Tensor, image: Tensor) -> Cameras:
    return Cameras(torch.eye(4)[None], intrinsics[None], *image.shape[:2])


@needs_preprocessing
@each_preprocessing
def test_normalised_poses(kit: Path) -> None:
    tensors = load_file(kit.with_suffix(".safetensors"))
    names = [name.removesuffix(".in") for name in tensors if name.startswith("norm") and name.endswith(".in")]
    assert names
    for name in names:
        assert_close(normalised_poses(tensors[f"{name}.in"][0]), tensors[f"{name}.out"][0], name, 1e-5)


@needs_preprocessing
@each_preprocessing
def test_scale_of_known_cameras(kit: Path) -> None:
    info, tensors = json.loads(kit.read_text(encoding="utf-8")), load_file(kit.with_suffix(".safetensors"))
    for entry in info.get("alignments", []):
        name = f"align{entry['align']}"
        given, depth = tensors[f"{name}.given"], tensors[f"{name}.depth_in"]
        predicted = torch.eye(4).repeat(entry["views"], 1, 1)
        predicted[:, :3] = tensors[f"{name}.predicted"]
        scale = scale_of_prediction(given, predicted)
        assert scale == pytest.approx(entry["scale"], rel=1e-5)
        assert_close(depth / scale, tensors[f"{name}.to_input.depth"], name, 1e-4)
        moved = fitted_centers(centers_of(given), centers_of(predicted)).transform_cameras(
            Cameras(given, torch.eye(3).repeat(len(given), 1, 1), 4, 6)
        )
        assert_close(moved.world_to_camera, tensors[f"{name}.to_prediction.extrinsics"], name, 1e-4)


@needs_preprocessing
@each_preprocessing
def test_cameras_of_rays(kit: Path) -> None:
    """Against the truth; against the original where it is right, with its principal point in the centre."""
    info, tensors = json.loads(kit.read_text(encoding="utf-8")), load_file(kit.with_suffix(".safetensors"))
    for entry in info.get("ray_cameras", []):
        name = f"ray{entry['ray']}"
        directions, origins = tensors[f"{name}.ray"][0].split(3, dim=-1)
        height, width = entry["image_HW"]
        poses, intrinsics = cameras_of_rays(Rays(directions, origins, tensors[f"{name}.conf"][0]), height, width)
        allowed = 1e-3 if entry["noise"] == 0 else 2e-2
        for of in ("true_", "") if entry["principal_point_in_the_centre"] else ("true_",):
            assert (poses[:, :3] - tensors[f"{name}.{of}extrinsics"][0]).abs().max() < allowed, (name, of)
            assert (intrinsics - tensors[f"{name}.{of}intrinsics"][0]).abs().max() / width < allowed, (name, of)


@needs_preprocessing
@each_preprocessing
def test_points_are_those_of_pixel_centres(kit: Path) -> None:
    points = part(load_file(kit.with_suffix(".safetensors")), "points.")
    if not points:
        pytest.skip(f"{kit.stem} has no points")
    cameras = Cameras(points["extrinsics"], points["intrinsics"], *points["depth"].shape[1:])
    assert_close(unproject(points["depth"], cameras), points["pixel_centres"], "points")


# --- at full size


@pytest.mark.skipif(not KEY_TABLES, reason=NEEDS.format("da3_*_keys"))
@pytest.mark.parametrize("kit", KEY_TABLES, ids=lambda kit: kit.stem)
def test_every_released_key_has_its_place(kit: Path) -> None:
    table, name = json.loads(kit.read_text(encoding="utf-8")), kit.stem.removesuffix("_keys").replace("_", "-")
    shapes = {key: tuple(entry["shape"]) for key, entry in table["keys"].items()}
    assert {key: canonical(key) for key in shapes if canonical(key) != key} == table["aliases"]
    with torch.device("meta"):
        model = DepthAnything3(RELEASED[name].config)
    own = {to_official_name(key): tuple(value.shape) for key, value in model.state_dict().items()}
    stored = {key: shape for key, shape in shapes.items() if key not in table["aliases"]}
    assert own | {key: shapes[key] for key in UNUSED} == stored and not own.keys() & UNUSED
    assert (len(shapes), len(stored)) == (table["n_keys"], table["n_keys_without_aliases"])
    config, (net, head) = RELEASED[name].config, (table["config_yaml"][part] for part in ("net", "head"))
    assert config.cross_view_start == net["alt_start"] == net["rope_start"] == net["qknorm_start"]
    assert (list(config.taps), list(config.head_level_widths)) == (net["out_layers"], head["out_channels"])
    assert sum(map(math.prod, stored.values())) == table["total_parameters"]
    assert sum(math.prod(shapes[key]) for key in UNUSED) == table["never_used"]["parameters"]
    state = {f"model.{key}": torch.empty(shape, device="meta") for key, shape in stored.items()}
    load_state(model, state, "layout", assign=True)


PROBES = golden_kits("da3_*_probe.json")


def strided(name: str, value: Tensor) -> Tensor:
    """The elements of a tensor [B, V, ...] that a probe stores."""
    value, (kind, *_) = value[0], name.split(".")
    rules = {
        "embed": (..., slice(None, None, 24), slice(None, None, 16)),
        "block": (..., slice(None, None, 48), slice(None, None, 32)),
        "tap": (..., slice(None, None, 24), slice(None, None, 16)),
        "tap_token": (..., slice(None, None, 8)),
        "depth": (..., slice(6, None, 12), slice(6, None, 12)),
        "depth_conf": (..., slice(6, None, 12), slice(6, None, 12)),
        "ray": (..., slice(4, None, 8), slice(4, None, 8), slice(None)),
        "ray_conf": (..., slice(4, None, 8), slice(4, None, 8)),
        "head": (..., slice(None, None, 8), slice(None, None, 6), slice(None, None, 6)),
        "cam_enc": (..., slice(None) if name.endswith("pose_encoding") else slice(None, None, 8)),
    }
    if name in ("head.up_pos", "head.logits"):
        return value[..., 6::24, 6::24]
    return value[rules[kind]] if kind in rules else value


@pytest.mark.parametrize("kit", PROBES, ids=lambda kit: kit.stem)
def test_the_stand_in_weights_are_those_of_the_probe(kit: Path) -> None:
    info = json.loads(kit.read_text(encoding="utf-8"))
    shapes = json.loads((kit.parent / f"{kit.stem.removesuffix('_probe')}_keys.json").read_text(encoding="utf-8"))
    for name, values in info["first_four_values_of_some_tensors"].items():
        found = stand_in(name, tuple(shapes["keys"][name]["shape"])).flatten()[:4].tolist()
        assert found == pytest.approx(values, rel=1e-7), name


@pytest.mark.slow
@pytest.mark.skipif(not PROBES, reason=NEEDS.format("da3_*_probe"))
@pytest.mark.parametrize("kit", PROBES, ids=lambda kit: kit.stem)
def test_full_size_probe(kit: Path) -> None:
    info, expected = json.loads(kit.read_text(encoding="utf-8")), load_file(kit.with_suffix(".safetensors"))
    with torch.device("meta"):
        model = DepthAnything3(RELEASED[kit.stem.removesuffix("_probe").replace("_", "-")].config).eval()
    state = {
        name: stand_in(name, tuple(value.shape))
        for name, value in ((to_official_name(key), value) for key, value in model.state_dict().items())
    }
    load_state(model, state, "the rule", assign=True)
    compared, worst = set(), 0.0
    for case, given in (("plain", (None, None)), ("posed", stand_in_cameras())):
        found = activations(model, stand_in_images(), *given)
        for name, value in part(expected, f"{case}.").items():
            if name.endswith(".float64"):
                continue
            if name.endswith(".mean_std"):
                whole = found[name.removesuffix(".mean_std")].double()
                actual = torch.stack([whole.mean(), whole.std()])
            else:
                actual = strided(name, found[name])
            own_error, largest = info["fp32_vs_fp64_maxabs_and_max"][f"{case}.{name}"]
            error = (actual - value).abs().max().item()
            assert actual.shape == value.shape and error <= max(5 * own_error, 1e-4 * largest), (case, name, error)
            compared.add(f"{case}.{name}")
            worst = max(worst, error / largest)
    assert compared == info["fp32_vs_fp64_maxabs_and_max"].keys()
    logger.info(f"{kit.stem}: {len(compared)} tensors, {worst:.1e} of the largest value at most")
