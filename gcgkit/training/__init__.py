"""Training (§4.1): configurations, the loss, the loop, and how the bundled weights are made."""
