"""The four tabs of the page. Most return what must change when another model is chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image

from fractal_model.common.errors import FractalError
from fractal_model.generation import editing
from fractal_model.playground.fields import (
    ClassField,
    NumberFields,
    SettingsFields,
    as_wishes,
    explained,
    explained_steps,
)
from fractal_model.playground.studio import Facts, Studio
from fractal_model.playground.views import (
    PICTURE_PIXELS,
    draw_heat,
    enlarged,
    image_of,
    mask_of,
)

_NO_PICTURE = "there is no picture: draw one, or upload one"
_PAINT = "#ff7a00"
_BUTTONS: list[Any] = ["download", "fullscreen"]  # by default there is one to share, too
_WHOLE = 100
"""Size of a picture that is not made smaller, in per cent."""


class Changes(NamedTuple):
    """Fields that depend on the model, and their values for another one."""

    fields: list[Any]
    values: Callable[[Facts], list[Any]]


def _depend(label: ClassField, settings: SettingsFields | None = None) -> Changes:
    fields = [label.field, *(settings.all if settings else ())]
    return Changes(fields, lambda f: [label.update(f), *(settings.update(f) if settings else ())])


def _picture(name: str, **options: Any) -> gr.Image:
    return gr.Image(
        label=name,
        type="pil",
        format="png",
        height=PICTURE_PIXELS + 40,
        elem_id=name.lower().replace(" ", "-"),
        buttons=_BUTTONS,
        **options,
    )


def draw_tab(studio: Studio, model: gr.Dropdown, facts: Facts) -> tuple[Changes, Any, gr.State]:
    """Draw images and watch them grow. Returned too: the event of a drawing, and the first image
    as a picture for the tabs that go on with it."""
    gr.Markdown(
        "Orange, blue and green outlines are patches that the levels below the first are "
        "generating now; grey is not generated yet."
    )
    with gr.Row():
        with gr.Column():
            label, numbers = ClassField(facts), NumberFields()
            settings = SettingsFields(facts)
            button, stop = gr.Button("Draw", variant="primary"), gr.Button("Stop")
        picture = _picture("Drawn", interactive=False)
    first = gr.State(None)

    def draw(*values: Any) -> Iterator[Any]:
        for frame in studio.draw(as_wishes(*values)):
            first = enlarged(frame.images[0]) if frame.is_finished else gr.skip()
            yield frame.picture, first

    inputs = [model, label.field, *numbers.all, *settings.all]
    event = button.click(explained_steps(draw), inputs, [picture, first])
    stop.click(None, cancels=[event])
    return _depend(label, settings), event, first


def edit_tab(studio: Studio, model: gr.Dropdown, facts: Facts) -> tuple[Changes, gr.ImageEditor]:
    """Paint over a part of a picture, or make it smaller, and generate what is missing. Returned
    too: the field of the picture."""
    gr.Markdown(
        "Paint over what is to be generated anew, with another class if you like; or make the "
        "picture smaller, and what is around it is generated. Everything else stays exactly as it "
        "is. The drawn image is here already; any other picture is scaled to the model's size."
    )
    with gr.Row():
        with gr.Column():
            editor = gr.ImageEditor(
                label="Picture",
                type="pil",
                format="png",
                height=PICTURE_PIXELS + 100,
                elem_id="editor",
                buttons=_BUTTONS,
                sources=("upload", "clipboard"),
                brush=gr.Brush(default_size=48, colors=[_PAINT], default_color=_PAINT),
                transforms=(),
                canvas_size=(PICTURE_PIXELS, PICTURE_PIXELS),
                layers=False,
            )
            size = gr.Slider(25, _WHOLE, _WHOLE, step=1, label="Size of the picture, %")
            label, numbers = ClassField(facts), NumberFields()
            settings = SettingsFields(facts)
        with gr.Column():
            button, stop = gr.Button("Generate", variant="primary"), gr.Button("Stop")
            picture = _picture("Variants", interactive=False)

    def edit(painted: dict[str, Any] | None, percent: float, *values: Any) -> Iterator[Any]:
        wishes = as_wishes(*values)
        background = None if painted is None else painted["background"]
        if painted is None or background is None:
            raise FractalError(_NO_PICTURE)
        side = studio.facts(wishes.model).side
        image = image_of(background, side)
        kept = mask_of(_merged(painted["layers"], background.size), side)
        if percent < _WHOLE:
            if not bool(kept.all()):
                raise FractalError(
                    f"a part is painted over and the size is {percent:g} %: do one of the two, "
                    f"erase the paint or set the size to {_WHOLE}"
                )
            image, kept = editing.uncrop(image, percent / _WHOLE)
        for frame in studio.edit(wishes, image, kept):
            yield frame.picture

    inputs = [editor, size, model, label.field, *numbers.all, *settings.all]
    stop.click(None, cancels=[button.click(explained_steps(edit), inputs, picture)])
    return _depend(label, settings), editor


def _merged(layers: list[Image.Image], size: tuple[int, int]) -> Image.Image:
    merged = Image.new("RGBA", size)
    for layer in layers:
        merged.alpha_composite(layer.convert("RGBA").resize(size))
    return merged


def compare_tab(studio: Studio, facts: Facts) -> None:
    """Draw the same classes and seeds with two models, or with two settings of one."""
    gr.Markdown("Both sides draw the same class from the same seeds, one side after the other.")
    with gr.Row():
        label, numbers = ClassField(facts, "Class, as the left model numbers it"), NumberFields()
    sides = []
    with gr.Row():
        for name in ("Left", "Right"):
            with gr.Column():
                own = gr.Dropdown(list(studio.sources), value=studio.sources[0], label=name)
                settings = SettingsFields(facts)
                sides.append((own, settings, _picture(name, interactive=False)))
    button, stop = gr.Button("Compare", variant="primary"), gr.Button("Stop")

    def compare(number: int, images: float, seed: float, *values: Any) -> Iterator[Any]:
        half = len(values) // 2
        drawn: list[Any] = [None, None]
        for place, (source, *own) in enumerate((values[:half], values[half:])):
            for frame in studio.draw(as_wishes(source, number, images, seed, *own)):
                drawn[place] = frame.picture
                yield tuple(drawn)

    inputs = [label.field, *numbers.all]
    for own, settings, _ in sides:
        inputs += [own, *settings.all]
    pictures = [picture for _, _, picture in sides]
    stop.click(None, cancels=[button.click(explained_steps(compare), inputs, pictures)])
    for place, (own, settings, _) in enumerate(sides):
        change = _depend(label, settings) if place == 0 else Changes(settings.all, settings.update)
        _follow(studio, own, change)


def _follow(studio: Studio, model: gr.Dropdown, change: Changes) -> None:
    """Change fields when another model is chosen."""
    model.change(
        explained(lambda source: change.values(studio.facts(source))), model, change.fields
    )


def examine_tab(studio: Studio, model: gr.Dropdown, facts: Facts) -> tuple[Changes, gr.Image]:
    """Show where a model is surprised by a picture. Returned too: the field of the picture."""
    gr.Markdown(
        "Bright pixels cost many bits: there the model is surprised. Any picture is scaled to the "
        "model's size."
    )
    with gr.Row():
        with gr.Column():
            picture = _picture("Picture", sources=["upload", "clipboard"])
            label = ClassField(facts)
            button = gr.Button("Measure", variant="primary")
        with gr.Column():
            heat = _picture("Bits of each pixel", interactive=False)
            words = gr.Markdown()

    def examine(source: str, number: int | None, given: Image.Image | None) -> Any:
        if given is None:
            raise FractalError(_NO_PICTURE)
        if number is None:
            raise FractalError("there is no class: give one")
        surprise = studio.examine(source, image_of(given, studio.facts(source).side), number)
        highest = surprise.bits[surprise.bits.isfinite()].max().item()
        kind = "exactly" if surprise.is_exact else "at most about"
        text = (
            f"The whole picture has {kind} **{surprise.bits.nanmean().item():.3f} bits per "
            f"dimension**; the brightest pixel {highest:.3f}."
        )
        return enlarged(surprise.image), draw_heat(surprise.bits), text

    button.click(explained(examine), [model, label.field, picture], [picture, heat, words])
    return _depend(label), picture
