"""What the notebooks and the demo share."""
