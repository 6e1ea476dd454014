"""GPT-1 as a model of the lm-evaluation-harness, by the name ``gpt1``.

Importing this module registers it; versions of the harness that look for plugins find it without.

Requests are tokenized, cut and ended as by the harness's own model ``hf``, so that the answers are
equal where ``hf`` can run the checkpoint at all: it cannot without a bos or an eos token.
(Where two requests are one text with borders at different places, version 0.4.13 of ``hf`` gives
one of them the numbers of other tokens, unless its ``logits_cache`` is False.)
"""

# pyright: reportMissingImports=false
# The harness is no part of the test extra: pyright passes with and without it.
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gpt1_jax._conversion import extras

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import (
        handle_stop_sequences,
        normalize_gen_kwargs,
        postprocess_generated_text,
    )
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ModuleNotFoundError as error:
    missing = str(error.name).partition(".")[0]  # the harness, or a package that it needs
    raise ImportError(extras.explain("the command lm-eval", [missing], "lm-eval")) from None
from tqdm import tqdm

from gpt1_jax.checks import is_integer, short, wrong
from gpt1_jax.demo import DEMO, HubOptions
from gpt1_jax.generation.batches import generate_batches
from gpt1_jax.generation.stop_strings import possible
from gpt1_jax.generation_config import as_ids
from gpt1_jax.model import OpenAIGPTLMHeadModel
from gpt1_jax.quantization import quantized_if
from gpt1_jax.scoring import score_batches
from gpt1_jax.text.tokenizer import Tokenizer

# A context and a continuation as ids; before them, what the harness caches the answer by.
Pair = tuple[tuple[str, str] | None, Sequence[int], Sequence[int]]


