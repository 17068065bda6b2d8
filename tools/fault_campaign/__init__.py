"""Faults in runs of this project, on purpose: `tools/chaos.py`."""
