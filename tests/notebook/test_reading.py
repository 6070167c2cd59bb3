"""What a reader sees in a cell: source, checks, figures and widgets."""

import inspect
import subprocess
import sys

import pytest

from tilelli_nb.data import tokenizer
from tilelli_nb.errors import GenerationError, TilelliError
from tilelli_nb.notebook import exercises, figures, show, widgets


@pytest.fixture
def shown(monkeypatch):
    """Everything that a cell displays, in order; what is updated in place is
    appended.
    """
    seen = []

    class Handle:
        def update(self, obj):
            seen.append(obj)

    def display(obj, *, raw=False, display_id=None):
        seen.append(obj)
        return Handle() if display_id else None

    monkeypatch.setattr("IPython.display.display", display)
    return seen


@pytest.fixture
def no_ipywidgets(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)


# show


def test_show_gives_the_lines_of_the_file(shown):
    show.show(tokenizer.ByteTokenizer.decode)
    head, _, rest = shown[0]["text/markdown"].partition("\n\n```python\n")
    where, _, numbers = head.strip("`").partition(", lines ")
    first, last = map(int, numbers.split("-"))
    assert where == "tilelli_nb/data/tokenizer.py"
    with open(tokenizer.__file__, encoding="utf-8") as file:
        in_file = file.read().splitlines()[first - 1 : last]
    body = rest.removesuffix("\n```").splitlines()
    assert body == [line.removeprefix("    ") for line in in_file]
    assert body[0].startswith("def decode(self")
    assert body[0] in shown[0]["text/plain"]


def test_show_takes_classes_properties_modules_and_wrapped_functions(shown):
    class Compiled:  # what a compiled kernel looks like
        fn = staticmethod(show.locate)

    show.show(tokenizer.ByteTokenizer, tokenizer, property(show.locate), Compiled())
    sources = [output["text/plain"].split("\n", 1)[1] for output in shown]
    assert sources[0].startswith("class ByteTokenizer:")
    assert (
        sources[1].startswith('"""Byte-level tokenization')
        and "lines 1-" in shown[1]["text/plain"]
    )
    assert sources[2] == sources[3] == inspect.getsource(show.locate).rstrip()


def test_show_names_nested_files_from_the_package_on():
    assert show.locate(pytest.raises)[0].startswith("_pytest/")
    import json

    assert show.locate(json.dumps)[0].startswith("json/__init__.py, lines ")


def test_show_fence_is_longer_than_any_fence_inside(shown):
    show.show(test_show_gives_the_lines_of_the_file)  # its source holds three backticks
    assert "\n\n````python\n" in shown[0]["text/markdown"] and shown[0][
        "text/markdown"
    ].endswith("\n````")


@pytest.mark.parametrize(
    "obj",
    [len, 3, "text", [].append, None, int],
    ids=["len", "number", "text", "method", "none", "type"],
)
def test_show_says_so_when_there_is_no_source(obj):
    with pytest.raises(TilelliError, match="no Python source") as error:
        show.show(obj)
    assert error.value.fix


# check


def boom():
    raise ValueError("first line\nsecond line")


def test_tick(capsys):
    assert exercises.check("Good", (lambda: 1 + 1 == 2, "add"), lambda: [0]) is None
    assert capsys.readouterr().out == "✓ Good\n"


@pytest.mark.parametrize(
    "test, said",
    [
        (lambda: None, []),
        (lambda: 0, []),
        (lambda: False, []),
        (boom, ["ValueError: first line"]),
        (lambda: undefined_name(2), ["NameError", "undefined_name", "been run"]),  # noqa: F821
        (lambda: sys.exit(1), ["SystemExit"]),
        (lambda: figures.np_array_is_not_here, ["AttributeError"]),
        # an array has no single truth value
        (lambda: __import__("numpy").ones(2) == 1, ["ValueError"]),
        (lambda needed: True, ["TypeError"]),
        ("not a function", ["TypeError"]),
    ],
    ids=[
        "none",
        "zero",
        "false",
        "raises",
        "undefined",
        "exit",
        "attribute",
        "array",
        "argument",
        "text",
    ],
)
def test_cross_with_hint_and_never_an_exception(capsys, test, said):
    exercises.check("Task", (test, "look again"))
    out = capsys.readouterr().out
    assert out.startswith("✗ Task\n") and "hint: look again" in out and "✓" not in out
    assert all(part in " ".join(out.split()) for part in said)


def test_check_counts_the_cases_and_gives_the_first_hint(capsys):
    exercises.check(
        "Three", (lambda: True, "one"), (lambda: False, "two"), (lambda: False, "three")
    )
    assert capsys.readouterr().out == "✗ Three (1 of 3 right)\n  hint: two\n"


def test_check_survives_what_makes_no_sense(capsys):
    class Broken(Exception):
        def __str__(self):
            raise RuntimeError

    def raises():
        raise Broken

    exercises.check("Empty")
    exercises.check("Bare", boom)
    exercises.check("Odd", (lambda: True,), 3, None)
    exercises.check("Worse", raises)
    out = capsys.readouterr().out
    assert out.count("✗") == 4 and "it raised Broken" in out


def test_check_lets_an_interrupt_through():
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exercises.check("Slow", stop)


# figures


