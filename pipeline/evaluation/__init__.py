"""Measuring accuracy and rho2, sharded over images, and joining the shards."""
