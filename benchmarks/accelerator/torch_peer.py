"""torch's side: Hugging Face's models on the same device, in a process of their own.

The parent sends one JSON object a line and gets one back: ``{"do": "prepare", ...}`` loads,
compiles and warms up what ``{"do": "run", "times": n}`` then runs.
"""

import contextlib
import gc
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accelerator.host import python_path

Request = dict[str, Any]
NEEDED = ("torch", "transformers")


class TorchPeer:
    """The child, seen from the parent."""

    def __init__(self, process: subprocess.Popen[str]):
        self._process = process
        self._has_cuda: bool | None = None

    def lives(self) -> bool:
        """Return whether the child has not ended."""
        return self._process.poll() is None

    def end(self) -> None:
        """End the child."""
        self._process.kill()
        self._process.wait()

    def has_cuda(self, deadline: float) -> bool:
        """Return whether the child's torch can use a GPU."""
        if self._has_cuda is None:
            self._has_cuda = self.ask({"do": "has_cuda"}, deadline)
        return bool(self._has_cuda)

    @classmethod
    @contextlib.contextmanager
    def start(cls, checkpoint: Path, device: str, folder: Path) -> Iterator["TorchPeer"]:
        """Start the child; it ends with the block.

        Args:
            checkpoint: Hugging Face's folder.
            device: as torch names it.
            folder: for what torch compiles.
        """
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(checkpoint), device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # an interrupt from the keyboard is the parent's alone
            env={
                **os.environ,
                "PYTHONPATH": python_path(),
                "HF_HUB_OFFLINE": "1",
                "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
            },
        )
        # Closes the pipes; what an ended child has not read cannot be flushed.
        with contextlib.suppress(BrokenPipeError), process:
            try:
                yield cls(process)
            finally:
                process.kill()

    def ask(self, request: Request, deadline: float) -> Any:
        """Return the child's answer.

        Raises:
            RuntimeError: the child could not do it, or has ended; the message is its own.
            TimeoutError: it took too long; it is ended.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        alarm = threading.Timer(max(1.0, deadline - time.monotonic()), self._process.kill)
        alarm.start()
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            alarm.cancel()
        if not line:
            if time.monotonic() >= deadline:
                raise TimeoutError(f"torch took too long: {request}")
            raise RuntimeError(f"torch's process has ended with status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"torch: {answer['error']}")
        return answer["found"]


def missing() -> str | None:
    """Return which of the needed packages are not installed, or None."""
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} not installed" if absent else None


class _Child:
    """What the child does."""

    def __init__(self, checkpoint: Path, device: str):
        import torch

        self.checkpoint, self.device, self.torch = checkpoint, device, torch
        self.run: Callable[[], object] = lambda: None

    def answer(self, request: Request) -> Any:
        do = request.pop("do")
        return getattr(self, f"do_{do}")(**request)

    def do_prepare(self, kind: str, **arguments: Any) -> Any:
        """Load and warm up; return the seconds of the first run, compilation included."""
        self.do_release()
        self.torch.compiler.reset()
        if self.device == "cuda":
            self.torch.cuda.reset_peak_memory_stats()
        self.run = getattr(self, f"_{kind}")(**arguments)
        first = self._seconds(1)
        self._seconds(2)
        return {"first": first}

    def do_release(self) -> None:
        """Give back the memory of what was prepared last."""
        self.run = lambda: None
        gc.collect()
        if self.device == "cuda":
            self.torch.cuda.empty_cache()

    def do_has_cuda(self) -> bool:
        return self.torch.cuda.is_available()

    def do_run(self, times: int) -> float:
        """Return the seconds of one of several runs."""
        return self._seconds(times) / times

    def do_memory(self) -> int | None:
        """Return the most bytes that were taken since what was prepared last."""
        return self.torch.cuda.max_memory_allocated() if self.device == "cuda" else None

    def do_logits(self, ids: list[list[int]], dtype: str, tf32: bool, file: str) -> float:
        """Write the logits to a file, and return the loss."""
        self._precision(tf32)
        tokens = self.torch.tensor(ids, device=self.device)
        with self.torch.inference_mode():
            out = self._model(dtype)(tokens, labels=tokens)
        np.save(file, out.logits.float().cpu().numpy())
        return float(out.loss)

    def _seconds(self, times: int) -> float:
        self._wait()
        begin = time.perf_counter()
        for _ in range(times):
            self.run()
        self._wait()
        return time.perf_counter() - begin

    def _wait(self) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def _precision(self, tf32: bool) -> None:
        self.torch.set_float32_matmul_precision("high" if tf32 else "highest")

    def _model(self, dtype: str, **fields: Any) -> Any:
        from transformers import OpenAIGPTLMHeadModel

        model: Any = OpenAIGPTLMHeadModel.from_pretrained(self.checkpoint, dtype=dtype, **fields)
        return model.eval().to(self.device)

    def _ids(self, rows: int, tokens: int, vocabulary: int) -> Any:
        ids = np.random.default_rng(0).integers(vocabulary, size=(rows, tokens))
        return self.torch.from_numpy(ids).to(self.device)

    def _compile(self, call: Any, mode: str | None) -> Any:
        return call if mode is None else self.torch.compile(call, mode=mode, dynamic=False)

    def _forward(
        self, rows: int, tokens: int, dtype: str, mode: str | None = None, tf32: bool = False
    ) -> Callable[[], object]:
        self._precision(tf32)
        model = self._model(dtype)
        call = self._compile(model, mode)
        ids = self._ids(rows, tokens, model.config.vocab_size)

        def run() -> object:
            with self.torch.inference_mode():
                return call(ids, return_dict=False)[0]

        return run

    def _generate(
        self, rows: int, prompt: int, new: int, dtype: str, static: bool = False, gpt2: bool = False
    ) -> Callable[[], object]:
        self._precision(False)
        model = self._gpt2(dtype) if gpt2 else self._model(dtype)
        ids = self._ids(rows, prompt, model.config.vocab_size)
        # A static cache makes transformers compile the step.
        more = {"cache_implementation": "static"} if static else {}

        def run() -> object:
            return model.generate(
                ids,
                attention_mask=self.torch.ones_like(ids),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
                **more,
            )

        return run

    def _gpt2(self, dtype: str) -> Any:
        """GPT-2 of the checkpoint's sizes, with random weights: unlike GPT-1 it has a cache."""
        from transformers import GPT2Config, GPT2LMHeadModel

        sizes = json.loads((self.checkpoint / "config.json").read_text())
        same = {name: sizes[name] for name in ("n_embd", "n_layer", "n_head", "vocab_size")}
        config = GPT2Config(**same, bos_token_id=0, eos_token_id=0)
        model: Any = GPT2LMHeadModel(config)
        return model.eval().to(self.device, getattr(self.torch, dtype))

    def _train(
        self, rows: int, tokens: int, dtype: str, mode: str | None = None
    ) -> Callable[[], object]:
        """A step on float32 weights, in another dtype by torch's own mixed precision."""
        torch = self.torch
        self._precision(False)
        rates = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
        model = self._model("float32", **rates).train()
        call = self._compile(model, mode)
        ids = self._ids(rows, tokens, model.config.vocab_size)
        parameters = list(model.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01, fused=True)
        mixed = dtype != "float32"

        def run() -> object:
            with torch.autocast(self.device, dtype=getattr(torch, dtype), enabled=mixed):
                loss = call(input_ids=ids, labels=ids).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return loss

        return run


def _serve(checkpoint: Path, device: str) -> None:
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    child = _Child(checkpoint, device)
    for line in sys.stdin:
        try:
            answer = {"found": child.answer(json.loads(line))}
        except Exception as error:  # the parent decides
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), sys.argv[2])