@pytest.fixture
def axes():
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context():
        figures.use_style()
        figure, ax = figures.plt.subplots()
        yield ax
        figures.plt.close(figure)


def test_figures_are_opaque_and_small(axes, tmp_path):
    figures.byte_strip(axes, "hello")
    axes.figure.savefig(tmp_path / "strip.png")
    pixels = figures.plt.imread(tmp_path / "strip.png")
    # white, opaque: readable on a dark page
    assert pixels[0, 0].tolist() == [1, 1, 1, 1]
    assert (tmp_path / "strip.png").stat().st_size < 60_000


def test_byte_strip_draws_every_character_over_its_bytes(axes):
    figures.byte_strip(axes, "é a")
    drawn = [(text.get_text(), text.get_position()[0]) for text in axes.texts]
    assert drawn == [
        ("é", 1.0),
        ("195", 0.5),
        ("169", 1.5),
        ("␣", 2.5),
        ("32", 2.5),
        ("a", 3.5),
        ("97", 3.5),
    ]


@pytest.mark.filterwarnings("error")
def test_byte_strip_names_what_the_font_cannot_draw(axes):
    figures.byte_strip(axes, "你\n\ud83d")
    labels = [text.get_text() for text in axes.texts]
    assert {"U+4F60", "U+000A", "U+D83D", "228", "10", "237"} <= set(labels)
    axes.figure.canvas.draw()


# widgets


def test_byte_table_values():
    table = widgets.byte_table("é€")
    assert "U+00E9" in table and "195<br>169" in table and "C3<br>A9" in table
    assert "<b>110</b>00011<br><b>10</b>101001" in table
    assert (
        "U+20AC" in table and "E2<br>82<br>AC" in table and "<b>1110</b>0010" in table
    )
    assert "2 characters, 5 bytes" in table


def test_byte_table_escapes_and_survives_anything():
    table = widgets.byte_table("<b>& \n\x00\ud83d")
    assert "&lt;" in table and "&amp;" in table and "<b>&" not in table
    assert (
        "&#x27;" not in table.replace("'", "")
        and r"'\x00'" in table
        and r"'\ud83d'" in table
        and "' '" in table
    )
    table.encode("utf-8")
    assert "0 characters, 0 bytes" in widgets.byte_table("")


class Parrot:
    """A model that writes its settings: stands in for TilelliLM.generate."""

    def generate(self, ids, max_new, temperature, seed):
        if temperature > 1:
            raise GenerationError("too <hot>", "cool down")
        return ids + list(f"<{max_new} {temperature} {seed}>é".encode())


def test_continuation_shows_prompt_and_new_text_escaped():
    html = widgets.continuation(Parrot(), "a<b", 5, 7, 0.5)
    assert "<b>a&lt;b</b>&lt;5 0.5 7&gt;é</p>" in html
    assert "temperature 0.5, seed 7, 11 new bytes" in html
    assert "too &lt;hot&gt;" in widgets.continuation(Parrot(), "", 5, 7, 1.2)


def test_widgets_are_static_without_ipywidgets(shown, no_ipywidgets):
    widgets.byte_explorer("é")
    widgets.continue_text(Parrot(), "Hi", max_new=3, seed=1, temperature=0.0)
    assert [output.data for output in shown] == [
        widgets.byte_table("é"),
        widgets.continuation(Parrot(), "Hi", 3, 1, 0.0),
    ]


def test_explorer_follows_its_box(shown):
    widgets.byte_explorer("é")
    box, table = shown
    assert table.data == widgets.byte_table("é")
    box.value = "abc"
    assert shown[-1].data == widgets.byte_table("abc")


def test_continue_button_takes_the_next_seed_each_time(shown):
    widgets.continue_text(Parrot(), "Hi", max_new=3, seed=1, temperature=0.5)
    box, slider, button = shown[0].children
    assert shown[1].data == widgets.continuation(Parrot(), "Hi", 3, 1, 0.5)
    box.value, slider.value = "Ho", 0.25
    button.click()
    assert shown[-1].data == widgets.continuation(Parrot(), "Ho", 3, 2, 0.25)
    slider.value = 1.5
    button.click()
    assert "cool down" in shown[-1].data and not button.disabled


def test_in_a_kernel_the_output_of_the_first_cell_changes():
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(source)
            for source in (
                "from tilelli_nb.notebook.widgets import byte_explorer\nbyte_explorer('é')",
                (
                    "import ipywidgets\nfrom ipywidgets.widgets.widget import _instances\n"
                    "box = next(w for w in _instances.values() if isinstance(w, ipywidgets.Text))\nbox.value = '€'"
                ),
            )
        ]
    )
    NotebookClient(notebook, kernel_name="python3", timeout=60).execute()
    kinds = ["".join(output.data) for output in notebook.cells[0].outputs]
    assert any("widget-view" in kind for kind in kinds)
    tables = [
        output.data["text/html"]
        for output in notebook.cells[0].outputs
        if "text/html" in output.data
    ]
    assert tables == [widgets.byte_table("€")]


def test_reading_modules_do_not_import_torch():
    code = (
        "import sys; from tilelli_nb.data import tokenizer; "
        "from tilelli_nb.notebook import controls, exercises, figures, show, widgets; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
