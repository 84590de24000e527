"""DUSt3R against the original: every small kit, the full-size probe, the key table, preprocessing and pairs."""

from __future__ import annotations

import logging
import math
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from dust3r_networks import stand_in, stand_in_images
from golden_kits import Described, Held, KitTensors, described, golden_kits, named_kit, not_held
from golden_kits import read_kit as read
from safetensors.torch import load_file
from torch import Tensor

from reconx_pl.geometry.dust3r.blocks import EncoderBlock
from reconx_pl.geometry.dust3r.config import Dust3rConfig
from reconx_pl.geometry.dust3r.heads import points_and_confidence
from reconx_pl.geometry.dust3r.inference import InferenceOptions, predict_pairs
from reconx_pl.geometry.dust3r.model import Dust3r, ViewTokens, positions_of
from reconx_pl.geometry.dust3r.names import canonical, to_official_name, unused_names
from reconx_pl.geometry.dust3r.preprocess import Preprocessing, prepare_image
from reconx_pl.geometry.dust3r.rope import rotation_of
from reconx_pl.geometry.dust3r.weights import load_state
from reconx_pl.geometry.estimators.pairs import PairGraph

logger = logging.getLogger(__name__)  # figures: pytest --log-cli-level=INFO

RELATIVE = 2e-5  # of the largest magnitude, and of the median relative deviation: what the kits suggest
OUTPUTS = ("pts3d_1", "conf_1", "pts3d_2_in_1", "conf_2")
TINY_KITS = golden_kits("dust3r_tiny_*.json")
HEADS = ("dpt", "linear")
CASES = [(kit, head, case) for kit in TINY_KITS for head in HEADS for case in described(kit)["cases"]]

NEEDS = "needs golden kits {}: set RECONX_GOLDEN to a folder that has them"
needs_tiny = pytest.mark.skipif(not CASES, reason=NEEDS.format("dust3r_tiny_*"))


@cache
def read_kit(kit: Path) -> tuple[Described, KitTensors]:
    return read(kit, "{}_io.safetensors")


@cache
def network(kit: Path, head: str) -> Dust3r:
    official = read_kit(kit)[0]["config"]
    path = kit.with_name(f"{kit.stem}_weights_{head}.safetensors")
    if not path.is_file():
        not_held(path.name, kit.name)
    of_dpt = {"feature_dim": "dpt_width", "last_dim": "dpt_output_width", "layer_dims": "dpt_level_widths"}
    config = Dust3rConfig(
        encoder_width=official["enc_embed_dim"],
        encoder_depth=official["enc_depth"],
        encoder_heads=official["enc_num_heads"],
        decoder_width=official["dec_embed_dim"],
        decoder_depth=official["dec_depth"],
        decoder_heads=official["dec_num_heads"],
        mlp_ratio=official.get("mlp_ratio", 4),
        rope_base=rope_base(official),
        head=head,  # type: ignore[arg-type]
        **{ours: official[theirs] for theirs, ours in of_dpt.items() if head == "dpt"},
    )
    model = Dust3r(config).eval()
    load_state(model, {name: value.float() for name, value in load_file(path).items()}, str(path))
    if head == "dpt" and "hooks" in official:
        assert list(config.hooks) == official["hooks"]
    return model


def rope_base(official: Described) -> float:
    return float(official.get("pos_embed", "RoPE100").removeprefix("RoPE"))


def any_network(kit: Path) -> Dust3r:
    """Encoder and decoders are the same whatever the head."""
    return network(
        kit, next((head for head in HEADS if kit.with_name(f"{kit.stem}_weights_{head}.safetensors").is_file()), "dpt")
    )


def traced_cases(kit: Path) -> list[str]:
    """Those whose values between encoder and head the kit has."""
    cases = read_kit(kit)[1].cases(r"(.+)\.enc_feat1")
    return cases or not_held("values between encoder and head", kit.stem)


