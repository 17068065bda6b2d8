"""Processes, files, signals and logs, for every kind of run."""
