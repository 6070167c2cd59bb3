"""The chapters are whole: text and notebook agree, outputs belong to the code, pictures
are described.
"""

import argparse
import base64
import io
import re
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from nbclient.exceptions import DeadKernelError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

import build
import checks
import offline
import pairs
import stamps

CHAPTERS = pairs.notebooks()


# --- the chapters of this book ---


def test_the_book_has_chapters():
    assert [path.stem[:2] for path in CHAPTERS[:2]] == ["00", "01"]


@pytest.mark.parametrize(
    "check", checks.CHECKS, ids=lambda check: check.__name__.removesuffix("_problems")
)
@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_chapter(chapter, check):
    assert check(chapter) == []


def test_every_page_is_in_the_table_of_contents_and_every_entry_exists():
    assert checks.book_problems() == []


def test_the_ways_through_the_book_take_the_hours_that_are_said():
    minutes = {
        path.stem: checks.reading_minutes(pairs.read_notebook(path))
        for path in CHAPTERS
    }
    text = (pairs.ROOT / "book" / "00_welcome.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .+ \| (\[\d.+) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert len(rows) == 5
    for chapters, hours in rows:
        names = re.findall(r"\((\w+)\.ipynb\)", chapters)
        assert abs(sum(minutes[name] for name in names) / 60 - float(hours)) <= 0.25


@pytest.mark.parametrize("page", ["README.md", "book/references.md"])
def test_plain_pages_describe_their_pictures(page):
    assert (
        checks.markdown_alt_problems((pairs.ROOT / page).read_text(encoding="utf-8"))
        == []
    )


def test_the_readme_points_at_things_that_exist():
    text = (pairs.ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)|(?:src|href)=\"([^\"]+)\"", text)
    local = [
        target for pair in links for target in pair if target and "://" not in target
    ]
    assert (
        local
        and [target for target in local if not (pairs.ROOT / target).exists()] == []
    )


# --- the checks find what they are for ---


@pytest.fixture
def book(tmp_path):
    """A book of one chapter in a folder of its own: returns write(cells), which gives
    the notebook's path.
    """
    for folder in ("book", "notebooks", "tilelli_nb", "tilelli_nb/model"):
        (tmp_path / folder).mkdir()
    package = tmp_path / "tilelli_nb"
    (package / "__init__.py").write_text(
        "_EXPORTS: dict[str, str] = "
        '{"CausalConv": "model.conv", "ternarize": "model.ternary"}\n'
    )
    for module in ("model/__init__", "model/conv", "model/ternary", "config"):
        (package / f"{module}.py").write_text(f"# {module}\n")
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: notebooks/01_sample\n")

    def write(*cells):
        path = tmp_path / "notebooks" / "01_sample.ipynb"
        nb = new_notebook(cells=list(cells), metadata=pairs.HEADER)
        nb.metadata["tilelli"] = {
            "stamp": checks.stamp_of(path, nb),
            "text": pairs.fingerprint(nb),
        }
        pairs.write_notebook(nb, path)
        pairs.twin_of(path).write_text(pairs.text_form(nb))
        return path

    return write


def figure(alt=None):
    cell = new_code_cell(
        "draw()",
        execution_count=1,
        outputs=[new_output("display_data", {"image/png": "aGVsbG8="})],
    )
    if alt:
        cell.metadata["mystnb"] = {"image": {"alt": alt}}
    return cell


def test_a_good_chapter_has_no_problem(book):
    path = book(
        new_markdown_cell("# Title\n\n![a cat on a mat](cat.png)"),
        new_markdown_cell("**Reading** 5 minutes"),
        figure("A curve that falls from 8 to 2."),
    )
    assert [problem for check in checks.CHECKS for problem in check(path)] == []
    assert checks.book_problems(path.parent.parent) == []


def test_the_order_of_metadata_makes_no_difference(book):
    cell = new_code_cell(
        "1",
        execution_count=1,
        metadata={"tags": ["a"], "mystnb": {"image": {"alt": "b"}}},
    )
    path = book(cell)
    assert checks.pair_problems(path) == []
    assert (
        edit(path, "", "").endswith("up to date") and checks.pair_problems(path) == []
    )


