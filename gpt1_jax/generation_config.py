"""What a user may ask of generation: Hugging Face's names, checked as a whole before any work."""

import dataclasses
import functools
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol, Self, TypeGuard, runtime_checkable

import numpy as np

from gpt1_jax.checks import (
    INTEGER,
    NUMBER,
    Count,
    ForeignKeyword,
    MaybeCount,
    Rule,
    Switch,
    at_least,
    at_most,
    check_fields,
    check_keywords,
    is_integer,
    is_number,
    short,
    wrong,
)
from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.demo import HubOptions, resolve

FILE = "generation_config.json"
CONFIG = "config.json"
MAX_INT = 2**20  # tokens or texts, beyond which memory could not hold them
# What changes the logits whether tokens are drawn or not.
CONSTRAINTS = (
    *("min_new_tokens", "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids"),
    *("suppress_tokens", "forced_bos_token_id", "forced_eos_token_id"),
)
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed")
KEPT = ("output_scores", "output_logits")
RETURNED = ("return_dict_in_generate", *KEPT)
BEAMS = ("length_penalty", "early_stopping")
OURS_ALONE = ("seed", "sliding_window")
# What None says of these is a value of its own; of the others, that they are not given.
NONE_COUNTS = ("top_k", "sliding_window", "prompt_lookup_num_tokens")
# Ids of which one that the vocabulary lacks is an error; others never match.
IDS_IN_VOCABULARY = ("forced_bos_token_id", "forced_eos_token_id", "bad_words_ids")
IDS = ("eos_token_id", "pad_token_id", "suppress_tokens", *IDS_IN_VOCABULARY)

# What a file may say beyond the values at which transformers leaves a setting out.
CLAMPED: dict[str, Callable[[Any], Any]] = {
    "min_length": lambda value: max(value, 0),
    "min_new_tokens": lambda value: max(value, 0),
    "no_repeat_ngram_size": lambda value: max(value, 0),
    "top_p": lambda value: min(value, 1.0),
    "typical_p": lambda value: min(value, 1.0),
}


def _is_above_0(value: object) -> bool:
    return not (is_number(value) and value <= 0)


def _is_cutoff(value: object) -> bool:
    return not is_number(value) or 0 < value < 1


# What transformers knows besides, and whether a value that is not None would change the text.
UNSUPPORTED: dict[str, Callable[[Any, "GenerationConfig"], bool]] = {
    "max_time": lambda value, settings: True,
    "num_beam_groups": lambda value, settings: value != 1 and settings.num_beams > 1,
    "constraints": lambda value, settings: True,
    "force_words_ids": lambda value, settings: True,
    "penalty_alpha": lambda value, settings: (
        _is_above_0(value)
        and not (settings.do_sample or settings.num_beams > 1)
        and settings.given().get("top_k", 50) not in (None, 1)
    ),
    "dola_layers": lambda value, settings: settings.num_beams == 1,
    "sequence_bias": lambda value, settings: True,
    "begin_suppress_tokens": lambda value, settings: value not in ([], ()),
    "exponential_decay_length_penalty": lambda value, settings: True,
    "epsilon_cutoff": lambda value, settings: settings.do_sample and _is_cutoff(value),
    "eta_cutoff": lambda value, settings: settings.do_sample and _is_cutoff(value),
    "top_h": lambda value, settings: settings.do_sample,
    "guidance_scale": lambda value, settings: value != 1,
    # Draws and the likeliest token are the same; a beam's score is not.
    "renormalize_logits": lambda value, settings: value is not False and settings.num_beams > 1,
    # Logits that are not finite are an error here.
    "remove_invalid_values": lambda value, settings: value is not False and settings.num_beams > 1,
    "token_healing": lambda value, settings: value is not False,
    "watermarking_config": lambda value, settings: True,
    # Without an encoder, transformers takes the prompt for what it has read.
    "encoder_repetition_penalty": lambda value, settings: value != 1,
    "encoder_no_repeat_ngram_size": lambda value, settings: _is_above_0(value),
}

