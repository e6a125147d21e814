"""The fractal model: levels, pixel network, conditions, loss and likelihood, as the paper defines
them."""
