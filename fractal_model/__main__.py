"""Make `python -m fractal_model …` run the command `fractal …`."""

from fractal_model.cli.app import main

main()
