"""The commands of tools/index.py, and what they share."""
