"""The model card of a trained folder: README.md, written from what run.json holds."""

import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from gpt1_jax._conversion import files, json_file
from gpt1_jax.training.callbacks import Callback
from gpt1_jax.training.run_folder import SETTINGS, SUMMARY

if TYPE_CHECKING:
    from gpt1_jax.training.loop import TrainProgress, TrainRun

CARD = "README.md"
MARK = "<!-- Written by gpt1-jax; without this line, it leaves the file untouched. -->"
PACKAGES = ("gpt1-jax", "jax", "flax", "optax")
PIPELINES = {
    None: "text-generation",
    "classification": "text-classification",
    "regression": "text-classification",
    "entailment": "text-classification",
}
# What one line of Python needs, for each task: a language model is asked for more text.
EXAMPLES = {
    None: '"The old house"',
    "classification": '"A text."',
    "regression": '"A text."',
    "entailment": '{"premise": "A text.", "hypothesis": "Another."}',
    "similarity": '{"text1": "A text.", "text2": "Another."}',
}
# What run.json has beside the recipe.
_NOT_SETTINGS = ("task", "train", "valid", "model", "columns", "texts", "architecture", SUMMARY)


class ModelCard(Callback):
    """Writes README.md into the folder of a run that has ended, unless a user's own is there."""

    def on_start(self, run: "TrainRun") -> None:
        self._run = run

    def on_end(self, result: "TrainProgress | None", error: BaseException | None) -> None:
        if result is None:
            return
        out = self._run.out
        path = out / CARD
        if path.is_file() and MARK not in path.read_text(encoding="utf-8"):
            return
        step = self._run.step if result.best is None else result.best_step
        settings = json_file.read_json(out / SETTINGS)
        with files.atomic_write(out) as new:
            card = make_card(out.resolve().name, settings, result.best, step)
            new(CARD).write_text(card, encoding="utf-8")


def make_card(
    name: str, run: Mapping[str, Any], measures: Mapping[str, float] | None, step: int
) -> str:
    """Return the text of a card.

    Args:
        name: of the model.
        run: what run.json holds.
        measures: of the model on the validation set, if there is one.
        step: how many steps it was trained for.
    """
    task, base = run.get("task"), run.get("model")
    kind = "language model" if task is None else f"model for {task.replace('-', ' ')}"
    begun = f"It was trained from `{base}`" if base else "It was trained from random weights"
    return "\n".join(
        [
            *_header(task, base),
            MARK,
            f"# {name}",
            "",
            f"A GPT-1 {kind}. {begun} with gpt1-jax: {step:,} steps.",
            "",
            *_results(measures, run, step),
            *_data(run),
            *_use(name, task),
            *_recipe(run),
        ]
    )


def _header(task: str | None, base: str | None) -> list[str]:
    lines = ["---", "library_name: transformers"]
    if task in PIPELINES:
        lines.append(f"pipeline_tag: {PIPELINES[task]}")
    if base is not None and base.count("/") == 1 and not Path(base).exists():
        lines.append(f"base_model: {base}")
    return [*lines, "tags:", "- openai-gpt", "- gpt1-jax", "---", ""]


def _results(measures: Mapping[str, float] | None, run: Mapping[str, Any], step: int) -> list[str]:
    if measures is None:
        return ["It was not validated: it is the model of the last step.", ""]
    rows = [f"| {name.replace('_', ' ')} | {value:.4g} |" for name, value in measures.items()]
    valid = run.get("valid")
    on = ", ".join(map(str, valid)) if isinstance(valid, list) else valid
    return [f"On `{on}`, after step {step:,}:", "", "| | |", "|---|---|", *rows, ""]


def _data(run: Mapping[str, Any]) -> list[str]:
    summary = run.get(SUMMARY) or {}
    lines = ["## Data", ""]
    for role, key in (("Training", "train"), ("Validation", "valid")):
        given = run.get(key, run.get("texts") if key == "train" else None)
        if not given:
            continue
        named = ", ".join(f"`{file}`" for file in (given if isinstance(given, list) else [given]))
        counts = summary.get(key) or {}
        sizes = [
            f"{count:,} {what.removesuffix('s') if count == 1 else what}"
            for what, count in counts.items()
            if isinstance(count, int)
        ]
        lines.append(f"- {role}: {named}{': ' if sizes else ''}{', '.join(sizes)}")
        for what, each in counts.items():
            if isinstance(each, dict):
                listed = ", ".join(f"{label} ({count:,})" for label, count in each.items())
                lines.append(f"  - {what}: {listed}")
    return [*lines, ""]


def _use(name: str, task: str | None) -> list[str]:
    lines = ["## Use", "", "With gpt1-jax:", "", "```python", "import gpt1_jax as gpt1", ""]
    if task is None:
        lines += [
            f'model = gpt1.OpenAIGPTLMHeadModel.from_pretrained("{name}")',
            f'tokenizer = gpt1.Tokenizer.from_pretrained("{name}")',
            f"ids = gpt1.generate(model, [tokenizer.encode({EXAMPLES[None]})])",
            "print(tokenizer.decode(ids[0]))",
        ]
    elif task in EXAMPLES:
        lines.append(f'print(gpt1.predict("{name}", [{EXAMPLES[task]}]))')
    else:
        lines.append(f'print(gpt1.predict("{name}", rows))  # dicts with the columns of run.json')
    lines += ["```", ""]
    if task not in PIPELINES:
        return [
            *lines,
            "transformers opens the weights, but has no pipeline for this task: the guide of "
            "gpt1-jax has the few lines of torch that it takes.",
            "",
        ]
    example = EXAMPLES[task]
    if task == "entailment":
        example = '{"text": "A text.", "text_pair": "Another."}'
    return [
        *lines,
        "With transformers:",
        "",
        "```python",
        "from transformers import pipeline",
        "",
        f'print(pipeline("{PIPELINES[task]}", "{name}")({example}))',
        "```",
        "",
    ]


def _recipe(run: Mapping[str, Any]) -> list[str]:
    lines = ["## Training", ""]
    if command := (run.get(SUMMARY) or {}).get("command"):
        lines += ["```bash", command, "```", ""]
    settings = {
        key: value
        for key, value in run.items()
        if key not in _NOT_SETTINGS and not key.endswith("_content")
    }
    rows = [f"| {key} | {json.dumps(value)} |" for key, value in settings.items()]
    versions = [f"{package} {metadata.version(package)}" for package in PACKAGES]
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return [
        *[*lines, "| setting | value |", "|---|---|", *rows, ""],
        f"Versions: {', '.join(versions)}, Python {platform.python_version()}; devices: {devices}.",
        "",
    ]
