"""TransformerLens's own patching loop, in the process of another Python; also a program of its own.

TransformerLens brings its own versions of torch and transformers, and needs nothing of this
package: the child runs this file, which imports neither JAX nor ``benchmarks``.
"""

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Takes the task, clean and corrupted ids (1, T) and a token; returns its logit (layers, runs).
Patching = Callable[[str, Any, Any, int], Any]


@contextlib.contextmanager
def start(python: Path, folder: Path, threads: int) -> Iterator[tuple[Patching, dict[str, str]]]:
    """Start the child with a checkpoint; it ends with the block.

    Returns:
        Its patching, and the versions of what it runs.

    Raises:
        OSError: there is no such program.
        ValueError: it does not run TransformerLens; what it says is on standard error.
    """
    process = subprocess.Popen(
        [python, __file__, str(folder.absolute()), str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=folder,  # where no module hides another
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
    )

    def ask(*request: Any) -> Any:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if request:
                pickle.dump(request, process.stdin)
                process.stdin.flush()
            return pickle.load(process.stdout)
        except (EOFError, BrokenPipeError):
            raise ValueError(f"{python} has ended with status {process.wait()}") from None

    with contextlib.suppress(BrokenPipeError), process:
        try:
            versions = ask()
            yield ask, versions
        finally:
            process.kill()


def _serve(folder: str, threads: int) -> None:
    """Be the child: answer one request after the other."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    import importlib.metadata

    import torch
    from transformer_lens import patching
    from transformer_lens.model_bridge import TransformerBridge

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    patching.tqdm = lambda items: items
    model = TransformerBridge.boot_transformers(folder, device="cpu").eval()

    def remove_head(z: Any, index: Any, cache: Any) -> Any:
        z[:, :, index[1]] = 0
        return z

    def run(task: str, clean: Any, corrupted: Any, token: int) -> Any:
        clean, corrupted = (torch.from_numpy(ids).long() for ids in (clean, corrupted))
        cache = model.run_with_cache(clean)[1]

        def metric(logits: Any) -> Any:
            return logits[0, -1, token]

        if task == "restore":
            found = patching.get_act_patch_resid_pre(model, corrupted, cache, metric)
        else:
            found = patching.generic_activation_patch(
                model, corrupted, cache, metric, remove_head, "z", ("layer", "head_index")
            )
        return found.numpy()

    names = ("transformer-lens", "torch", "transformers")
    answer: Any = {name: importlib.metadata.version(name) for name in names}
    while True:
        pickle.dump(answer, answers)
        answers.flush()
        try:
            answer = run(*pickle.load(sys.stdin.buffer))
        except EOFError:
            return


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
