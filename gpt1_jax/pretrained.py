"""What the models share: construction, parameters as a plain dict, loading, saving, resizing."""

import dataclasses
import functools
import inspect
import math
import os
import weakref
from collections.abc import Callable, Collection, Mapping
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, Unpack, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from flax.typing import PrecisionLike

from gpt1_jax.checks import POSITIVE_INTEGER, ForeignKeyword, check, check_keywords
from gpt1_jax.config import OpenAIGPTConfig, field_names, own_fields
from gpt1_jax.demo import PushOptions, resolve
from gpt1_jax.generation_config import (
    FILE,
    GenerationConfig,
    GenerationConfigLike,
    GenerationFile,
    as_generation_config,
)
from gpt1_jax.nn.attention import AttentionBackend, Backend
from gpt1_jax.nn.dtypes import float_dtype
from gpt1_jax.nn.host_arrays import native_leaves
from gpt1_jax.nn.int8 import Int8Embed, Int8Linear
from gpt1_jax.nn.layers import DType, TiedHead
from gpt1_jax.nn.partitioning import place_like
from gpt1_jax.nn.remat import Remat

if TYPE_CHECKING:
    from gpt1_jax.training.lora.held import HeldAdapters

_DEVICES = "JAX puts arrays on its default device, and mesh= splits them over several"
_QUANTIZED = 'gpt1_jax.quantize(model, "int8") quantizes a loaded model'
_NO_4_BIT = 'gpt1_jax.quantize(model, "int8") has no mode of 4 bits'
# What transformers' from_pretrained is called with, and this one is not.
_FOREIGN = {
    "torch_dtype": ForeignKeyword("dtype= is its name"),
    "device_map": ForeignKeyword(_DEVICES),
    "device_mesh": ForeignKeyword(_DEVICES),
    "tp_plan": ForeignKeyword(_DEVICES),
    "max_memory": ForeignKeyword(_DEVICES),
    "offload_folder": ForeignKeyword(_DEVICES),
    "low_cpu_mem_usage": ForeignKeyword(
        "at most about one copy of the weights is held", (None, True, False)
    ),
    "trust_remote_code": ForeignKeyword("no code of a checkpoint is run", (None, False)),
    "attn_implementation": ForeignKeyword(
        'attention= chooses it: "manual" is "eager", "xla" is like "sdpa"', (None, "eager")
    ),
    "use_safetensors": ForeignKeyword(
        "safetensors are read where there are any, else pickles", (None, True)
    ),
    "generation_config": ForeignKeyword("assign model.generation_config of the loaded model"),
    "key_mapping": ForeignKeyword("names must be those of torch"),
    "mirror": ForeignKeyword("the environment variable HF_ENDPOINT names one"),
    "from_flax": ForeignKeyword("transformers 5 has no weights of Flax", (None, False)),
    "weights_only": ForeignKeyword("no code in a pickle is ever run", (None, True)),
    "quantization_config": ForeignKeyword(_QUANTIZED),
    "load_in_8bit": ForeignKeyword(_QUANTIZED, (None, False)),
    "load_in_4bit": ForeignKeyword(_NO_4_BIT, (None, False)),
    "config": ForeignKeyword("give the fields to change by their names, num_labels=3 for example"),
    "state_dict": ForeignKeyword("load_params replaces the parameters of a model"),
    "output_loading_info": ForeignKeyword(
        "a parameter that is missing or left over is an error", (None, False)
    ),
    "return_dict": ForeignKeyword(
        "an output is a mapping, whose to_tuple() returns the tuple", (None, True)
    ),
    "use_cache": ForeignKeyword("generate always keeps a cache", (None, True, False)),
    "use_auth_token": ForeignKeyword("token= is its name"),
    "proxies": ForeignKeyword("the environment variable HTTPS_PROXY names a proxy"),
    "resume_download": ForeignKeyword("downloads always resume", (None, True, False)),
    "from_tf": ForeignKeyword("TensorFlow's weights are not read", (None, False)),
}

