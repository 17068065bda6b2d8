"""Submitting runs to a cluster through submitit."""
