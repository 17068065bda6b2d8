"""Nets: building them, their weights, and the view of a net that attacks use."""
