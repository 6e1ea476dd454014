"""``python -m benchmarks``, where it must not run."""

import os
import subprocess
import sys
from pathlib import Path

import benchmarks


def test_benchmarks_outside_the_checkout_name_it(tmp_path: Path) -> None:
    checkout = Path(benchmarks.__path__[0]).resolve().parent
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "report"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"benchmarks: must run from the checkout: cd {checkout}\n"