def test_a_changed_text_is_found(book):
    path = book(new_markdown_cell("# Title"))
    twin = pairs.twin_of(path)
    twin.write_text(twin.read_text().replace("Title", "Other"))
    assert "# Other" in checks.pair_problems(path)[0]
    twin.unlink()
    assert "has no book/01_sample.md" in checks.pair_problems(path)[0]


def test_the_text_carries_no_outputs_stamps_or_widget_state(book):
    text = pairs.twin_of(book(figure("A curve that falls from 8 to 2."))).read_text()
    assert "draw()" in text and "alt: A curve that falls" in text
    assert (
        "stamp" not in text and "widgets" not in text and "jupytext_version" not in text
    )


def test_small_marks_of_a_figure_keep_their_colours():
    """Dots on areas of a paler shade, which a palette is tempted to give them."""
    fig, ax = plt.subplots(figsize=(6.4, 3))
    for i, colour in enumerate(("blue", "darkorange", "green", "red")):
        area = plt.Rectangle((0, 0), 5 - i, 1 + i, color=colour, alpha=0.3)
        ax.add_patch(area)
        ax.plot(5 - i, 1 + i, "o", color=colour)
        ax.text(5 - i, 1 + i, "card")
    png = io.BytesIO()
    fig.savefig(png, format="png", dpi=100)
    plt.close(fig)
    before = Image.open(png).convert("RGB")
    smaller = build.fewer_colours(base64.b64encode(png.getvalue()).decode())
    after = Image.open(io.BytesIO(base64.b64decode(smaller)))
    assert after.mode == "P"
    apart = np.abs(np.asarray(after.convert("RGB")).astype(int) - np.asarray(before))
    assert apart.max() <= 16


@pytest.mark.parametrize("alt", [None, "too short"])
def test_a_figure_without_words_is_found(book, alt):
    assert "cell 0" in checks.alt_problems(book(figure(alt)))[0]


@pytest.mark.parametrize(
    "text, bare",
    [
        ("![](a.png)", 1),
        ("![ ](a.png)", 1),
        ("![a map](a.png)", 0),
        ('<img src="a.png">', 1),
        ('<img alt="" src="a.png">', 1),
        ('<img src="a.png" alt="a map">', 0),
        ("```{figure} a.png\nA caption\n```", 1),
        ("```{figure} a.png\n:alt: a map\n```", 0),
        ("```\n![](a.png)\n```", 0),
    ],
)
def test_pictures_in_the_text_need_words(text, bare):
    assert len(checks.markdown_alt_problems(text)) == bare


def test_a_cell_that_was_not_run_or_that_failed_is_found(book):
    assert "top to bottom" in checks.run_problems(book(new_code_cell("1 + 1")))[0]
    error = new_output("error", ename="ValueError", evalue="no", traceback=[])
    assert (
        "raised"
        in checks.run_problems(
            book(new_code_cell("f()", execution_count=1, outputs=[error]))
        )[0]
    )


def test_a_page_that_is_too_long_is_found(book):
    words = [new_markdown_cell("one two three " * 500)] * 2
    assert checks.length_problems(book(*words)) == []
    (said,) = checks.length_problems(book(*words, new_markdown_cell("more")))
    assert "3,001 words and 0 code cells" in said and "01_sample_deeper.md" in said
    cells = [new_code_cell("1")] * 48
    assert checks.length_problems(book(*cells)) == []
    assert "49 code cells" in checks.length_problems(book(*cells, cells[0]))[0]


def test_a_wrong_reading_time_is_found(book):
    says = "**Reading** 10 minutes and " + "word " * 516  # 520 words: four minutes
    line = "x = 1\n\n"
    # three minutes of code make seven of five: ten are right
    right = [new_markdown_cell(says), new_code_cell(line * 36)]
    assert checks.reading_problems(book(*right)) == []
    # what is folded is not read
    folded = new_code_cell(line * 36, metadata={"tags": ["hide-input"]})
    (said,) = checks.reading_problems(book(right[0], folded))
    assert "says 10 minutes of reading, it takes 5" in said
    (said,) = checks.reading_problems(book(folded))
    assert "does not say **Reading** 0 minutes" in said


def test_a_whole_name_means_that_page_alone():
    paths = [Path(f"{name}.md") for name in ("01_one", "01_one_deeper", "02_two")]
    assert build.chosen(["01_one"], paths) == paths[:1]
    assert build.chosen(["01"], paths) == paths[:2]
    assert build.chosen(["01_one", "02"], paths) == [paths[0], paths[2]]
    assert build.chosen([], paths) == paths


