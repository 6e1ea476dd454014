"""Errors about optional packages name extras that exist and that list these packages."""

import ast
import tomllib
from pathlib import Path

import pytest

import conversion
from conversion import extras

ROOT = Path(conversion.__path__[0]).parent
DISTRIBUTIONS = {"sklearn": "scikit-learn"}  # where the module has another name


def test_require_names_what_is_missing_and_the_command() -> None:
    extras.require("the test", "json", "ast", extra="torch")
    need = r'the test needs no_such_a and no_such_b, which are not installed: pip install "gpt1-'
    with pytest.raises(ImportError, match=need + r'jax\[text\]"$'):
        extras.require("the test", "no_such_a", "json", "no_such_b", extra="text")


def test_extras_list_the_packages_that_are_required() -> None:
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("needs the source tree")
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required: set[tuple[str, str]] = set()
    for path in [*ROOT.glob("gpt1_jax/**/*.py"), *ROOT.glob("conversion/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "extras.require":
                (extra,) = (word.value for word in node.keywords if word.arg == "extra")
                assert isinstance(extra, ast.Constant)
                names = [str(arg.value) for arg in node.args[1:] if isinstance(arg, ast.Constant)]
                required |= {(str(extra.value), name) for name in names}
    assert len(required) > 7
    for extra, name in required:
        packages = " ".join(listed["optional-dependencies"][extra])
        assert DISTRIBUTIONS.get(name, name) in packages, f"{name} is not in the extra {extra}"
