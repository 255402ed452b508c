"""The recipe of the bundled mini weights, stage by stage."""
