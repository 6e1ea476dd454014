"""The page and the pictures, from records with known numbers."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from benchmarks.peers import PEERS
from benchmarks.report import report
from benchmarks.report.pictures import draw_pictures
from benchmarks.report.records import read_records

ENVIRONMENT = {
    "date": "2025-11-03T12:00:00+00:00",
    "commit": "0123456789ab",
    "python": "3.11.9",
    "system": "Linux-6.1",
    "processor": "Abacus 9000 avx2",
    "platform": "cpu",
    "devices": ["cpu"],
    "threads": 2,
    "versions": {"jax": "0.10.0", "torch": "2.13.0"},
}
# Weights of 4 GB in float32 at 8 GB/s: no run can take less than half a second.
WORK = {"tokens": 16, "flops": 1e9, "weights": 1e9}
LIMITS = {"bytes": [8e9] * 3, "float32": [1e11] * 3, "bfloat16": [2e11] * 3}
SUITES = ("forward", "generate", "prompts", "train", "load", "start", "scaling", "memory")


def forward_case(batch: int = 2, tokens: int = 8, head: bool = True) -> dict[str, Any]:
    return {
        "case": {"batch": batch, "tokens": tokens, "head": head},
        "work": WORK,
        "errors": {"gpt1-jax": 0.0, "gpt1-jax-bfloat16": 3e-3, "transformers": 1.4e-6},
        "left_out": {"onnxruntime": 81.0},
        "seconds": {
            "gpt1-jax": [1.0, 2.0, 0.8],
            "gpt1-jax-bfloat16": [0.5, 0.5, 0.5],
            "transformers": [2.5, 4.0, 2.4],  # ratios of 2.5, 2 and 3
            "transformers-bfloat16": [0.625, 0.625, 0.625],
        },
        "limits": LIMITS,
    }


def cases(suite: str) -> list[dict[str, Any]]:
    ours, theirs = [1.0, 1.0, 1.0], [3.0, 3.0, 3.0]
    both = {"gpt1-jax": ours, "transformers": theirs}
    peaks = {"gpt1-jax": 1_500_000_000, "transformers": 2_000_000_000}
    batch_tokens = {"batch": 2, "tokens": 8}
    found: dict[str, list[dict[str, Any]]] = {
        "forward": [forward_case(), forward_case(4), forward_case(head=False)],
        "generate": [
            {
                "case": {"batch": batch, "prompt": 3, "new": 5},
                "work": WORK,
                "logit_gaps": {"gpt1-jax": 0.0, "transformers": 0.0},
                "left_out": {"ctranslate2": 99.0},
                "seconds": {"gpt1-jax": [3.0, 3.0, 3.0], "transformers": [13.0, 13.0, 13.0]},
                "first": both,
                "limits": LIMITS,
            }
            for batch in (1, 2)
        ],
        "prompts": [
            {
                "case": {"prompts": 10, "mean": 4, "new": 3, "batch": 32},
                "seconds": {
                    "batch 8": [2.0, 2.0, 2.0],
                    "batch 16": [1.0, 1.0, 1.0],
                    "mixed lengths": [4.0, 4.0, 4.0],
                },
                "tokens": {"batch 8": 60, "batch 16": 60, "mixed lengths": 120},
                "command": {"the command, second run": 8.0},
            }
        ],
        "train": [
            {
                "case": {**batch_tokens, "remat": "full", "dropout": False},
                "work": WORK,
                "losses": {"gpt1-jax": [4.0, 2.0], "transformers": [4.0, 2.002]},
                "seconds": both,
                "limits": LIMITS,
            }
        ],
        "load": [
            {
                "case": {"checkpoint bytes": 2_000_000_000},
                "seconds": both,
                "limits": LIMITS,
                "bytes": peaks,
            }
        ],
        "start": [
            {
                "case": {"new tokens": 1},
                "seconds": {**both, "gpt1-jax cached": [0.5, 0.5, 0.5]},
                "compilations": {"gpt1-jax": {"count": 7, "seconds": 0.25}},
            }
        ],
        "scaling": [
            {
                "case": {"what": "length", "tokens": 8},
                "seconds": {"gpt1-jax": ours},
                "left_out": {"transformers": 70.0},
                "limits": LIMITS,
            },
            {"case": {"what": "length", "tokens": 4}, "seconds": both, "limits": LIMITS},
            {
                "case": {"what": "exponents"},
                "exponents": {"length": {"gpt1-jax": 1.02}, "decode": {}},
            },
        ],
        "memory": [{"case": {**batch_tokens, "head": True}, "bytes": peaks}],
    }
    return found[suite]


def record(suite: str) -> dict[str, Any]:
    return {
        "suite": "forward" if suite == "memory" else suite,
        "environment": ENVIRONMENT,
        "absent": {"onnxruntime": "onnxscript is not installed"} if suite == "forward" else {},
        "cases": cases(suite),
    }


def write(folder: Path, *suites: str) -> Path:
    for suite in suites:
        (folder / f"{suite}.json").write_text(json.dumps(record(suite)))
    return folder


def section(page: str, title: str) -> str:
    """Return the part of a page below a title."""
    return page.split(f"## {title}", 1)[1].split("\n## ", 1)[0]


def cells(page: str, first: str) -> list[list[str]]:
    """Return the rows of a page that begin with a cell."""
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows if row[0].strip() == first]


def test_report_shows_forward_numbers(tmp_path: Path) -> None:
    page = report(write(tmp_path, "forward")).read_text()
    forward = section(page, "Forward")
    (ours,) = cells(forward, "2 x 8")
    ours_bfloat16, theirs, theirs_bfloat16, left_out = cells(forward, "")[:4]
    low_high = "<br><sub>{} to {}</sub>"
    assert ours[1:3] == ["gpt1-jax", "**1,000**" + low_high.format("900", "1,500")]
    assert theirs[2] == "2,500" + low_high.format("2,450", "3,250")
    assert theirs[5] == "2.50" + low_high.format("2.25", "2.75")
    # Half a second in float32, which has 4 bytes a weight, and a quarter in bfloat16.
    assert [ours[4], theirs[4]] == ["50%", "20%"]
    assert ours_bfloat16[1:] == ["gpt1-jax-bfloat16", "**500**", "32.0", "50%", ""]
    # bfloat16 is compared with bfloat16
    assert theirs_bfloat16[1:] == ["transformers-bfloat16", "625", "25.6", "40%", "1.25"]
    assert left_out[1:] == ["onnxruntime", "left out: about 81 s", "", "", ""]
    assert len(cells(forward, "2 x 8, states")) == 1


def test_report_describes_machine_and_peers(tmp_path: Path) -> None:
    page = report(write(tmp_path, *SUITES)).read_text()
    for text in (
        "Abacus 9000 avx2, 2 threads, 2025-11-03.",
        "| torch | 2.13.0 |",
        "| 2025-11-03 12:00 | 0123456789ab | 8.00 | 100 | 200 |",
        "for 3 rounds",
        "- onnxruntime, in forward: onnxscript is not installed",
    ):
        assert text in page
    (players,) = cells(section(page, "Who takes part"), "transformers")
    assert players[2:] == ["1.4e-06", "1.4e-06"]
    (summary,) = cells(section(page, "How many times"), "transformers")
    assert summary[1:] == ["2.50", "2.50", "5.00", "3.00", "3.00", "3.00"]


def test_report_shows_numbers_of_other_suites(tmp_path: Path) -> None:
    page = report(write(tmp_path, *SUITES)).read_text()
    # Ours writes 4 tokens in 2 seconds after the first one, theirs in 10.
    (ours,) = cells(section(page, "Generate"), "2 x 3 + 5")
    assert ours[1:] == ["gpt1-jax", "**1,000**", "**500**", "4.00", "100%", "", "", "0"]
    theirs, left_out = cells(section(page, "Generate"), "")[-2:]
    assert theirs[1:] == ["transformers", "3,000", "2,500", "0.800", "20%", "5.00", "4.33", "0"]
    assert left_out[1:3] == ["ctranslate2", "left out: about 99 s"]
    (ours,) = cells(section(page, "Train"), "2 x 8, gpt1-jax with remat full")
    assert ours[1:] == ["gpt1-jax", "**1,000**", "16.0", "50%", "", "0"]
    assert cells(section(page, "Train"), "")[0][4:] == ["17%", "3.00", "1.0e-03"]
    (first,) = cells(section(page, "Many prompts"), "10 x 4 + 3")
    assert first[1:] == ["batch 8", "30.0", "50%"]
    others = [row[1:] for row in cells(section(page, "Many prompts"), "")]
    assert ["batch 16", "60.0", "100%"] in others
    assert ["mixed lengths", "30.0", "50%"] in others
    assert ["the command, second run", "15.0", "25%"] in others
    (ours,) = cells(section(page, "Load"), "checkpoint of 2000 MB")
    assert ours[1:] == ["gpt1-jax", "**1,000**", "2.00", "25%", ""]
    (ours,) = cells(section(page, "Start"), "new tokens 1")
    assert ours[1:] == ["gpt1-jax", "1.00", "", "7", "0.250"]
    scaling = section(page, "Scaling")
    assert cells(scaling, "8") == [["8", "1,000", "left out: about 70 s"]]
    assert cells(scaling, "4") == [["4", "1,000", "3,000"]]
    assert cells(scaling, "power") == [["power", "1.02", ""]]
    assert cells(section(page, "Memory"), "forward, 2 x 8")[0][1:] == ["gpt1-jax", "1.50", ""]
    assert cells(section(page, "Memory"), "")[0][1:] == ["transformers", "2.00", "75%"]
    assert len(cells(section(page, "Memory"), "load, checkpoint of 2000 MB")) == 1
    assert "tiny" not in page


def test_report_compares_with_another_jax_where_it_differs(tmp_path: Path) -> None:
    content = record("forward")
    content["environment"] = {**ENVIRONMENT, "older": {"python": "3.11.1", "jax": "0.9.1"}}
    first, second, _ = content["cases"]
    first["seconds"]["gpt1-jax older"] = [2.0, 4.0, 1.6]
    first["seconds"]["gpt1-jax-bfloat16 older"] = [0.4, 0.5, 0.6]  # no difference
    second["seconds"]["gpt1-jax older"] = second["seconds"]["gpt1-jax"]
    for case in (first, second):
        case["errors"]["gpt1-jax older"] = 0.0
    (tmp_path / "forward.json").write_text(json.dumps(content))
    page = report(tmp_path).read_text()
    older = section(page, "Under JAX 0.9.1")
    assert "ms, JAX 0.10.0 | ms, JAX 0.9.1" in older
    (row,) = cells(older, "forward, 2 x 8")
    assert row[1] == "gpt1-jax"
    assert [cell.split("<")[0] for cell in row[2:]] == ["1,000", "2,000", "2.00"]
    assert not cells(older, "forward, 4 x 8")
    assert "| another JAX | 0.9.1, Python 3.11.1 |" in page
    assert "gpt1-jax older" not in page


def test_report_names_what_is_unsteady(tmp_path: Path) -> None:
    content = record("scaling")
    content["cases"][0]["seconds"]["gpt1-jax"] = [0.001, 0.001, 0.002]
    (tmp_path / "scaling.json").write_text(json.dumps(content))
    page = report(write(tmp_path, "forward", "train")).read_text()
    found = cells(section(page, "Unsteady"), "forward, 2 x 8")
    assert [row[1:] for row in found] == [
        ["gpt1-jax", "the quartiles lie 60% of the median apart"],
        ["transformers", "the quartiles lie 32% of the median apart"],
    ]
    (scaling,) = cells(section(page, "Unsteady"), "scaling, what length, tokens 8")
    assert scaling[1:] == ["gpt1-jax", "the median went from 1 to 2 ms during the rounds"]
    assert "train" not in section(page, "Unsteady")


def test_report_names_what_is_slower(tmp_path: Path) -> None:
    """Every loss of a race, with the case where it is greatest; bold in the summary."""
    write(tmp_path, "forward", "start")
    assert "is slower\n" not in report(tmp_path).read_text()  # a cache is not another library
    content = record("load")
    (case,) = content["cases"]
    case["seconds"]["transformers"] = [0.4, 0.4, 0.4]
    (tmp_path / "load.json").write_text(json.dumps(content))
    content = record("generate")
    for case, seconds in zip(content["cases"], (4.0, 13.0), strict=True):
        case["seconds"]["transformers"] = [seconds] * 3
    (tmp_path / "generate.json").write_text(json.dumps(content))
    page = report(tmp_path).read_text()
    slower = section(page, "Where gpt1-jax is slower")
    assert cells(slower, "loading") == [
        ["loading", "transformers", "1 of 1", "checkpoint of 2000 MB", "2.50"]
    ]
    (decoding,) = cells(slower, "decoding")
    assert decoding == ["decoding", "transformers", "1 of 2", "batch 1, prompt 3, new 5", "2.00"]
    (summary,) = cells(section(page, "How many times"), "transformers")
    assert summary[1:] == ["2.50", "2.50", "1.58<br><sub>0.500 to 5.00</sub>", "**0.400**", "3.00"]
    (theirs,) = [row for row in cells(section(page, "Load"), "") if row[1] == "transformers"]
    assert theirs[2] == "**400**"


@pytest.mark.nightly
def test_report_warns_of_records_of_changed_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "clean commit" not in report(write(tmp_path, "forward", "train")).read_text()
    for name, commit in (("load", "0123456789ab-dirty"), ("start", None)):
        content = record(name)
        content["environment"] = {**ENVIRONMENT, "commit": commit}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert capsys.readouterr().err == ""
    opening = report(tmp_path).read_text().split("## ")[0]
    assert "**Not of a clean commit: load.json, start.json.**" in opening
    assert capsys.readouterr().err == "warning: not of a clean commit: load.json, start.json\n"


def test_pictures_draw_no_line_through_a_case_that_was_not_measured(tmp_path: Path) -> None:
    cases = [forward_case(tokens=tokens) for tokens in (1, 8, 16)]
    del cases[1]["seconds"]["transformers"]
    many = [*PEERS][:12]  # whose legend takes several lines
    for case in cases:
        case["seconds"] |= {name: [1.0, 1.0, 1.0] for name in many if "transformers" not in name}
    content = {**record("forward"), "cases": cases}
    (tmp_path / "forward.json").write_text(json.dumps(content))
    figures = draw_pictures(read_records(tmp_path))
    _, figure = figures["throughput.png"]
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert len(names) > 9
    lines = dict(zip(names, (bars.lines[0] for bars in figure.axes[0].containers), strict=True))
    drawn = {name: np.isfinite(line.get_ydata(orig=False)).tolist() for name, line in lines.items()}
    assert drawn["transformers"] == [True, False, True]
    assert drawn["gpt1-jax"] == [True] * 3
    figure.draw_without_rendering()
    box = legend.get_window_extent()
    assert figure.bbox.contains(*box.min)
    assert figure.bbox.contains(*box.max)


def test_report_marks_quick_runs(tmp_path: Path) -> None:
    content = record("generate")
    content["environment"] = {**ENVIRONMENT, "quick": True, "model": "random"}
    (write(tmp_path, "forward") / "generate.json").write_text(json.dumps(content))
    opening = report(tmp_path).read_text().split("## ")[0]
    assert "of a tiny model, and shows only that all works" in opening


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("suites", "drawn"),
    [
        (SUITES, {"speedup", "throughput", "generate", "limit", "memory"}),
        (("forward",), {"speedup", "throughput", "limit"}),
        (("generate",), {"generate", "limit"}),
        (("memory",), {"memory"}),
        (("train", "start", "scaling"), set()),
    ],
)
def test_report_draws_only_recorded_figures(
    tmp_path: Path, suites: tuple[str, ...], drawn: set[str]
) -> None:
    from matplotlib.image import imread

    out = tmp_path / "out"
    page = report(write(tmp_path, *suites), out)
    assert {file.name for file in out.iterdir()} == {"README.md", *(f"{n}.png" for n in drawn)}
    for name in drawn:
        picture = out / f"{name}.png"
        assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert picture.stat().st_size < 100_000
        height, width, _ = imread(picture).shape
        assert width == 902
        assert 150 < height < 700
        assert f"]({name}.png)" in page.read_text()
    assert page.read_text().count("](") == len(drawn)
    assert ("## Forward" in page.read_text()) == ("forward" in suites)


def test_report_omits_speedup_without_gpt1_jax(tmp_path: Path) -> None:
    content = record("forward")
    for case in content["cases"]:
        for name in ("gpt1-jax", "gpt1-jax-bfloat16"):
            del case["seconds"][name], case["errors"][name]
    (tmp_path / "forward.json").write_text(json.dumps(content))
    page = report(tmp_path).read_text()
    assert "## How many times as fast" not in page
    assert not (tmp_path / "speedup.png").exists()


def test_report_omits_decode_hidden_by_noise(tmp_path: Path) -> None:
    content = record("generate")
    for case in content["cases"]:
        case["first"] = {**case["first"], "transformers": [14.0, 14.0, 14.0]}
    (tmp_path / "generate.json").write_text(json.dumps(content))
    page = report(tmp_path).read_text()
    assert [row[3:7] for row in cells(page, "") if row[1] == "transformers"] == [[""] * 4] * 2


def test_report_rejects_folder_without_records(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there are no records"):
        report(tmp_path)
    assert not list(tmp_path.iterdir())


def _changed(**changes: Any) -> dict[str, Any]:
    return {**record("forward"), **changes}


def _without(*path: str) -> dict[str, Any]:
    content = copy.deepcopy(record("forward"))
    inside = content["cases"][0]
    for name in path[:-1]:
        inside = inside[name]
    del inside[path[-1]]
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        (b"\xff", "is not JSON"),
        ([1, 2], '"suite" must be one of'),
        (_changed(suite="tasks"), '"suite" must be one of'),
        (_changed(suite=["forward"]), '"suite" must be one of'),
        (_changed(cases=None), 'it has no "cases"'),
        (_changed(environment={}), 'its environment has no "commit"'),
        (_changed(cases=[1]), "its case 0 is none"),
        (_without("work"), 'its case 0 has no "work"'),
        (_without("case", "tokens"), 'its case 0 has no "tokens"'),
        (_changed(cases=[{**forward_case(), "seconds": {"gpt1-jax": []}}]), "as many rounds"),
    ],
)
def test_report_rejects_invalid_records(tmp_path: Path, content: Any, message: str) -> None:
    write(tmp_path, "generate")
    file = tmp_path / "other.json"
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"other\.json is") as caught:
        report(tmp_path)
    assert message in str(caught.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["generate.json", "other.json"]


def test_report_rejects_incompatible_records(tmp_path: Path) -> None:
    write(tmp_path, "forward")
    other = record("generate")
    other["environment"] = {**ENVIRONMENT, "threads": 64}
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"other\.json is of another machine .* threads is 64"):
        report(tmp_path)
    (tmp_path / "other.json").write_text((tmp_path / "forward.json").read_text())
    with pytest.raises(ValueError, match=r"other\.json has a case that .*forward\.json has too"):
        report(tmp_path)
