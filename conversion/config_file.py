"""config.json, read and written."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from conversion.json_file import read_json, short
from conversion.layout import ALIASES, ARCHITECTURES, sizes

CONFIG = "config.json"
MODEL_TYPE = "openai-gpt"


def read_config(folder: Path, absent: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Return the fields of ``folder``'s config.json, all of them, as they are.

    Args:
        folder: where it lies.
        absent: numbers that are added if the file has them under no name.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not a JSON object, is of another model, or its numbers cannot be used.
    """
    path = folder / CONFIG
    config = read_json(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(config).__name__}")
    model_type = config.get("model_type")
    if model_type not in (None, MODEL_TYPE):
        raise ValueError(
            f"{path} is of the model_type {short(model_type)}; only {MODEL_TYPE!r} can be read"
        )
    for field, number in (absent or {}).items():
        if field not in config and ALIASES.get(field) not in config:
            config[field] = number
    try:
        sizes(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return config


def named_architecture(config: Mapping[str, Any]) -> str | None:
    """Return the config's first architecture if it is one of ``ARCHITECTURES``, else None."""
    names = config.get("architectures")
    first = names[0] if isinstance(names, list | tuple) and names else None
    return first if first in ARCHITECTURES else None


def required_architecture(config: Mapping[str, Any]) -> str:
    """Return the config's first architecture.

    Raises:
        ValueError: it has none, or one that is not in ``ARCHITECTURES``.
    """
    architecture = named_architecture(config)
    if architecture is None:
        raise ValueError(
            f"the config's architectures is {short(config.get('architectures'))}; it must be "
            f"a list with one of {', '.join(ARCHITECTURES)}"
        )
    return architecture


def config_text(config: Mapping[str, Any], architecture: str, dtypes: Collection[str]) -> str:
    """Return a config.json: the given fields, unknown ones too, and what the weights are.

    Args:
        config: the fields.
        architecture: goes into ``architectures``.
        dtypes: numpy's names of the parameters' dtypes. Where there are several, ``dtype`` is
            float32, which holds all of them exactly.

    Raises:
        ValueError: a field cannot be written in JSON.
    """
    fields = {key: value for key, value in config.items() if key != "torch_dtype"}  # the old name
    fields["architectures"] = [architecture]
    fields["model_type"] = MODEL_TYPE
    fields["dtype"] = next(iter(dtypes)) if len(set(dtypes)) == 1 else "float32"
    for key, value in fields.items():
        try:
            json.dumps(value, sort_keys=True)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the config's {key} cannot be written in JSON: {error}") from None
    return json.dumps(fields, indent=2, sort_keys=True) + "\n"
