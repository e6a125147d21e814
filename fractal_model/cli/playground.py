"""`fractal playground`: serve a page to draw, edit, compare and examine images with a model."""

from __future__ import annotations

from typing import Annotated

import typer

from fractal_model.cli.options import ParamsOption, find_outputs
from fractal_model.common.console import say
from fractal_model.common.errors import FractalError
from fractal_model.config.params_source import DEFAULT_SOURCE
from fractal_model.services.processes import require_free_port


def playground(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Model to offer, as in `fractal sample`; may be given several times. Default: the "
            "champion and the candidate of every registered size."
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 7860,
    params: ParamsOption = DEFAULT_SOURCE,
) -> None:
    """Serve a page on which images are drawn, edited, compared and examined.

    The page is for this machine only: it listens on 127.0.0.1, and it shares no link.
    """
    from fractal_model.playground.page import build_page, serve
    from fractal_model.playground.studio import Studio
    from fractal_model.tracking import store
    from fractal_model.tracking.registry_view import served_models

    outputs = find_outputs(params)
    sources = model or []
    if not sources:
        store.connect(params.load().paths.outputs)
        sources = served_models()
    if not sources:
        raise FractalError(
            "no model is registered: run `make demo`, train one with `fractal train --size "
            "digits`, or name a model",
            setting="model",
        )
    require_free_port(port, "choose another with --port")
    page = build_page(Studio(sources, outputs))
    say(f"playground on http://127.0.0.1:{port} (Ctrl-C stops it)")
    serve(page, port=port)