@register_model("gpt1")
class GPT1LM(TemplateLM):
    """A GPT-1 that answers the harness's requests.

    Args:
        pretrained: a checkpoint with a tokenizer: a folder or hub id; or a language model.
        tokenizer: another checkpoint's, or an object; needed beside a model that is an object.
        batch_size: how many texts of n_positions tokens are computed at once; shorter ones are
            computed in larger batches. Texts are continued so many at a time. By default both are
            chosen by the lengths.
        max_batch_size: the harness's bound for "auto", which is taken as ``batch_size`` then.
        device: ignored: the harness's default is torch's "cuda:0". ``JAX_PLATFORMS`` chooses.
        dtype: of the weights in memory and of the computation; the checkpoint's by default.
        quantize: "int8", or None.
        prefix_token_id: what stands before a text that has no context; by default the tokenizer's
            bos or eos token. Without any, the first token of such a text is not scored.
        add_bos_token: False for texts without the special tokens of the tokenizer's template, which
            most GPT-1s have not.
        max_length: tokens of a window; n_positions by default, which is the most.
        max_gen_toks: how many tokens a text is continued by where a task does not say.
        pipeline: how text is prepared, "huggingface" or "original"; the tokenizer's by default.
        revision: branch, tag or commit on the hub.
        local_files_only: do without the network.
        **unknown: an error.

    Raises:
        ValueError: an argument is unknown or wrong.
        FileNotFoundError: there is no such checkpoint.
    """

    tokenizer: Any  # a Tokenizer; the harness has none in its base class

    def __init__(
        self,
        pretrained: str | os.PathLike[str] | OpenAIGPTLMHeadModel = DEMO,
        *,
        tokenizer: str | os.PathLike[str] | Tokenizer | None = None,
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        quantize: Any = None,
        prefix_token_id: int | None = None,
        add_bos_token: bool = True,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        pipeline: Any = None,
        revision: str | None = None,
        local_files_only: bool = False,
        **unknown: Any,
    ):
        super().__init__()
        if unknown:
            known = "pretrained", *(GPT1LM.__init__.__kwdefaults__ or ())
            raise ValueError(
                f"there is no model argument {min(unknown)!r}; the arguments are {', '.join(known)}"
            )
        self._batch_size = _batch_size(batch_size, max_batch_size)
        hub: HubOptions = {"revision": revision, "local_files_only": local_files_only}
        if isinstance(pretrained, OpenAIGPTLMHeadModel):
            if tokenizer is None:
                raise ValueError("a model that is an object needs a tokenizer beside it")
            model = pretrained
        else:
            tokenizer = pretrained if tokenizer is None else tokenizer
            stored: Any = None if dtype == "auto" else dtype
            model = OpenAIGPTLMHeadModel.from_pretrained(pretrained, dtype=stored, **hub)
        if not isinstance(tokenizer, Tokenizer):
            tokenizer = Tokenizer.from_pretrained(tokenizer, pipeline=pipeline, **hub)
        self.tokenizer = tokenizer
        self.model = quantized_if(model, quantize)
        self.max_gen_toks, self._add_bos_token = max_gen_toks, add_bos_token
        V, n_positions = model.config.vocab_size, model.config.n_positions
        self.max_length = n_positions if max_length is None else max_length
        if not is_integer(self.max_length) or not 1 <= self.max_length <= n_positions:
            right = f"an integer in [1, {n_positions}], n_positions being {n_positions}"
            raise wrong("max_length", max_length, right)
        tokens = [self.tokenizer.bos_token_id, self.tokenizer.eos_token_id]
        given = [prefix_token_id, *tokens]
        self._prefix = next((token for token in given if token is not None), None)
        if self._prefix is None:
            warnings.warn(
                "the tokenizer has no bos or eos token, and no prefix_token_id is given: the first "
                "token of a text without a context is not scored",
                stacklevel=1,  # in the command, a line of its own
            )
        elif not is_integer(self._prefix) or not 0 <= self._prefix < V:
            right = f"an integer in [0, {V}), vocab_size being {V}"
            raise wrong("prefix_token_id", self._prefix, right)

    @property
    def eot_token_id(self) -> Any:
        """The token that ends a text, None if the tokenizer has none."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> Any:
        """The token that stands before a text without a context, None if there is none."""
        return self._prefix

    @property
    def batch_size(self) -> int | str:
        """What was given: a number, or "auto"."""
        return self._batch_size or "auto"

    def get_model_info(self) -> dict[str, object]:
        """Return what the harness writes into its results."""
        return {
            "model_num_parameters": sum(leaf.size for leaf in jax.tree.leaves(self.model.params)),
            "model_dtype": self.model.dtype.name,
            "jax_version": jax.__version__,
        }

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **options: Any
    ) -> list[int]:
        """Return the ids of a text.

        A text that begins with the prefix token gets no special tokens, unless asked for.
        """
        if add_special_tokens is None:
            prefix = None if self._prefix is None else self.tokenizer.decode(self._prefix)
            begun = prefix is not None and string.startswith(prefix)
            add_special_tokens = self._add_bos_token and not begun
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return for each context and continuation the latter's log-probability in nats.

        Beside it whether every token of the continuation is the greedy choice.
        """
        pairs: list[Pair] = []
        for context, continuation in (request.args for request in requests):
            if context.strip():
                before, ids = self._encode_pair(context, continuation)
            else:
                before, ids = [], self.tok_encode(context + continuation, add_special_tokens=False)
            if not before:
                before, ids = self._without_context(ids)
            pairs.append(((context, continuation), before, ids))
        return self._loglikelihood_tokens(pairs, disable_tqdm)

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-probability in nats of each text.

        A text that is longer than ``max_length`` is read in windows: the last of them as far back
        as it reaches, the others side by side.
        """
        pairs: list[Pair] = []
        numbers: list[int] = []
        for number, request in enumerate(requests):
            for window in self._windows(self.tok_encode(request.args[0])):
                pairs.append((None, *window))
                numbers.append(number)
        totals = [0.0] * len(requests)
        found = self._loglikelihood_tokens(pairs, disable_tqdm)
        for number, (log_prob, _) in zip(numbers, found, strict=True):
            totals[number] += log_prob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return a continuation of each context, cut before the first stop string.

        Draws begin with numpy's global seed, which the harness sets.
        """
        texts = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            key = json.dumps(request.args[1], sort_keys=True, default=str)
            groups.setdefault(key, []).append(number)
        with tqdm(total=len(texts), unit="text", disable=disable_tqdm) as bar:
            for numbers in groups.values():
                contexts = [requests[number].args[0] for number in numbers]
                given = requests[numbers[0]].args[1]
                for i, text in self._continue(contexts, given):
                    texts[numbers[i]] = text
                    self.cache_hook.add_partial("generate_until", (contexts[i], given), text)
                    bar.update()
        return texts

    def _without_context(self, ids: list[int]) -> tuple[list[int], list[int]]:
        """Return the ids that are not scored, and those that are."""
        if self._prefix is None or ids[:1] == [self._prefix]:
            return ids[:1], ids[1:]
        return [self._prefix], ids

    def _windows(self, ids: list[int]) -> Iterator[tuple[list[int], list[int]]]:
        """Yield the ids that are read before, and those that are scored, of each window."""
        prefix = self._prefix
        if prefix is None and len(ids) > 1:  # the first token takes the prefix's place
            prefix, ids = ids[0], ids[1:]
        if prefix is not None:
            windows = get_rolling_token_windows(ids, prefix, self.max_length, context_len=1)
            yield from map(make_disjoint_window, windows)

    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        rows, contexts = [], []
        for texts, context, continuation in requests:
            if not 0 < len(continuation) <= self.max_length:
                what = f"{short(texts[1])} after {short(texts[0])}" if texts else "a window"
                hint = "; GPT-1's tokens end with words" if not continuation else ""
                if not continuation and self._prefix is None:
                    hint = "; prefix_token_id= would score a first token too"
                raise ValueError(
                    f"{what} has {len(continuation)} tokens to score, but must have 1 to "
                    f"{self.max_length}{hint}"
                )
            row = [*context, *continuation][-(self.max_length + 1) :]
            rows.append(row)
            contexts.append(len(row) - len(continuation))
        answers = [(0.0, True)] * len(rows)
        size = self._batch_size
        batch: Any = {} if size is None else {"batch_tokens": size * self.max_length}
        scores = score_batches(self.model, rows, contexts, **batch)
        for number, score in tqdm(scores, total=len(rows), unit="request", disable=disable_tqdm):
            answers[number] = score.sum, bool(score.is_greedy[contexts[number] :].all())
            if (texts := requests[number][0]) is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answers[number])
        return answers

    def _continue(
        self, contexts: Sequence[str], gen_kwargs: Mapping[str, Any]
    ) -> Iterator[tuple[int, str]]:
        """Yield the number of a context, and its continuation."""
        settings: dict[str, Any] = {**normalize_gen_kwargs(dict(gen_kwargs), self.max_gen_toks)}
        end = self.eot_token_id
        spelled = None if end is None else self.tokenizer.decode([end])
        until = [text for text in handle_stop_sequences(settings.pop("until"), spelled) if text]
        new = settings.pop("max_gen_toks")
        room = self.max_length - new
        if room < 1:
            raise ValueError(
                f"max_gen_toks is {new}, but must be less than {self.max_length}, the tokens of a "
                "window, to leave room for a context"
            )
        if "max_length" not in settings:
            settings["max_new_tokens"] = new
        if not settings["do_sample"]:
            settings.pop("temperature", None)
        else:
            settings.setdefault("seed", int(np.random.randint(2**31)))
        if end is not None:
            ends = as_ids(settings.get("eos_token_id", self.model.generation_config.eos_token_id))
            settings["eos_token_id"] = sorted({*ends, end})
        others = [text for text in until if text != spelled]
        stops = possible(self.tokenizer, others, self.model.config.vocab_size)
        settings["stop_strings"] = stops or None
        prefix = [] if self._prefix is None else [self._prefix]
        prompts = [self.tok_encode(context)[-room:] or prefix for context in contexts]
        try:
            batches = generate_batches(
                self.model,
                prompts,
                settings,
                batch_size=self._batch_size,
                tokenizer=self.tokenizer,
                stop_in_prompt=False,  # ``hf`` looks for them in what is new
            )
        except TypeError as error:
            raise ValueError(f"generation_kwargs are {short(gen_kwargs)}: {error}") from None
        for number, output in batches:
            new_ids = output.sequences[0][len(prompts[number]) :]
            text = self.tokenizer.decode(new_ids, skip_special_tokens=True)
            yield number, postprocess_generated_text(text, until, None)


def _batch_size(given: int | str, most: int | None) -> int | None:
    """Return a number of rows; None for "auto"."""
    if isinstance(given, str) and given.partition(":")[0] == "auto":
        given = most or 0
    elif isinstance(given, str) and given.isdecimal():
        given = int(given)
    if given == 0 and most is None:
        return None
    if not is_integer(given) or given < 1:
        raise wrong("batch_size", given, 'a positive integer, or "auto"')
    return given
