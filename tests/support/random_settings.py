"""Settings of generation that are valid, all fields among them."""

from typing import Any

import hypothesis.strategies as st

from gpt1_jax import GenerationConfig

ids = st.integers(0, 40477)
several = st.lists(ids, max_size=4)
fractions = st.floats(0, 1, exclude_min=True)
COMMON: dict[str, st.SearchStrategy[Any]] = {
    "max_new_tokens": st.integers(9, 999),
    "min_new_tokens": st.integers(0, 9),
    "repetition_penalty": st.floats(1e-6, 1e6),
    "no_repeat_ngram_size": st.integers(0, 9),
    "bad_words_ids": st.lists(st.lists(ids, min_size=1, max_size=3), max_size=3),
    "suppress_tokens": several,
    "eos_token_id": st.none() | ids | several,
    "pad_token_id": st.none() | ids,
}
FORCED: dict[str, st.SearchStrategy[Any]] = {
    "forced_bos_token_id": st.none() | ids,
    "forced_eos_token_id": st.none() | ids | several,
}
ALONE: dict[str, st.SearchStrategy[Any]] = {
    "stop_strings": st.text(min_size=1) | st.lists(st.text(min_size=1), max_size=3),
    "sliding_window": st.none() | st.integers(1, 511),
    "prompt_lookup_num_tokens": st.none() | st.integers(1, 40),
}
SAMPLED: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.floats(1e-6, 1e6),
    "top_k": st.none() | st.integers(1, 40478),
    "top_p": fractions,
    "min_p": st.floats(0, 1),
    "typical_p": fractions,
    "seed": st.none()
    | st.integers(0, 2**32 - 1)
    | st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3),
    "num_return_sequences": st.integers(1, 4),
}
BEAM: dict[str, st.SearchStrategy[Any]] = {
    "num_beams": st.integers(4, 9),
    "num_return_sequences": st.integers(1, 4),
    "length_penalty": st.floats(-1, 9),
    "early_stopping": st.booleans() | st.just("never"),
}


@st.composite
def valid_settings(draw: Any) -> GenerationConfig:
    do_sample, beams = draw(st.booleans()), draw(st.booleans())
    optional = {
        **COMMON,
        **(SAMPLED if do_sample else {}),
        **(BEAM if beams else ALONE),
    }
    fields = draw(st.fixed_dictionaries({}, optional=optional))
    if fields.get("sliding_window"):
        fields.pop("prompt_lookup_num_tokens", None)
    if beams:
        fields.setdefault("num_beams", 4)
    if not fields.get("suppress_tokens"):
        fields |= draw(st.fixed_dictionaries({}, optional=FORCED))
    return GenerationConfig(do_sample=do_sample, **fields)
