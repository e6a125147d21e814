"""`python -m fractal_model …` is `fractal …`."""

from fractal_model.cli.app import main

main()