@pytest.mark.parametrize(
    "text, found",
    [
        ("/home/ada/book/x.py", True),
        ("wrote /tmp/run", True),
        ("/Users/ada/x", True),
        ("C:\\Users\\ada", True),
        ("<f at 0x7f32a1b2c3d4>", True),
        (sys.prefix + "/lib", True),
        (str(checks.ROOT / "book"), True),
        (str(Path.home() / "x"), True),
        ("https://x.org/home/ada", False),
        ("runs/nano/run.json", False),
        ("0x68 is h", False),
        ("a/b and and/or", False),
    ],
)
def test_machine_paths_in_outputs(book, text, found):
    cell = new_code_cell(
        "f()",
        execution_count=1,
        outputs=[new_output("stream", name="stdout", text=text)],
    )
    assert bool(checks.path_problems(book(cell))) == found


def test_a_notebook_that_is_too_big_or_not_listed_is_found(book):
    path = book(new_markdown_cell("x" * 500_001))
    assert "more than 500,000" in checks.size_problems(path)[0]
    other = path.with_name("02_other.ipynb")
    path.rename(other)
    assert sorted(checks.book_problems(path.parent.parent)) == [
        "_toc.yml names notebooks/01_sample, which does not exist",
        "book/01_sample.md has no notebook: run `make sync`",
        "notebooks/02_other.ipynb is not in _toc.yml",
    ]


def printed(text):
    return new_output("stream", name="stdout", text=text)


def shown(text, kind="text/markdown"):
    return new_output("display_data", data={kind: text, "text/plain": "y" * 99})


@pytest.mark.parametrize(
    "source, output, tags, said",
    [
        ("x" * 79, printed("y" * 79), [], None),
        ("x" * 80, printed("y"), [], "80 columns of code, more than 79"),
        ("1", printed("y\n" + "y" * 80), [], "80 columns of output, more than 79"),
        ("1", printed("y" * 80), ["wrap"], None),
        ("x" * 80, printed("y" * 80), ["wrap"], "80 columns of code, more than 79"),
        ("1", printed("\x1b[31m" + "y" * 79 + "\x1b[0m"), [], None),  # red
        ("1", shown("```python\n" + "z" * 88), [], None),
        ("1", shown("```python\n" + "z" * 89), [], "89 columns of output"),
        ("1", shown("<b>1</b>", "text/html"), [], None),
    ],
)
def test_what_is_wider_than_the_column_is_found(book, source, output, tags, said):
    cell = new_code_cell(source, outputs=[output], metadata={"tags": tags})
    found = checks.width_problems(book(cell))
    assert len(found) == bool(said)
    assert said is None or said in found[0]


