"""The guide to the options of training names flags that there are."""

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from gpt1_jax.cli import training as commands
from gpt1_jax.training.loop import LoopSettings
from gpt1_jax.training.optimizer import OptimizerSettings

PAGE = Path(__file__).parents[1] / "docs" / "training-options.md"
GROUPS: list[Any] = [
    commands.FinetuneSettings,
    commands.PretrainSettings,
    commands.NewModel,
    commands.DeviceSettings,
    LoopSettings,
    OptimizerSettings,
]


def flags() -> set[str]:
    fields = (field.name for group in GROUPS for field in dataclasses.fields(group))
    parameters = (
        name
        for command in (commands.finetune, commands.pretrain)
        for name in inspect.signature(command).parameters
    )
    return {f"--{name.replace('_', '-')}" for name in (*fields, *parameters)}


@pytest.mark.skipif(not PAGE.is_file(), reason="no docs beside the tests")
def test_training_options_are_flags() -> None:
    rows = [line.split("|") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    named = {flag for row in rows for flag in re.findall(r"`(--[a-z0-9-]+)", row[2])}
    assert len(named) > 40
    assert named - flags() == set()
