"""A rasteriser against the ``splat_*`` kits of a brute-force float64 oracle: the figures, and whether they are allowed.

``python -m benchmarks.splat oracle`` prints them; the parity tests ask for ``problems``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import torch_renderer
from reconx_pl.splatting.renderers import cpu
from reconx_pl.splatting.renderers import gsplat as gsplat_backend

Kit = Mapping[str, np.ndarray]
Rasterize = Callable[
    ..., tuple[Tensor, Tensor, Tensor]
]  # as ``reconx_pl.splatting.renderers.cpu.rasterize``, alpha_max bound
PARAMETERS = ("means", "quats", "scales", "opacities", "sh", "viewmats", "background")
VARIANTS = {0.999: "", 0.99: "_amax099"}  # of the arrays' names, by alpha_max
SAFE = 1e-3  # a pixel whose decisions are all at least this far (relatively) from flipping
ALLOWED = {"color": 5e-5, "alpha": 2e-5, "depth": 1e-4, "any pixel": 8e-3, "share above": 0.02, "gradient": 2e-3}


def read_kit(description: Path) -> dict[str, np.ndarray]:
    """The arrays beside a kit's ``.json``."""
    with np.load(description.with_suffix(".npz"), allow_pickle=False) as arrays:
        return dict(arrays)


def render(
    kit: Kit,
    rasterize: Rasterize,
    degree: int | None = None,
    device: str = "cpu",
    grad: bool = False,
    double: bool = False,
) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
    """The kit's parameters as leaves, and its colour [V, H, W, 3], alpha and depth [V, H, W].

    ``degree`` of the spherical harmonics is the highest that the kit's coefficients have, unless given.
    """
    degree = math.isqrt(kit["sh"].shape[1]) - 1 if degree is None else degree
    dtype = torch.float64 if double else torch.float32
    leaves = {name: torch.from_numpy(kit[name]).to(device, dtype).requires_grad_(grad) for name in PARAMETERS}
    color, alpha, depth = rasterize(
        *(leaves[name] for name in PARAMETERS[:-1]),
        torch.from_numpy(kit["Ks"]).to(device, dtype),
        int(kit["height"]),
        int(kit["width"]),
        sh_degree=degree,
        background=leaves["background"],
    )
    return leaves, color.permute(0, 2, 3, 1), alpha, depth


@dataclass(frozen=True)
class ValueErrors:
    """Largest errors of the pixels.

    Attributes:
        color, alpha: absolute, at safe pixels; colour over all degrees.
        depth: relative, at safe pixels.
        anywhere: of colour, at all pixels.
        share: of all pixels, those whose colour is off by more than a safe pixel may be.
        judge_all: whether the pixels that are not safe are judged.
    """

    color: float
    alpha: float
    depth: float
    anywhere: float
    share: float
    judge_all: bool

    def problems(self) -> list[str]:
        figures = {"color": self.color, "alpha": self.alpha, "depth": self.depth}
        if self.judge_all:
            figures |= {"any pixel": self.anywhere, "share above": self.share}
        return [
            f"{name} {value:.2g} > {ALLOWED[name]:g}" for name, value in figures.items() if not value <= ALLOWED[name]
        ]


def degrees_of(kit: Kit, alpha_max: float) -> list[int]:
    """Of the spherical harmonics that the kit has pictures of."""
    names = re.compile(rf"rgb_sh(\d){VARIANTS[alpha_max]}")
    return sorted(int(match[1]) for match in map(names.fullmatch, kit) if match)


def value_errors(
    kit: Kit, rasterize: Rasterize, alpha_max: float, device: str = "cpu", double: bool = False
) -> ValueErrors:
    """Compare the pictures of all degrees.

    With alpha_max 0.99 two opaque Gaussians leave 1e-4 of the light, and float32 and float64 may disagree on whether
    that is above the stop at 1e-4 (the kit's trap): then only safe pixels are judged.
    """
    suffix = VARIANTS[alpha_max]
    safe = kit[f"margin{suffix}"] >= SAFE
    off = []
    for degree in degrees_of(kit, alpha_max):
        _, color, alpha, depth = render(kit, rasterize, degree, device, double=double)
        off.append(np.abs(color.double().cpu().numpy() - kit[f"rgb_sh{degree}{suffix}"]).max(-1))
    errors = np.maximum.reduce(off)
    expected = kit[f"depth_expected{suffix}"]
    relative = np.abs(depth.double().cpu().numpy() - expected) / np.maximum(np.abs(expected), 1e-2)
    return ValueErrors(
        color=float(errors[safe].max()),
        alpha=float(np.abs(alpha.double().cpu().numpy() - kit[f"alpha{suffix}"])[safe].max()),
        depth=float(relative[safe].max()),
        anywhere=float(errors.max()),
        share=float((errors > ALLOWED["color"]).mean()),
        judge_all=alpha_max == 0.999,
    )