# What a model of torch has, and these have not.
_CASTS = "from_pretrained(..., dtype=) loads in another dtype"
_TORCH = {
    **dict.fromkeys(("to", "cuda", "cpu", "device"), _DEVICES),
    **dict.fromkeys(("half", "float", "bfloat16", "double"), _CASTS),
    **dict.fromkeys(("parameters", "named_parameters", "state_dict"), "params has them all"),
    "load_state_dict": "load_params(params) replaces the parameters",
    "zero_grad": "jax.grad returns gradients, and keeps none",
    "gradient_checkpointing_enable": 'from_pretrained(..., remat="all") does it',
    "tie_weights": "a tied head is always the embedding",
    "set_input_embeddings": "load_params(params) replaces the rows",
    "set_output_embeddings": "load_params(params) replaces the columns of an untied head",
}

Params = dict[str, Any]
Leaves = dict[tuple[str, ...], Any]
Model = TypeVar("Model", bound="OpenAIGPTPreTrainedModel")


@dataclasses.dataclass(frozen=True)
class Carried:
    """What a model carries along that chooses nothing that is compiled.

    As an attribute it is a part of the model's structure, which copies keep; all are equal, so that
    structures that differ in nothing else share what is compiled.

    Attributes:
        generation: the settings of generation that a model came with or was given, if any.
    """

    generation: GenerationFile | GenerationConfig | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Carried)

    def __hash__(self) -> int:
        return 0


# The adapters of models (``training/lora/held.py``), which compiled programs must not keep alive.
ADAPTERS: "weakref.WeakKeyDictionary[OpenAIGPTPreTrainedModel, HeldAdapters]" = (
    weakref.WeakKeyDictionary()
)


def flatten(params: Mapping[str, object]) -> Leaves:
    """Return the leaves of a nested dict of parameters by their paths."""
    return cast(Leaves, flatten_dict(params))


def check_params(
    name: str,
    shapes: Mapping[tuple[str, ...], tuple[int, ...]],
    leaves: Leaves,
) -> None:
    """Check the leaves of a dict of parameters, traced or not, against a model's shapes.

    Raises:
        ValueError: leaves that are missing, unexpected, of another shape or no floats, all by name.
    """
    problems = [f"- {'.'.join(path)} is missing" for path in shapes if path not in leaves]
    for path, leaf in leaves.items():
        dotted = ".".join(map(str, path))
        if path not in shapes:
            problems.append(f"+ {dotted} is unexpected")
        elif jnp.shape(leaf) != shapes[path]:
            problems.append(f"! {dotted} has shape {jnp.shape(leaf)}, but must have {shapes[path]}")
        elif path[-1] == "qvalue":
            if jnp.result_type(leaf) != jnp.int8:
                problems.append(f"! {dotted} is {jnp.result_type(leaf)}, but must be int8")
        elif not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            problems.append(f"! {dotted} is {jnp.result_type(leaf)}, but must be a float")
    if problems:
        from gpt1_jax._conversion import match

        first = f"these are not the parameters of this {name}:"
        raise ValueError("\n".join([first, *match.first_faults(problems)]))


def cast_params(params: Mapping[str, object], dtype: str) -> Params:
    """Return numpy parameters in another of ``conversion.DTYPES``; int8 and its scales stay.

    Raises:
        ValueError: values that are finite and would not be in that dtype; the parameters are named.
    """
    from gpt1_jax._conversion import conversion, match

    leaves = flatten(params)
    floats = {path: leaf for path, leaf in leaves.items() if not _is_int8(path, leaves)}
    with np.errstate(over="ignore"):
        cast = {path: leaf.astype(conversion.DTYPES[dtype]) for path, leaf in floats.items()}
    wrong = [
        ".".join(path)
        for path, leaf in floats.items()
        if (
            np.isfinite(leaf.astype(np.float32)) & ~np.isfinite(cast[path].astype(np.float32))
        ).any()
    ]
    if wrong:
        raise ValueError(
            f"{dtype} is too narrow for values of {', '.join(match.first_faults(wrong))}"
        )
    return unflatten_dict(leaves | cast)


