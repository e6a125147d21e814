"""The commands, one file a topic; `fractal_model.cli` registers them."""
