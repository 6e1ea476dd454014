"""Hugging Face's model in torch: as it is, in int8, compiled, and GPT-2 with its cache."""

import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.timing import clock, cores
from gpt1_jax.training.data.tasks import CLASSIFY, START
from gpt1_jax.training.optimizer import OptimizerSettings


def load(folder: Path, dtype: str = "float32", **fields: Any) -> Any:
    """Return the model with parameters in ``dtype`` on JAX's kind of device.

    "int8" is torch's dynamic quantization, on a CPU: of every product with weights, the head's too.
    """
    import torch
    from transformers import OpenAIGPTLMHeadModel

    torch.set_num_threads(cores())
    stored = "float32" if dtype == "int8" else dtype
    model: Any = OpenAIGPTLMHeadModel.from_pretrained(folder, dtype=stored, **fields)
    model.eval().to(_device())
    return _quantized(model) if dtype == "int8" else model


def _quantized(model: Any) -> Any:
    """Return the model in int8: torch quantizes ``Linear``, and GPT-1 has ``Conv1D`` of width 1.

    Each of these becomes the ``Linear`` that computes the same, with its weight transposed. The
    engine is torch's default for the processor; torchao's Int8DynamicActivationInt8WeightConfig,
    compiled, took 1.7 times as long at 1 x 16 and 1.14 times at 1 x 128 (Zen 4, torch 2.13).
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    for name, layer in list(model.named_modules()):
        if isinstance(layer, Conv1D):
            inputs, outputs = layer.weight.shape
            linear = torch.nn.Linear(inputs, outputs)
            linear.weight = torch.nn.Parameter(layer.weight.detach().T.contiguous())
            linear.bias = layer.bias
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, linear)
    return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


def no_compiler() -> str | None:
    """Return that torch.compile finds no C++ compiler, which it needs on a CPU; else None."""
    compiler = os.environ.get("CXX", "g++")
    if _device() == "cpu" and shutil.which(compiler) is None:
        return f"torch.compile needs a C++ compiler, and there is no {compiler}"
    return None


def forward(
    folder: Path, head: bool, dtype: str = "float32", compiled: bool = False
) -> Callable[[np.ndarray], Any]:
    """Return the forward of the language model, or of the transformer alone."""
    import torch

    model = load(folder, dtype)
    module = model if head else model.transformer
    call = _compiled(module) if compiled else module

    def run(ids: np.ndarray) -> Any:
        with torch.inference_mode():
            out = call(_tensor(ids), return_dict=False)[0]
        _wait()
        return out

    return run


def generate(folder: Path, dtype: str = "float32") -> Callable[[np.ndarray, int], np.ndarray]:
    """Return transformers' greedy ``generate``; GPT-1 has no cache there."""
    return _generate(load(folder, dtype))


