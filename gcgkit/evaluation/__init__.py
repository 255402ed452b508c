"""Evaluation (§4.3 to §4.5): Table 1, the ablations, and the systems compared with."""
