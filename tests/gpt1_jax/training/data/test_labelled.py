"""Labelled sets: what is read is what was written, and every fault is named by file and line."""

import csv
import gzip
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpt1_jax.training.data.labelled import Row, content_of_rows, draw_rows, read_rows, take_out

COLUMNS = {"text": "sentence", "label": "class"}

Cells = list[tuple[str, str, str]]

texts = st.text(st.characters(codec="utf-8")).filter(str.strip)
labels = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1)


def write(path: Path, rows: Cells, blank_lines: bool, quoted: bool = True) -> list[int]:
    """Write rows with a column that nobody reads; return the lines that they start on."""
    starts = []
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".jsonl":
            for number, (text, label, other) in enumerate(rows):
                starts.append(1 + number * (2 if blank_lines else 1))
                record = {"class": label, "other": other, "sentence": text}
                end = "\n\n" if blank_lines else "\n"
                file.write(json.dumps(record, ensure_ascii=False) + end)
            return starts
        if not quoted:
            end = "\r\n\r\n" if blank_lines else "\n"
            lines = ["class\tother\tsentence"]
            lines += [f"{label}\t{other}\t{text}" for text, label, other in rows]
            file.write(end.join(lines))
            return [1 + number * (2 if blank_lines else 1) for number in range(1, 1 + len(rows))]
        delimiter = "," if path.suffix == ".csv" else "\t"
        # The writer does not quote a lone carriage return of itself.
        returns = any("\r" in field for row in rows for field in row)
        quoting = csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n", quoting=quoting)
        writer.writerow(["class", "other", "sentence"])
        line = 2
        for text, label, other in rows:
            if blank_lines:
                file.write("\n")
                line += 1
            starts.append(line)
            writer.writerow([label, other, text])
            ends = (field.replace("\r\n", "\n").replace("\r", "\n") for field in (text, other))
            line += 1 + sum(field.count("\n") for field in ends)
    return starts


@pytest.mark.nightly
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv"])
@given(rows=st.lists(st.tuples(texts, labels, texts), min_size=1, max_size=4), blank=st.booleans())
def test_read_rows_returns_written_rows(
    tmp_path_factory: pytest.TempPathFactory,
    suffix: str,
    rows: Cells,
    blank: bool,
) -> None:
    path = tmp_path_factory.getbasetemp() / f"rows{suffix}"
    starts = write(path, rows, blank)
    quoting: Any = "csv" if suffix == ".tsv" else None
    assert read_rows(path, COLUMNS, quoting=quoting) == expected(path, starts, rows)


def expected(path: Path, starts: list[int], rows: Cells) -> list[Row]:
    return [
        Row(f"{path}, line {start}", {"text": text}, label)
        for start, (text, label, _) in zip(starts, rows, strict=True)
    ]


# Any text of one line, quotes and lone carriage returns inside included.
bare = texts.filter(lambda text: not re.search(r"[\t\n]|\r$", text))


