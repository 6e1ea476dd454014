"""The command ``gpt1 doctor``."""

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import gpt1_jax

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "safetensors", "tokenizers"),
    *("huggingface_hub", "tyro", "torch", "transformers"),
)
FOR_DEVELOPERS = ("test", "bench")  # extras that a bug report need not show
MISSING = "not installed"


def doctor() -> None:
    """Print versions, devices, caches and extras, for bug reports.

    The precision is that of float32 matrix products, measured on the first device. Nothing is
    downloaded, and no model is read.
    """
    for title, lines in (
        ("Versions", _versions()),
        ("Devices", _devices()),
        ("Caches", _caches()),
        ("Extras", _extras()),
    ):
        print(f"{title}:")
        for name, value in lines:
            print(f"  {name:18}  {value}", flush=True)


def version_of(package: str) -> str:
    """Return the version of a package, which is not imported; or that it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return MISSING


def _versions() -> Iterator[tuple[str, str]]:
    yield "gpt1-jax", f"{gpt1_jax.__version__} in {Path(gpt1_jax.__file__).parent}"
    yield "Python", f"{platform.python_version()} on {platform.platform()}"
    for package in PACKAGES:
        yield package, version_of(package)


def _devices() -> Iterator[tuple[str, str]]:
    for name, value in sorted(os.environ.items()):
        if name.startswith(("JAX_", "XLA_", "CUDA_VISIBLE")):
            yield name, value
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:  # a platform that JAX_PLATFORMS names and that is not there
        yield "none", str(error).partition("\n")[0]
        return
    yield "backend", jax.default_backend()
    kinds = [device.device_kind for device in devices]
    for kind in dict.fromkeys(kinds):
        yield "devices", f"{kinds.count(kind)} x {kind}"
    yield "float32 products", measure_precision()


def measure_precision() -> str:
    """Return the precision in which the first device multiplies float32 matrices by default."""
    import jax.numpy as jnp

    size = 256  # so large that a GPU computes it in its matrix units
    # 1 + 2**-k is 1 where a number has fewer than k bits of fraction.
    for bits, kind in {9: "bfloat16", 12: "TF32", 20: "bfloat16_3x"}.items():
        x = jnp.full((size, size), 1 + 2.0**-bits, jnp.float32)
        product = x @ jnp.eye(size, dtype=jnp.float32)
        if float(product[0, 0]) == 1:
            return kind
    return "float32"


def _caches() -> Iterator[tuple[str, str]]:
    from huggingface_hub import constants

    from gpt1_jax.cli.compilation_cache import default_folder

    compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR") or default_folder()
    yield "compiled programs", "none" if compiled is None else _described(Path(compiled))
    yield "Hugging Face Hub", _described(Path(constants.HF_HUB_CACHE))


def _described(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} (does not exist yet)"
    return f"{folder} ({folder_size(folder) / 1e6:.0f} MB)"


def folder_size(folder: Path) -> int:
    """Return the number of bytes of all files below a folder, links not followed."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size  # noqa: PTH118 (many files)
            except OSError:  # another process may have removed it
                continue
    return total


def _extras() -> Iterator[tuple[str, str]]:
    try:
        extras = importlib.metadata.metadata("gpt1-jax").get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        yield "unknown", "gpt1-jax runs from a folder that is not installed: pip install -e FOLDER"
        return
    for extra in extras:
        if extra in FOR_DEVELOPERS:
            continue
        versions = {package: version_of(package) for package in packages_of("gpt1-jax", extra)}
        missing = [package for package, version in versions.items() if version == MISSING]
        if missing:
            yield extra, f'no {", ".join(missing)}: pip install "gpt1-jax[{extra}]"'
        else:
            yield extra, ", ".join(f"{package} {found}" for package, found in versions.items())


def packages_of(package: str, extra: str) -> list[str]:
    """Return the packages that an extra of an installed package asks for, by their names."""
    found: list[str] = []
    for requirement in importlib.metadata.requires(package) or ():
        wanted, _, marker = requirement.partition(";")
        name = re.match(r"[\w.-]+", wanted)
        if name is None or not re.search(rf"extra == ['\"]{extra}['\"]", marker):
            continue
        inner = re.search(r"\[(.*)\]", wanted)  # as in gpt1-jax[train]
        for each in inner[1].split(",") if inner else ():
            found += packages_of(name[0], each.strip())
        found += [] if inner else [name[0]]
    return list(dict.fromkeys(found))