# What transformers knows besides and leaves the text of a prompt as it is: how it is computed,
# drafts that the model then accepts or not, tokens of other models.
WITHOUT_EFFECT = """
    bos_token_id decoder_start_token_id transformers_version diversity_penalty
    cache_config cache_implementation compile_config continuous_batching_config disable_compile
    low_memory max_cache_len prefill_chunk_size use_cache
    assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight
    assistant_lookbehind is_assistant max_matching_ngram_size num_assistant_tokens
    num_assistant_tokens_schedule speculation_type target_lookbehind use_mtp
"""
# What transformers' ``generate`` may return besides, and ours does not.
OUTPUTS = "output_attentions output_hidden_states"
_ASSISTANT = "prompt_lookup_num_tokens= drafts tokens, without a second model"
_STATES = "the model's own call returns them, for the sequences that generate returned"
# Other keywords of transformers' ``generate``.
FOREIGN = {
    "inputs": ForeignKeyword("input_ids= is its name"),
    "return_dict": ForeignKeyword("return_dict_in_generate= is its name"),
    "output_attentions": ForeignKeyword(_STATES, (None, False)),
    "output_hidden_states": ForeignKeyword(_STATES, (None, False)),
    "past_key_values": ForeignKeyword("every call has a cache of its own"),
    "position_ids": ForeignKeyword("positions follow from attention_mask="),
    "assistant_model": ForeignKeyword(_ASSISTANT),
    "assistant_tokenizer": ForeignKeyword(_ASSISTANT),
    "prefix_allowed_tokens_fn": ForeignKeyword("a function of logits_processor= can forbid tokens"),
    "negative_prompt_ids": ForeignKeyword("classifier-free guidance is not supported"),
    "negative_prompt_attention_mask": ForeignKeyword("classifier-free guidance is not supported"),
    "custom_generate": ForeignKeyword("no code of a checkpoint is run"),
    "trust_remote_code": ForeignKeyword("no code of a checkpoint is run", (None, False)),
    "synced_gpus": ForeignKeyword("sharding.mesh.shard_model lays a model out", (None, False)),
    "use_model_defaults": ForeignKeyword("model.generation_config always counts", (None, True)),
}


NOT_FIELDS = {
    name: ForeignKeyword("it has no effect here") for name in f"{WITHOUT_EFFECT} {OUTPUTS}".split()
} | {name: ForeignKeyword("it is not supported here") for name in UNSUPPORTED}


