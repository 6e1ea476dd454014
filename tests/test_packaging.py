"""Files beside the code: bounds of versions, workflows, forms and the citation."""

import runpy
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / ".ci").is_dir(), reason="needs the whole checkout")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_lowest_versions_cover_dependencies_and_extras() -> None:
    lowest_versions = runpy.run_path(str(ROOT / ".ci" / "lowest_versions.py"))["lowest_versions"]
    found = lowest_versions(PROJECT, ["train"])
    extra = PROJECT["optional-dependencies"]["train"]
    assert len(found) == len(PROJECT["dependencies"]) + len(extra)
    assert found["jax"] == "0.10"
    with pytest.raises(ValueError, match=r"'jax<1' must be a name and a lower bound"):
        lowest_versions({"dependencies": ["jax<1"], "optional-dependencies": {}}, [])


def test_yaml_files_can_be_read() -> None:
    files = [
        *ROOT.glob(".github/**/*.yml"),
        ROOT / ".pre-commit-config.yaml",
        ROOT / "CITATION.cff",
    ]
    read = {file.name: yaml.safe_load(file.read_text(encoding="utf-8")) for file in files}
    assert len(read) == 9
    assert read["CITATION.cff"]["license"] == PROJECT["license"]
    versions = {f"3.{minor}" for minor in range(11, 15)}
    cases = read["ci.yml"]["jobs"]["tests"]["strategy"]["matrix"]["include"]
    assert {case["python"] for case in cases} == versions
    named = {
        line.rpartition(" ")[2] for line in PROJECT["classifiers"] if ":: Python :: 3." in line
    }
    assert named == versions
