"""Helpers for the notebooks and the demo."""
