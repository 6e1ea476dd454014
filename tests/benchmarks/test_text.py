"""Both pipelines over a small text: the record, not its times."""

import importlib.util
import json
from pathlib import Path

import pytest

from benchmarks import text as suite

pytest.importorskip("ftfy")
pytest.importorskip("spacy")


@pytest.mark.nightly
def test_text_records_seconds_and_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, record_file = tmp_path / "text.txt", tmp_path / "record.json"
    file.write_text("“Wait…” she said.\nHe didn't.\n" * 50, encoding="utf-8")
    record = suite.text((file, file), rounds=2, out=record_file)
    assert record == json.loads(record_file.read_text())
    assert record["bytes"] == 2 * file.stat().st_size
    names = {"huggingface", "original", suite.FIRST_TIME}
    if importlib.util.find_spec("transformers"):
        names.add(suite.THEIRS)
    assert record["seconds"].keys() == names
    assert all(len(times) == 2 and min(times) > 0 for times in record["seconds"].values())
    assert record["memory"].keys() == {"huggingface", "original"}
    assert all(each.keys() == {"imports", "texts"} for each in record["memory"].values())
    out = capsys.readouterr().out
    assert "2 files, 0.00 MB; medians of 2 rounds" in out
    assert "original, in pieces" in out


def test_text_rejects_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give text files"):
        suite.text(())
    with pytest.raises(ValueError, match="rounds is 0"):
        suite.text((tmp_path,), rounds=0)
    with pytest.raises(FileNotFoundError, match=r"missing\.txt"):
        suite.text((tmp_path / "missing.txt",))