def deviation(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def assert_close(actual: Tensor, expected: Tensor, name: str) -> float:
    worst = deviation(actual, expected)
    median = ((actual - expected).abs() / expected.abs().clamp(min=1e-12)).median().item()
    assert worst <= RELATIVE and median <= RELATIVE, (name, worst, median)
    return worst


@needs_tiny
def test_every_kit_has_cases() -> None:
    assert {kit for kit, _, _ in CASES} == set(TINY_KITS)


@needs_tiny
@pytest.mark.parametrize(("kit", "head", "case"), CASES, ids=[f"{kit.stem}-{head}-{case}" for kit, head, case in CASES])
def test_output(kit: Path, head: str, case: str) -> None:
    _, tensors = read_kit(kit)
    portrait: list[Tensor | None] = [None, None]
    # stored lying down: rows and columns of the upright image say which
    if "manyar" in case or any(f"{case}.true_shape{view}" in tensors for view in (1, 2)):
        shapes = [tensors[f"{case}.true_shape{view}"] for view in (1, 2)]
        portrait = [shape[:, 0] > shape[:, 1] for shape in shapes]
    with torch.no_grad():
        output = network(kit, head)(tensors[f"{case}.img1"], tensors[f"{case}.img2"], *portrait)
    found = {f"{case}.{head}.{name}": value for name, value in zip(OUTPUTS, output, strict=True)}
    with Held(tensors) as held:
        errors = [assert_close(found[name], expected, name) for name, expected in held.of(found)]
        logger.info(f"{kit.stem} {head} {case}: largest deviation {max(errors, default=0):.1e} of the largest value")


@needs_tiny
@pytest.mark.parametrize("kit", TINY_KITS, ids=lambda kit: kit.stem)
@torch.no_grad()
def test_activations(kit: Path) -> None:
    info, tensors = read_kit(kit)
    model, depth = any_network(kit), info["config"]["dec_depth"]
    with Held(tensors) as held:
        for case in traced_cases(kit):
            views = [model.encode(tensors[f"{case}.img{view}"]) for view in (1, 2)]
            decoded = model.decoders(*views, tuple(range(depth + 1)))
            for view in (1, 2):
                for name, positions in held.of([f"{case}.pos{view}"] if f"{case}.pos{view}" in tensors else []):
                    assert positions_of(views[view - 1]).expand(positions.shape).equal(positions), name
                for name, expected in held.of([f"{case}.enc_feat{view}"]):
                    assert_close(views[view - 1].tokens, expected, name)
                levels = {f"{case}.dec{view}.{level:02}": level for level in range(depth + 1)}
                for name, expected in held.of(levels):
                    assert_close(decoded[view - 1][levels[name]], expected, name)


@needs_tiny
@pytest.mark.parametrize("kit", TINY_KITS, ids=lambda kit: kit.stem)
@torch.no_grad()
def test_activations_of_the_dpt_head(kit: Path) -> None:
    _, tensors = read_kit(kit)
    model = network(kit, "dpt")
    cases = tensors.cases(r"(.+)\.dpt_head1\.\w+") or not_held("values in a DPT head", kit.stem)
    seen: dict[str, Tensor] = {}
    head = model.first_head
    hooks = []
    for level in range(4):
        for name, module in ((f"act{level + 1}", head.levels[level].resize), (f"path{level + 1}", head.fusions[level])):
            hooks.append(module.register_forward_hook(lambda module, args, out, name=name: seen.__setitem__(name, out)))
    try:
        with Held(tensors) as held:
            for case in cases:
                views = [model.encode(tensors[f"{case}.img{view}"]) for view in (1, 2)]
                seen["raw"] = head(model.decoders(*views, model.config.hooks)[0], views[0].grid)
                assert len(seen) == 9
                for name, value in seen.items():
                    for key, expected in held.of([f"{case}.dpt_head1.{name}"]):
                        assert_close(value, expected, key)
    finally:
        for hook in hooks:
            hook.remove()


@needs_tiny
@pytest.mark.parametrize("kit", TINY_KITS, ids=lambda kit: kit.stem)
@torch.no_grad()
def test_tokens_of_the_linear_head(kit: Path) -> None:
    info, tensors = read_kit(kit)
    linear = network(kit, "linear")
    for case in tensors.cases(r"(.+)\.linear_head1\.raw_tokens") or not_held("tokens of a linear head", kit.stem):
        views = [linear.encode(tensors[f"{case}.img{view}"]) for view in (1, 2)]
        last = linear.decoders(*views, (info["config"]["dec_depth"],))[0]
        assert_close(linear.first_head.proj(last[0]), tensors[f"{case}.linear_head1.raw_tokens"], "raw_tokens")


@needs_tiny
@pytest.mark.parametrize("kit", TINY_KITS, ids=lambda kit: kit.stem)
@torch.no_grad()
def test_rotation(kit: Path) -> None:
    info, tensors = read_kit(kit)
    tokens = tensors["rope.tokens"]
    rotation = rotation_of(tensors["rope.positions"], tokens.shape[-1], rope_base(info["config"]))
    assert_close(rotation(tokens), tensors["rope.out"], "rope")


@needs_tiny
@pytest.mark.parametrize("kit", TINY_KITS, ids=lambda kit: kit.stem)
@torch.no_grad()
def test_first_block(kit: Path) -> None:
    info, tensors = read_kit(kit)
    block = any_network(kit).encoder.blocks[0]
    assert isinstance(block, EncoderBlock)
    head_width = info["config"]["enc_embed_dim"] // info["config"]["enc_num_heads"]
    x = tensors["block.x"]
    positions = next((tensors[f"{case}.pos1"] for case in traced_cases(kit) if f"{case}.pos1" in tensors), None)
    if positions is None or positions.shape[-2] != x.shape[1]:
        not_held("the positions of block.x", kit.stem)
    turned = block(x, rotation_of(positions[: len(x)], head_width, rope_base(info["config"])))
    assert_close(turned, tensors["block.enc0_out"], "block")


@needs_tiny
@pytest.mark.parametrize("kit", TINY_KITS, ids=lambda kit: kit.stem)
def test_points_and_confidence(kit: Path) -> None:
    _, tensors = read_kit(kit)
    found = dict(zip(("post.pts3d", "post.conf"), points_and_confidence(tensors["post.raw"]), strict=True))
    with Held(tensors) as held:
        for name, expected in held.of(found):
            assert_close(found[name], expected, name)


@needs_tiny
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("kit", TINY_KITS, ids=lambda kit: kit.stem)
def test_scene(kit: Path, batch_size: int) -> None:
    _, tensors = read_kit(kit)
    images = list((tensors["scene.imgs"] + 1) / 2)
    pairs = predict_pairs(network(kit, "dpt"), images, tensors["scene.edges"], InferenceOptions(batch_size=batch_size))
    assert pairs.edges.equal(tensors["scene.edges"])
    with Held(tensors) as held:
        for place, suffix in enumerate(("1", "2_in_1")):
            for name, expected in held.of([f"scene.pts3d_{suffix}"]):
                assert_close(torch.stack([pair[place] for pair in pairs.points]), expected, name)
            for name, expected in held.of([f"scene.conf_{suffix[0]}"]):
                assert_close(torch.stack([pair[place] for pair in pairs.confidence]), expected, name)


def test_every_released_key_has_its_place(golden_dir: Path) -> None:
    table = named_kit("dust3r_512_dpt_keys.json")
    shapes = {name: tuple(shape) for name, shape in table["keys"].items()}
    with torch.device("meta"):
        model = Dust3r()
    own = {to_official_name(name): tuple(value.shape) for name, value in model.state_dict().items()}
    unused = unused_names(model.config)
    aliases = {name for name in shapes if canonical(name) != name}
    assert {name: canonical(name) for name in aliases} == table["duplicate_keys"]["alias_to_canonical"]
    assert own | {name: shapes[name] for name in unused | aliases} == shapes and len(shapes) == table["n_keys"]
    count = sum(math.prod(shapes[name]) for name in own.keys() | unused)
    assert count == table["parameter_count"] == 571_171_208
    state = {name: torch.empty(shapes[name], device="meta") for name in shapes.keys() - aliases}
    load_state(model, state, "layout", assign=True)


def test_the_linear_model_has_its_size(golden_dir: Path) -> None:
    table = named_kit("dust3r_512_dpt_keys.json")
    variant = table["variants"]["DUSt3R_ViTLarge_BaseDecoder_512_linear"]
    for config in (Dust3rConfig.linear_512(), Dust3rConfig.linear_224()):
        with torch.device("meta"):
            state = {to_official_name(name): value for name, value in Dust3r(config).state_dict().items()}
        heads = {name: list(value.shape) for name, value in state.items() if "head" in name}
        assert heads == variant["head_keys"] and unused_names(config) == {"mask_token"}
        assert sum(value.numel() for value in state.values()) + 768 == variant["params"]


# --- preprocessing and pairs

PREPROCESSING = [(kit, case) for kit in golden_kits("dust3r_preproc_*.json") for case in described(kit)["cases"]]


PAIRS = golden_kits("pairs*.json")


@pytest.mark.skipif(not PREPROCESSING, reason=NEEDS.format("dust3r_preproc_*"))
@pytest.mark.parametrize(("kit", "case"), PREPROCESSING, ids=[f"{kit.stem}-{c['case']}" for kit, c in PREPROCESSING])
def test_preprocessing(kit: Path, case: dict) -> None:
    import PIL

    info, tensors = read(kit)
    source, expected = (tensors[f"{case['case']:02}.{name}"] for name in ("in", "out"))
    square = "all" if case["size"] == 224 else "keep" if case.get("options", {}).get("square_ok") else "cut"
    prepared = prepare_image(source.permute(2, 0, 1) / 255, Preprocessing(case["size"], square))
    found = (prepared.pixels * 255).round().permute(1, 2, 0)
    difference = (found - expected).abs().max().item()
    same_pillow = PIL.__version__ == info.get("pillow")
    assert found.shape == expected.shape and difference <= (0 if same_pillow else 1)


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.stem)
def test_pairs(path: Path) -> None:
    kit = described(path)["pairs"]
    assert kit
    for key, expected in kit.items():
        views, name, kept, symmetric = key.split("|")
        graph = replace(
            PairGraph.named(name),
            symmetric=symmetric == "sym",
            self_pairs=True,
            max_distance=None if kept == "None" else int(kept[3:]),
            distance_cyclic=kept.startswith("cyc"),
        )
        found = graph.edges(int(views)).tolist()
        if name.startswith(("complete", "oneref")):
            assert found == expected, key
        else:  # the original's order is that of a set
            assert Counter(map(tuple, found)) == Counter(map(tuple, expected)), key


