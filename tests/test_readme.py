"""README: its length, its links, and its blocks, which run in the order of the page."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from support.pages import ROOT, dead_links, read_blocks, run_page

README = ROOT / "README.md"


def test_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 150


def test_readme_runs_most_blocks() -> None:
    blocks = read_blocks(README)
    not_run = [block.place for block in blocks if block.comment.startswith("not run: ")]
    assert len(not_run) * 10 < len(blocks)


def test_readme_links_lead_somewhere() -> None:
    assert dead_links(README) == []


def test_readme_has_no_relative_picture() -> None:
    assert re.findall(r"!\[[^]]*\]\((?!https?://)", README.read_text()) == []


def test_readme_names_the_path_in_each_relative_link() -> None:
    """A package index shows README without the files beside it."""
    links = re.findall(r"\[([^]]*)\]\(((?!https?://)[^)]*)\)", README.read_text())
    assert len(links) >= 10
    assert [text for text, path in links if text != path] == []


@pytest.mark.parametrize("home", [None, "https://example.org/gpt1-jax"])
def test_description_of_the_package_has_no_relative_link(home: str | None) -> None:
    pytest.importorskip("hatchling")
    hook = runpy.run_path(str(ROOT / "hatch_build.py"))["CustomMetadataHook"](str(ROOT), {})
    project: dict[str, Any] = {"urls": {"Repository": home}} if home else {}
    hook.update(project)
    text = project["readme"]["text"]
    assert re.findall(r"\]\((?!https?://)", text) == []
    assert (f"({home}/blob/main/docs/text.md)" if home else "`docs/text.md`") in text
    assert len(text.splitlines()) == len(README.read_text().splitlines())


def test_readme_blocks_print_what_they_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_page(README, tmp_path, monkeypatch, lambda: capsys.readouterr().out)
