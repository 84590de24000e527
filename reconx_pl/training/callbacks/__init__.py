"""Callbacks: preemption, guards, monitoring, media, export."""
