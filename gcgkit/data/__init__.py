"""Data sets, captions, and training samples."""
