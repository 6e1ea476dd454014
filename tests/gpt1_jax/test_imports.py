"""Who imports whom: downward only, without cycles, and nothing before it is used."""

import ast
import functools
import graphlib
import importlib.util
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import benchmarks
import conversion
import gpt1_jax

ROOT = Path(gpt1_jax.__path__[0])
# The rooms of the package. Each imports from those above it in this list, never from those below.
ROOMS = (
    ("_conversion",),
    ("demo", "checks"),
    ("config",),
    ("nn", "text", "generation_config"),
    ("outputs", "pretrained"),
    ("model",),
    ("pure",),
    ("sharding",),
    ("generation", "quantization"),
    ("scoring",),
    ("explore", "export", "lm_eval", "training", "verify"),
    ("estimate",),
    ("cli",),
)
# (importing module, imported room): upward, inside a function.
EXCEPTIONS = {
    ("pretrained", "sharding"),  # from_pretrained(..., mesh=)
    ("pretrained", "quantization"),  # of a checkpoint in int8
    ("pretrained", "training"),  # model.load_adapter(...)
    ("model", "generation"),  # model.generate(...)
}


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of the package by its name below ``gpt1_jax``."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imported(node: ast.AST) -> Iterator[str]:
    """The modules of gpt1_jax that an import statement names, below the package."""
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    for name in names:
        if name.startswith("gpt1_jax."):
            below = name.removeprefix("gpt1_jax.")
            yield below if below in modules() else below.rpartition(".")[0]


def test_imports_run_downward() -> None:
    ranks = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}
    upward = set()
    for name, path in modules().items():
        if not name:  # gpt1_jax itself, whose names are imported when they are used
            continue
        room = name.partition(".")[0]
        for node in ast.walk(ast.parse(path.read_text())):
            for target in imported(node):
                other = target.partition(".")[0]
                if other and other != room and ranks[other] >= ranks[room]:
                    upward.add((name, other))
    assert upward == EXCEPTIONS


def test_imports_form_no_cycle() -> None:
    graph = {}
    for name, path in modules().items():
        statements = ast.parse(path.read_text()).body
        graph[name] = {target for node in statements for target in imported(node)} - {name}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(graph)


@pytest.mark.parametrize("package", [gpt1_jax, conversion, benchmarks])
def test_no_module_is_hidden_by_a_name(package: ModuleType) -> None:
    """``import gpt1_jax.pure as pure`` finds the module, whatever the package exports."""
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if found.name.endswith("__main__"):
            continue
        if found.name == "gpt1_jax.lm_eval" and importlib.util.find_spec("lm_eval") is None:
            continue
        module = importlib.import_module(found.name)
        parent, _, name = found.name.rpartition(".")
        assert getattr(sys.modules[parent], name) is module, found.name


def test_root_has_few_files() -> None:
    # Each is a thing that users name, lm_eval among them, which they import.
    assert len(list(ROOT.glob("*.py"))) <= 15


def test_every_public_name_can_be_imported() -> None:
    assert set(gpt1_jax.__all__) == {*gpt1_jax._MODULES, "__version__"}
    for name in gpt1_jax.__all__:
        assert getattr(gpt1_jax, name) is not None
    assert set(gpt1_jax.__all__) <= set(dir(gpt1_jax))
    with pytest.raises(AttributeError, match="'gpt1_jax' has no attribute 'generat'"):
        gpt1_jax.generat  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    # The folder comes first on the path, as for a user who works there.
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def test_import_loads_neither_jax_nor_conversion(tmp_path: Path) -> None:
    done = python("import gpt1_jax; print('jax' in sys.modules, 'flax' in sys.modules)", tmp_path)
    assert (done.returncode, done.stdout) == (0, "False False\n"), done.stderr
    code = (
        "import gpt1_jax as gpt1, flax.nnx as nnx\n"
        "config = gpt1.OpenAIGPTConfig(vocab_size=7, n_layer=1, n_embd=4, n_head=2)\n"
        "gpt1.functional(gpt1.OpenAIGPTLMHeadModel(config, rngs=nnx.Rngs(0)))\n"
        "gpt1.GenerationConfig, gpt1.Tokenizer, gpt1.generate, gpt1.tree\n"
        "print('conversion' in sys.modules)"
    )
    done = python(code, tmp_path)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


@pytest.mark.nightly
def test_another_module_named_conversion_is_reported(tmp_path: Path) -> None:
    (tmp_path / "conversion.py").write_text("x = 1\n")
    code = "import gpt1_jax as gpt1\ngpt1.OpenAIGPTLMHeadModel.from_pretrained('demo')"
    done = python(code, tmp_path)
    assert done.returncode == 1
    message = f"ImportError: {tmp_path / 'conversion.py'} hides the package 'conversion'"
    assert done.stderr.splitlines()[-1].startswith(message)
    done = python(
        "from gpt1_jax.cli import main\nsys.argv = ['gpt1', 'tree', 'demo']\nmain()", tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"gpt1: {tmp_path / 'conversion.py'} hides the package")
    assert len(done.stderr.splitlines()) == 1
