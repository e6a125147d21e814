"""The fractal model of the paper: its levels, conditions, pixel network, loss and likelihood."""
