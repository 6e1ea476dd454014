"""What a user may ask of generation: Hugging Face's names, checked as a whole before any work."""

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeGuard

import numpy as np

from gpt1_jax.checks import (
    INTEGER,
    NUMBER,
    Count,
    MaybeCount,
    Rule,
    Switch,
    at_least,
    at_most,
    check_fields,
    is_integer,
    short,
    wrong,
)
from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.demo import HubOptions, resolve

FILE = "generation_config.json"
MAX_INT = 2**20  # tokens or texts, beyond which memory could not hold them
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed")
BEAMS = ("length_penalty", "early_stopping")
IDS = (
    "eos_token_id",
    "pad_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "bad_words_ids",
)

# What transformers knows besides and would change the text, with the values that change nothing.
# Whatever else its files hold (versions, output flags, caches) is no matter of ours.
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "min_length": (0,),
    "max_time": (),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "constraints": (),
    "force_words_ids": (),
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    "sequence_bias": (),
    "begin_suppress_tokens": ((), []),
    "exponential_decay_length_penalty": (),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "top_h": (),
    "guidance_scale": (1.0,),
    "renormalize_logits": (False,),
    "remove_invalid_values": (False,),
    "token_healing": (False,),
    "watermarking_config": (),
    # Without an encoder, transformers takes the prompt for what it has read.
    "encoder_repetition_penalty": (1.0,),
    "encoder_no_repeat_ngram_size": (0,),
}


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
    """How to choose the next tokens; names and defaults are those of Hugging Face's ``generate``.

    But for top_k: what it takes for unset is 50.

    The command line shows the descriptions of the attributes as help.

    Attributes:
        max_new_tokens: the most tokens to add to a prompt; 20 by default in Python, and 40 on the
            command line.
        min_new_tokens: how many tokens to add before an end token may be chosen; 0 by default.
        do_sample: draw each token by its probability, in place of taking the most likely one.
        temperature: what the logits are divided by before a token is drawn; 1 by default. A larger
            value makes less likely tokens more frequent.
        top_k: draw from this many of the most likely tokens; by default, or with None, from all.
        top_p: draw from the most likely tokens that together have this probability
            (arXiv:1904.09751); 1 by default, for all.
        min_p: draw from the tokens that have at least this share of the most likely token's
            probability (arXiv:2407.01082); 0 by default, for all.
        typical_p: draw from the tokens whose information is nearest to the entropy and that
            together have this probability (arXiv:2202.00666); 1 by default, for all.
        repetition_penalty: divides the positive logits of tokens that the text, prompt included,
            already has, and multiplies their negative ones (arXiv:1909.05858, section 4.1); 1 by
            default. A larger value makes repetitions less likely.
        no_repeat_ngram_size: let no sequence of this many tokens occur twice in a text, prompt
            included; 0 by default, for no limit.
        bad_words_ids: a sequence of token ids that is never completed, or several; by default, or
            with None on the command line, there are none.
        suppress_tokens: token ids that are never chosen; none by default. If the constraints leave
            no token to choose, the text goes on with id 0 and a score of NaN.
        forced_bos_token_id: the token id that follows a prompt of one token; by default any may.
        forced_eos_token_id: the token id, or one of several, that a text which reaches
            max_new_tokens ends with; by default any may.
        eos_token_id: the token ids that end a text; those of the model's configuration by default.
            An empty sequence, or None on the command line, stands for no ids.
        pad_token_id: the token id that fills an array up after the end of a text; by default that
            of the model's configuration, or else the first end token.
        stop_strings: a string, or several, that ends a text: the token that completes it in the
            decoded text, which is lower-case and has spaces around punctuation, is the last one. A
            tokenizer is needed.
        num_beams: how many of the most likely texts beam search follows at once; 1 by default, for
            no beam search.
        length_penalty: the power of a text's number of new tokens that beam search divides its
            log-probability by; 1 by default. A larger value favours longer texts; the limits depend
            on max_new_tokens, and keep the scores of texts apart.
        early_stopping: when beam search ends: as soon as num_beams texts have ended (True), when
            a running text is unlikely to become better (False, the default), or when none can
            become better (never).
        num_return_sequences: how many texts to return for each prompt, draws or the best beams; 1
            by default.
        sliding_window: how many of its last tokens a text keeps when it has used up the model's
            positions. They are read again, from position 0, and what lies before is forgotten. By
            default, or with None, a text that might grow so long is an error. n_positions forgets
            one token at a time, and reads the whole window for each.
        prompt_lookup_num_tokens: how many draft tokens to read at once, copied from where the last
            token occurs earlier in the text; by default, or with None, none. In float32 the text
            stays the same. It comes faster if it repeats itself or its prompt, and slower if the
            draft tokens are rejected.
        return_dict_in_generate: return a ``GenerateOutput`` in place of the ids alone.
        output_scores: whether that has the logits which each new token was chosen by, V float32 a
            token and text.
        output_logits: whether it has the model's own, likewise.
        seed: the seed of the draws, 0 by default. Text i, counted from 0 over all prompts, is drawn
            with seed + i, so that it can be drawn again alone. In Python, a sequence gives each
            prompt its own.
    """

    max_new_tokens: Amount = 20
    min_new_tokens: AmountOrZero = 0
    do_sample: Annotated[bool, Rule("True or False", lambda value: isinstance(value, bool))] = False
    temperature: Factor = 1.0
    top_k: MaybeCount = None
    top_p: Share = 1.0
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

    def __post_init__(self) -> None:
        if isinstance(self.stop_strings, str):
            object.__setattr__(self, "stop_strings", (self.stop_strings,))
        for name in (*IDS, "stop_strings", "seed"):
            object.__setattr__(self, name, _frozen(getattr(self, name)))
        check_fields(self)
        self._check_together()

    def _check_together(self) -> None:
        """Check that no setting is without effect or contradicts another."""
        if not self.do_sample:
            self._check_unused(SAMPLING, "do_sample is True")
        if not self.return_dict_in_generate:
            self._check_unused(
                ("output_scores", "output_logits"), "return_dict_in_generate is True"
            )
        if self.num_beams == 1:
            self._check_unused(BEAMS, "num_beams is above 1")
        self._check(
            "min_new_tokens",
            self.min_new_tokens <= self.max_new_tokens,
            f"at most max_new_tokens = {self.max_new_tokens}",
        )
        if self.num_beams > 1:
            self._check(
                "num_return_sequences",
                self.num_return_sequences <= self.num_beams,
                f"at most num_beams = {self.num_beams}",
            )
            alone = ("sliding_window", "prompt_lookup_num_tokens")
            self._check_unused(alone, "num_beams is 1")
            self._check_length_penalty()
        elif not self.do_sample:
            right = "1 unless do_sample is True or num_beams is above 1: greedy texts are all equal"
            self._check("num_return_sequences", self.num_return_sequences == 1, right)
        if self.sliding_window is not None:
            self._check_unused(("prompt_lookup_num_tokens",), "sliding_window is None")
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            forced = as_ids(getattr(self, name))
            if forced and set(forced) <= set(self.suppress_tokens):
                right = "a token that suppress_tokens allows"
                self._check(name, False, right)

    def _check_length_penalty(self) -> None:
        """Check that scores can be told apart.

        They must stay above -1e9, the score of a text that is out of the running, even at 50 nats
        a token (a guess among all tokens costs 10.6), and not all become 0.
        """
        n = self.max_new_tokens
        if n > 1:
            low = 1 - math.log(1e9 / 50) / math.log(n)
            high = math.log(1e30) / math.log(n)
            low, high = math.ceil(low * 100) / 100, math.floor(high * 100) / 100
            right = f"in [{low:g}, {high:g}] for texts of max_new_tokens = {n}"
            self._check("length_penalty", low <= self.length_penalty <= high, right)

    def _check_unused(self, names: Iterable[str], condition: str) -> None:
        for name in names:
            unset = getattr(self, name) == DEFAULTS[name]
            self._check(name, unset, f"left alone unless {condition}")

    def _check(self, name: str, right: bool, description: str) -> None:
        if not right:
            raise wrong(name, getattr(self, name), description)

    def check_for(self, config: OpenAIGPTConfig, prompts: int, longest: int) -> None:
        """Check the settings against a model and so many prompts, the longest so long.

        Raises:
            ValueError: the texts would not fit in the model's positions, an id is out of range, or
                the seeds are not one a prompt.
        """
        limit, V = config.n_positions, config.vocab_size
        if self.sliding_window is not None:
            right = f"at most {limit}, the positions of the model"
            self._check("sliding_window", self.sliding_window <= limit, right)
        self.check_length(config, longest)
        for name in IDS:
            value = getattr(self, name)
            ids = chain(*value) if name == "bad_words_ids" else as_ids(value)
            if outside := [id_ for id_ in ids if not 0 <= id_ < V]:
                raise wrong(name, outside[0], f"in [0, {V})")
        most = config.n_positions - 1
        lookup = self.prompt_lookup_num_tokens
        right = f"at most {most}, the positions of the model but one"
        self._check("prompt_lookup_num_tokens", lookup is None or lookup <= most, right)
        # The candidates of a search are numbered in 32 bits.
        self._check("num_beams", self.num_beams * V < 2**31, f"below {2**31 // V + 1}")
        self._check_allowed(V)
        if isinstance(self.seed, Sequence):
            self._check("seed", len(self.seed) == prompts, f"one a prompt, {prompts} in all")

    def check_length(self, config: OpenAIGPTConfig, longest: int) -> None:
        """Check that the text after the longest prompt, of so many tokens, fits in the positions.

        Raises:
            ValueError: it does not.
        """
        limit = config.n_positions
        if self.sliding_window is None and longest + self.max_new_tokens > limit:
            raise ValueError(
                f"a prompt of {longest} tokens and max_new_tokens = {self.max_new_tokens} are more "
                f"than the model's n_positions = {limit}; sliding_window = {limit // 2} would "
                "forget the oldest tokens"
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

    def padding_of(self, config: OpenAIGPTConfig) -> int | None:
        """Return the token that is padding in prompts without a mask; None where none can be."""
        pad = config.pad_token_id if self.pad_token_id is None else self.pad_token_id
        eos = config.eos_token_id if self.eos_token_id is None else self.eos_token_id
        return None if pad in as_ids(eos) else pad

    def for_model(self, config: OpenAIGPTConfig) -> Self:
        """Return the settings with the model configuration's end and padding where these are None.

        Of several end tokens the first is the padding, where there is no other.
        """
        eos = config.eos_token_id if self.eos_token_id is None else self.eos_token_id
        pad = config.pad_token_id if self.pad_token_id is None else self.pad_token_id
        pad = (*as_ids(eos), 0)[0] if pad is None else pad
        return dataclasses.replace(self, eos_token_id=as_ids(eos), pad_token_id=pad)

    @classmethod
    def from_dict(cls, fields: Mapping[str, object], **changes: Any) -> Self:
        """Build from the contents of a ``generation_config.json``, and changes to them.

        Fields that are None are unset. Settings of sampling and of beams that the file holds count
        only where do_sample and num_beams turn these on.

        Raises:
            ValueError: a value that is wrong, or a field of transformers' that is not supported and
                would change the text.
            TypeError: a change that names no setting.
        """
        for name, neutral in UNSUPPORTED.items():
            value = fields.get(name)
            if value is not None and value not in neutral:
                raise ValueError(f"{name} is {short(value)}, which is not supported here")
        kept = {
            name: value
            for name, value in fields.items()
            if name in DEFAULTS and name not in changes and value is not None
        }
        if kept.get("top_k") == 0 and kept["top_k"] is not False:
            del kept["top_k"]  # transformers' other way to say that there is no limit
        if fields.get("do_sample") and fields.get("top_k") is None and "top_k" not in changes:
            kept["top_k"] = 50  # transformers' default, which its files leave out
        both = {**DEFAULTS, **kept, **changes}
        # transformers lets max_new_tokens go before max_length, whose old default is 20.
        max_length = fields.get("max_length", 20)
        if max_length not in (20, None) and "max_new_tokens" not in {**kept, **changes}:
            raise ValueError(
                f"max_length is {max_length}, which counts the prompt and is not supported here: "
                "give max_new_tokens"
            )
        unused = () if both["do_sample"] else SAMPLING
        unused += () if both["num_beams"] != 1 else BEAMS
        return cls(**{name: v for name, v in kept.items() if name not in unused}, **changes)

    def to_dict(self) -> dict[str, object]:
        """Return the contents of a ``generation_config.json``: the length, and what is changed."""
        fields = {name: getattr(self, name) for name in DEFAULTS}
        changed = {name: _lists(value) for name, value in fields.items() if value != DEFAULTS[name]}
        if self.do_sample:
            changed.setdefault("top_k", 0)  # where it is missing, transformers takes 50
        # Without it, a reader may have a default of its own, as the command line has.
        return {"max_new_tokens": self.max_new_tokens, **changed}

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], **changes: Any) -> Self:
        """Read the ``generation_config.json`` of a checkpoint, the defaults where it has none.

        Args:
            path: a folder, or a hub id.
            **changes: settings that take the place of the file's; and ``revision``, ``cache_dir``,
                ``local_files_only``, ``token`` and ``force_download`` for the hub.

        Raises:
            FileNotFoundError: there is no such folder or repository.
            ValueError: what ``from_dict`` raises, naming the file.
        """
        names = HubOptions.__annotations__
        hub: Any = {name: changes.pop(name) for name in names if name in changes}
        folder = resolve(path, weights=False, **hub)
        fields = read_generation_config(folder)
        try:
            return cls.from_dict(fields, **changes)
        except ValueError as error:
            # Messages begin with the setting's name: one of the caller's own is not the file's.
            if not fields or str(error).partition(" ")[0] in changes:
                raise
            raise ValueError(f"{folder / FILE}: {error}") from None

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``generation_config.json`` into ``folder`` (created if need be), whole or not."""
        from gpt1_jax._conversion import files

        with files.atomic_write(folder) as new:
            new(FILE).write_text(json.dumps(self.to_dict(), indent=2) + "\n")


def read_generation_config(folder: Path) -> dict[str, object]:
    """Return what the folder's ``generation_config.json`` holds, nothing where there is none."""
    from gpt1_jax._conversion import json_file

    file = folder / FILE
    fields = json_file.read_json(file) if file.is_file() else {}
    if not isinstance(fields, dict):
        raise ValueError(f"{file} must hold a JSON object, not {type(fields).__name__}")
    return fields


DEFAULTS = {field.name: field.default for field in dataclasses.fields(GenerationConfig)}


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
