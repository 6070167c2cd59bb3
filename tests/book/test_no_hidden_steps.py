"""No hidden steps: every public function and class of the package is shown, from its
real source, in a chapter.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import pairs
import stamps

PACKAGE = pairs.ROOT / "tilelli_nb"

# What no chapter shows, and why. A name stands for all that is inside it. Once a
# chapter shows it, it leaves the list.
NOT_SHOWN = {
    "for a GPU alone: chapter 3's convolution as a kernel like chapter 5's": [
        "model.attention.load_kernels",
        "model.kernel_conv",
    ],
    "a line or two each, inside the sort that chapter 5 shows": [
        "model.kernel_sort.count_from",
        "model.kernel_sort.float_of",
        "model.kernel_sort.halves",
        "model.kernel_sort.smallest",
    ],
    "plumbing: what a run record notes, and where the records lie": [
        "storage.records.dumps",
        "storage.records.git_commit",
        "files.at_home",
        "files.is_file",
        "files.load_lines",
        "storage.records.git",
        "storage.records.load_metrics",
        "storage.records.load_record",
        "storage.records.new_record",
        "storage.records.now",
        "storage.records.package_sha256",
        "storage.records.processor",
        "storage.records.run_folder",
        "storage.records.runs_folder",
        "storage.records.versions",
        "storage.records.write_run",
    ],
    "plumbing: a kind of error each": ["errors"],
    "lists and word-making behind the pairs, which chapter 11 shows": [
        "chat.facts",
        "chat.generated",
        "chat.invented",
        "chat.wording",
    ],
    "plumbing: the pages of this book": [
        "notebook.chat_widgets",
        "notebook.controls",
        "notebook.exercises",
        "notebook.figures",
        "notebook.inference_widgets.byte_name",
        "notebook.inference_widgets.ground",
        "notebook.inference_widgets.sampling_bars",
        "notebook.inference_widgets.sampling_player",
        "notebook.inference_widgets.stream_text",
        "notebook.inference_widgets.traced_text",
        "notebook.show",
        "notebook.widgets.attended_text",
        "notebook.widgets.byte_explorer",
        "notebook.widgets.byte_places",
        "notebook.widgets.byte_table",
        "notebook.widgets.coloured_text",
        "notebook.widgets.continuation",
        "notebook.widgets.continue_text",
        "notebook.widgets.kernel_player",
        "notebook.widgets.kernel_strip",
        "notebook.widgets.kept_text",
        "notebook.widgets.routed_text",
        "notebook.widgets.ternary_bars",
        "notebook.widgets.ternary_explorer",
    ],
    "plumbing: the command line, and the services that it can call": [
        "cli.app",
        "cli.chat",
        "cli.cost",
        "cli.data",
        "cli.eval",
        "cli.generate",
        "cli.models",
        "cli.options",
        "cli.runpod",
        "cli.sft",
        "cli.train",
        "storage.hub",
        "extras.runpod",
        "extras.transformers",
    ],
}


def public(node: ast.AST) -> list[ast.AST]:
    """The public functions and classes that are defined right inside a module or
    class.
    """
    return [
        child
        for child in node.body
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)) and child.name[0] != "_"
    ]


@cache
def steps(package: Path) -> list[str]:
    """ "module.function" and "module.Class.method" of the package. A class without
    public methods stands for itself.
    """
    found = []
    for path in sorted(package.rglob("*.py")):
        for node in public(ast.parse(path.read_text(encoding="utf-8"))):
            inner = public(node) if isinstance(node, ast.ClassDef) else []
            found += [
                ".".join((*path.relative_to(package).with_suffix("").parts, *names))
                for names in (
                    [(node.name, method.name) for method in inner] or [(node.name,)]
                )
            ]
    return found


def names_of(trees: list[ast.Module], package: Path) -> dict[str, str]:
    """What the imports of a chapter call a thing of the package -> its place: "",
    "module" or "module.name".
    """
    table, names = stamps.exports(package), {}

    def place(name: str) -> str:
        return f"{table[name]}.{name}" if name in table else name

    for node in (node for tree in trees for node in ast.walk(tree)):
        if (
            isinstance(node, ast.ImportFrom)
            and node.level == 0
            and (node.module or "").split(".")[0] == "tilelli_nb"
        ):
            inside = node.module.removeprefix("tilelli_nb").lstrip(".")
            for alias in node.names:
                names[alias.asname or alias.name] = (
                    f"{inside}.{alias.name}" if inside else place(alias.name)
                )
        elif isinstance(node, ast.Import):
            for alias in node.names:
                package_name, _, module = alias.name.partition(".")
                if package_name == "tilelli_nb":
                    names[alias.asname or package_name] = module if alias.asname else ""
    return names


def shown(cells: list[str], package: Path) -> set[str]:
    """The places of everything that the cells of a chapter hand to `show`: "router",
    "model.TilelliLM.forward".
    """
    trees = [tree for source in cells if (tree := stamps.parse(source))]
    names, table = names_of(trees, package), stamps.exports(package)

    def place(node: ast.expr) -> str | None:
        if isinstance(node, ast.Name):
            return names.get(node.id)
        outer = place(node.value) if isinstance(node, ast.Attribute) else None
        if outer == "":  # tilelli_nb.Router is router.Router
            return (
                f"{table[node.attr]}.{node.attr}" if node.attr in table else node.attr
            )
        return outer and f"{outer}.{node.attr}"

    calls = [
        node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)
    ]
    return {
        found
        for call in calls
        if place(call.func) == "notebook.show.show"
        for node in call.args
        if (found := place(node))
    }


def within(name: str, place: str) -> bool:
    return name == place or name.startswith(f"{place}.")


def code_cells(text: str) -> list[str]:
    """The code of a chapter's text, without the cells that the page leaves out."""
    cells = re.findall(
        r"^```\{code-cell\}.*\n(---\n(?:.*\n)*?---\n|(?::.*\n)*)((?:.*\n)*?)```$",
        text,
        re.M,
    )
    return [code for options, code in cells if "remove-" not in options]


