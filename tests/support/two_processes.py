"""What becomes of errors that one of several processes meets: a line of JSON for each case.

cd tests && python -m support.two_processes PORT PROCESS_ID NUM_PROCESSES FOLDER
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

from gpt1_jax.sharding import processes
from gpt1_jax.sharding.processes import DeviceSettings, devices

PORT, NUMBER, NUM_PROCESSES, FOLDER = sys.argv[1:]


@contextlib.contextmanager
def reported(case: str) -> Iterator[None]:
    """Run a case in a block that fails together, and report how it ended."""
    try:
        with processes.fail_together():
            yield
    except Exception as error:
        print(json.dumps([case, type(error).__name__, str(error)]), flush=True)
    else:
        print(json.dumps([case, None, None]), flush=True)


def fail_in(process: str) -> None:
    if process == NUMBER:
        raise FileNotFoundError(f"no file \N{GRINNING FACE}{'x' * 2000}")


def cases(folder: Path) -> None:
    own = folder / NUMBER
    own.mkdir(exist_ok=True)
    with reported("nothing is wrong"):
        processes.assert_same_on_all_processes({"seed": 0}, None)
        processes.assert_same_folder(folder / "shared")
        with processes.main_process_first():
            pass
    with reported("before settings are compared"):
        fail_in("1")
        processes.assert_same_on_all_processes({"seed": 0}, None)
    with reported("settings differ"):
        settings = {"seed": NUMBER, "steps": 1, f"of {NUMBER}": 1}
        processes.assert_same_on_all_processes(settings, None)
    with reported("folders differ"):
        processes.assert_same_folder(own)
    with reported("while process 0 goes first"), processes.main_process_first():
        fail_in("0")
    with reported("while the others follow"):
        with processes.main_process_first():
            fail_in("1")
        processes.assert_same_on_all_processes({"seed": 0}, None)
    with reported("in the end"):
        fail_in("1")
    with reported("nothing is wrong any more"):
        processes.assert_same_on_all_processes({"seed": 0}, None)


settings = DeviceSettings(
    distributed=True,
    coordinator=f"127.0.0.1:{PORT}",
    process_id=int(NUMBER),
    num_processes=int(NUM_PROCESSES),
)
with devices(settings):
    cases(Path(FOLDER))
