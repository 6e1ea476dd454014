"""The report of the benchmarks: a page of tables, and pictures, from the records of the suites."""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.report.page import write_page
from benchmarks.report.pictures import draw_pictures
from benchmarks.report.records import read_records, unclean_files
from conversion.files import atomic_write


def report(
    folder: Annotated[Path, tyro.conf.Positional] = Path("benchmarks/results"),
    out: Path | None = None,
) -> Path:
    """Write a page and pictures of what the suites measured.

    Args:
        folder: the records, files of JSON that the suites wrote with --out, all of one machine.
        out: where to write README.md and the pictures; by default beside the records.

    Returns:
        The page.

    Raises:
        FileNotFoundError: there is no record.
        ValueError: a file is no record, or the records do not go together; the message names it.
        ImportError: matplotlib is not installed.
    """
    records = read_records(folder)
    out = out or folder
    pictures = draw_pictures(records)
    texts = {name: text for name, (text, _) in pictures.items()}
    with atomic_write(out) as temporary:
        for name, (_, figure) in pictures.items():
            figure.savefig(temporary(name), format="png")
        temporary("README.md").write_text(write_page(records, texts), encoding="utf-8")
    if unclean := unclean_files(records):
        print(f"warning: not of a clean commit: {', '.join(unclean)}", file=sys.stderr)
    print(f"the report: {out / 'README.md'}")
    return out / "README.md"
