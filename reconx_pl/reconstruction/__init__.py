"""Photographs to a scene: the stages of ``reconx reconstruct``, each kept on disk under the hash of what it is of."""
