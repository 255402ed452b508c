"""How the bundled mini weights are made, stage by stage."""
