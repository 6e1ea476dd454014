"""LoRA: low-rank changes of chosen kernels, trained alone and saved alone, as ``peft`` has them.

A kernel W (in, out) becomes W + scale A B, with A (in, rank) and B (rank, out); only A and B are
trained (Hu et al. 2021, arXiv:2106.09685, section 4.1). The adapters are a nested dict that has
``lora_A`` and ``lora_B`` where the parameters have the kernel:
``adapters["transformer"]["h"]["0"]["attn"]["c_attn"]["lora_A"]``.
"""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from gpt1_jax._conversion import (
    conversion,
    files,
    huggingface,
    json_file,
    layout,
    match,
    tree,
)
from gpt1_jax.checks import (
    DropoutRate,
    Positive,
    PositiveInteger,
    Rule,
    Switch,
    check_fields,
    short,
    wrong,
)
from gpt1_jax.nn.dtypes import at_least_float32
from gpt1_jax.pretrained import Params, check_params, flatten

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
FACTORS = ("lora_A", "lora_B")
PREFIX = "base_model.model."  # of every name in peft's files
ALL_LINEAR = "all-linear"  # peft's name of all linear layers but a head
LINEAR_LAYERS = ("c_attn", "c_proj", "c_fc")

# peft's names of what a model is for. It has none for the double heads.
TASKS = {
    layout.BASE: "FEATURE_EXTRACTION",
    layout.LM_HEAD: "CAUSAL_LM",
    layout.DOUBLE_HEADS: None,
    layout.CLASSIFICATION: "SEQ_CLS",
}

# What else peft can do to the weights, with the values that do nothing. The rest of its fields
# (versions, how training started) changes no output of an adapter that is trained.
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "alora_invocation_tokens": (),
    "alpha_pattern": ({},),
    "arrow_config": (),
    "bias": ("none",),
    "exclude_modules": ([],),
    "init_lora_weights": (True, False, "gaussian"),  # others change the base's weights too
    "kasa_config": (),
    "layer_replication": (),
    "layers_to_transform": ([],),
    "lora_bias": (False,),
    "monteclora_config": (),
    "rank_pattern": ({},),
    "target_parameters": ([],),
    "trainable_token_indices": (),
    "use_bdlora": (),
    "use_dora": (False,),
    "use_qalora": (False,),
    "velora_config": (),
}


def _are_names(names: object) -> bool:
    return isinstance(names, tuple) and all(isinstance(name, str) and name for name in names)