def score(
    folder: Path, dtype: str = "float32", batch_tokens: int = 2048, chunk: int = 256
) -> Callable[[Sequence[str]], list[np.ndarray]]:
    """Return the function from texts to log-probabilities of their tokens, without the first.

    The longest texts come first, and share a batch with the next. The head multiplies the states of
    their own tokens alone, ``chunk`` at a time.
    """
    import torch
    from transformers import AutoTokenizer

    model, tokenizer = load(folder, dtype), AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def score_batch(rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
        lengths = [len(row) - 1 for row in rows]
        ids = np.zeros((len(rows), max(lengths)), np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row) - 1] = row[:-1]
        states = model.transformer(_tensor(ids)).last_hidden_state
        states = torch.cat([own[:length] for own, length in zip(states, lengths, strict=True)])
        targets = _tensor(np.concatenate([row[1:] for row in rows]))
        found = []
        for x, y in zip(states.split(chunk), targets.split(chunk), strict=True):
            logits = model.lm_head(x).float()
            found.append(logits.gather(1, y[:, None])[:, 0] - logits.logsumexp(-1))
        return [own.cpu().numpy() for own in torch.cat(found).split(lengths)]

    def run(texts: Sequence[str]) -> list[np.ndarray]:
        rows = tokenizer(list(texts))["input_ids"] if texts else []
        order = sorted(range(len(rows)), key=lambda number: -len(rows[number]))
        found: dict[int, np.ndarray] = {}
        while order:
            size = max(1, batch_tokens // len(rows[order[0]]))
            batch, order = order[:size], order[size:]
            found |= zip(batch, score_batch([rows[number] for number in batch]), strict=True)
        return [found[number] for number in range(len(rows))]

    return run


def predict(
    folder: Path, batch_sizes: Sequence[int] = (1, 4, 8, 32), tried: int = 64
) -> Callable[[Sequence[str]], np.ndarray]:
    """Return the function from texts to the probabilities of the classes.

    It is the text-classification pipeline, which takes texts in the order given, in the batch size
    that is fastest for the first ``tried`` of them. The tokenizer puts a text between the tokens
    that a fine-tuned model reads it between.
    """
    import torch
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    torch.set_num_threads(cores())
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (START, CLASSIFY)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{START} $A {CLASSIFY}", special_tokens=special
    )
    tokenizer.pad_token = tokenizer.unk_token
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder)
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    model.eval().to(_device())
    classify: Any = pipeline(
        "text-classification", model=model, tokenizer=tokenizer, device=_device(), top_k=None
    )

    def batches(texts: Sequence[str], size: int) -> np.ndarray:
        # Without truncation: no text here is longer than the model's positions.
        found = classify(list(texts), batch_size=size)
        scores = [{each["label"]: each["score"] for each in row} for row in found]
        return np.array([[row[name] for name in names] for row in scores], np.float32)

    def seconds(texts: Sequence[str], size: int) -> float:
        begin = clock()
        batches(texts[:tried], size)
        return clock() - begin

    fastest: dict[int, int] = {}  # by the number of texts

    def run(texts: Sequence[str]) -> np.ndarray:
        if len(texts) not in fastest:
            batches(texts[:tried], 1)
            fastest[len(texts)] = min(batch_sizes, key=lambda size: seconds(texts, size))
        return batches(texts, fastest[len(texts)])

    return run


def gpt2(folder: Path) -> Callable[[np.ndarray, int], np.ndarray]:
    """Return greedy ``generate`` of GPT-2 small, which has a cache, with random weights.

    It is there to show what a cache gives torch: blocks of the same shapes, 1024 positions, and a
    vocabulary of 50,257.

    Raises:
        ValueError: it writes other ids with its cache than without.
    """
    import json

    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(cores())
    ours = json.loads((folder / "config.json").read_text())
    shared = ("n_embd", "n_layer", "n_head")
    shapes = {name: ours[name] for name in shared}
    torch.manual_seed(0)
    config = GPT2Config(**shapes, bos_token_id=0, eos_token_id=0)
    model: Any = GPT2LMHeadModel(config)
    run = _generate(model.eval().to(_device()))
    prompt = np.arange(8)[None] % ours["vocab_size"]
    if not np.array_equal(run(prompt, 4), run(prompt, 4, use_cache=False)):
        raise ValueError("GPT-2 writes other ids with its cache than without")
    return run


def train(
    folder: Path,
    optimizer: OptimizerSettings,
    rates: dict[str, float],
    remat: str,
    compiled: bool = False,
) -> Callable[[np.ndarray], float]:
    """Return a training step that returns the loss before it; what is recomputed is ours alone."""
    import torch

    fields: dict[str, Any] = dict(rates)
    model = load(folder, **fields).train()
    call = _compiled(model) if compiled else model
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": optimizer.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=optimizer.learning_rate, fused=True)

    def take(ids: np.ndarray) -> float:
        tokens = _tensor(ids)
        loss = call(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, optimizer.max_grad_norm or math.inf)
        adamw.step()
        adamw.zero_grad()
        _wait()
        return loss.item()

    return take


def _generate(model: Any) -> Callable[..., np.ndarray]:
    import torch

    def run(prompts: np.ndarray, new: int, **settings: Any) -> np.ndarray:
        ids = _tensor(prompts)
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
            **settings,
        )
        return out.cpu().numpy()

    return run


def _compiled(module: Any) -> Any:
    """Return the module compiled for each shape that it meets."""
    import torch

    # Else it would quietly run uncompiled from the ninth on.
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(module, dynamic=False)


def _device() -> str:
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def _tensor(ids: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(ids.astype(np.int64)).to(_device())


def _wait() -> None:
    import torch

    if _device() == "cuda":
        torch.cuda.synchronize()
