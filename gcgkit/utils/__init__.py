"""Checks of input, files and downloads, shared by every package."""