def _is_int8(path: tuple[str, ...], leaves: Leaves) -> bool:
    """Return whether a parameter is a weight in int8, or its scale."""
    return path[-1] == "qvalue" or (path[-1] == "scale" and (*path[:-1], "qvalue") in leaves)


class OpenAIGPTPreTrainedModel(nnx.Module):
    """Base of the four models.

    Args:
        config: the configuration.
        dtype: dtype of the computation; by default that of the parameters. Softmax, layer-norm
            statistics, logits and losses are float32 at least.
        param_dtype: dtype of the parameters.
        precision: precision of the matrix products, as ``jax.lax.Precision``; by default JAX's for
            the device, which on GPU and TPU is coarser than float32.
        attention: implementation of attention. "manual", the default, is GPT-1's formula. "xla" and
            "cudnn" are ``jax.nn.dot_product_attention``, which gives the same up to rounding,
            except at padding. Where the weights are asked for (``output_attentions``) or dropped
            out in a training, the formula takes their place. "cudnn" needs bfloat16 or float16 and
            an NVIDIA GPU. "auto" chooses by the platform: "cudnn" on such a GPU, if it can; else
            "xla" on a GPU or TPU, "manual" on a CPU.
        remat: what the backward pass of a training computes again instead of keeping it: "none";
            "linear", all but the products of linear layers (so scores, softmax, dropout, GELU and
            norms); or "all", whole blocks, whose inputs alone are kept then. On a CPU it
            needs ``nn.remat.compiler_options``.
        rngs: random keys for the initial weights.

    Attributes:
        config: the configuration.
        dtype: dtype of the computation.
        attention: implementation of attention, with "auto" resolved.
        remat: what the backward pass computes again.
        carried: what copies of the model keep besides.
        classifies: whether the labels are classes or numbers of whole texts, not next tokens.
        generation_config: what ``generate`` starts from; any form that it takes can be assigned.

    Raises:
        ValueError: dtypes, attention or rematerialisation that this model cannot have here.
    """

    config: OpenAIGPTConfig
    carried: Carried
    dtype: jnp.dtype
    attention: Backend
    remat: Remat
    classifies: ClassVar[bool] = False

    def __init__(
        self,
        config: OpenAIGPTConfig,
        *,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        precision: PrecisionLike = None,
        attention: AttentionBackend = "manual",
        remat: Remat = "none",
        rngs: nnx.Rngs,
    ):
        raise NotImplementedError

    def forward(self, *args: object, **kwargs: object) -> Any:
        """Return what calling the model returns, without checking the arguments first."""
        call: Any = type(self).__call__
        # That of a subclass may have nothing to leave out.
        return getattr(call, "__wrapped__", call)(self, *args, **kwargs)

    def __setattr__(self, name: str, value: object) -> None:
        if name == "generation_config":  # which Flax would note as an attribute
            object.__setattr__(self, name, value)
            return
        super().__setattr__(name, value)
        if name == "config" and not hasattr(self, "carried"):
            self.carried = Carried()  # from the start, since another attribute would compile anew

    @property
    def generation_config(self) -> GenerationConfig:
        """What ``generate`` starts from: assigned, or the checkpoint's, or else the config's.

        As in transformers, the checkpoint's ``generation_config.json`` counts alone where there is
        one, and the settings of generation in its ``config.json`` where there is none.

        Raises:
            ValueError: a setting in the checkpoint is wrong.
        """
        held = self.carried.generation
        if held is None:
            return GenerationConfig.from_model_config(self.config.to_dict())
        return held.parse() if isinstance(held, GenerationFile) else held

    @generation_config.setter
    def generation_config(self, settings: GenerationConfigLike) -> None:
        self.carried = Carried(as_generation_config(settings))

    @property
    def params(self) -> Params:
        """The parameters as a plain nested dict whose paths spell torch's names.

        Keys are strings, leaves are arrays: ``params["transformer"]["h"]["0"]["ln_1"]["scale"]``.
        """
        return unflatten_dict({path: v.get_value() for path, v in self._variables().items()})

    def load_params(self, params: Mapping[str, object]) -> None:
        """Replace every parameter, after a training for example; dtypes stay the model's.

        Those of a model on a mesh stay there: arrays of numpy or of one device are split as the
        model's own are. Arrays that lie on a mesh themselves are taken as they lie. Adapters, which
        were of the parameters before, are forgotten.

        Args:
            params: a nested dict as ``params`` returns it.

        Raises:
            ValueError: parameters that are missing, unexpected or of another shape, all by name;
                nothing is replaced then.
        """
        own, new = self._variables(), flatten(native_leaves(params))
        check_params(type(self).__name__, self.shapes, new)
        ADAPTERS.pop(self, None)
        for path, variable in own.items():
            placed = place_like(new[path], variable.get_value())
            variable.set_value(jnp.asarray(placed, variable.dtype))

    @property
    def shapes(self) -> dict[tuple[str, ...], tuple[int, ...]]:
        """The shape of every parameter, by its path."""
        return {path: variable.shape for path, variable in self._variables().items()}

    def _variables(self) -> dict[tuple[str, ...], nnx.Param]:
        """Return the model's own parameters by path; not copies."""
        flat = nnx.to_flat_state(nnx.state(self, nnx.Param))
        return {tuple(map(str, path)): variable for path, variable in flat}

    def num_parameters(self) -> int:
        """Return the number of parameters; a tied head has none of its own."""
        return sum(math.prod(variable.shape) for variable in self._variables().values())

    def get_input_embeddings(self) -> nnx.Embed | Int8Embed:
        """Return the token embedding, a table (V, E)."""
        body: Any = getattr(self, "transformer", self)
        return body.tokens_embed

    def get_output_embeddings(self) -> nnx.Linear | Int8Linear | TiedHead | None:
        """Return the LM head, which has a kernel (E, V) where it is untied; None without a head."""
        return getattr(self, "lm_head", None)

    def eval(self) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the model, which drops nothing out unless a call asks for it."""
        return self

    def train(self, mode: bool = True) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the model for ``train(False)``, which is ``eval()``.

        Raises:
            ValueError: ``mode`` is true: there is no mode, each call says whether to drop out.
        """
        if mode:
            raise ValueError(
                "a model has no training mode: pass deterministic=False and "
                "dropout_key=jax.random.key(seed) to the call that is to drop out"
            )
        return self

    def __getattr__(self, name: str) -> Any:
        """Say what takes the place of torch's methods; called for what is not found alone."""
        if name in _TORCH:
            raise AttributeError(f"{type(self).__name__} has no {name}: {_TORCH[name]}")
        return object.__getattribute__(self, name)  # raises the error again

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        dtype: DType | None = None,
        param_dtype: DType | None = None,
        precision: PrecisionLike = None,
        attention: AttentionBackend = "manual",
        remat: Remat = "none",
        rngs: nnx.Rngs | None = None,
        mesh: jax.sharding.Mesh | None = None,
        subfolder: str = "",
        variant: str | None = None,
        ignore_mismatched_sizes: bool = False,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        force_download: bool = False,
        **fields: object,
    ) -> Self:
        """Load a checkpoint: a Hugging Face folder or hub id, or a folder of OpenAI's npy files.

        Args:
            path: the folder or hub id, or "demo" for the bundled demo model.
            dtype: dtype of the parameters and of the computation, such as "bfloat16". By default,
                and for "auto", it is the file's.
            param_dtype: dtype of the parameters, if it differs from that of the computation:
                "float32" with ``dtype="bfloat16"`` for training, "auto" for the file's.
            precision: precision of the matrix products; see the class.
            attention: implementation of attention; see the class.
            remat: what the backward pass of a training computes again; see the class.
            rngs: random keys for a head that the checkpoint lacks. Without them, such a checkpoint
                is an error.
            mesh: a mesh of ``sharding.mesh.make_mesh``, to place the parameters on as
                ``shard_model`` does. Each device reads its own shards alone.
            subfolder: folder inside ``path`` that holds the checkpoint.
            variant: variant of the weights, such as "fp16" for ``model.fp16.safetensors``.
            ignore_mismatched_sizes: whether to start from a new head, drawn by ``rngs``, if the
                checkpoint's head has another number of labels. Everything else must fit.
            revision: branch, tag or commit on the hub.
            cache_dir: folder of the downloads.
            local_files_only: whether to use no network.
            token: access token for private repositories.
            force_download: whether to download files again that are in the cache.
            **fields: fields of the configuration to change, such as ``num_labels=3``, by any name
                that its constructor takes.

        Raises:
            FileNotFoundError: the folder, a file or the repository does not exist.
            ValueError: the files do not hold this model; the message lists every parameter that is
                missing, unexpected, duplicate or mis-shaped. Or values do not fit float16, or the
                mesh does not divide the model.
            TypeError: ``fields`` names no field of the configuration.
        """
        from gpt1_jax._conversion import conversion, layout
        from gpt1_jax.quantization import quantize_as_config
        from gpt1_jax.sharding.mesh import check_mesh, param_shardings, shard

        _, *own, _ = inspect.signature(cls.from_pretrained).parameters
        own += field_names()
        fields = check_keywords("from_pretrained()", fields, own, _FOREIGN)
        dtype = _given("dtype", dtype)
        param_dtype = dtype if param_dtype is None else _given("param_dtype", param_dtype)
        is_float16 = param_dtype == jnp.float16  # whose range other dtypes exceed
        folder = resolve(
            path,
            subfolder=subfolder,
            variant=variant,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            force_download=force_download,
        )
        # Before the weights are read, so that a config that no model can have costs nothing.
        config = OpenAIGPTConfig.from_pretrained(folder).replace(**fields)
        int8 = layout.quantization(config.to_dict())
        if mesh is not None:
            check_mesh(mesh, config)

        def leaf(array: np.ndarray) -> np.ndarray | jax.Array:
            # Where a parameter lies on a mesh depends on its path, which is known later.
            if mesh is not None or is_float16:
                return array
            if param_dtype is not None and int8 is None:
                # By numpy, since JAX would compile a program for every shape.
                array = array.astype(param_dtype, copy=False)
            return jax.device_put(array)

        try:
            _, params = conversion.read(
                folder,
                architecture=cls.__name__,
                new_head=rngs is not None,
                ignore_mismatched_sizes=ignore_mismatched_sizes,
                overrides=own_fields(fields)[0],
                leaf=leaf,
                variant=variant,
            )
        except conversion.MissingHeadError as error:
            hint = "to start from a new head, pass rngs=nnx.Rngs(seed)"
            raise ValueError(f"{error}; {hint}") from None
        leaves = flatten(cast_params(params, "float16") if is_float16 else params)
        make = functools.partial(
            cls,
            config,
            dtype=dtype,
            param_dtype=param_dtype or _widest(leaves),
            precision=precision,
            attention=attention,
            remat=remat,
        )
        model = abstract(lambda rngs: quantize_as_config(make(rngs=rngs)))
        if rngs is not None and (missing := model._variables().keys() - leaves.keys()):
            leaves |= initial_params(make, rngs, missing)
        params = unflatten_dict(leaves)
        if mesh is not None:
            params = shard(params, param_shardings(mesh, params))
        model.load_params(params)
        model.carried = Carried(GenerationFile.read(folder))
        return model

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        params: Mapping[str, object] | None = None,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
    ) -> None:
        """Write ``config.json`` and the weights, as ``transformers`` writes and reads them.

        And ``generation_config.json``, where the model came with one or was given settings.

        Args:
            folder: created if need be; its files are replaced only after all are written.
            params: to write in place of the model's own, on the host for example.
            max_shard_size: above it the weights are split over several files.
            safe_serialization: False writes ``pytorch_model.bin`` (which needs torch).

        Raises:
            OSError: the folder cannot be written.
            ValueError: ``params`` are not those of this model.
        """
        from gpt1_jax._conversion import conversion

        conversion.write(
            folder,
            saved_config(self),
            self.params if params is None else params,
            max_shard_size=max_shard_size,
            safe_serialization=safe_serialization,
            files=generation_files(self),
        )

    def push_to_hub(self, repo_id: str, **push: Unpack[PushOptions]) -> str:
        """Upload the model to the Hugging Face hub, as ``save_pretrained`` writes it.

        Args:
            repo_id: the id of a model on the hub ("owner/name"), which is created if need be.
            **push: ``private``, ``token`` and the like.

        Returns:
            The address of the commit, or of the pull request.

        Raises:
            ValueError: ``repo_id`` is not an id.
            OSError: the upload failed; the message says why.
        """
        from gpt1_jax._conversion import conversion

        default: PushOptions = {"commit_message": "Upload model"}
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return conversion.push_folder(folder, repo_id, **default | push)

    def load_adapter(self, folder: str | os.PathLike[str], adapter_name: str = "default") -> None:
        """Load a LoRA adapter under a name, and use it: one of peft's, or of a training here.

        In a model of floats it is merged, so that the model computes as fast as without, and what
        is compiled for it serves every adapter. The kernels that adapters change, and the adapters
        themselves, are kept beside. Over weights in int8 it is added to each layer's output, which
        takes another program, for all adapters of one rank and the same targets.

        A copy of the model, quantized for example, has what is in use here merged, and no adapters.

        Args:
            folder: has ``adapter_config.json`` and ``adapter_model.safetensors``.
            adapter_name: which ``set_adapter`` takes.

        Raises:
            OSError: the folder has no adapter.
            ValueError: the name is taken, or the adapter is of another model, or more than LoRA;
                nothing is changed then.
        """
        from gpt1_jax.training.lora import held

        held.load(self, folder, adapter_name)

    def set_adapter(self, adapter_name: str) -> None:
        """Use the adapter of this name, and no other.

        Raises:
            ValueError: there is none.
        """
        from gpt1_jax.training.lora import held

        held.use(self, held.held_by(self).choose(adapter_name))

    def disable_adapters(self) -> None:
        """Use no adapter: the model is, bit by bit, what it was."""
        from gpt1_jax.training.lora import held

        held.use(self, None)

    def enable_adapters(self) -> None:
        """Use the adapter again that was in use before ``disable_adapters``.

        Raises:
            ValueError: no adapter was loaded.
        """
        from gpt1_jax.training.lora import held

        held.use(self, held.held_by(self).choose(None))

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter; the model does without if it was in use.

        Raises:
            ValueError: there is none of this name.
        """
        from gpt1_jax.training.lora import held

        held.delete(self, adapter_name)

    def active_adapters(self) -> list[str]:
        """Return the name of the adapter in use, in a list; an empty list if none is."""
        from gpt1_jax.training.lora import held

        active = held.held_by(self).active
        return [] if active is None else [active]

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> nnx.Embed:
        """Change the number of tokens, in place; a tied head follows.

        Rows that remain keep their values. New ones are the mean of the old ones: Hugging Face's
        default too, whose noise around it, of 1e-9 times the rows' covariance, is left out. With
        ``rngs`` they are drawn from N(0, initializer_range). Adapters are forgotten.

        Args:
            new_num_tokens: the new ``vocab_size``; by default the old one.
            pad_to_multiple_of: round the number up to a multiple of this one.
            mean_resizing: whether new rows are the mean; by default without ``rngs`` alone.
            rngs: keys of new rows that are drawn.

        Returns:
            The token embedding.

        Raises:
            ValueError: a number is not a positive integer, or rows are to be drawn without
                ``rngs``.
        """
        if mean_resizing is None:
            mean_resizing = rngs is None
        if not mean_resizing and rngs is None:
            raise ValueError("mean_resizing=False draws the new rows: pass rngs=nnx.Rngs(seed)")
        if new_num_tokens is None:
            new_num_tokens = self.config.vocab_size
        config = dataclasses.replace(self.config, vocab_size=new_num_tokens)
        if pad_to_multiple_of is not None:
            check("pad_to_multiple_of", pad_to_multiple_of, POSITIVE_INTEGER)
            rounded = -(-config.vocab_size // pad_to_multiple_of) * pad_to_multiple_of
            config = dataclasses.replace(config, vocab_size=rounded)
        size = int(config.vocab_size)

        def resized(old: jax.Array, axis: int) -> jax.Array:
            kept = jax.lax.slice_in_dim(old, 0, min(old.shape[axis], size), axis=axis)
            shape = list(old.shape)
            shape[axis] = size - kept.shape[axis]
            if mean_resizing or rngs is None:
                mean = old.astype(jnp.float32).mean(axis, keepdims=True)
                new = jnp.broadcast_to(mean, shape)
            else:
                new = (
                    jax.random.normal(rngs.params(), shape, jnp.float32) * config.initializer_range
                )
            new = place_like(new.astype(old.dtype), kept)
            return place_like(jnp.concatenate([kept, new], axis=axis), old)

        table, head = self.get_input_embeddings(), getattr(self, "lm_head", None)
        if not isinstance(table, nnx.Embed):
            raise ValueError("the embedding is int8: resize the model that it was quantized from")
        rows = resized(table.embedding.get_value(), axis=0)
        if head is not None:
            if not config.tie_word_embeddings:
                head.kernel.set_value(resized(head.kernel.get_value(), axis=1))
            head.out_features = size
        ADAPTERS.pop(self, None)
        table.embedding.set_value(rows)
        table.num_embeddings = size
        getattr(self, "transformer", self).config = self.config = config
        return table


def _given(name: str, dtype: Any) -> jnp.dtype | None:
    """Return a dtype of JAX's or torch's; None for None and "auto".

    Raises:
        ValueError: see ``float_dtype``.
    """
    if dtype is None or (isinstance(dtype, str) and dtype == "auto"):
        return None
    torch = type(dtype).__module__ == "torch"
    return float_dtype(name, str(dtype).removeprefix("torch.") if torch else dtype)


def _widest(leaves: Leaves) -> jnp.dtype:
    """Return the dtype that holds all floats of a checkpoint, but for the scales of int8."""
    floats = {leaf.dtype for path, leaf in leaves.items() if not _is_int8(path, leaves)}
    return jnp.result_type(*floats)


def saved_config(model: OpenAIGPTPreTrainedModel) -> dict[str, object]:
    """Return the contents of the config.json that a model is saved with."""
    from gpt1_jax.quantization import quantization_config

    if any(path[-1] == "lora_A" for path in model.shapes):
        raise ValueError(
            "an int8 model cannot be saved with an adapter in use: disable_adapters() takes it "
            "out; to save both as one, load the adapter into the model in floats, and quantize that"
        )
    fields = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    fields.pop("quantization_config", None)  # of another model's weights
    return fields | quantization_config(model)


def generation_files(model: OpenAIGPTPreTrainedModel) -> dict[str, bytes]:
    """Return the files of a model's settings of generation, to be saved beside its weights."""
    held = model.carried.generation
    if held is None:
        return {}
    return {FILE: held.content if isinstance(held, GenerationFile) else held.to_json().encode()}


def abstract(make: Callable[..., Model]) -> Model:
    """Return the model that ``make(rngs=...)`` makes, with shapes in place of its parameters."""
    return nnx.eval_shape(lambda: make(rngs=_OneKey(0)))


class _OneKey(nnx.Rngs):
    """One key for all parameters: tracing how keys are derived would take most of the time."""

    def params(self) -> jax.Array:
        """Return the key."""
        return self["default"].key[...]


def initial_params(
    make: Callable[..., OpenAIGPTPreTrainedModel],
    rngs: nnx.Rngs,
    paths: Collection[tuple[str, ...]],
) -> dict[tuple[str, ...], jax.Array]:
    """Return the initial values, in a new model, of the parameters at ``paths`` alone."""
    key = rngs.params()

    @jax.jit  # which computes nothing of what is not returned
    def initial() -> dict[str, jax.Array]:
        variables = make(rngs=nnx.Rngs(params=key))._variables()
        return {".".join(path): variables[path].get_value() for path in paths}

    return {tuple(name.split(".")): value for name, value in initial().items()}
