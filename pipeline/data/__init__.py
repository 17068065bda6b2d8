"""Data path: archives -> index -> plan -> DALI -> batches."""