def test_a_copy_that_was_cut_off_is_not_taken_for_whole(tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"

    def npm(*command, **settings):
        (scratch / "vendor").mkdir(parents=True)
        (scratch / "vendor" / "a.js").write_text("a")

    def cut_off(source, target):
        target.mkdir()
        for file in source.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
        raise KeyboardInterrupt  # before the last file

    monkeypatch.setattr(offline, "VENDOR", tmp_path / "vendor")
    monkeypatch.setattr(offline, "PACKAGES", {})
    monkeypatch.setattr(offline.subprocess, "run", npm)
    monkeypatch.setattr(offline.shutil, "copytree", cut_off)
    with pytest.raises(KeyboardInterrupt):
        offline._assemble(scratch)
    assert not offline.present()


def test_a_kernel_that_dies_does_not_end_the_others(book, monkeypatch, capsys):
    def execute(path):
        raise DeadKernelError("killed for its memory")

    path = book(new_markdown_cell("# Title"), new_code_cell("one()"))
    monkeypatch.setattr(build, "execute", execute)
    monkeypatch.setattr(build, "chosen", lambda names, found: [path, path])
    assert build.command_execute(argparse.Namespace(names=[], force=True)) == 1
    assert capsys.readouterr().err.count("killed for its memory") == 2


# --- stamps ---


CONV, TERNARY = "model.conv", "model.ternary"


@pytest.mark.parametrize(
    "source, names",
    [
        ("from tilelli_nb import CausalConv", {CONV}),
        ("from tilelli_nb.model.conv import CausalConv", {CONV}),
        ("import tilelli_nb.model.conv", {CONV}),
        ("import tilelli_nb.model.conv as c\nshow(c.CausalConv)", {CONV}),
        ("from tilelli_nb.model import conv as c", {CONV}),
        ("from tilelli_nb import config", {"config"}),
        ("import tilelli_nb as t\nshow(t.ternarize)", {TERNARY}),
        ("import tilelli_nb\nshow(tilelli_nb.model.conv.CausalConv)", {CONV}),
        ("from tilelli_nb import *", {CONV, TERNARY, "config"}),
        (
            "%matplotlib inline\nfrom tilelli_nb import ternarize\nif 1:\n    !ls",
            {TERNARY},
        ),
        ("%%bash\nfrom tilelli_nb import CausalConv", set()),
        ("import torch\nfrom os import path\nshow(torch.model.conv)", set()),
    ],
)
def test_which_modules_a_chapter_names(book, source, names):
    package = book(new_markdown_cell("# Title")).parent.parent / "tilelli_nb"
    assert stamps.modules([source], package) == names


def test_a_stamp_goes_stale_with_its_own_code_only(book):
    path = book(
        new_markdown_cell("# Title"),
        new_code_cell("from tilelli_nb import CausalConv", execution_count=1),
    )
    package = path.parent.parent / "tilelli_nb"
    assert not checks.is_stale(path)
    (package / "config.py").write_text("# another\n")
    assert not checks.is_stale(path)
    (package / "model" / "conv.py").write_text("# another\n")
    assert checks.is_stale(path)


@pytest.mark.parametrize(
    "code, named",
    [
        ("load_record('bench-a')", {"bench-a"}),
        (
            "for p in runs_folder().glob('bench-*/results.json'): print(p)",
            {"bench-a", "bench-b"},
        ),
        (
            "[load_record(p.parent) for p in runs_folder().glob('*/run.json')]",
            {"bench-a", "bench-b", "nano"},
        ),
        ("print('nano')", {"nano"}),
        (
            "print('*', '.', '..', '../runs', '', 'bench', 'a bench-a', '**bold**', '* nano.')  # 'nano'",
            set(),
        ),
    ],
)
def test_which_records_a_chapter_names(tmp_path, code, named):
    for name in ("bench-a", "bench-b", "nano"):
        (tmp_path / name).mkdir()
        for file in ("run.json", "results.json", "metrics.jsonl", "model.safetensors"):
            (tmp_path / name / file).write_text("{}")
    files = {
        tmp_path / name / file
        for name in named
        for file in ("run.json", "results.json", "metrics.jsonl")
    }
    assert stamps.records([code], tmp_path) == files


def test_a_stamp_goes_stale_with_the_records_it_names(book):
    path = book(
        new_markdown_cell("# Title"),
        new_code_cell("load_record('nano-stories')", execution_count=1),
    )
    runs = path.parent.parent / "book" / "runs"
    for name in ("nano-stories", "nano-others"):
        (runs / name).mkdir(parents=True)
    assert not checks.is_stale(path)
    (runs / "nano-others" / "run.json").write_text("{}")
    assert not checks.is_stale(path)
    (runs / "nano-stories" / "run.json").write_text("{}")
    assert checks.is_stale(path)


def test_a_stamp_goes_stale_with_tables_and_models_that_it_names(book):
    """Facts, prices and configurations lie beside the code that reads them."""
    path = book(
        new_markdown_cell("# Title"),
        new_code_cell(
            "from tilelli_nb import config\nfrom tilelli_nb.model.conv import x\n"
            "load('tilelli/nano')",
            execution_count=1,
        ),
    )
    package = path.parent.parent / "tilelli_nb"

    def write(name):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(name)
        return checks.is_stale(path)

    assert not write("weights/nano-chat/model.safetensors")
    assert not write("training/prices.yaml")
    nb = pairs.read_notebook(path)
    for name in (
        "configs/nano.yaml",
        "model/prices.yaml",
        "model/conv/facts.tsv",
        "weights/nano/model.safetensors",
    ):
        assert write(name), name
        nb.metadata["tilelli"]["stamp"] = checks.stamp_of(path, nb)
        pairs.write_notebook(nb, path)
        assert not checks.is_stale(path)


def test_a_stamp_goes_stale_with_the_files_of_the_book_that_it_names(book):
    path = book(
        new_markdown_cell("# Title"),
        new_code_cell(
            "from tilelli_nb.evaluation import claims\n"
            "print((folder / 'slurm' / 'job.sbatch').read_text(), 'a/b.js', 'x.json')",
            execution_count=1,
        ),
    )
    folder = path.parent.parent / "book"
    nb = pairs.read_notebook(path)

    def is_stale_after(name):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text((folder / name).name)
        stale = checks.is_stale(path)
        nb.metadata["tilelli"]["stamp"] = checks.stamp_of(path, nb)
        pairs.write_notebook(nb, path)
        return stale

    assert not is_stale_after("slurm/other.sbatch")
    assert not is_stale_after("runs/nano/x.json")  # a record: its folder is not named
    assert not is_stale_after("claims.yml")  # there is no module that reads them
    assert is_stale_after("slurm/job.sbatch")
    assert is_stale_after("_static/b.js")
    assert is_stale_after("../tilelli_nb/evaluation/claims.py")
    (folder / "claims.yml").write_text("other\n")
    assert checks.is_stale(path)


# --- sync and execute ---


def edit(path, old, new):
    twin = pairs.twin_of(path)
    twin.write_text(twin.read_text().replace(old, new))
    return pairs.sync(twin)


def test_sync_does_not_write_over_what_is_saved_meanwhile(book, monkeypatch):
    path = book(new_markdown_cell("# Title"), new_code_cell("one( )"))
    twin = pairs.twin_of(path)
    twin.write_text(twin.read_text().replace("one( )", "one( )  \n\n\n"))
    meanwhile = twin.read_text() + "\nMore.\n"

    def saved(nb):
        twin.write_text(meanwhile)
        return "another text\n"

    monkeypatch.setattr(pairs, "text_form", saved)
    pairs.sync(twin)
    assert twin.read_text() == meanwhile


def test_an_interrupted_write_of_a_text_leaves_the_old_one(book, monkeypatch):
    path = book(new_markdown_cell("# Title"), new_code_cell("one()"))
    twin = pairs.twin_of(path)
    before = twin.read_text()
    nb = pairs.read_notebook(path)
    nb.cells[1].source = "two()"
    pairs.write_notebook(nb, path)

    def interrupted(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(pairs.Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pairs.adopt(path, force=True)
    assert twin.read_text() == before


def test_sync_keeps_ids_and_the_outputs_of_cells_that_did_not_change(book):
    def output(text):
        return [new_output("stream", name="stdout", text=text)]

    path = book(
        new_markdown_cell("# Title"),
        new_code_cell("one()", execution_count=1, outputs=output("1")),
        new_code_cell("two()", execution_count=2, outputs=output("2")),
        new_markdown_cell("End"),
    )
    before = pairs.read_notebook(path)
    assert edit(path, "two()", "three()").startswith("01_sample: 1 of 4 cells")
    after = pairs.read_notebook(path)
    assert [c.id for c in after.cells] == [c.id for c in before.cells]
    assert (
        after.cells[1].outputs == before.cells[1].outputs
        and after.cells[2].outputs == []
    )
    assert after.metadata.tilelli.stamp == before.metadata.tilelli.stamp
    assert checks.is_stale(path)
    assert checks.pair_problems(path) == []

    edit(path, "End", "+++\n\nMiddle\n\n+++\n\nEnd")
    longer = pairs.read_notebook(path)
    assert [c.source for c in longer.cells] == [
        "# Title",
        "one()",
        "three()",
        "Middle",
        "End",
    ]
    assert [c.id for c in longer.cells if c.source != "Middle"] == [
        c.id for c in before.cells
    ]
    assert len({c.id for c in longer.cells}) == 5
    assert edit(path, "", "").endswith("up to date")


def test_sync_makes_a_notebook_the_same_way_each_time(tmp_path):
    (tmp_path / "book").mkdir()
    twin = tmp_path / "book" / "01_new.md"
    twin.write_text("# New\n\n```{code-cell}\n1 + 1\n```\n")
    pairs.sync(twin)
    path = pairs.notebook_of(twin)
    first = path.read_bytes()
    assert [c.cell_type for c in pairs.read_notebook(path).cells] == [
        "markdown",
        "code",
    ]
    assert twin.read_text().startswith("---\n")
    path.unlink()
    pairs.sync(twin)
    assert path.read_bytes() == first


def test_executing_gives_the_same_file_twice_and_leaves_it_when_a_cell_raises(
    book, monkeypatch
):
    for name in ("PYTHONPATH", "PYTHONHASHSEED"):
        # put back after the test: execute() sets them for the kernel
        monkeypatch.setenv(name, "")
    path = book(
        new_code_cell(
            "import ipywidgets\nbox = ipywidgets.IntSlider(3, description='k')\nbox"
        ),
        new_code_cell("for i in range(3):\n    print(i, flush=True)"),
    )
    build.execute(path)
    first = path.read_bytes()
    assert checks.run_problems(path) == []
    nb = pairs.read_notebook(path)
    assert nb.cells[1].outputs == [
        new_output("stream", name="stdout", text="0\n1\n2\n")
    ]
    assert (
        nb.cells[0]
        .outputs[0]
        .data["application/vnd.jupyter.widget-view+json"]["model_id"]
        in nb.metadata.widgets[build.WIDGETS].state
    )
    assert all("execution" not in cell.metadata for cell in nb.cells)
    build.execute(path)
    assert path.read_bytes() == first

    path = book(new_code_cell("1 / 0"))
    before = path.read_bytes()
    with pytest.raises(Exception, match="ZeroDivisionError"):
        build.execute(path)
    assert path.read_bytes() == before


# --- what somebody wrote is never lost ---


STUB, ANSWER = "def f(x):\n    ...", "def f(x):\n    return 2 * x  # mine"


@pytest.fixture
def chapter(book):
    """A chapter with a stub, as `sync` leaves it."""
    return book(
        new_markdown_cell("# Title"),
        new_code_cell(STUB, metadata={"tags": ["exercise"]}),
        new_code_cell("check(1)", metadata={"tags": ["check"]}),
    )


def write_in(path, change):
    """Somebody writes in the notebook: change(nb)."""
    nb = pairs.read_notebook(path)
    change(nb)
    pairs.write_notebook(nb, path)
    return path.read_bytes()


def answer(nb):
    nb.cells[1].source = ANSWER


def cell_of_their_own(nb):
    nb.cells.insert(2, new_code_cell("print(f(3))"))


def remark(nb):
    nb.cells[0].source += "\n\nNote to myself."


def less(nb):
    del nb.cells[2]


@pytest.mark.parametrize("change", [answer, cell_of_their_own, remark, less])
def test_sync_leaves_a_notebook_alone_in_which_somebody_wrote(chapter, change):
    written = write_in(chapter, change)
    for old, new in (("", ""), ("Title", "Other title")):
        with pytest.raises(pairs.WouldDiscard) as refused:
            edit(chapter, old, new)
        assert chapter.read_bytes() == written
    for way in ("cp notebooks/01_sample", "adopt 01_sample", "--force 01_sample"):
        assert way in str(refused.value)
    text = pairs.twin_of(chapter).read_text()
    assert "# Other title" in text and "mine" not in text


def test_the_refusal_names_what_would_be_lost(chapter):
    write_in(chapter, answer)
    with pytest.raises(pairs.WouldDiscard, match=r"'return 2 \* x  # mine'"):
        edit(chapter, "", "")


def test_sync_goes_on_when_the_notebook_was_only_run_and_looked_at(chapter):
    def look(nb):
        for count, cell in enumerate(nb.cells[1:], 1):
            cell.execution_count = count
            cell.outputs = [printed("1")]
            cell.metadata["collapsed"] = True
        nb.cells.append(new_code_cell(""))  # as JupyterLab does at the end
        nb.metadata["kernelspec"]["display_name"] = "my kernel"

    write_in(chapter, look)
    edit(chapter, "Title", "Other title")
    after = pairs.read_notebook(chapter)
    assert after.cells[0].source == "# Other title"
    assert after.cells[1].outputs == [printed("1")]


def test_sync_goes_on_when_the_same_was_written_on_both_sides(chapter):
    write_in(chapter, answer)
    assert edit(chapter, STUB, ANSWER).endswith("up to date")
    assert not pairs.is_edited(pairs.read_notebook(chapter))


def test_sync_does_not_trust_a_notebook_that_it_has_not_made(chapter):
    def forget(nb):
        del nb.metadata["tilelli"]

    write_in(chapter, forget)
    written = chapter.read_bytes()
    with pytest.raises(pairs.WouldDiscard):
        edit(chapter, "Title", "Other title")
    assert chapter.read_bytes() == written


def test_what_was_written_can_be_given_up_or_made_the_text(chapter):
    written = write_in(chapter, answer)
    assert pairs.sync(pairs.twin_of(chapter), force=True)
    assert pairs.read_notebook(chapter).cells[1].source == STUB

    chapter.write_bytes(written)
    pairs.adopt(chapter)
    assert "return 2 * x  # mine" in pairs.twin_of(chapter).read_text()
    assert edit(chapter, "", "").endswith("up to date")
    assert pairs.read_notebook(chapter).cells[1].source == ANSWER
    assert edit(chapter, "Title", "Other title").startswith("01_sample: 1 of 3 cells")


def test_adopt_leaves_a_text_alone_that_was_edited_since(chapter):
    write_in(chapter, answer)
    twin = pairs.twin_of(chapter)
    twin.write_text(twin.read_text().replace("Title", "Other title"))
    text = twin.read_text()
    with pytest.raises(pairs.WouldDiscard, match="Both"):
        pairs.adopt(chapter)
    assert twin.read_text() == text
    pairs.adopt(chapter, force=True)
    assert "# Title" in twin.read_text() and "# mine" in twin.read_text()


def test_one_chapter_that_is_left_alone_does_not_stop_the_others(
    chapter, capsys, monkeypatch
):
    written = write_in(chapter, answer)
    first, second = pairs.twin_of(chapter), pairs.twin_of(chapter).with_name("02_b.md")
    second.write_text("# Second\n")
    monkeypatch.setattr(pairs, "twins", lambda: [first, second])
    monkeypatch.setattr(sys, "argv", ["build.py", "sync"])
    assert build.main() == 1
    said = capsys.readouterr()
    assert "01_sample: left alone" in said.err and "02_b: " in said.out
    assert chapter.read_bytes() == written and pairs.notebook_of(second).exists()
    monkeypatch.setattr(sys, "argv", ["build.py", "sync", "--force", "01"])
    assert build.main() == 0 and chapter.read_bytes() != written


def test_executing_an_answer_does_not_make_it_the_text(chapter, monkeypatch):
    for name in ("PYTHONPATH", "PYTHONHASHSEED"):
        monkeypatch.setenv(name, "")

    def answer_alone(nb):
        answer(nb)
        nb.cells[2].source = "f(2)"

    write_in(chapter, answer_alone)
    build.execute(chapter)
    assert pairs.read_notebook(chapter).cells[1].source == ANSWER
    with pytest.raises(pairs.WouldDiscard):
        edit(chapter, "", "")


def test_sync_folds_solutions_in_jupyterlab_and_execute_keeps_it(book, monkeypatch):
    for name in ("PYTHONPATH", "PYTHONHASHSEED"):
        monkeypatch.setenv(name, "")
    path = book(
        new_code_cell("1", metadata={"tags": ["exercise"]}),
        new_code_cell("2", metadata={"tags": ["solution", "hide-input"]}),
    )
    edit(path, "", "")
    build.execute(path)
    assert not pairs.is_edited(pairs.read_notebook(path))
    stub, solution = pairs.read_notebook(path).cells
    assert solution.metadata.jupyter == {"source_hidden": True}
    assert "jupyter" not in stub.metadata
    assert checks.pair_problems(path) == [] and checks.run_problems(path) == []
    assert "source_hidden" not in pairs.twin_of(path).read_text()


# --- the copies for a site that works offline ---


@pytest.mark.parametrize(
    "npm, said",
    [
        (None, "npm is not installed"),
        ("exit 1", "could not fetch them"),
        ("echo other > mathjax-3.2.2.tgz", "not the file this book was tested with"),
    ],
)
def test_without_npm_or_network_the_site_falls_back_in_one_line(
    tmp_path, monkeypatch, npm, said
):
    if npm:
        command = tmp_path / "npm"
        command.write_text(f"#!/bin/sh\n{npm}\n")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(offline, "VENDOR", tmp_path / "vendor")
    line = offline.fetch()
    assert said in line and "CDN" in line and "\n" not in line
    assert not offline.present() and not (tmp_path / "vendor").exists()


def test_notebooks_are_valid():
    for path in CHAPTERS:
        nbformat.validate(pairs.read_notebook(path))