@runtime_checkable
class TransformersConfig(Protocol):
    """transformers' own ``GenerationConfig``, which need not be installed."""

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the settings that are given."""
        ...


def _within(low: float, high: float) -> Rule:
    return Rule(f"in [{low:g}, {high:g}]", lambda value: low <= value <= high)


def _are_ids(value: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(value, tuple) and all(map(is_integer, value))


def _are_seeds(value: object) -> bool:
    seeds = value if isinstance(value, tuple) else (value,)
    return _are_ids(seeds) and seeds != () and all(0 <= seed < 2**32 for seed in seeds)


def _are_texts(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(text, str) and text for text in value)


Amount = Annotated[Count, at_most(MAX_INT)]
AmountOrZero = Annotated[int, INTEGER, at_least(0), at_most(MAX_INT)]
# Beyond these, logits divided or multiplied by it leave float32's range.
Factor = Annotated[float, NUMBER, _within(1e-6, 1e6)]
Share = Annotated[float, NUMBER, Rule("in (0, 1]", lambda p: 0 < p <= 1)]
Id = Annotated[int | None, Rule("an id", is_integer)]
Ids = Annotated[
    int | Sequence[int] | None,
    Rule("an id or several", lambda ids: is_integer(ids) or _are_ids(ids)),
]
Words = Annotated[
    Sequence[Sequence[int]],
    Rule("sequences of ids", lambda words: isinstance(words, tuple) and all(map(_are_ids, words))),
    Rule("sequences of at least one id", all),
]
Texts = Annotated[str | Sequence[str], Rule("strings of at least one character", _are_texts)]
Seeds = Annotated[
    int | Sequence[int] | None, Rule("an integer in [0, 2**32), or one a prompt", _are_seeds)
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How to choose the next tokens. Names and defaults are those of Hugging Face's ``generate``,
    except that top_k is unset by default (50 there).

    A setting that has no effect, such as a temperature without do_sample, is an error if it is
    given by hand. If it comes from a file, it is kept, and takes effect as soon as another setting
    turns it on: ``updated`` and ``dataclasses.replace`` change settings.

    The command line shows the descriptions of the attributes as help.

    Attributes:
        max_new_tokens: maximum number of tokens to add to a prompt; the last of them needs no
            position of its own. By default, or with None on the command line, 20, or fewer if the
            model's positions end first; as many as max_length allows if that is given.
        max_length: maximum number of tokens of a text, prompt included; by default there is none.
            max_new_tokens takes precedence. In Python, a list of prompts is counted from its
            longest one.
        min_new_tokens: minimum number of tokens to add to a prompt before an end token may be
            chosen.
        min_length: minimum number of tokens of a text, prompt included, before an end token may be
            chosen. min_new_tokens takes precedence.
        do_sample: sample each token by its probability in place of choosing the likeliest one
            (greedy decoding).
        temperature: number that divides the logits before sampling; a larger one makes unlikely
            tokens more frequent.
        top_k: number of likeliest tokens to sample from; a larger number makes texts more varied.
            By default, or with None, all tokens.
        top_p: probability mass of the likeliest tokens to sample from (nucleus sampling,
            arXiv:1904.09751); a larger mass makes texts more varied, and 1 keeps all tokens.
        min_p: smallest probability of a token to sample, as a share of the likeliest token's
            (arXiv:2407.01082); a larger share makes texts less varied, and 0 keeps all tokens.
        typical_p: probability mass of the tokens to sample from whose information is nearest to the
            entropy (locally typical sampling, arXiv:2202.00666); a larger mass makes texts more
            varied, and 1 keeps all tokens.
        repetition_penalty: number that divides the positive logits of tokens that the text already
            has, prompt included, and multiplies their negative ones (arXiv:1909.05858, section
            4.1); a number above 1 makes repetitions less likely.
        no_repeat_ngram_size: number of tokens of the sequences that may occur only once in a text,
            prompt included; a smaller number forbids more, and 0 forbids nothing.
        bad_words_ids: ids of a sequence of tokens that is never completed; by default, or with None
            on the command line, none. In Python, a list of such sequences.
        suppress_tokens: ids of tokens that are never chosen; by default none. If the constraints
            leave no token to choose, the text continues with id 0 and a score of NaN.
        forced_bos_token_id: id of the token that follows a prompt of one token; by default any may
            follow.
        forced_eos_token_id: id of the last token of a text that reaches its maximum length, or
            several ids, one of which it is; by default any token may be last.
        eos_token_id: ids of the tokens that end a text; by default the checkpoint's, if it has any.
            An empty sequence, or None on the command line, stands for no ids.
        pad_token_id: id of the token that fills an array up after the end of a text; by default the
            checkpoint's, or else the first end token.
        stop_strings: string that ends a text once the decoded text contains it; decoded text is
            lower-case and has spaces around punctuation. In Python, one string or several. Needs a
            tokenizer.
        num_beams: number of texts that beam search follows at once; a larger number finds likelier
            texts and takes more time and memory, and 1 turns beam search off.
        length_penalty: power of the number of new tokens that divides a beam's log-probability; a
            larger one favours longer texts. Its limits depend on max_new_tokens and keep the scores
            of texts apart.
        early_stopping: end of beam search: True, as soon as num_beams texts have ended; False, when
            a running text is unlikely to become better; never, when none can become better.
        num_return_sequences: number of texts to return for each prompt: samples, or the best beams.
        sliding_window: number of last tokens that a text keeps when it has used up the model's
            positions; they are read again from position 0, and earlier tokens are forgotten.
            n_positions forgets one token at a time and reads the whole window for each. By default,
            or with None, a text that might grow that long is an error.
        prompt_lookup_num_tokens: number of draft tokens to verify at once, copied from where the
            last token occurs earlier in the text. In float32 the text stays the same; it comes
            faster if it repeats itself or its prompt, and slower if draft tokens are rejected. By
            default, or with None, there are no draft tokens.
        return_dict_in_generate: return a ``GenerateOutput`` in place of the ids alone.
        output_scores: also return the logits, after the logits processors, from which each new
            token was chosen: V float32 numbers a token and text.
        output_logits: also return the model's own logits for each new token, likewise.
        seed: seed of the sampling; by default 0. Text i, counted from 0 over all prompts, is
            sampled with seed + i, so that it can be sampled again alone. In Python, a sequence has
            a seed for each prompt.
        extra: fields of the file that the settings come from which are not settings; None if the
            settings were made by hand.
        given_names: names of the settings that are given by hand or by a file, also those with
            default values.
    """

    max_new_tokens: Amount = 20
    max_length: Annotated[MaybeCount, at_most(MAX_INT)] = None
    min_new_tokens: AmountOrZero = 0
    min_length: AmountOrZero = 0
    do_sample: Annotated[bool, Rule("True or False", lambda value: isinstance(value, bool))] = False
    temperature: Factor = 1.0
    top_k: MaybeCount = None
    top_p: Annotated[float, NUMBER, _within(0, 1)] = 1.0
    min_p: Annotated[float, NUMBER, _within(0, 1)] = 0.0
    typical_p: Share = 1.0
    repetition_penalty: Factor = 1.0
    no_repeat_ngram_size: AmountOrZero = 0
    bad_words_ids: Words = ()
    suppress_tokens: Annotated[Sequence[int], Rule("ids", _are_ids)] = ()
    forced_bos_token_id: Id = None
    forced_eos_token_id: Ids = None
    eos_token_id: Ids = None
    pad_token_id: Id = None
    stop_strings: Texts = ()
    num_beams: Amount = 1
    length_penalty: Annotated[float, NUMBER, _within(-100, 100)] = 1.0
    early_stopping: Annotated[
        bool | Literal["never"],
        Rule('True, False or "never"', lambda when: isinstance(when, bool) or when == "never"),
    ] = False
    num_return_sequences: Amount = 1
    sliding_window: MaybeCount = None
    prompt_lookup_num_tokens: MaybeCount = None
    return_dict_in_generate: Switch = False
    output_scores: Switch = False
    output_logits: Switch = False
    seed: Seeds = None
    extra: Mapping[str, object] | None = dataclasses.field(default=None, compare=False, repr=False)
    given_names: frozenset[str] = dataclasses.field(default=frozenset(), compare=False, repr=False)

    def __new__(cls, **fields: Any) -> Self:
        """Note which settings are given; ``dataclasses.replace`` gives all, and says which were."""
        check_keywords("GenerationConfig", fields, cls.__dataclass_fields__, NOT_FIELDS)
        self = super().__new__(cls)
        if fields and "given_names" not in fields:
            object.__setattr__(self, "_named", frozenset(fields))
        return self

    def __post_init__(self) -> None:
        if isinstance(self.stop_strings, str):
            object.__setattr__(self, "stop_strings", (self.stop_strings,))
        for name in (*IDS, "stop_strings", "seed"):
            object.__setattr__(self, name, _frozen(getattr(self, name)))
        if is_integer(self.top_k) and self.top_k == 0:  # transformers' way to say: no limit
            object.__setattr__(self, "top_k", None)
        check_fields(self, skip=() if self.extra is None else self._idle())
        changed = {name for name, value in DEFAULTS.items() if getattr(self, name) != value}
        named = self.__dict__.pop("_named", frozenset()) & DEFAULTS.keys()
        object.__setattr__(self, "given_names", self.given_names | named | changed)
        if self.extra is None:
            self._check_effect(DEFAULTS)
        self._check_together()

    @property
    def is_plain(self) -> bool:
        """Whether nothing is drawn, and no constraint is on."""
        return not self.do_sample and not any(
            getattr(self, name) != DEFAULTS[name] for name in CONSTRAINTS
        )

    def _idle(self) -> tuple[str, ...]:
        """Return the settings that have no effect without others."""
        idle = () if self.do_sample else SAMPLING
        idle += () if self.num_beams != 1 else BEAMS
        return idle if self.return_dict_in_generate else idle + KEPT

    def _check_effect(self, names: Iterable[str]) -> None:
        """Check that none of these settings is without effect."""
        names, idle = set(names), self._idle()
        for group, condition in (
            (SAMPLING, "without do_sample=True"),
            (BEAMS, "without num_beams above 1"),
            (KEPT, "without return_dict_in_generate=True"),
        ):
            self._check_unused([n for n in group if n in idle and n in names], condition)
        if "min_new_tokens" in names and self.max_length is None:
            self._check(
                "min_new_tokens",
                self.min_new_tokens <= self.max_new_tokens,
                f"at most max_new_tokens = {self.max_new_tokens}",
            )

    def _check_together(self) -> None:
        """Check that no setting contradicts another."""
        if self.num_beams > 1:
            self._check(
                "num_return_sequences",
                self.num_return_sequences <= self.num_beams,
                f"at most num_beams = {self.num_beams}",
            )
            self._check_unused(("sliding_window",), "with num_beams above 1")
            if self.extra is None and self.max_length is None:
                self._check_length_penalty(self.max_new_tokens)
        elif not self.do_sample:
            right = "1 unless do_sample is True or num_beams is above 1: greedy texts are all equal"
            self._check("num_return_sequences", self.num_return_sequences == 1, right)
        if self.sliding_window is not None:
            self._check_unused(("prompt_lookup_num_tokens",), "with a sliding_window")
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            forced = as_ids(getattr(self, name))
            if forced and set(forced) <= set(self.suppress_tokens):
                right = "a token that suppress_tokens allows"
                self._check(name, False, right)

    def _check_length_penalty(self, n: int) -> None:
        """Check that scores of texts of up to ``n`` new tokens can be told apart.

        They must stay above -1e9, the score of a text that is out of the running, even at 50 nats
        a token (a guess among all tokens costs 10.6), and not all become 0.
        """
        if n > 1:
            low = 1 - math.log(1e9 / 50) / math.log(n)
            high = math.log(1e30) / math.log(n)
            low, high = math.ceil(low * 100) / 100, math.floor(high * 100) / 100
            right = f"in [{low:g}, {high:g}] for texts of max_new_tokens = {n}"
            self._check("length_penalty", low <= self.length_penalty <= high, right)

    def _check_unused(self, names: Iterable[str], condition: str) -> None:
        for name in names:
            if (value := getattr(self, name)) != DEFAULTS[name]:
                raise ValueError(f"{name}={short(value)} has no effect {condition}")

    def _check(self, name: str, right: bool, description: str) -> None:
        if not right:
            raise wrong(name, getattr(self, name), description)

    def check_for(self, config: OpenAIGPTConfig, prompts: int) -> None:
        """Check the settings, which are ``for_model``'s, against a model and so many prompts.

        Raises:
            ValueError: an id is out of range, there are more draft tokens, beams or tokens of a
                window than the model has room for, or the seeds are not one a prompt.
        """
        limit, V = config.n_positions, config.vocab_size
        if self.sliding_window is not None:
            right = f"at most {limit}, the positions of the model"
            self._check("sliding_window", self.sliding_window <= limit, right)
        for name in IDS_IN_VOCABULARY:
            value = getattr(self, name)
            ids = chain(*value) if name == "bad_words_ids" else as_ids(value)
            if outside := [id_ for id_ in ids if not 0 <= id_ < V]:
                raise wrong(name, outside[0], f"in [0, {V})")
        lookup = self.prompt_lookup_num_tokens
        right = f"at most {limit - 1}, one less than the model's positions"
        self._check("prompt_lookup_num_tokens", lookup is None or lookup < limit, right)
        # The candidates of a search are numbered in 32 bits.
        self._check("num_beams", self.num_beams * V < 2**31, f"below {2**31 // V + 1}")
        self._check_allowed(V)
        if isinstance(self.seed, Sequence):
            self._check("seed", len(self.seed) == prompts, f"one a prompt, {prompts} in all")

    def for_prompts(self, config: OpenAIGPTConfig, longest: int, width: int | None = None) -> Self:
        """Return the settings with the lengths as numbers of new tokens, which fit in the model.

        Args:
            config: of the model.
            longest: tokens of the longest prompt.
            width: of the prompts with their padding, as transformers counts them; by default the
                longest prompt's.

        Raises:
            ValueError: the prompts leave no room for new tokens, or not for as many as are given.
        """
        limit, width = config.n_positions, width or longest
        slide = f"sliding_window = {limit // 2} would forget the oldest tokens"
        new, by, hint = self.max_new_tokens, f"max_new_tokens = {self.max_new_tokens}", slide
        if "max_new_tokens" not in self.given_names:
            if self.max_length is not None:
                new, by = self.max_length - width, f"max_length = {self.max_length}"
                hint = "max_new_tokens would count the new ones alone"
            elif self.sliding_window is None:
                # The default is cut as transformers cuts it, which leaves a position unused.
                new, by = min(new, limit - width), f"n_positions = {limit}"
        if new < 1:
            raise ValueError(
                f"a prompt of {width} tokens leaves no room for new ones within {by}; {hint}"
            )
        if self.sliding_window is None and longest + new - 1 > limit:
            raise ValueError(
                f"a prompt of {longest} tokens and {by} need {longest + new - 1} positions, more "
                f"than the model's n_positions = {limit}; {slide}"
            )
        if self.num_beams > 1:
            self._check_length_penalty(new)
        least = self.min_new_tokens
        if "min_new_tokens" not in self.given_names:
            least = max(0, self.min_length - width)
        if (new, least) == (self.max_new_tokens, self.min_new_tokens):
            return self
        return dataclasses.replace(self, max_new_tokens=new, min_new_tokens=least)

    def warn_of_unused(self) -> None:
        """Warn of settings that have no effect beside others, and that transformers warns of."""
        if self.max_length is not None and "max_new_tokens" in self.given_names:
            warnings.warn(
                f"max_new_tokens = {self.max_new_tokens} takes precedence over max_length = "
                f"{self.max_length}",
                stacklevel=4,
            )
        if self.num_beams > 1 and self.prompt_lookup_num_tokens is not None:
            warnings.warn(
                f"prompt_lookup_num_tokens has no effect with num_beams = {self.num_beams}",
                stacklevel=4,
            )

    def _check_allowed(self, V: int) -> None:
        """Check that a token is left to choose, as far as that can be known beforehand."""
        eos = set(as_ids(self.eos_token_id))
        suppressed = set(self.suppress_tokens)
        bad = {word[0] for word in self.bad_words_ids if len(word) == 1} - eos
        early = eos if self.min_new_tokens else set()
        for name, forbidden in {
            "suppress_tokens": suppressed,
            "bad_words_ids": suppressed | bad,
            "min_new_tokens": suppressed | bad | early,
        }.items():
            if len(forbidden) == V:
                raise ValueError(
                    f"{name} is {short(getattr(self, name))}, but must leave one of the {V} "
                    "tokens, together with the settings suppress_tokens, bad_words_ids and "
                    "eos_token_id"
                )

    def seeds(self, prompts: int) -> np.ndarray:
        """Return the seed of each text, (prompts * num_return_sequences,) uint32."""
        if isinstance(self.seed, Sequence):
            first = np.asarray(self.seed, np.uint32)[:, None]
            return (first + np.arange(self.num_return_sequences, dtype=np.uint32)).reshape(-1)
        rows = prompts * self.num_return_sequences
        return np.arange(rows, dtype=np.uint32) + np.uint32(self.seed or 0)

    def padding(self) -> int | None:
        """Return the token that is padding in prompts without a mask; None where none can be."""
        return None if self.pad_token_id in as_ids(self.eos_token_id) else self.pad_token_id

    def for_model(self, config: OpenAIGPTConfig) -> Self:
        """Return the settings as decoding takes them: ids of the vocabulary alone, and a padding.

        The first end token is the padding, where there is no other. What has no effect is as by
        default.

        Raises:
            ValueError: a field of transformers' that is not supported would change the text.
        """
        self.check_supported()
        V = config.vocab_size

        def known(ids: int | Sequence[int] | None) -> tuple[int, ...]:
            return tuple(id_ for id_ in as_ids(ids) if 0 <= id_ < V)

        pad = self.pad_token_id
        idle: dict[str, Any] = {name: DEFAULTS[name] for name in self._idle()}
        return dataclasses.replace(
            self,
            eos_token_id=known(self.eos_token_id),
            pad_token_id=(*as_ids(self.eos_token_id), 0)[0] if pad is None else pad,
            suppress_tokens=known(self.suppress_tokens),
            **idle,
        )

    def check_supported(self) -> None:
        """Check that no field of transformers' that is not supported would change the text.

        Raises:
            ValueError: there is one.
        """
        for name, value in (self.extra or {}).items():
            changes_text = UNSUPPORTED.get(name)
            if value is not None and changes_text is not None and changes_text(value, self):
                raise ValueError(f"{name} is {short(value)}, which is not supported here")

    def given(self) -> dict[str, Any]:
        """Return the settings that are given, by hand or by a file, and not by default."""
        values = {name: getattr(self, name) for name in DEFAULTS if name in self.given_names}
        return {k: v for k, v in values.items() if v is not None or k in NONE_COUNTS}

    @classmethod
    def from_dict(cls, fields: Mapping[str, object], **changes: Any) -> Self:
        """Build from the contents of a ``generation_config.json``, and changes to them.

        Fields that are None are unset, and so are changes. Settings of sampling and of beams that
        the file holds count only where do_sample and num_beams turn these on. Fields that are no
        settings are kept in ``extra``.

        Raises:
            ValueError: a value that is wrong, or a change that has no effect.
            TypeError: a change that names no setting.
        """
        others = {
            n: changes.pop(n) for n in (*UNSUPPORTED, *WITHOUT_EFFECT.split()) if n in changes
        }
        changes = {**check_keywords("generate", changes, OWN, FOREIGN), **others}
        values = {
            name: _as_transformers_reads(name, value)
            for name, value in fields.items()
            if name in DEFAULTS and value is not None
        }
        if fields.get("do_sample") and "top_k" not in values:
            values["top_k"] = 50  # transformers' default, which its files leave out
        extra = {name: value for name, value in fields.items() if name not in DEFAULTS}
        for name, value in changes.items():
            if name not in DEFAULTS:
                extra[name] = value
            elif value is None and name not in NONE_COUNTS:
                values.pop(name, None)
            else:
                values[name] = value
        settings = cls(**values, extra=extra)
        settings._check_effect(changes)
        return settings

    @classmethod
    def from_model_config(cls, fields: Mapping[str, object], **changes: Any) -> Self:
        """Build from the settings of generation in a ``config.json``, as old checkpoints have them.

        transformers reads them where a checkpoint has no ``generation_config.json``.

        Raises:
            ValueError: what ``from_dict`` raises.
            TypeError: likewise.
        """
        names = DEFAULTS.keys() - set(OURS_ALONE) | UNSUPPORTED.keys()
        own = {name: value for name, value in fields.items() if name in names}
        return cls.from_dict(own, **changes)

    def updated(self, given: "GenerationConfigLike | None" = None, **changes: Any) -> Self:
        """Return these settings with others in their place.

        Args:
            given: settings; those that are given in it come before these, as in transformers.
            **changes: settings that come before both; None stands for the default.

        Raises:
            ValueError: what ``from_dict`` raises.
            TypeError: ``given`` is of another type, or a name is no setting's.
        """
        fields = {**self.to_dict(), **({} if given is None else _given_fields(given))}
        by_hand = given if isinstance(given, GenerationConfig) and given.extra is None else None
        if by_hand and by_hand.do_sample:
            fields.setdefault("top_k", 0)  # no limit, which is our default
        settings = self.from_dict(fields, **changes)
        if by_hand:
            settings._check_effect(by_hand.given_names)
        return settings

    def to_dict(self) -> dict[str, object]:
        """Return the contents of a ``generation_config.json``: what is given, and ``extra``."""
        given = {name: _lists(value) for name, value in self.given().items()}
        if self.do_sample and given.get("top_k") is None:
            given["top_k"] = 0  # where it is missing, transformers takes 50
        given = {name: value for name, value in given.items() if value is not None}
        return {**(self.extra or {}), **given}

    def to_json(self) -> str:
        """Return the text of a ``generation_config.json``."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], **changes: Any) -> Self:
        """Read the ``generation_config.json`` of a checkpoint, or else its ``config.json``.

        Args:
            path: a folder, or a hub id.
            **changes: settings that take the place of the file's; and ``revision``, ``cache_dir``,
                ``local_files_only``, ``token`` and ``force_download`` for the hub.

        Raises:
            FileNotFoundError: there is no such folder or repository.
            ValueError: what ``from_dict`` raises, naming the file, or a field of transformers' that
                is not supported and would change the text.
        """
        names = HubOptions.__annotations__
        hub: Any = {name: changes.pop(name) for name in names if name in changes}
        folder = resolve(path, weights=False, **hub)
        file = next((folder / name for name in (FILE, CONFIG) if (folder / name).is_file()), None)
        if file is None:
            return cls.from_dict({}, **changes)
        build = cls.from_dict if file.name == FILE else cls.from_model_config
        fields = _read_object(file, file.read_bytes())
        try:
            settings = build(fields, **changes)
            settings.check_supported()
            return settings
        except ValueError as error:
            # Messages begin with the setting's name: one of the caller's own is not the file's.
            if re.split("[ =]", str(error), maxsplit=1)[0] in changes:
                raise
            raise ValueError(f"{file}: {error}") from None

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``generation_config.json`` into ``folder`` (created if need be), whole or not."""
        from gpt1_jax._conversion import files

        with files.atomic_write(folder) as new:
            new(FILE).write_text(self.to_json())


