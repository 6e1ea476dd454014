"""What libraries print while they load, kept away from the tables."""

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator

SHOWN = 4000  # characters of what was printed before a failure


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what is printed in this block, by C++ too; show the end of it if the block fails."""
    with tempfile.TemporaryFile("w+", errors="replace") as kept:
        try:
            with contextlib.ExitStack() as restored:
                for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
                    stream.flush()
                    before = os.dup(number)
                    restored.callback(os.close, before)
                    restored.callback(os.dup2, before, number)
                    os.dup2(kept.fileno(), number)
                # Python's streams may be other files than the process's, as under pytest.
                restored.enter_context(contextlib.redirect_stdout(kept))
                restored.enter_context(contextlib.redirect_stderr(kept))
                restored.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
                yield
                kept.flush()
        except BaseException:
            kept.seek(0)
            sys.stderr.write(kept.read()[-SHOWN:])
            raise
