"""The page of the playground, in Gradio.

Decided here: the page is for one machine. It listens on 127.0.0.1, shares no link, runs one request
at a time and lets a few wait. A value that is not allowed becomes a message on the page. Fonts are
those of the machine, so that the page works without a network.
"""

from __future__ import annotations

import logging
from typing import Any

import gradio as gr
from starlette.requests import ClientDisconnect

from fractal_model.playground.fields import explained
from fractal_model.playground.studio import Studio
from fractal_model.playground.tabs import compare_tab, draw_tab, edit_tab, examine_tab

MOST_WAITING = 8
"""Largest number of requests that wait."""
LARGEST_UPLOAD = "20mb"


def serve(page: gr.Blocks, *, port: int) -> None:
    """Serve the page on 127.0.0.1 until Ctrl-C."""
    # A browser that closes the page while an image grows is no error to show.
    logging.getLogger("uvicorn.error").addFilter(lambda record: not is_disconnect(record))
    page.queue(max_size=MOST_WAITING, default_concurrency_limit=1, api_open=False)
    page.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        quiet=True,
        ssr_mode=False,
        max_file_size=LARGEST_UPLOAD,
        footer_links=[],
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    )


def is_disconnect(record: logging.LogRecord) -> bool:
    """True if a record of the log says no more than that a browser has closed its connection."""
    error = record.exc_info[1] if record.exc_info else None
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return isinstance(error, ClientDisconnect)


def build_page(studio: Studio) -> gr.Blocks:
    """Build the page. FractalError: the first model is missing or damaged."""
    facts = studio.facts(studio.sources[0])
    with gr.Blocks(title="Fractal playground", analytics_enabled=False) as page:
        gr.Markdown("# Fractal playground\nImages made by autoregressive models inside others.")
        model = gr.Dropdown(list(studio.sources), value=studio.sources[0], label="Model")
        with gr.Tab("Draw"):
            draw, drawing, first = draw_tab(studio, model, facts)
        with gr.Tab("Edit"):
            edit, editor = edit_tab(studio, model, facts)
        with gr.Tab("Compare"):
            compare_tab(studio, facts)
        with gr.Tab("Examine"):
            examine, examined = examine_tab(studio, model, facts)
        drawing.success(lambda picture: (picture, picture), first, [editor, examined])
        tabs = (draw, edit, examine)

        def describe(source: str) -> list[Any]:
            new = studio.facts(source)
            return [value for tab in tabs for value in tab.values(new)]

        model.change(explained(describe), model, [field for tab in tabs for field in tab.fields])
    return page