def _refuse_to_change(self: GenerationConfig, name: str, value: object) -> None:
    raise dataclasses.FrozenInstanceError(
        f"settings cannot be changed in place: give updated({name}={value!r}) to "
        "model.generation_config"
    )


GenerationConfig.__setattr__ = _refuse_to_change  # a frozen dataclass cannot define its own


class GenerationFile(NamedTuple):
    """The ``generation_config.json`` that a model came with: whole, to be saved as it is."""

    path: Path
    content: bytes

    @classmethod
    def read(cls, folder: Path) -> "GenerationFile | None":
        """Return the file of a folder, if it has one."""
        path = folder / FILE
        return cls(path, path.read_bytes()) if path.is_file() else None

    def parse(self) -> GenerationConfig:
        """Return the settings.

        Raises:
            ValueError: the file is not JSON, or a setting is wrong.
        """
        return _parse(self)


@functools.lru_cache(maxsize=32)
def _parse(file: GenerationFile) -> GenerationConfig:
    fields = _read_object(file.path, file.content)
    try:
        return GenerationConfig.from_dict(fields)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from None


def _read_object(file: Path, content: bytes) -> dict[str, object]:
    from gpt1_jax._conversion import json_file

    try:
        fields = json_file.parse_json(content)
    except ValueError as error:
        raise ValueError(f"{file} {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{file} must hold a JSON object, not {type(fields).__name__}")
    return fields


