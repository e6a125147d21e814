"""`python -m fractal_model …` is `fractal …`."""

from fractal_model.cli import main

main()
