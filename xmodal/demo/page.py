"""The page: which fields there are, and which question each of them asks. What comes back is HTML of `answers`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]
from gradio.themes import Base  # pyright: ignore[reportMissingImports]

from xmodal.demo.answers import LETTERS, Answers, Asked
from xmodal.errors import InputError

WAITING = 32  # questions
ALONE: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}  # one question is answered at a time
UPLOADS_KEPT = 600  # seconds
# The page's own colours and letters, so that gradio's fields look like the report; no font is fetched.
PAPER, RAISED, LINE, INK, QUIET, ACCENT = (
    f"var(--{name})" for name in ("paper", "raised", "line", "ink", "quiet", "accent")
)
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Liberation Sans", "sans-serif")


def build(answers: Answers) -> gr.Blocks:
    """A tab for each question that the model and the gallery can answer, each with an answer in it already."""
    title = f"{answers.name} – xmodal demo"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(UPLOADS_KEPT, UPLOADS_KEPT)) as page:
        _html(answers.header())
        if answers.finds_texts:
            _text_to_texts(answers)
            return _limited(page)
        asked = gr.State(answers.a_picture(0), time_to_live=3600)
        with gr.Tabs():
            if answers.finds_pictures:
                with gr.Tab("By caption"):
                    _text_to_pictures(answers)
            if not answers.has_classes:
                with gr.Tab("By picture"):
                    _picture_to_pictures(answers, asked)
                return _limited(page)
            with gr.Tab("By picture"):
                drop, another = _drop(answers)
                said = _html()
            with gr.Tab("Classes"):
                classes, templates, likely, judged = _classes(answers)
        _pictures_and_classes(answers, asked, drop, another, [classes, templates], [said, likely, judged])
    return _limited(page)


def _limited(page: gr.Blocks) -> gr.Blocks:
    return page.queue(max_size=WAITING, api_open=False)


def _text_to_pictures(answers: Answers) -> None:
    text, another, out = _ask(answers, "A caption", answers.pictures_for)
    _on_text(answers, text, another, out, answers.pictures_for, "pictures")


def _text_to_texts(answers: Answers) -> None:
    text, another, out = _ask(answers, "A text", answers.texts_for)
    _on_text(answers, text, another, out, answers.texts_for, "texts")


def _ask(answers: Answers, label: str, answer: Callable[[str], str]) -> tuple[gr.Textbox, gr.Button | None, gr.HTML]:
    first = answers.a_text(0)
    with gr.Row(elem_classes="ask"):
        text = gr.Textbox(first, label=label, max_lines=3, max_length=LETTERS, submit_btn="Search", scale=5)
        another = _another() if first else None
    return text, another, _html(answer(first) if first else "")


def _another() -> gr.Button:
    return gr.Button("Another of the data", size="sm", scale=0, min_width=180)


def _html(value: str = "") -> gr.HTML:
    """What `answers` made, without gradio's own styles."""
    return gr.HTML(value, apply_default_css=False)


def _on_text(
    answers: Answers, text: gr.Textbox, another: gr.Button | None, out: gr.HTML, answer: Callable[[str], str], name: str
) -> None:
    text.submit(_told(answers, answer), text, out, api_name=name, **ALONE)
    if another is None:
        return
    turn = gr.State(0)

    def next_one(turn: int) -> tuple[int, str, str]:
        asked = answers.a_text(turn + 1)
        return turn + 1, asked, _told(answers, answer)(asked)

    another.click(next_one, turn, [turn, text, out], api_visibility="private", **ALONE)


def _picture_to_pictures(answers: Answers, asked: gr.State) -> None:
    drop, another = _drop(answers)
    out = _html(answers.pictures_like(asked.value))
    _on_picture(answers, asked, drop, another, [], [out], lambda asked: (answers.pictures_like(asked),))


def _drop(answers: Answers) -> tuple[gr.File, gr.Button | None]:
    with gr.Row(elem_classes="ask"):
        drop = gr.File(label="A picture", height=96, scale=5, elem_classes="drop")
        drop.async_move_resource_to_block_cache = _only_uploads(drop)
        another = _another() if answers.gallery.pictures is not None else None
    return drop, another


def _only_uploads(drop: gr.File) -> Any:
    """What a request names as the file: gradio would fetch an address; here it has to be one that was uploaded."""
    move = drop.async_move_resource_to_block_cache

    async def moved(name: Any) -> str | None:
        if "://" in str(name):
            raise gr.Error("A picture is uploaded; no address is fetched.")
        return await move(name)

    return moved


