"""``gpt1 surprisal`` and ``picture`` on the model that comes along; the others in test_cli.py."""

from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]
TEXT = "The old man smiled."


def test_cli_surprisal_prints_tokens_and_perplexity(run: Run) -> None:
    status, out, _ = run("surprisal", TEXT)
    assert status == 0
    assert [line.split()[-1] for line in out.splitlines()[1:-1]] == [
        *("'the</w>'", "'old</w>'", "'man</w>'", "'smiled</w>'", "'.</w>'")
    ]
    assert "perplexity" in out.splitlines()[-1]
    status, out, _ = run("surprisal", *[TEXT] * 100)  # longer than n_positions
    assert (status, len(out.splitlines())) == (0, 502)


def test_cli_surprisal_reads_files(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": " smiled.", "context": "The old man"}\n{"text": "The old man."}\n')
    status, out, _ = run("surprisal", file)
    assert status == 0
    lines = [line.split() for line in out.splitlines()]
    tables = [i for i, line in enumerate(lines) if line == ["bits", "token"]]
    assert tables == [0, 7]
    assert [len(line) for line in lines[1:6]] == [2, 2, 2, 3, 3]  # a context has no bits
    assert "nan" not in out


@pytest.mark.nightly
@pytest.mark.parametrize(
    "flags",
    [
        ["attention", "--layer", 0, "--head", 1],
        ["attention"],
        ["next-tokens", "--count", 3],
        ["logit-lens"],
    ],
)
def test_cli_picture_writes_a_png(run: Run, tmp_path: Path, flags: list[object]) -> None:
    pytest.importorskip("matplotlib")
    kind, *rest = flags
    file = tmp_path / "picture.png"
    status, out, err = run("picture", kind, TEXT, "--out", file, *rest)
    assert (status, out, err) == (0, f"{file}\n", "")
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["surprisal", ""], "text 0 has no tokens"),
        (["surprisal", "nowhere.txt"], "no file nowhere.txt"),
        (["surprisal", "a", "--model", "nowhere/at/all"], "nowhere/at/all"),
        (["picture", "attention", "a", "--out", "OUT.png", "--layer", "9"], "layer is 9"),
        (
            ["picture", "attention", "a", "--out", "OUT.png", "--count", "9"],
            "--count has no effect",
        ),
        (
            ["picture", "logit-lens", "a", "--out", "OUT.png", "--head", "0"],
            "--head has no effect",
        ),
        (["picture", "next-tokens", "a", "--out", "OUT.png", "--count", "0"], "count is 0"),
        (["picture", "next-tokens", "a", "--out", "OUT.doc"], "a picture ends in one of"),
    ],
)
def test_cli_explore_rejects_bad_input(
    run: Run, tmp_path: Path, arguments: list[str], message: str
) -> None:
    pytest.importorskip("matplotlib")
    arguments = [argument.replace("OUT", str(tmp_path / "out")) for argument in arguments]
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
