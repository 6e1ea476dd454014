"""Rules beside types: what they let pass, and the error that repeats them."""

import dataclasses
import json
import math
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np
import pytest

from gpt1_jax.checks import (
    Count,
    DropoutRate,
    MaybeCount,
    MaybePositive,
    NotNegative,
    Positive,
    PositiveInteger,
    Rule,
    Switch,
    check_fields,
    is_integer,
    is_number,
)
from gpt1_jax.training.finetune import FinetuneSettings
from gpt1_jax.training.loop import LoopSettings
from gpt1_jax.training.pretrain import OPTIMIZER, NewModel, PretrainSettings
from gpt1_jax.training.run_settings import fields_of


@dataclasses.dataclass(frozen=True)
class Settings:
    count: Count = 1
    more: MaybeCount = None
    whole: PositiveInteger = 1
    positive: Positive = 1.0
    not_negative: NotNegative = 0
    rate: DropoutRate = 0.0
    switch: Switch = False
    word: Literal["a", "b"] = "a"
    limit: MaybePositive = 1.0
    maybe: Annotated[str | None, Rule("a letter", str.isalpha)] = None
    free: object = None

    def __post_init__(self) -> None:
        check_fields(self)


WRONG: list[tuple[str, Any, str]] = [
    *(("count", value, "an integer") for value in (1.0, "1", True, None, math.nan, [1])),
    ("count", 0, "at least 1"),
    *(("more", value, "an integer, or None") for value in (2.0, False)),
    ("more", -3, "at least 1, or None"),
    *(("limit", value, "a number above 0, or None") for value in (0, "1")),
    *(("whole", value, "a positive integer") for value in (0, 2.0, True, None)),
    # The last is an integer beyond every float.
    *(
        ("positive", value, "a number above 0")
        for value in (0, -1, True, "1", None, math.nan, math.inf, 10**400)
    ),
    *(
        ("not_negative", value, "a number, at least 0")
        for value in (-1e-9, False, math.nan, 10**400)
    ),
    *(("rate", value, "a dropout rate in [0, 1)") for value in (1, -0.1, False, math.nan)),
    *(("switch", value, "true or false") for value in (0, "true", None)),
    *(("word", value, '"a" or "b"') for value in ("c", None, 1)),
    ("maybe", "3", "a letter, or None"),
]


@pytest.mark.parametrize(("name", "value", "right"), WRONG)
def test_check_fields_rejects_what_the_type_excludes(name: str, value: Any, right: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Settings(**{name: value})
    assert str(caught.value) == f"{name} is {value!r}, but must be {right}"


def test_check_fields_accepts_what_the_type_admits() -> None:
    fields: dict[str, Any] = {
        "count": 2**40,
        "positive": 1e-300,
        "rate": 0.999,
        "switch": True,
        "word": "b",
        "maybe": "x",
        "limit": None,
        "free": {1, 2},
    }
    settings = Settings(**fields)
    assert {name: getattr(settings, name) for name in fields} == fields


@pytest.mark.parametrize("array", [np.int64(3), np.float32(0.5), np.bool_(True), np.array(3)])
def test_check_fields_makes_scalars_of_numpy_plain(array: Any) -> None:
    name = {"i": "count", "f": "positive", "b": "switch"}[array.dtype.kind]
    value = getattr(Settings(**{name: array}), name)
    assert type(value) in (int, float, bool)
    assert value == array


def test_check_fields_makes_scalars_of_jax_plain() -> None:
    fields: dict[str, Any] = {"count": jnp.int32(4)}
    assert type(Settings(**fields).count) is int
    with pytest.raises(ValueError, match=r"^count is 4\.0, but must be an integer$"):
        Settings(count=jnp.float32(4))  # pyright: ignore[reportArgumentType]


def test_is_integer_and_is_number_know_their_kinds() -> None:
    assert all(map(is_integer, (0, -3, 10**400, np.int8(1), np.uint32(1))))
    assert not any(map(is_integer, (True, np.bool_(True), 1.0, np.float32(1), "1", None)))
    assert all(map(is_number, (0, -3.5, 1e308, np.float64(2))))
    assert not any(map(is_number, (True, math.nan, -math.inf, 10**400, "1", None, 1j)))


@pytest.mark.parametrize(
    ("settings", "fields", "message"),
    [
        (LoopSettings(), {"accumulate": True}, "accumulate is True, but must be an integer"),
        (LoopSettings(), {"patience": 1.5}, "patience is 1.5, but must be an integer"),
        (PretrainSettings(), {"batch_size": 2.5}, "batch_size is 2.5, but must be an integer"),
        (PretrainSettings(), {"steps": "9"}, "steps is '9', but must be an integer"),
        (PretrainSettings(), {"epochs": "9"}, "epochs is '9', but must be a number above 0"),
        (PretrainSettings(), {"seed": 0.5}, "seed is 0.5, but must be an integer"),
        (NewModel(), {"merges": 2.5}, "merges is 2.5, but must be an integer"),
        (NewModel(), {"n_layer": 2.5}, "n_layer is 2.5, but must be a positive integer"),
        (FinetuneSettings(), {"max_tokens": True}, "max_tokens is True, but must be an integer"),
        (FinetuneSettings(), {"freeze_layers": -1}, "freeze_layers is -1, but must be at least 0"),
        (FinetuneSettings(), {"numbers": "no"}, "numbers is 'no', but must be true or false"),
        (FinetuneSettings(), {"lora_rank": 0}, "lora_rank is 0, but must be at least 1"),
        (OPTIMIZER, {"b1": None}, r"b1 is None, but must be a number in \(0, 1\)"),
        (OPTIMIZER, {"learning_rate": 10**400}, "learning_rate is 1000.*, but must be a number"),
    ],
)
def test_training_settings_reject_other_kinds(
    settings: Any, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        dataclasses.replace(settings, **fields)


def test_settings_of_numpy_numbers_can_be_written_as_json() -> None:
    new = NewModel(n_layer=np.int64(1), n_head=np.int32(2))  # pyright: ignore[reportArgumentType]
    settings = FinetuneSettings(freeze_layers=np.int64(1))  # pyright: ignore[reportArgumentType]
    fields = json.loads(json.dumps(fields_of(new, settings)))
    assert (fields["n_layer"], fields["n_head"], fields["freeze_layers"]) == (1, 2, 1)
