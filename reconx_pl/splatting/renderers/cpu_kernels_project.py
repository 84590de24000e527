"""Numba kernels: Gaussians to splats of one camera, and back.

Projection and spherical harmonics are one pass over the Gaussians, because on a CPU the round trips through memory of a
tensor formulation cost more than the arithmetic. Arithmetic is float64 in registers (needle-shaped Gaussians lose four
digits in float32), storage float32.

Symbols: a Gaussian has mean m, rotation Q (from the quaternion), scales s and covariance M M^T with M = Q diag(s);
the camera has rotation R and translation t, so p = R m + t; J is the 2x3 Jacobian of the pinhole projection at p and
the splat's covariance is (J R M)(J R M)^T + 0.3 I (EWA splatting, Zwicker et al. 2001, as in Kerbl et al. 2023).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, prange

# Columns of the splat rows that the rasteriser reads.
SPLAT_X, SPLAT_Y = 0, 1  # centre, pixels
SPLAT_A, SPLAT_B, SPLAT_C = 2, 3, 4  # inverse covariance [[A, B], [B, C]]
SPLAT_OPACITY = 5
SPLAT_RED, SPLAT_GREEN, SPLAT_BLUE = 6, 7, 8
SPLAT_DEPTH = 9
SPLAT_RADIUS_X, SPLAT_RADIUS_Y = 10, 11  # half extent of the part with alpha >= 1 / 255, pixels; 0 = culled
SPLAT_COLUMNS = 12
GRADIENT_COLUMNS = 10  # the first ten of these have gradients

NEAR_PLANE = 0.01  # world units
BLUR = 0.3  # square pixels, added to the diagonal of the 2D covariance
GUARD_BAND = 0.15  # of the image size on each side: how far x / z may leave the image inside the Jacobian
MAX_EXTENT = 3.33  # standard deviations
MIN_ALPHA = 1.0 / 255.0
BLOCK = 256  # Gaussians per parallel work item; fixed, so that sums do not depend on the number of threads

_OPTIONS: dict[str, Any] = {"cache": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}}

_Y0 = 0.28209479177387814
_Y1 = 0.4886025119029199
_Y2A, _Y2B, _Y2C = 1.0925484305920792, 0.31539156525252005, 0.5462742152960396
_Y3A, _Y3B, _Y3C = 0.5900435899266435, 2.890611442640554, 0.4570457994644658
_Y3D, _Y3E = 0.3731763325901154, 1.445305721320277


@njit(inline="never", **_OPTIONS)
def _sh_basis(degree, x, y, z, basis):
    """Real spherical harmonics of the unit vector (x, y, z), l = 0..degree, m = -l..l, with the signs of 3DGS."""
    basis[0] = _Y0
    if degree < 1:
        return
    basis[1], basis[2], basis[3] = -_Y1 * y, _Y1 * z, -_Y1 * x
    if degree < 2:
        return
    xx, yy, zz = x * x, y * y, z * z
    basis[4], basis[5] = _Y2A * x * y, -_Y2A * y * z
    basis[6] = _Y2B * (2.0 * zz - xx - yy)
    basis[7], basis[8] = -_Y2A * x * z, _Y2C * (xx - yy)
    if degree < 3:
        return
    basis[9], basis[10] = -_Y3A * y * (3.0 * xx - yy), _Y3B * x * y * z
    basis[11], basis[12] = -_Y3C * y * (4.0 * zz - xx - yy), _Y3D * z * (2.0 * zz - 3.0 * xx - 3.0 * yy)
    basis[13], basis[14] = -_Y3C * x * (4.0 * zz - xx - yy), _Y3E * z * (xx - yy)
    basis[15] = -_Y3A * x * (xx - 3.0 * yy)


@njit(inline="never", **_OPTIONS)
def _sh_direction_gradient(degree, x, y, z, h):
    """Gradient of sum_k h[k] Y_k with respect to (x, y, z)."""
    gx, gy, gz = 0.0, 0.0, 0.0
    if degree >= 1:
        gx, gy, gz = -_Y1 * h[3], -_Y1 * h[1], _Y1 * h[2]
    if degree >= 2:
        gx += _Y2A * (y * h[4] - z * h[7]) + 2.0 * x * (_Y2C * h[8] - _Y2B * h[6])
        gy += _Y2A * (x * h[4] - z * h[5]) - 2.0 * y * (_Y2C * h[8] + _Y2B * h[6])
        gz += -_Y2A * (y * h[5] + x * h[7]) + 4.0 * _Y2B * z * h[6]
    if degree >= 3:
        xx, yy, zz = x * x, y * y, z * z
        gx += -6.0 * _Y3A * x * y * h[9] + _Y3B * y * z * h[10] + 2.0 * _Y3C * x * y * h[11]
        gx += -6.0 * _Y3D * x * z * h[12] - _Y3C * (4.0 * zz - 3.0 * xx - yy) * h[13]
        gx += 2.0 * _Y3E * x * z * h[14] - 3.0 * _Y3A * (xx - yy) * h[15]
        gy += -3.0 * _Y3A * (xx - yy) * h[9] + _Y3B * x * z * h[10] - _Y3C * (4.0 * zz - xx - 3.0 * yy) * h[11]
        gy += -6.0 * _Y3D * y * z * h[12] + 2.0 * _Y3C * x * y * h[13] - 2.0 * _Y3E * y * z * h[14]
        gy += 6.0 * _Y3A * x * y * h[15]
        gz += _Y3B * x * y * h[10] - 8.0 * _Y3C * y * z * h[11] + _Y3D * (6.0 * zz - 3.0 * xx - 3.0 * yy) * h[12]
        gz += -8.0 * _Y3C * x * z * h[13] + _Y3E * (xx - yy) * h[14]
    return gx, gy, gz


@njit(inline="never", **_OPTIONS)
def _splat_shape(quaternion, scale, camera, px, py, pz, matrices):
    """Fill ``matrices`` with Q [0], M [1], J R [2, :2], J R M [3, :2], J [4, :2].

    ``camera`` is R (9), t (3), fx, fy, cx, cy, width, height, centre (3). Returns the 2D covariance (xx, xy, yy) and
    the clamped tangents x / z, y / z.
    """
    w, x, y, z = float(quaternion[0]), float(quaternion[1]), float(quaternion[2]), float(quaternion[3])
    norm = 1.0 / math.sqrt(w * w + x * x + y * y + z * z)
    w, x, y, z = w * norm, x * norm, y * norm, z * norm
    q = matrices[0]
    q[0, 0], q[0, 1], q[0, 2] = 1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)
    q[1, 0], q[1, 1], q[1, 2] = 2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x)
    q[2, 0], q[2, 1], q[2, 2] = 2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)
    fx, fy, cx, cy, width, height = camera[12], camera[13], camera[14], camera[15], camera[16], camera[17]
    tx = min((width * (1.0 + GUARD_BAND) - cx) / fx, max(-(cx + GUARD_BAND * width) / fx, px / pz))
    ty = min((height * (1.0 + GUARD_BAND) - cy) / fy, max(-(cy + GUARD_BAND * height) / fy, py / pz))
    jacobian = matrices[4]
    jacobian[0, 0], jacobian[0, 1], jacobian[0, 2] = fx / pz, 0.0, -fx * tx / pz
    jacobian[1, 0], jacobian[1, 1], jacobian[1, 2] = 0.0, fy / pz, -fy * ty / pz
    for j in range(3):
        for i in range(3):
            matrices[1, i, j] = q[i, j] * scale[j]
        matrices[2, 0, j] = jacobian[0, 0] * camera[j] + jacobian[0, 2] * camera[6 + j]
        matrices[2, 1, j] = jacobian[1, 1] * camera[3 + j] + jacobian[1, 2] * camera[6 + j]
    xx, xy, yy = BLUR, 0.0, BLUR
    for j in range(3):
        u, v = 0.0, 0.0
        for i in range(3):
            u += matrices[2, 0, i] * matrices[1, i, j]
            v += matrices[2, 1, i] * matrices[1, i, j]
        matrices[3, 0, j], matrices[3, 1, j] = u, v
        xx += u * u
        xy += u * v
        yy += v * v
    return xx, xy, yy, tx, ty


@njit(parallel=True, **_OPTIONS)
def project(means, quaternions, scales, opacities, sh, degree, camera, splats):
    """Write one splat row [N, 12] for each Gaussian; culled ones get radius 0.

    Args:
        means [N, 3], quaternions [N, 4], scales [N, 3], opacities [N], sh [N, K, 3]: float32.
        degree: of the spherical harmonics to use.
        camera: float64 [21], see ``_splat_shape``.
        splats: float32 [N, 12], output.
    """
    count = means.shape[0]
    coefficients = (degree + 1) * (degree + 1)
    for block in prange((count + BLOCK - 1) // BLOCK):
        matrices = np.empty((5, 3, 3), np.float64)
        basis = np.empty(16, np.float64)
        for n in range(block * BLOCK, min(count, (block + 1) * BLOCK)):
            splats[n, SPLAT_RADIUS_X] = 0.0
            mx, my, mz = float(means[n, 0]), float(means[n, 1]), float(means[n, 2])
            pz = camera[6] * mx + camera[7] * my + camera[8] * mz + camera[11]
            opacity = float(opacities[n])
            if not (pz >= NEAR_PLANE and opacity >= MIN_ALPHA):  # "not": a NaN is culled too
                continue
            px = camera[0] * mx + camera[1] * my + camera[2] * mz + camera[9]
            py = camera[3] * mx + camera[4] * my + camera[5] * mz + camera[10]
            xx, xy, yy, _, _ = _splat_shape(quaternions[n], scales[n], camera, px, py, pz, matrices)
            determinant = xx * yy - xy * xy
            extent = min(MAX_EXTENT, math.sqrt(2.0 * math.log(255.0 * opacity)))
            radius_x, radius_y = extent * math.sqrt(xx), extent * math.sqrt(yy)
            x, y = camera[12] * px / pz + camera[14], camera[13] * py / pz + camera[15]
            box_x, box_y = math.ceil(radius_x), math.ceil(radius_y)
            inside = x + box_x > 0.0 and x - box_x < camera[16] and y + box_y > 0.0 and y - box_y < camera[17]
            if not (determinant > 0.0 and extent > 0.0 and inside):
                continue
            dx, dy, dz = mx - camera[18], my - camera[19], mz - camera[20]
            norm = 1.0 / max(math.sqrt(dx * dx + dy * dy + dz * dz), 1e-12)
            _sh_basis(degree, dx * norm, dy * norm, dz * norm, basis)
            red, green, blue = 0.5, 0.5, 0.5
            for k in range(coefficients):
                red += basis[k] * sh[n, k, 0]
                green += basis[k] * sh[n, k, 1]
                blue += basis[k] * sh[n, k, 2]
            splats[n, SPLAT_X], splats[n, SPLAT_Y] = x, y
            splats[n, SPLAT_A], splats[n, SPLAT_B] = yy / determinant, -xy / determinant
            splats[n, SPLAT_C], splats[n, SPLAT_OPACITY] = xx / determinant, opacity
            splats[n, SPLAT_RED], splats[n, SPLAT_GREEN] = max(red, 0.0), max(green, 0.0)
            splats[n, SPLAT_BLUE], splats[n, SPLAT_DEPTH] = max(blue, 0.0), pz
            splats[n, SPLAT_RADIUS_X], splats[n, SPLAT_RADIUS_Y] = radius_x, radius_y


@njit(parallel=True, **_OPTIONS)
def project_backward(
    means, quaternions, scales, sh, degree, camera, splats, offsets, rows,
    grad_means, grad_quaternions, grad_scales, grad_opacities, grad_sh, partial,
):  # fmt: skip
    """Sum each Gaussian's gradient rows in their fixed order and carry them back to its parameters.

    Args:
        offsets [N + 1]: rows of Gaussian n are ``rows[offsets[n]:offsets[n + 1]]``.
        rows: float32 [P, 10], gradient of the loss by splat columns, one row for each (tile, Gaussian) pair.
        grad_*: float32, added to (several cameras share them).
        partial: float64 [blocks, 15], sums over the block for R (9), t (3) and the camera centre (3).
    """
    count = means.shape[0]
    coefficients = (degree + 1) * (degree + 1)
    for block in prange((count + BLOCK - 1) // BLOCK):
        matrices = np.empty((5, 3, 3), np.float64)
        grad_shape = np.empty((2, 3), np.float64)  # by J R
        grad_m = np.empty((3, 3), np.float64)  # by M, then by Q
        basis = np.empty(16, np.float64)
        h = np.empty(16, np.float64)
        g = np.empty(GRADIENT_COLUMNS, np.float64)
        view = np.zeros(15, np.float64)
        for n in range(block * BLOCK, min(count, (block + 1) * BLOCK)):
            if offsets[n] == offsets[n + 1]:
                continue
            g[:] = 0.0
            for row in range(offsets[n], offsets[n + 1]):
                for column in range(GRADIENT_COLUMNS):
                    g[column] += rows[row, column]
            grad_opacities[n] += g[SPLAT_OPACITY]
            mx, my, mz = float(means[n, 0]), float(means[n, 1]), float(means[n, 2])
            px = camera[0] * mx + camera[1] * my + camera[2] * mz + camera[9]
            py = camera[3] * mx + camera[4] * my + camera[5] * mz + camera[10]
            pz = camera[6] * mx + camera[7] * my + camera[8] * mz + camera[11]
            xx, xy, yy, tx, ty = _splat_shape(quaternions[n], scales[n], camera, px, py, pz, matrices)
            fx, fy = camera[12], camera[13]

            # Inverse covariance to covariance: V = -P G P with P the inverse and G symmetric.
            determinant = xx * yy - xy * xy
            a, b, c = yy / determinant, -xy / determinant, xx / determinant
            ga, gb, gc = g[SPLAT_A], 0.5 * g[SPLAT_B], g[SPLAT_C]
            k00, k01, k10, k11 = ga * a + gb * b, ga * b + gb * c, gb * a + gc * b, gb * b + gc * c
            v00, v01, v11 = -(a * k00 + b * k10), -(a * k01 + b * k11), -(b * k01 + c * k11)

            # cov = (W M)(W M)^T with W = J R: by M 2 W^T V W M, by W 2 V W M M^T.
            for j in range(3):
                u, v = matrices[3, 0, j], matrices[3, 1, j]
                p, q = 2.0 * (v00 * u + v01 * v), 2.0 * (v01 * u + v11 * v)
                matrices[3, 0, j], matrices[3, 1, j] = p, q
                for i in range(3):
                    grad_m[i, j] = matrices[2, 0, i] * p + matrices[2, 1, i] * q
            for i in range(3):
                grad_shape[0, i] = (
                    matrices[3, 0, 0] * matrices[1, i, 0]
                    + matrices[3, 0, 1] * matrices[1, i, 1]
                    + matrices[3, 0, 2] * matrices[1, i, 2]
                )
                grad_shape[1, i] = (
                    matrices[3, 1, 0] * matrices[1, i, 0]
                    + matrices[3, 1, 1] * matrices[1, i, 1]
                    + matrices[3, 1, 2] * matrices[1, i, 2]
                )
            for j in range(3):
                s = float(scales[n, j])
                total = 0.0
                for i in range(3):
                    total += grad_m[i, j] * matrices[0, i, j]
                    grad_m[i, j] *= s
                grad_scales[n, j] += total
            _add_quaternion_gradient(quaternions[n], grad_m, grad_quaternions[n])

            # W = J R: by R (into the camera) and by J, which depends on the point in the camera's frame.
            j00, j02, j11, j12 = fx / pz, -fx * tx / pz, fy / pz, -fy * ty / pz
            gj00, gj02, gj11, gj12 = 0.0, 0.0, 0.0, 0.0
            for i in range(3):
                view[i] += j00 * grad_shape[0, i]
                view[3 + i] += j11 * grad_shape[1, i]
                view[6 + i] += j02 * grad_shape[0, i] + j12 * grad_shape[1, i]
                gj00 += grad_shape[0, i] * camera[i]
                gj02 += grad_shape[0, i] * camera[6 + i]
                gj11 += grad_shape[1, i] * camera[3 + i]
                gj12 += grad_shape[1, i] * camera[6 + i]
            gx, gy = g[SPLAT_X] * fx / pz, g[SPLAT_Y] * fy / pz
            gz = g[SPLAT_DEPTH] - (gx * px + gy * py) / pz
            gz -= (gj00 * j00 + gj02 * j02 + gj11 * j11 + gj12 * j12) / pz  # all four entries go with 1 / z
            if px / pz == tx:  # not clamped: the tangent itself depends on the point
                gx -= gj02 * fx / (pz * pz)
                gz += gj02 * fx * px / (pz * pz * pz)
            if py / pz == ty:
                gy -= gj12 * fy / (pz * pz)
                gz += gj12 * fy * py / (pz * pz * pz)

            # Colour: spherical harmonics in the direction from the camera centre.
            dx, dy, dz = mx - camera[18], my - camera[19], mz - camera[20]
            norm = 1.0 / max(math.sqrt(dx * dx + dy * dy + dz * dz), 1e-12)
            dx, dy, dz = dx * norm, dy * norm, dz * norm
            _sh_basis(degree, dx, dy, dz, basis)
            red = g[SPLAT_RED] if splats[n, SPLAT_RED] > 0.0 else 0.0
            green = g[SPLAT_GREEN] if splats[n, SPLAT_GREEN] > 0.0 else 0.0
            blue = g[SPLAT_BLUE] if splats[n, SPLAT_BLUE] > 0.0 else 0.0
            for k in range(coefficients):
                grad_sh[n, k, 0] += basis[k] * red
                grad_sh[n, k, 1] += basis[k] * green
                grad_sh[n, k, 2] += basis[k] * blue
                h[k] = sh[n, k, 0] * red + sh[n, k, 1] * green + sh[n, k, 2] * blue
            ux, uy, uz = _sh_direction_gradient(degree, dx, dy, dz, h)
            along = ux * dx + uy * dy + uz * dz
            ux, uy, uz = (ux - along * dx) * norm, (uy - along * dy) * norm, (uz - along * dz) * norm
            view[12] -= ux
            view[13] -= uy
            view[14] -= uz

            grad_means[n, 0] += camera[0] * gx + camera[3] * gy + camera[6] * gz + ux
            grad_means[n, 1] += camera[1] * gx + camera[4] * gy + camera[7] * gz + uy
            grad_means[n, 2] += camera[2] * gx + camera[5] * gy + camera[8] * gz + uz
            for i in range(3):
                v = float(means[n, i])
                view[i] += gx * v
                view[3 + i] += gy * v
                view[6 + i] += gz * v
            view[9] += gx
            view[10] += gy
            view[11] += gz
        partial[block] = view


@njit(inline="never", **_OPTIONS)
def _add_quaternion_gradient(quaternion, g, out):
    """Add the gradient by the quaternion (before its normalisation), given the gradient g [3, 3] by the rotation."""
    w, x, y, z = float(quaternion[0]), float(quaternion[1]), float(quaternion[2]), float(quaternion[3])
    norm = 1.0 / math.sqrt(w * w + x * x + y * y + z * z)
    w, x, y, z = w * norm, x * norm, y * norm, z * norm
    gw = 2.0 * (x * (g[2, 1] - g[1, 2]) + y * (g[0, 2] - g[2, 0]) + z * (g[1, 0] - g[0, 1]))
    gx = 2.0 * (y * (g[0, 1] + g[1, 0]) + z * (g[0, 2] + g[2, 0]) + w * (g[2, 1] - g[1, 2]))
    gx -= 4.0 * x * (g[1, 1] + g[2, 2])
    gy = 2.0 * (x * (g[0, 1] + g[1, 0]) + z * (g[1, 2] + g[2, 1]) + w * (g[0, 2] - g[2, 0]))
    gy -= 4.0 * y * (g[0, 0] + g[2, 2])
    gz = 2.0 * (x * (g[0, 2] + g[2, 0]) + y * (g[1, 2] + g[2, 1]) + w * (g[1, 0] - g[0, 1]))
    gz -= 4.0 * z * (g[0, 0] + g[1, 1])
    along = gw * w + gx * x + gy * y + gz * z
    out[0] += (gw - along * w) * norm
    out[1] += (gx - along * x) * norm
    out[2] += (gy - along * y) * norm
    out[3] += (gz - along * z) * norm