# What ``generate`` takes for settings; a path is that of a checkpoint's folder, or a hub id.
GenerationConfigLike = (
    GenerationConfig | TransformersConfig | Mapping[str, Any] | str | os.PathLike[str]
)


def as_generation_config(settings: GenerationConfigLike) -> GenerationConfig:
    """Return settings in whichever form as ours.

    Raises:
        ValueError: a setting is wrong.
        TypeError: ``settings`` is of another type, or a key of a dict is no setting's name.
    """
    if isinstance(settings, GenerationConfig):
        return settings
    if isinstance(settings, (str, os.PathLike)):
        return GenerationConfig.from_pretrained(settings)
    return GenerationConfig.from_dict(_given_fields(settings))


def _given_fields(settings: GenerationConfigLike) -> dict[str, Any]:
    """Return what is given in settings in whichever form, as ``from_dict`` takes it."""
    if isinstance(settings, (GenerationConfig, str, os.PathLike)):
        settings = as_generation_config(settings)
        given = settings.given()
        if "top_k" in given:
            given["top_k"] = given["top_k"] or 0
        return {**(settings.extra or {}), **given}
    by_hand = isinstance(settings, Mapping)
    if not by_hand and not isinstance(settings, TransformersConfig):
        raise TypeError(
            f"generation_config is a {type(settings).__name__}, but must be a GenerationConfig, a "
            "dict or a checkpoint's path"
        )
    fields = settings if by_hand else settings.to_diff_dict()
    given = {k: v for k, v in fields.items() if v is not None and not k.startswith("_")}
    if by_hand:
        others = {*UNSUPPORTED, *f"{WITHOUT_EFFECT} {OUTPUTS}".split()}
        ours = {name: value for name, value in given.items() if name not in others}
        check_keywords("generation_config", ours, DEFAULTS, FOREIGN)
    return given


