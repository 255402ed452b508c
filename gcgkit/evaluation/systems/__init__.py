"""The systems compared with, each set up at its pinned commit and run in its own environment."""
