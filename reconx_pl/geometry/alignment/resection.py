"""The pose of a camera, and its focal length where that is not known, from points that its pixels see."""

from __future__ import annotations

import torch
from torch import Tensor

_MOST_POINTS = 8192  # more change the pose less than their noise does
_ROUNDS, _STEPS = 4, 12
_MIN_DEPTH = 1e-6


def resect(
    points: Tensor,
    pixels: Tensor,
    weights: Tensor,
    world_to_camera: Tensor,
    focal: float,
    free_focal: bool = False,
) -> tuple[Tensor, float]:
    """Levenberg-Marquardt on the reprojection errors under a Cauchy loss, from a first guess.

    The width of the loss follows the median error, so that a minority of wrong points has little say.

    Args:
        points: [N, 3] world; evenly thinned to 8,192.
        pixels: [2, N] relative to the principal point.
        weights: [N], not negative.
        world_to_camera: [4, 4], the guess.
        focal: pixels, the guess or the truth.
        free_focal: find the focal length too.

    Returns:
        world_to_camera [4, 4] float64 and the focal length.
    """
    every = max(1, -(-len(points) // _MOST_POINTS))
    xyz, seen, share = points[::every].double(), pixels.T[::every].double(), weights[::every].double()
    share = share / share.sum().clamp(min=1e-300)
    pose, unknowns = world_to_camera.double().clone(), 7 if free_focal else 6
    f = float(focal)
    for _ in range(_ROUNDS):
        error = _errors(xyz, seen, pose, f)[0].square().sum(1)
        width = 2 * error.median().clamp(min=1e-12)  # squared pixels
        cost, damping = _cost(error, share, width), 1e-4
        for _ in range(_STEPS):
            residual, jacobian = _errors(xyz, seen, pose, f)
            weight = (share / (1 + residual.square().sum(1) / width))[:, None, None]
            jacobian = jacobian[..., :unknowns]
            normal = (weight * jacobian).flatten(0, 1).T @ jacobian.flatten(0, 1)
            right = (weight * jacobian).flatten(0, 1).T @ residual.flatten()
            step = -torch.linalg.lstsq(normal + damping * torch.diag(normal.diag() + 1e-12), right).solution
            moved, lens = _moved(pose, step), f * (float(step[6].clamp(-0.5, 0.5).exp()) if free_focal else 1.0)
            lower = _cost(_errors(xyz, seen, moved, lens)[0].square().sum(1), share, width)
            if lower < cost:
                done = (cost - lower) < 1e-10 * cost
                pose, f, cost, damping = moved, lens, lower, max(damping / 10, 1e-9)
                if done:
                    break
            else:
                damping *= 10
                if damping > 1e6:
                    break
    return pose, f


def _cost(error: Tensor, share: Tensor, width: Tensor) -> float:
    return float((share * torch.log1p(error / width)).sum())


def _errors(xyz: Tensor, seen: Tensor, pose: Tensor, focal: float) -> tuple[Tensor, Tensor]:
    """Reprojection errors [N, 2] and their derivatives [N, 2, 7] in turn, shift (of the camera) and log focal."""
    inside = xyz @ pose[:3, :3].T + pose[:3, 3]
    behind = inside[:, 2] < _MIN_DEPTH
    x, y, z = inside.unbind(1)
    z = torch.where(behind, 1.0, z)
    u, v, k = focal * x / z, focal * y / z, focal / z
    zero = torch.zeros_like(u)
    rows = [
        torch.stack([-u * y / z, focal + u * x / z, -k * y, k, zero, -u / z, u], 1),
        torch.stack([-focal - v * y / z, v * x / z, k * x, zero, k, -v / z, v], 1),
    ]
    residual = torch.stack([u, v], 1) - seen
    # what is behind the camera is as wrong as can be, and does not pull
    return (
        torch.where(behind[:, None], 4 * seen.abs().max(), residual),
        torch.where(behind[:, None, None], 0.0, torch.stack(rows, 1)),
    )


def _moved(pose: Tensor, step: Tensor) -> Tensor:
    """The pose after a turn (rotation vector) and a shift in the camera's frame."""
    x, y, z = step[:3].tolist()
    generator = step.new_tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turn = torch.linalg.matrix_exp(generator)
    moved = pose.clone()
    moved[:3, :3] = turn @ pose[:3, :3]
    moved[:3, 3] = turn @ pose[:3, 3] + step[3:6]
    return moved
