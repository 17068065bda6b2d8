"""Measures accuracy and rho2, sharded over images, and merges the shards."""
