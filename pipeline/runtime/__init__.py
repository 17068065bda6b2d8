"""Processes, files, signals and logs: what every run needs, whatever it computes."""