@pytest.mark.filterwarnings("ignore:.* begin and end with a quote")
@given(rows=st.lists(st.tuples(bare, labels, bare), min_size=1, max_size=4), blank=st.booleans())
@example(rows=[('"Yes he said', "a", '"'), ('they all said no"', "b", '""')], blank=False)
def test_read_rows_takes_quotes_in_tsv_for_text(
    tmp_path_factory: pytest.TempPathFactory, rows: Cells, blank: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "bare.tsv"
    starts = write(path, rows, blank, quoted=False)
    assert read_rows(path, COLUMNS) == expected(path, starts, rows)


def test_read_rows_reads_six_rows_of_bare_quotes(tmp_path: Path) -> None:
    path = tmp_path / "glue.tsv"
    texts = ["a film", '"Yes he said', "fine", "dull", 'they all said no"', "good"]
    lines = [f"{text}\t{'neg' if i % 2 else 'pos'}" for i, text in enumerate(texts)]
    path.write_text("\n".join(["sentence\tclass", *lines]) + "\n")
    rows = read_rows(path, COLUMNS)
    assert [row.texts["text"] for row in rows] == texts
    assert [row.label for row in rows] == ["pos", "neg"] * 3
    assert len(read_rows(path, COLUMNS, quoting="csv")) == 3  # which the user has to ask for


@pytest.mark.parametrize(
    ("cells", "warns"),
    [
        (['"a b"', *["a"] * 9], True),
        (['"a b"', *["a"] * 10], False),
        (['"a ""b"""', *["a"] * 99], True),  # as no other than a CSV writer would have it
        (['"a" b "c"', *["a"] * 99], False),
        (['"a', 'b"', '"', "c"], False),
    ],
)
def test_read_rows_warns_of_quoted_cells_in_tsv(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, cells: list[str], warns: bool
) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("sentence\tclass\n" + "".join(f"{cell}\t1\n" for cell in cells))
    assert [row.texts["text"] for row in read_rows(path, COLUMNS)] == cells
    messages = [str(warning.message) for warning in recwarn]
    assert len(messages) == warns
    for message in messages:
        assert f"1 of {len(cells)} cells in the column 'sentence' begin and end wi" in message
        assert "--quoting csv" in message
    read_rows(path, COLUMNS, quoting="none")
    assert len(recwarn) == warns


def test_read_rows_reads_cells_beyond_the_limit_of_csv(tmp_path: Path) -> None:
    limit, text = csv.field_size_limit(), "word " * 40_000
    for suffix in (".csv", ".tsv", ".jsonl"):
        path = tmp_path / f"rows{suffix}"
        write(path, [(text, "1", "x")], blank_lines=False)
        assert read_rows(path, COLUMNS)[0].texts["text"] == text
    (tmp_path / "open.csv").write_text('sentence,class\n"a')
    with pytest.raises(ValueError, match="unexpected end of data"):
        read_rows(tmp_path / "open.csv", COLUMNS)
    assert csv.field_size_limit() == limit


# A table that two rows are read from, as files of all kinds have it.
RECORDS = [
    {"class": 1, "other": None, "sentence": "a ✓"},
    {"class": 0, "other": None, "sentence": "b\u2028c"},
]


def write_records(path: Path, records: list[dict[str, Any]]) -> Path:
    """Write a file of the kind that its suffixes say."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind in ("parquet", "arrow", "feather"):
        pyarrow = pytest.importorskip("pyarrow")
        feather, parquet = (pytest.importorskip(f"pyarrow.{x}") for x in ("feather", "parquet"))
        table, sink = pyarrow.Table.from_pylist(records), pyarrow.BufferOutputStream()
        if kind == "parquet":
            parquet.write_table(table, sink)
        elif kind == "feather":
            feather.write_feather(table, sink)
        else:
            with pyarrow.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=1)
        content = sink.getvalue().to_pybytes()
    elif kind == "json":
        content = json.dumps(records, indent=1).encode()
    elif kind == "jsonl":
        lines = (json.dumps(record, ensure_ascii=False) for record in records)
        content = "\n".join(lines).encode()
    else:
        separator = {"csv": ",", "tsv": "\t"}[kind]
        lines = [separator.join(records[0])]
        lines += [separator.join(map(str, record.values())) for record in records]
        content = "\n".join(lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("a.json", "item 1"),
        ("a.JSON", "item 1"),
        ("a.jsonl.gz", "line 1"),
        ("a.json.GZ", "item 1"),
        ("a.csv.gz", "line 2"),
        ("a.tsv.gz", "line 2"),
        ("a.parquet", "row 1"),
        ("a.parquet.gz", "row 1"),
        ("a.arrow", "row 1"),
        ("a.feather", "row 1"),
    ],
)
def test_read_rows_reads_every_kind_of_file(tmp_path: Path, name: str, where: str) -> None:
    written = write_records(tmp_path / name.lower(), RECORDS)
    path = written.rename(tmp_path / name)
    first, second = read_rows(path, COLUMNS)
    assert first == Row(f"{path}, {where}", {"text": "a ✓"}, "1")
    assert (second.texts["text"], second.label) == ("b\u2028c", "0")


def test_read_rows_reads_json_lines_in_json_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('\ufeff{"sentence": "a", "class": 1}\n\n{"sentence": "b", "class": 2}\n')
    assert read_rows(path, COLUMNS) == [
        Row(f"{path}, line 1", {"text": "a"}, "1"),
        Row(f"{path}, line 3", {"text": "b"}, "2"),
    ]


class Dataset:
    """What a dataset of the package ``datasets`` is here: rows one after another."""

    def __iter__(self) -> Any:
        return iter([{"sentence": "a", "class": np.int64(-1)}, {"sentence": "b", "class": 0.5}])


def test_read_rows_reads_records_in_memory(tmp_path: Path) -> None:
    found = read_rows(Dataset(), COLUMNS, name="train")
    assert found == [
        Row("train, row 1", {"text": "a"}, "-1"),
        Row("train, row 2", {"text": "b"}, "0.5"),
    ]
    path = tmp_path / "a.csv"
    path.write_text("class,sentence\n-1,a\n0.5,b\n")
    assert content_of_rows(found) == content_of_rows(read_rows(path, COLUMNS))
    other = [*found[:1], Row("train, row 2", {"text": "b"}, "0.6")]
    assert content_of_rows(found) != content_of_rows(other)


@pytest.mark.parametrize("name", ["a.tsv", "a.jsonl", "memory"])
def test_read_rows_reads_any_number_of_labels(tmp_path: Path, name: str) -> None:
    lists: list[Any] = [["b", 1], [], ["a|c"]]
    records = [{"sentence": f"text {i}", "class": labels} for i, labels in enumerate(lists)]
    source: Any = records
    if name == "a.tsv":
        joined = ["+".join(map(str, labels)) for labels in lists]
        lines = [f"text {i}\t{labels}" for i, labels in enumerate(joined)]
        source = tmp_path / name
        source.write_text("\n".join(["sentence\tclass", *lines]))
    elif name == "a.jsonl":
        source = tmp_path / name
        source.write_text("\n".join(map(json.dumps, records)))
    rows = read_rows(source, COLUMNS, separator="+")
    assert [row.labels for row in rows] == [("b", "1"), (), ("a|c",)]
    assert [row.names for row in rows] == [row.labels for row in rows]
    changed = [rows[0], *rows[:1], rows[2]]
    assert content_of_rows(rows) != content_of_rows(changed)


@pytest.mark.parametrize(
    ("label", "separator", "message"),
    [
        (["a"], None, r"'class' is \[\"a\"\], but must be a string or a number; .*--multi-label"),
        ("a||b", "|", "line 1: 'class' is empty: the label is missing"),
        (
            None,
            "|",
            r"'class' is null, but must be a list of labels, or a string of t",
        ),
        ([["a"]], "|", "must be a string or a number"),
    ],
)
def test_read_rows_reports_wrong_lists_of_labels(
    tmp_path: Path, label: Any, separator: str | None, message: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"sentence": "a", "class": label}))
    with pytest.raises(ValueError, match=message):
        read_rows(path, COLUMNS, separator=separator)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "train holds no rows"),
        (["text"], "train, row 1 is 'text', but must be a dict of columns"),
        ([{"class": 1}], "train, row 1: there is no column 'sentence'; the columns are 'class'"),
        ([{"class": 1, "sentence": 2}], "train, row 1: 'sentence' is 2, but must be a string"),
        ([{"class": {1}, "sentence": "a"}], "'class' is \"{1}\", but must be a string or a number"),
    ],
)
def test_read_rows_reports_row_of_errors_in_memory(records: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        read_rows(records, COLUMNS, name="train")


def test_read_rows_reports_damaged_binary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress(b'{"sentence": "a", "class": 1}\n' * 9)
    for content in (b"{}", whole[:-9], whole[:20] + b"x" * 20):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.jsonl\.gz is not a whole gzip file \("):
            read_rows(path, COLUMNS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").touch()
    with pytest.raises(
        ImportError, match=r'a\.parquet needs pyarrow, which .*: pip install "gpt1-jax\[a'
    ):
        read_rows(tmp_path / "a.parquet", COLUMNS)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather"])
def test_read_rows_reports_what_pyarrow_does(tmp_path: Path, name: str) -> None:
    path = write_records(tmp_path / name, [{"sentence": "a", "label": 1}])
    with pytest.raises(ValueError, match=r"no column 'class'; the columns are 'sentence', 'label'"):
        read_rows(path, COLUMNS)
    path = write_records(tmp_path / name, [{"sentence": "a", "class": None}])
    with pytest.raises(ValueError, match=rf"{name}, row 1: 'class' is null, but must be a str"):
        read_rows(path, COLUMNS)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=rf"{name} cannot be read \("):
        read_rows(path, COLUMNS)


def test_read_rows_keeps_unicode_line_separators(tmp_path: Path) -> None:
    text = "one\u0085two\u2028three\x0bfour"
    for suffix in (".csv", ".tsv", ".jsonl"):
        path = tmp_path / f"rows{suffix}"
        write(path, [(text, "1", "x")], blank_lines=False)
        assert [row.texts["text"] for row in read_rows(str(path), COLUMNS)] == [text]


def test_read_rows_accepts_crlf_and_uppercase_suffix(tmp_path: Path) -> None:
    path = tmp_path / "rows.CSV"
    path.write_bytes(b'sentence,class\r\n"a ""b"", c",1\r\nd,2')
    rows = read_rows(path, COLUMNS)
    assert rows == [
        Row(f"{path}, line 2", {"text": 'a "b", c'}, "1"),
        Row(f"{path}, line 3", {"text": "d"}, "2"),
    ]


@pytest.mark.parametrize(
    ("value", "label"),
    [('" x "', "x"), ("1", "1"), ('"1"', "1"), ("-2.5", "-2.5"), ("true", "true"), ("0", "0")],
)
def test_read_rows_converts_json_labels_to_strings(tmp_path: Path, value: str, label: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "a", "label": {value}}}\n')
    assert read_rows(path, {"text": "text", "label": "label"})[0].label == label


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "a.csv holds no rows"),
        ("a.csv", b"\xef\xbb\xbf\n\n", "a.csv holds no rows"),
        ("a.csv", b"sentence,class\n", "a.csv holds no rows"),
        ("a.jsonl", b"\n \n", "a.jsonl holds no rows"),
        ("a.txt", b"sentence,class\na,1\n", "a.txt must be a file of one of the kinds .jsonl"),
        ("a", b"sentence,class\na,1\n", ".jsonl, .json, .csv, .tsv, .parquet"),
        ("a.gz", b"sentence,class\na,1\n", ".jsonl, .json, .csv, .tsv, .parquet"),
        ("a.json", b"", "a.json holds no rows"),
        ("a.json", b" []", "a.json holds no rows"),
        ("a.json", b'["a"]', "a.json, item 1 is no JSON object"),
        ("a.json", b'[{"sentence": "a"}]', "a.json, item 1: there is no column 'class'"),
        ("a.json", b'[{"sentence": "a", "class": 1}', "a.json is not JSON ("),
        ("a.json", b'{\n"sentence": "a", "class": 1}', "a.json, line 1 is not JSON ("),
        ("a.json", b'[\n"\xff"]', "a.json, line 2 is not UTF-8"),
        (
            "a.csv",
            b"sentence,label\na,1\n",
            "a.csv, line 1: there is no column 'class'; the columns are 'sentence', 'label'",
        ),
        ("a.tsv", b"sentence,class\na,1\n", "the columns are 'sentence,class'"),
        (
            "a.jsonl",
            b'{"sentence": "a", "class": 1}\n{"sentence": "a"}\n',
            "a.jsonl, line 2: there is no column 'class'; the columns are 'sentence'",
        ),
        ("a.jsonl", b"{}", "line 1: there is no column 'sentence'; the columns are none"),
        (
            "a.csv",
            b"sentence,class,sentence\na,1,b\n",
            "a.csv, line 1: the header has 'sentence' more than once",
        ),
        (
            "a.csv",
            b'sentence,class\n"a\nb",1\nc\n',
            "a.csv, line 4 has 1 cells, but the header 2",
        ),
        ("a.csv", b"sentence,class\na, b,1\n", "a.csv, line 2 has 3 cells, but the header 2"),
        ("a.csv", b'sentence,class\na,1\n"b,1\nc,2\n', "a.csv, line 3: unexpected end of data"),
        ("a.csv", b'sentence,class\n"a" b,1\n', "a.csv, line 2: ',' expected after '\"'"),
        ("a.tsv", b"sentence\tclass\na\t1\n \n", "a.tsv, line 3 has 1 cells, but the header 2"),
        (
            "a.tsv",
            b'sentence\tclass\n"a\nb"\t1\n',
            "line 2 has 1 cells, but the header 2; if the file quotes its cells, pass quoting=",
        ),
        (
            "a.tsv",
            b'"sentence"\t"class"\na\t1\n',
            """no column 'sentence'; the columns are '"sentence"', '"class"'; if the file quotes""",
        ),
        ("a.csv", b"sentence,class\n ,1\n", "a.csv, line 2: 'sentence' is empty"),
        ("a.csv", b"sentence,class\na,\n", "line 2: 'class' is empty: the label is missing"),
        ("a.csv", b"sentence,class\na,1\nna\xefve,1\n", "a.csv, line 3 is not UTF-8"),
        ("a.jsonl", b"\xff\xfe{\x00", "a.jsonl, line 1 is not UTF-8"),
        ("a.jsonl", b'\n{"sentence": "a\n', "a.jsonl, line 2 is not JSON (Unterminated string"),
        ("a.jsonl", b'["a"]', "a.jsonl, line 1 is no JSON object"),
        ("a.jsonl", b'{"sentence": ["a"], "class": 1}', "'sentence' is [\"a\"], but must be a str"),
        ("a.jsonl", b'{"sentence": 1, "class": 1}', "'sentence' is 1, but must be a string"),
        ("a.jsonl", b'{"sentence": "", "class": 1}', "line 1: 'sentence' is empty"),
        (
            "a.jsonl",
            b'{"sentence": "a", "class": null}',
            "'class' is null, but must be a string or",
        ),
        ("a.jsonl", b'{"sentence": "a", "class": NaN}', "line 1 contains NaN, which JSON"),
        ("a.jsonl", b'{"a": ' + b"[" * 100_000, "line 1 is nested too deeply"),
    ],
)
def test_read_rows_reports_file_and_line_of_errors(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared below)
        read_rows(path, COLUMNS)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_read_rows_reports_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        read_rows(tmp_path / "nowhere.csv", COLUMNS)


def test_read_rows_reads_published_snli(data_folder: Path) -> None:
    columns = {"premise": "premise", "hypothesis": "hypothesis", "label": "label"}
    file = data_folder / "entailment" / "snli" / "validation.tsv"
    with pytest.warns(UserWarning, match="--quoting csv"):
        assert len(read_rows(file, columns)) == 9842
    rows = read_rows(file, columns, quoting="csv")
    assert Counter(row.label for row in rows) == {"0": 3329, "1": 3235, "2": 3278}
    assert rows[0].texts["premise"].startswith("Two women are embracing")
    assert rows[-1].place.endswith("validation.tsv, line 9843")


# Rows that are taken out.


def rows_with(labels: list[str]) -> list[Row]:
    return [Row(f"rows, line {i}", {"text": str(i)}, label) for i, label in enumerate(labels)]


@given(
    labels=st.lists(st.sampled_from("aaabbc"), min_size=4, max_size=60),
    share=st.floats(0.02, 0.9),
    seed=st.integers(0, 2**32 - 1),
    by_label=st.booleans(),
)
def test_take_out_takes_a_share_of_each_label(
    labels: list[str], share: float, seed: int, by_label: bool
) -> None:
    rows = rows_with(labels)
    stay, out = take_out(rows, share, seed, by_label=by_label)
    assert (stay, out) == take_out(rows, share, seed, by_label=by_label)
    places = [row.place for row in rows]
    assert [
        row.place for row in sorted([*stay, *out], key=lambda row: places.index(row.place))
    ] == places
    for part in (stay, out):
        assert part == [row for row in rows if row in part]  # in their order
    counts, taken = Counter(labels), Counter(row.label for row in out)
    if by_label:
        for label, count in counts.items():
            assert taken[label] < count
            assert abs(taken[label] - share * count) < 1 or taken[label] in (1, count - 1)
        if all(share * count < count - 1 for count in counts.values()):
            assert len(out) == max(1, round(share * len(rows)))
    else:
        assert len(out) == max(1, min(round(share * len(rows)), len(rows) - 1))


def test_take_out_and_draw_rows_depend_on_the_seed() -> None:
    rows = rows_with(["a", "b"] * 50)
    parts = [take_out(rows, 0.1, seed, by_label=True)[1] for seed in range(2)]
    assert [Counter(row.label for row in part) for part in parts] == [{"a": 5, "b": 5}] * 2
    assert parts[0] != parts[1]
    few, more = (draw_rows(rows, number, 0) for number in (10, 30))
    assert len(few) == 10
    assert few == [row for row in more if row in few] != more[:10]
    assert draw_rows(rows, 10, 1) != few
    assert draw_rows(rows, 100, 0) == rows
    with pytest.raises(ValueError, match="train_rows is 101, but there are 100 rows to train on"):
        draw_rows(rows, 101, 0)
    with pytest.raises(ValueError, match=r"2 rows are too few to take a share of 0\.5 out of them"):
        take_out(rows[:2], 0.5, 0, by_label=True)