# --- at full size: python -m pytest -m slow


def full_size_state() -> dict[str, Tensor]:
    with torch.device("meta"):
        model = Dust3r()
    return {
        name: stand_in(name, tuple(value.shape))
        for name, value in ((to_official_name(key), value) for key, value in model.state_dict().items())
    }


@pytest.mark.parametrize("kit", golden_kits("dust3r_full_probe.json"), ids=lambda kit: kit.stem)
def test_the_stand_in_weights_are_those_of_the_probe(kit: Path) -> None:
    info, shapes = described(kit), named_kit("dust3r_512_dpt_keys.json")["keys"]
    for name, values in info["first_four_values_of_some_tensors"].items():
        assert stand_in(name, tuple(shapes[name])).flatten()[:4].tolist() == values


@pytest.mark.slow
@pytest.mark.parametrize("kit", golden_kits("dust3r_full_probe.json"), ids=lambda kit: kit.stem)
@torch.no_grad()
def test_full_size_probe(kit: Path) -> None:
    info, expected = read(kit, exact=True)
    with torch.device("meta"):
        model = Dust3r().eval()
    load_state(model, full_size_state(), "the rule", assign=True)
    views: list[ViewTokens] = [model.encode(image) for image in stand_in_images()]
    output = model.decode(*views)
    depths = model.decoders(*views, model.config.hooks)
    found: dict[str, Tensor] = {}
    for view in (1, 2):
        found[f"enc_feat{view}"] = views[view - 1].tokens[0, ::64, :32]
        for hook, tokens in zip(model.config.hooks[1:], depths[view - 1][1:], strict=True):
            found[f"dec{view}.{hook:02}"] = tokens[0, ::64, :32]
        points, confidence = output[2 * view - 2 : 2 * view]
        found[f"pts3d_{view}"], found[f"conf_{view}"] = points[0, 8::16, 8::16], confidence[0, 8::16, 8::16]
        found[f"pts3d_{view}.mean"] = points[0].flatten(0, 1).double().mean(0)
        found[f"pts3d_{view}.std"] = points[0].flatten(0, 1).double().std(0)
        found[f"conf_{view}.mean_std"] = torch.stack([confidence.double().mean(), confidence.double().std()])
    for name, value in found.items():
        own_error, largest = info["fp32_vs_fp64_maxabs_and_max"][name]
        error = (value - expected[name]).abs().max().item()
        allowed = max(5 * own_error, 1e-4 * largest)
        logger.info(f"{kit.stem} {name}: {error:.1e} of {allowed:.1e} allowed; the original's own {own_error:.1e}")
        assert error <= allowed, name
    assert found.keys() == info["fp32_vs_fp64_maxabs_and_max"].keys()
