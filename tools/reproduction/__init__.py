"""The paper's experiments as runs of this project; tools/reproduce.py is the command."""
