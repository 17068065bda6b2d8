"""What tools/export.py does, by file of the export."""
