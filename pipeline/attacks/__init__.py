"""Attacks: DeepFool, the fast gradient sign method, and their norms."""
