"""Colour whole films, in jobs that can be stopped at any moment and continue where they stopped."""