def _classes(answers: Answers) -> tuple[gr.Textbox, gr.Textbox, gr.HTML, gr.HTML]:
    gallery = answers.gallery
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            classes = gr.Textbox(
                "\n".join(gallery.classes), label="Classes, one a line", lines=8, max_lines=8, placeholder="cat\ndog"
            )
            templates = gr.Textbox(
                "\n".join(gallery.templates), label="Templates, with {} for the class", lines=4, max_lines=4
            )
        with gr.Column(scale=3, min_width=300):
            likely = _html()
    return classes, templates, likely, _html()


def _pictures_and_classes(
    answers: Answers,
    asked: gr.State,
    drop: gr.File,
    another: gr.Button | None,
    typed: list[gr.Textbox],
    out: list[gr.HTML],
) -> None:
    """The picture that was asked with last stands in both tabs, and what it may be changes with the classes."""

    def all_three(asked: Asked | None, classes: str, templates: str) -> tuple[str, ...]:
        likely = _told(answers, answers.likely)(asked, classes, templates)
        judged = _told(answers, answers.judged)(classes, templates)
        return answers.captions_of(asked, classes, templates), likely, "" if judged == likely else judged

    for part, said in zip(out, all_three(asked.value, *(box.value for box in typed)), strict=True):
        part.value = said
    _on_picture(answers, asked, drop, another, typed, out, all_three)
    # The last of what is typed while a question is under way is asked; what comes in between is not.
    changes = [box.change for box in typed]
    gr.on(changes, all_three, [asked, *typed], out, trigger_mode="always_last", api_name="classes", **ALONE)


def _on_picture(
    answers: Answers,
    asked: gr.State,
    drop: gr.File,
    another: gr.Button | None,
    more: list[Any],
    out: list[gr.HTML],
    answer: Callable[..., tuple[str, ...]],
) -> None:
    """A picture that is dropped, or one of the data's, becomes what is asked with."""

    def dropped(file: str | None, before: Asked | None, *values: str) -> tuple[Any, ...]:
        try:
            now = before if file is None else answers.read(file)
        except InputError as error:
            return (None, before, answers.problem(error), *(gr.skip() for _ in out[1:]))
        return (None, now, *answer(now, *values))  # None: the field is ready for the next

    drop.upload(
        dropped, [drop, asked, *more], [drop, asked, *out], api_name="captions" if more else "pictures", **ALONE
    )
    if another is None:
        return
    turn = gr.State(0)

    def next_one(turn: int, *values: str) -> tuple[Any, ...]:
        now = answers.a_picture(turn + 1)
        return (turn + 1, now, *answer(now, *values))

    another.click(next_one, [turn, *more], [turn, asked, *out], api_visibility="private", **ALONE)


def _told(answers: Answers, answer: Callable[..., str]) -> Callable[..., str]:
    """A question whose answer may be that it can't be answered."""

    def told(*values: Any) -> str:
        try:
            return answer(*values)
        except InputError as error:
            return answers.problem(error)

    return told


def head() -> str:
    """The report's style sheet, for what stands in class `report` alone, and the page's own."""
    report = files("xmodal.report").joinpath("page.css").read_text("utf-8").replace(":root", ":root:has(&)")
    return f"<style>.report {{\n{report}\n}}\n{files('xmodal.demo').joinpath('demo.css').read_text('utf-8')}</style>"


def theme() -> Base:
    """Base in the report's colours, which follow the browser's own choice of light or dark."""
    settings = {
        "body_background_fill": PAPER,
        "body_text_color": INK,
        "body_text_color_subdued": QUIET,
        "background_fill_primary": PAPER,
        "background_fill_secondary": RAISED,
        "block_background_fill": PAPER,
        "block_border_color": LINE,
        "block_label_background_fill": PAPER,
        "block_label_text_color": QUIET,
        "block_title_text_color": QUIET,
        "block_info_text_color": QUIET,
        "border_color_primary": LINE,
        "border_color_accent": ACCENT,
        "input_background_fill": PAPER,
        "input_background_fill_focus": PAPER,
        "input_border_color": LINE,
        "input_border_color_focus": ACCENT,
        "input_placeholder_color": QUIET,
        "button_primary_background_fill": ACCENT,
        "button_primary_background_fill_hover": ACCENT,
        "button_primary_text_color": PAPER,
        "button_secondary_background_fill": RAISED,
        "button_secondary_background_fill_hover": LINE,
        "button_secondary_text_color": INK,
        "button_secondary_border_color": LINE,
        "loader_color": ACCENT,
    }
    settings |= {f"{name}_dark": value for name, value in settings.items()}
    base = Base(font=FONT, font_mono=("ui-monospace", "monospace"))
    return base.set(color_accent=ACCENT, **settings)
