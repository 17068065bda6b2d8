"""The way of the data: archives -> index -> plan -> DALI -> batches."""
