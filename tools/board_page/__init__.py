"""The pages of tools/board.py."""
