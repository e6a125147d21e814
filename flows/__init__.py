"""Prefect flows: thin orchestration over the functions of `fractal_model`, no numerics.

Importing the package first sets the environment that Prefect reads when it is imported.
"""

import fractal_model  # noqa: F401