# What generate takes besides settings, for a hint where a name is misspelt.
ARGUMENTS = """
    input_ids attention_mask generation_config inputs_embeds token_type_ids new_token_type_id
    tokenizer logits_processor stopping_criteria streamer key
"""
DEFAULTS = {
    field.name: field.default for field in dataclasses.fields(GenerationConfig) if field.compare
}


OWN = (*DEFAULTS, *ARGUMENTS.split())


def _as_transformers_reads(name: str, value: Any) -> Any:
    """Return a value of a file as transformers takes it, which its checks let pass."""
    if name in CLAMPED and is_number(value):
        return CLAMPED[name](value)
    # JSON that other programs write has 5.0 for 5.
    if isinstance(value, float) and value.is_integer() and not isinstance(DEFAULTS[name], float):
        return int(value)
    return value


def as_ids(ids: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return one id, several or none as a tuple."""
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, (int, np.integer)) else tuple(ids)


def _frozen(value: object, depth: int = 2) -> object:
    """Return iterables as tuples, to a depth of two, and numbers of numpy and JAX as Python's."""
    to_list = getattr(value, "tolist", None)
    value = to_list() if to_list else value
    if not depth or not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
        return value
    items = tuple(value)
    if set(map(type, items)) == {int}:  # there may be thousands
        return items
    return tuple(_frozen(item, depth - 1) for item in items)


def _lists(value: object) -> object:
    return [_lists(item) for item in value] if isinstance(value, tuple) else value
