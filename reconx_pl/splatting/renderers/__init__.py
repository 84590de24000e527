"""Renderers of Gaussians: CPU and gsplat."""
