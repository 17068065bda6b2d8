"""Tables and figures of runs; tools/report.py is the command."""