@cache
def all_shown() -> frozenset[str]:
    """The places that the chapters show between them."""
    texts = [twin.read_text(encoding="utf-8") for twin in pairs.twins()]
    return frozenset().union(*(shown(code_cells(text), PACKAGE) for text in texts))


@cache
def hidden() -> list[str]:
    """The steps that no chapter shows."""
    return [
        step
        for step in steps(PACKAGE)
        if not any(within(step, place) for place in all_shown())
    ]


def test_every_step_is_shown_or_on_the_list():
    listed = [name for group in NOT_SHOWN.values() for name in group]
    missing = [
        step for step in hidden() if not any(within(step, name) for name in listed)
    ]
    assert not missing, f"no chapter shows {', '.join(missing)}"


@pytest.mark.parametrize(
    "reason", NOT_SHOWN, ids=lambda reason: reason.replace(" ", "-")
)
def test_the_list_is_no_longer_than_it_must_be(reason):
    there, missing = steps(PACKAGE), set(hidden())
    for name in NOT_SHOWN[reason]:
        inside = [step for step in there if within(step, name)]
        assert inside, f"{name} does not exist any more"
        assert missing.issuperset(inside), (
            f"a chapter shows {sorted(set(inside) - missing)}: take it off the list"
        )


def test_each_name_stands_on_the_list_once():
    listed = [name for group in NOT_SHOWN.values() for name in group]
    assert not [
        (a, b)
        for i, a in enumerate(listed)
        for j, b in enumerate(listed)
        if i != j and within(a, b)
    ]


def test_every_place_that_is_shown_exists():
    known = set()
    for step in steps(PACKAGE):  # a step, and all that it is inside of
        parts = step.split(".")
        known |= {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
    private = {
        place
        for place in all_shown()
        if any(part.startswith("_") for part in place.split("."))
    }
    assert all_shown() - private - known == set()


# --- the check finds what it is for ---


@pytest.fixture
def package(tmp_path):
    (tmp_path / "__init__.py").write_text('_EXPORTS = {"Net": "net", "fit": "loop"}\n')
    (tmp_path / "net.py").write_text(
        "class Net:\n    def __init__(self): ...\n    def forward(self): ...\n"
        "    def step(self): ...\n\n\nclass Row:\n    a: int\n\n\ndef _own(): ...\n"
    )
    (tmp_path / "loop.py").write_text(
        "def fit(): ...\n\n\ndef save():\n    def inner(): ...\n"
    )
    return tmp_path


def test_the_steps_of_a_package(package):
    assert steps(package) == [
        "loop.fit",
        "loop.save",
        "net.Net.forward",
        "net.Net.step",
        "net.Row",
    ]


@pytest.mark.parametrize(
    "code, places",
    [
        ("from tilelli_nb import Net\nshow(Net)", {"net.Net"}),
        (
            "from tilelli_nb import Net, fit\nshow(Net.step, fit)",
            {"net.Net.step", "loop.fit"},
        ),
        ("from tilelli_nb import net\nshow(net)", {"net"}),
        ("from tilelli_nb.net import Row as R\nshow(R)", {"net.Row"}),
        (
            "import tilelli_nb\nshow(tilelli_nb.fit, tilelli_nb.net.Row)",
            {"loop.fit", "net.Row"},
        ),
        ("import tilelli_nb.loop as l\nshow(l.save)", {"loop.save"}),
        (
            "%matplotlib inline\nfrom tilelli_nb.loop import save\nif 1:\n    show(save)",
            {"loop.save"},
        ),
        (
            "from tilelli_nb import Net\nplt.show(Net)\nprint(Net)\nshow(other.Net, my_own)",
            set(),
        ),
    ],
)
def test_what_a_chapter_shows(package, code, places):
    assert shown(["from tilelli_nb.notebook.show import show", code], package) == places
    assert shown([code], package) == set()  # some other `show`


def test_the_code_cells_of_a_text():
    cell = "```{code-cell} ipython3\n"
    text = (
        f"# Title\n\n{cell}show(a)\n```\n\n```python\nshow(b)\n```\n\n"
        f"{cell}:tags: [remove-cell]\n\nshow(c)\n```\n\n{cell}---\nmystnb:\n  image: x\n---\nshow(d)\n\n```\n"
    )
    assert [code.strip() for code in code_cells(text)] == ["show(a)", "show(d)"]