Names = Annotated[tuple[str, ...], Rule("a tuple of names", _are_names)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Which kernels are adapted, and how.

    Attributes:
        rank: inner dimension of the change.
        alpha: what the change is multiplied by, after division by the rank.
        target_modules: names of the linear layers to adapt, or ends of their dotted paths, as peft
            matches them: "c_proj" is both of a block, "mlp.c_proj" one of them, and
            "transformer.h.0.mlp.c_proj" that of the first block alone. "all-linear" stands for all
            of the blocks, and is replaced by their names.
        rslora: divide by the root of the rank instead (arXiv:2312.03732).
        dropout: rate on the adapters' input while they are trained.
    """

    rank: PositiveInteger = 8
    alpha: Positive = 16.0
    target_modules: Names = ("c_attn",)
    rslora: Switch = False
    dropout: DropoutRate = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.target_modules == (ALL_LINEAR,):
            object.__setattr__(self, "target_modules", LINEAR_LAYERS)
        names = self.target_modules
        if not names or len(set(names)) < len(names):
            raise ValueError(f"target_modules is {short(names)}, but must hold names, each once")

    @property
    def scale(self) -> float:
        """What the product of the two factors is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def adapts(self, module: str) -> bool:
        """Whether the linear layer with this dotted path is adapted."""
        return any(_ends(module, target) for target in self.target_modules)


def init_adapters(settings: LoraSettings, params: Params, key: jax.Array) -> Params:
    """Return new adapters, which change nothing yet.

    As peft initialises them: ``lora_A`` Kaiming-uniform with a = sqrt(5), which is uniform within
    1 / sqrt(in), and ``lora_B`` zero.

    Args:
        settings: which kernels to adapt.
        params: the model's parameters, or their shapes.
        key: of the draws.

    Returns:
        The nested dict of ``lora_A`` (in, rank) and ``lora_B`` (rank, out), float32.

    Raises:
        ValueError: a target matches no linear layer; those that there are are named.
    """
    shapes = _shapes(settings, params)
    keys = iter(jax.random.split(key, len(shapes)))

    def initial(path: tuple[str, ...], shape: tuple[int, ...], key: jax.Array) -> jax.Array:
        if path[-1] == "lora_B":
            return jnp.zeros(shape, jnp.float32)
        bound = 1 / math.sqrt(shape[0])
        return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

    return unflatten_dict({path: initial(path, shapes[path], next(keys)) for path in shapes})


def adapt(params: Params, adapters: Params, settings: LoraSettings) -> Params:
    """Return the parameters with the adapters' changes added: for use inside a compiled function.

    A loss of ``adapt(params, adapters, settings)`` can be differentiated with respect to
    ``adapters`` alone, as LoRA does. The sum is computed in float32 (float64 for such kernels) and
    rounded once, to the kernel's dtype.

    Args:
        params: the model's parameters.
        adapters: as ``init_adapters`` returns them, in any float dtype.
        settings: those of the adapters.

    Returns:
        ``params`` with W + scale A B in place of each adapted kernel W; other leaves as they are.

    Raises:
        ValueError: a target matches no linear layer, or the adapters do not fit these parameters:
            whatever is missing, unexpected or mis-shaped is named.
    """
    leaves, factors = flatten(params), flatten(adapters)
    check_params("LoRA adapter", _shapes(settings, params), factors)
    for module in adapted_modules(settings, params):
        kernel = leaves[*module, "kernel"]
        dtype = at_least_float32(kernel.dtype)
        A, B = (jnp.asarray(factors[*module, name], dtype) for name in FACTORS)
        # It is the parameters that change, so not in a GPU's coarser float32. Scaling a factor
        # costs less than scaling the product.
        change = jnp.matmul(A, settings.scale * B, precision=jax.lax.Precision.HIGHEST)
        leaves[*module, "kernel"] = (jnp.asarray(kernel, dtype) + change).astype(kernel.dtype)
    return unflatten_dict(leaves)


def merge_adapters(params: Params, adapters: Params, settings: LoraSettings) -> Params:
    """Return what ``adapt`` does, compiled and computed once: for saving the model as a whole.

    Arguments, result and errors are those of ``adapt``.
    """
    return _merge(params, adapters, settings)


@functools.partial(jax.jit, static_argnames="settings")
def _merge(params: Params, adapters: Params, settings: LoraSettings) -> Params:
    return adapt(params, adapters, settings)


def save_adapters(
    folder: str | os.PathLike[str],
    settings: LoraSettings,
    adapters: Params,
    *,
    architecture: str,
    base: str,
    saved_modules: Params | None = None,
) -> None:
    """Write adapters as peft does: ``PeftModel.from_pretrained(torch_model, folder)`` reads them.

    Args:
        folder: made if need be; its two files are replaced only after both are written.
        settings: those of the adapters.
        adapters: as ``init_adapters`` returns them; float32, bfloat16 or float16.
        architecture: of the model, one of ``conversion.ARCHITECTURES``.
        base: folder or hub id of the model that is adapted.
        saved_modules: a nested dict, by the model's paths, of the parameters that were trained
            beside the adapters: embeddings and heads, modules as a whole. peft always reads a
            classifier's ``score`` from here.

    Raises:
        ValueError: adapters or modules that do not fit the settings and the architecture: whatever
            is missing, unexpected, mis-shaped or no float is named.
        OSError: the folder cannot be written. It is left as it was.
    """
    rows = _outside_the_blocks((architecture,))
    named = {row.path: row for row in rows}
    leaves = {
        path: np.asarray(leaf)
        for path, leaf in {**flatten(adapters), **flatten(saved_modules or {})}.items()
    }
    described = {path: (leaf.shape, str(leaf.dtype)) for path, leaf in leaves.items()}
    required = layout.OWN_HEAD[architecture] if architecture == layout.CLASSIFICATION else ()
    if faults := _faults(settings, described, rows, required):
        raise ValueError(
            "\n".join(["these adapters cannot be saved:", *match.first_faults(faults)])
        )

    arrays = {}
    for path, leaf in leaves.items():
        row = named.get(path) or _factor(path, leaf.shape)
        arrays[PREFIX + row.torch] = row.to_torch(leaf)
    # Embeddings are not among peft's modules_to_save, where a tied head would keep the old one; it
    # puts what else a file holds into the base, as it does with embeddings that were resized.
    whole = {".".join(path[:-1]) for path in leaves if path[-1] not in (*FACTORS, "embedding")}
    config = {
        "auto_mapping": {
            "base_model_class": architecture,
            "parent_library": "transformers.models.openai.modeling_openai",
        },
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": True,  # torch's Conv1D holds its weight as (in, out)
        "inference_mode": True,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "modules_to_save": sorted(whole) or None,
        "peft_type": "LORA",
        "r": settings.rank,
        "target_modules": list(settings.target_modules),
        "task_type": TASKS[architecture],
        "use_rslora": settings.rslora,
    }
    with files.atomic_write(folder) as new:
        _save(arrays, new(WEIGHTS))
        new(CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_adapters(folder: str | os.PathLike[str]) -> tuple[LoraSettings, Params, Params]:
    """Read adapters that ``save_adapters`` or peft wrote.

    Whether they fit a model is seen when they meet one, in ``adapt``.

    Args:
        folder: has ``adapter_config.json`` and ``adapter_model.safetensors``.

    Returns:
        The settings; the adapters, in the file's dtype; and a nested dict, by the model's paths, of
        the other parameters that the file holds, which replace the model's own: empty where none
        were trained.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: the files are damaged, hold something else than plain LoRA, or do not fit each
            other: whatever is missing, unexpected, mis-shaped or no float is named.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    files.finish_writes(folder)
    settings, modules_to_save = _read_config(folder / CONFIG)
    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {WEIGHTS}")
    found = huggingface.open_weights(path)
    prefixed = any(stored.name.startswith(f"{PREFIX}transformer.") for stored in found)
    rows = _outside_the_blocks(
        (layout.LM_HEAD, layout.DOUBLE_HEADS, layout.CLASSIFICATION) if prefixed else (layout.BASE,)
    )
    named = {PREFIX + row.torch: row for row in rows}
    fitted = [(named.get(stored.name) or _factor_named(stored), stored) for stored in found]
    described = {
        row.path: (stored.shape[::-1] if row.transposed else stored.shape, stored.dtype)
        for row, stored in fitted
    }
    if faults := _faults(settings, described, rows, modules_to_save):
        first = f"{path} does not fit {CONFIG} beside it:"
        raise ValueError("\n".join([first, *match.first_faults(faults)]))
    adapters = tree.load_params(
        [pair for pair in fitted if pair[0].path[-1] in FACTORS], jnp.asarray
    )
    saved = tree.load_params(
        [pair for pair in fitted if pair[0].path[-1] not in FACTORS], jnp.asarray
    )
    if "lm_head" in saved and "lm_head" not in modules_to_save:
        # Of a model whose embedding was resized, peft saves a tied head too.
        tokens = saved.get("transformer", {}).get("tokens_embed", {}).get("embedding")
        if tokens is not None and np.array_equal(tokens, saved["lm_head"]["kernel"].T):
            del saved["lm_head"]
    return settings, adapters, saved


def read_origin(folder: str | os.PathLike[str], saved_modules: Params) -> tuple[str, str | None]:
    """Return the architecture of the model that an adapter is of, and what the base is called.

    Args:
        folder: of the adapter, as ``load_adapters`` has read it.
        saved_modules: as ``load_adapters`` returns them.

    Raises:
        ValueError: it is of a model that is none of the four.
    """
    path = Path(folder) / CONFIG
    config = json_file.read_json(path)
    task, base = config.get("task_type"), config.get("base_model_name_or_path")
    mapping = config.get("auto_mapping")
    named = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    if named in TASKS:
        architecture = named
    elif task is None:
        # peft's get_peft_model without a task names the class; others may leave out both.
        double = "multiple_choice_head" in saved_modules
        architecture = layout.DOUBLE_HEADS if double else layout.LM_HEAD
    elif task in TASKS.values():
        architecture = next(name for name, its in TASKS.items() if its == task)
    else:
        right = ", ".join(str(its) for its in TASKS.values() if its is not None)
        raise ValueError(f"{path}: task_type is {short(task)}, but must be one of {right}")
    return architecture, base if isinstance(base, str) else None


def adapted_modules(settings: LoraSettings, params: Params) -> list[tuple[str, ...]]:
    """Return the paths of the linear layers that are adapted, in order.

    Raises:
        ValueError: a target matches no linear layer; those that there are are named.
    """
    modules = sorted(path[:-1] for path in flatten(params) if path[-1] == "kernel")
    for target in settings.target_modules:
        if not any(_ends(".".join(module), target) for module in modules):
            there = sorted({".".join(module[-2:]) for module in modules})
            raise ValueError(
                f"target_modules has {target!r}, but the linear layers are {', '.join(there)}"
            )
    return [module for module in modules if settings.adapts(".".join(module))]


def _shapes(settings: LoraSettings, params: Params) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shape of every leaf of the adapters of these parameters."""
    leaves, shapes = flatten(params), {}
    for module in adapted_modules(settings, params):
        n_in, n_out = jnp.shape(leaves[*module, "kernel"])
        shapes[*module, "lora_A"] = (n_in, settings.rank)
        shapes[*module, "lora_B"] = (settings.rank, n_out)
    return shapes


def _ends(module: str, name: str) -> bool:
    """Whether ``name`` is ``module``'s dotted path, or whole parts at its end."""
    return f".{module}".endswith(f".{name}")


def _within(module: str, name: str) -> bool:
    """Whether ``name`` is whole parts anywhere in ``module``'s dotted path."""
    return f".{name}." in f".{module}."


def _factor(path: tuple[str, ...], shape: tuple[int, ...]) -> layout.ParamSpec:
    """The row of a factor: torch holds it as the weight of a Linear."""
    return layout.ParamSpec(".".join((*path, "weight")), path, shape, transposed=True)


def _factor_named(stored: match.LazyTensor) -> layout.ParamSpec:
    """The row of what should be a factor; its path is the name as it is where it cannot be one."""
    name = stored.name
    if name.startswith(PREFIX) and name.endswith(".weight"):
        path = tuple(name.removeprefix(PREFIX).removesuffix(".weight").split("."))
    else:
        path = (name,)
    return _factor(path, stored.shape[::-1])


def _outside_the_blocks(architectures: Iterable[str]) -> list[layout.ParamSpec]:
    """The rows, but not the shapes, of the embeddings and heads that an adapter may come with."""
    config = {"n_layer": 1, "tie_word_embeddings": False}
    rows = {row.path: row for name in architectures for row in layout.param_specs(config, name)}
    return [row for row in rows.values() if "h" not in row.path]


def _faults(
    settings: LoraSettings,
    found: Mapping[tuple[str, ...], tuple[tuple[int, ...], str]],
    rows: Collection[layout.ParamSpec],
    required: Collection[str],
) -> list[str]:
    """One line for each thing wrong with the leaves of a file, of which the model is not known.

    Args:
        settings: those of the adapters.
        found: the shape, as it is here, and the dtype of each leaf, by its path.
        rows: the parameters that may be saved beside the adapters.
        required: names of modules that must be.
    """
    expected: dict[tuple[str, ...], tuple[int | str, ...]] = {}
    modules = {path[:-1] for path in found if path[-1] not in FACTORS}
    for row in rows:
        if row.path[:-1] in modules or any(_within(row.torch, name) for name in required):
            expected[row.path] = ("*",) * len(row.shape)
    whole = {path[:-1] for path in expected}  # which peft does not adapt besides
    adapted = {path[:-1] for path in found if path[-1] in FACTORS} - whole
    for module in sorted(adapted):
        if settings.adapts(".".join(module)):
            expected[*module, "lora_A"] = ("*", settings.rank)
            expected[*module, "lora_B"] = (settings.rank, "*")

    faults = [
        f"- {target} of target_modules has no adapter"
        for target in settings.target_modules
        if not any(_ends(".".join(module), target) for module in adapted)
    ]
    faults += [f"- {'.'.join(path)} is missing" for path in expected if path not in found]
    for path, (shape, dtype) in found.items():
        dotted, want = ".".join(path), expected.get(path)
        if want is None:
            faults.append(f"+ {dotted} is unexpected")
            continue
        if len(shape) != len(want) or any(
            m not in ("*", n) for n, m in zip(shape, want, strict=True)
        ):
            right = f"({', '.join(map(str, want))})"
            faults.append(f"! {dotted} has shape {shape}, but must have {right}")
        if dtype not in conversion.DTYPES:
            right = " or ".join(conversion.DTYPES)
            faults.append(f"! {dotted} is {dtype}, but must be {right}")
    return faults


def _read_config(path: Path) -> tuple[LoraSettings, tuple[str, ...]]:
    """The settings in peft's file, and the names of its modules_to_save."""
    config = json_file.read_json(path)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError(f"{path} is no configuration of LoRA: its peft_type must be 'LORA'")
    whole = config.get("modules_to_save") or []
    for name, value in (
        ("target_modules", config.get("target_modules")),
        ("modules_to_save", whole),
    ):
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise wrong(f"{path}: {name}", value, "a list of names")
    more = [
        f"{name} is {short(config[name])}"
        for name, neutral in UNSUPPORTED.items()
        if config.get(name) is not None and config[name] not in neutral
    ]
    headless = config.get("task_type") in (TASKS[layout.BASE], TASKS[layout.CLASSIFICATION])
    if not headless and any(_ends(name, "tokens_embed") for name in whole):
        more.append("modules_to_save has tokens_embed, which peft does not tie to lm_head")
    if more:
        raise ValueError(f"{path} asks for more than plain LoRA: {'; '.join(more)}")
    # Where "all-linear" was asked for, peft spells it out, modules_to_save included; it does not
    # adapt those.
    targets = tuple(
        target
        for target in config["target_modules"]
        if not any(_within(target, name) for name in whole)
    )
    fields: dict[str, Any] = {
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "target_modules": targets,
        "rslora": config.get("use_rslora", False),
        "dropout": config.get("lora_dropout", 0.0),
    }
    try:
        settings = LoraSettings(**fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return settings, tuple(whole)


def _save(arrays: dict[str, np.ndarray], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        # The arrays are contiguous (ParamSpec.to_torch); safetensors garbles others silently.
        save_file(arrays, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error