@dataclass(frozen=True)
class GradientError:
    """Gradient by one parameter.

    Attributes:
        relative: L2 norm of the error by that of the gradient.
        worst_row: greatest share, over the Gaussians, of what one may be off (2 % of its norm and 1e-3 of the largest).
        culled: largest gradient of a Gaussian that no view shows; must be 0.
    """

    relative: float
    worst_row: float
    culled: float

    def problems(self) -> list[str]:
        found = [] if self.relative <= ALLOWED["gradient"] else [f"relative {self.relative:.2g}"]
        found += [] if self.worst_row <= 1 else [f"a row {self.worst_row:.2g} times what is allowed"]
        return found + ([] if self.culled == 0 else [f"a culled Gaussian has {self.culled:.2g}"])


def gradient_errors(
    kit: Kit, rasterize: Rasterize, loss: str, alpha_max: float, device: str = "cpu", double: bool = False
) -> dict[str, GradientError]:
    """Compare the gradients of the kit's loss ``rgba``, or ``all`` with expected depth in it."""
    leaves, color, alpha, depth = render(kit, rasterize, device=device, grad=True, double=double)
    weighted = {"rgb": color, "alpha": alpha} | ({"depth": depth} if loss == "all" else {})
    weights = {name: torch.from_numpy(kit[f"w_{name}"]).to(color) for name in weighted}
    total = torch.stack([(weights[name] * one).sum() for name, one in weighted.items()]).sum()
    total.backward()
    result = {}
    for name in PARAMETERS:
        truth = kit[f"grad_{loss}_{name}{VARIANTS[alpha_max]}"].astype(np.float64)
        gradient = leaves[name].grad
        assert gradient is not None, name
        actual = gradient.double().cpu().numpy()
        relative = float(np.linalg.norm(actual - truth) / np.linalg.norm(truth))
        worst, culled = 0.0, 0.0
        if name not in ("viewmats", "background"):
            rows, wanted = actual.reshape(len(actual), -1), truth.reshape(len(truth), -1)
            allowed = 2e-2 * np.linalg.norm(wanted, axis=1) + 1e-3 * np.abs(wanted).max()
            worst = float((np.abs(rows - wanted).max(1) / allowed).max())
            culled = float(np.abs(rows[~wanted.any(axis=1)]).max(initial=0.0))
        result[name] = GradientError(relative, worst, culled)
    return result


def report(kits: list[Path], device: str) -> bool:
    """Print all figures; whether all are within what is allowed."""
    good = True
    for path in kits:
        kit = read_kit(path)
        for alpha_max in VARIANTS:
            backends: dict[str, tuple[Rasterize, str, bool]] = {
                "cpu": (partial(cpu.rasterize, alpha_max=alpha_max), "cpu", False),
                "torch, float64": (partial(torch_renderer.rasterize, alpha_max=alpha_max), "cpu", True),
            }
            if device == "cuda":
                renderer = gsplat_backend.GsplatRenderer()
                if renderer.alpha_max == alpha_max:
                    backends["gsplat"] = (gsplat_backend.rasterize, "cuda", False)
            for name, (rasterize, where, double) in backends.items():
                values = value_errors(kit, rasterize, alpha_max, where, double)
                print(f"\n{path.stem}, alpha_max {alpha_max}: {name}")
                print(
                    f"  safe pixels: color {values.color:.1e}, alpha {values.alpha:.1e}, depth {values.depth:.1e} "
                    f"(relative); any pixel: color {values.anywhere:.1e}, {values.share:.2%} above {ALLOWED['color']:g}"
                )
                problems = values.problems()
                for loss in ("rgba", "all"):
                    errors = gradient_errors(kit, rasterize, loss, alpha_max, where, double)
                    figures = ", ".join(f"{parameter} {error.relative:.1e}" for parameter, error in errors.items())
                    print(f"  gradients ({loss}), relative L2: {figures}")
                    problems += [f"{key}: {text}" for key, error in errors.items() for text in error.problems()]
                print("  within the kit's tolerances" if not problems else "  NOT ALLOWED: " + "; ".join(problems))
                good = good and not problems
    return good


def find_kits() -> list[Path]:
    """Kits of RECONX_GOLDEN, of ``tests/golden``, or of a ``shared/golden`` beside the checkout."""
    from tests.support.golden_kits import golden_kits

    return golden_kits("splat_*.json")
