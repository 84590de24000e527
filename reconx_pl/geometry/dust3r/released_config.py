"""What a released checkpoint says of its network: the model string of a ``.pth``, the ``config.json`` of the hub."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reconx_pl.errors import BadWeightsError, ConfigurationError, MissingWeightsError
from reconx_pl.geometry.dust3r.config import PATCH, Dust3rConfig

CLASS = "AsymmetricCroCo3DStereo"
_RENAMED = {
    "enc_embed_dim": "encoder_width",
    "enc_depth": "encoder_depth",
    "enc_num_heads": "encoder_heads",
    "dec_embed_dim": "decoder_width",
    "dec_depth": "decoder_depth",
    "dec_num_heads": "decoder_heads",
    "mlp_ratio": "mlp_ratio",
    "head_type": "head",
    "img_size": "image_size",
}
# what this implementation does, and all that it does
_FIXED: dict[str, Any] = {
    "output_mode": "pts3d",
    "depth_mode": ("exp", -math.inf, math.inf),
    "conf_mode": ("exp", 1.0, math.inf),
    "patch_size": PATCH,
    "norm_im2_in_dec": True,
}
# how batches are stored and what is trained: not of the network (see ``Dust3r.encode``)
_OF_TRAINING = {"landscape_only", "patch_embed_cls", "freeze"}


def parse_model_string(text: str, source: str) -> dict[str, Any]:
    """The keyword arguments in a call like ``AsymmetricCroCo3DStereo(enc_depth=24, ...)``; nothing is evaluated.

    Args:
        text: plain values: numbers, strings, booleans, tuples, ``inf``.
        source: file named in the error.

    Raises:
        BadWeightsError: another class, or anything but plain keyword arguments.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise BadWeightsError(f"{source}: the model string {text!r} cannot be read ({error.msg})") from error
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id != CLASS or call.args:
        raise BadWeightsError(
            f"{source}: the model string {text!r} is not {CLASS}(name=value, ...); it is a checkpoint of another model"
        )
    found: dict[str, Any] = {}
    for keyword in call.keywords:
        try:
            if keyword.arg is None:
                raise ValueError("** is not a plain value")
            found[keyword.arg] = ast.literal_eval(_Infinities().visit(keyword.value))
        except ValueError as error:
            raise BadWeightsError(
                f"{source}: {keyword.arg or '**'} in the model string is no plain value: {ast.unparse(keyword.value)}"
            ) from error
    return found


class _Infinities(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(math.inf) if node.id == "inf" else node


def read_hub_config(path: Path) -> dict[str, Any]:
    """The fields of the hub's ``config.json``, which has bare ``Infinity`` and lists in place of tuples.

    Raises:
        MissingWeightsError: there is no such file.
        BadWeightsError: it is no JSON object.
    """
    if not path.is_file():
        raise MissingWeightsError(f"{path}: no such file; it belongs beside the weights in the hub's form")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadWeightsError(f"{path}: not readable as JSON ({error}); fetch it again") from error
    if not isinstance(fields, dict):
        raise BadWeightsError(f"{path}: a JSON object is expected; fetch it again")
    return fields


def config_of(fields: Mapping[str, Any], source: str) -> Dust3rConfig:
    """The configuration of a network from the original's own constructor arguments.

    Args:
        fields: as in a model string or in ``config.json``. Absent ones have the values of the released models.
        source: file named in the error.

    Raises:
        BadWeightsError: an unknown argument, or a value that stands for something that is not implemented.
    """
    ours: dict[str, Any] = {}
    for name, value in fields.items():
        if name in _OF_TRAINING:
            continue
        if name == "pos_embed":
            if not isinstance(value, str) or not (rope := re.fullmatch(r"RoPE(\d+(?:\.\d+)?)", value)):
                raise BadWeightsError(f"{source}: pos_embed is {value!r}; only RoPE with a number is implemented")
            ours["rope_base"] = float(rope[1])
        elif name in _FIXED:
            if not _same(value, _FIXED[name]):
                raise BadWeightsError(f"{source}: {name} is {value!r}; only {_FIXED[name]!r} is implemented")
        elif name in _RENAMED:
            ours[_RENAMED[name]] = tuple(value) if isinstance(value, list) else value
        else:
            raise BadWeightsError(f"{source}: unknown argument {name}={value!r} of the model; it is another network")
    try:
        return Dust3rConfig(**ours)
    except (ConfigurationError, TypeError) as error:
        raise BadWeightsError(f"{source}: {error}") from error


def _same(value: Any, expected: Any) -> bool:
    if isinstance(expected, tuple):
        return (
            isinstance(value, list | tuple)
            and len(value) == len(expected)
            and all(_same(one, other) for one, other in zip(value, expected, strict=True))
        )
    if isinstance(expected, float) and isinstance(value, str):  # "Infinity", from a strict JSON writer
        return value in ("Infinity", "-Infinity") and float(value) == expected
    return bool(value == expected)
