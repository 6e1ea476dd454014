import json
import threading
from pathlib import Path

import numpy as np
import pytest

from conversion import ARCHITECTURES, param_specs, read, write

BASE, LM_HEAD, DOUBLE_HEADS, CLASSIFICATION = ARCHITECTURES


@pytest.fixture
def folder(checkpoint, tmp_path) -> Path:
    made = checkpoint(LM_HEAD)
    write(tmp_path / "npy", made.config, made.params, format="openai")
    return tmp_path / "npy"


def original_loader(folder: Path) -> list[np.ndarray]:
    """As OpenAI's training code reads its files."""
    shapes = json.loads((folder / "params_shapes.json").read_text())
    offsets = np.cumsum([np.prod(shape) for shape in shapes])
    pieces = [np.load(folder / f"params_{n}.npy") for n in range(10)]
    arrays = np.split(np.concatenate(pieces, 0), offsets)[:-1]
    return [array.reshape(shape) for array, shape in zip(arrays, shapes, strict=True)]


def test_write_output_loads_in_original_loader(checkpoint, folder, identical):
    made = checkpoint(LM_HEAD)
    arrays = original_loader(folder)
    rows = param_specs(made.config, LM_HEAD)
    assert len(arrays) == len(rows) == 2 + 2 * 12
    for row, array in zip(rows, arrays, strict=True):
        assert array.shape == row.openai_shape
        assert identical(array.reshape(row.shape), made.tensors[row.torch])


@pytest.mark.smoke
@pytest.mark.parametrize("architecture", [BASE, LM_HEAD])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_write_then_read_is_exact_in_float32(
    checkpoint, tmp_path, contents, identical, architecture, dtype
):
    made = checkpoint(architecture, dtype)
    write(tmp_path / "a", made.config, made.params, format="openai")
    config, params = read(tmp_path / "a")
    assert config == made.config | {"dtype": "float32"}
    wide = checkpoint(architecture, dtype).params

    def widen(node):
        for key, child in node.items():
            node[key] = widen(child) if isinstance(child, dict) else child.astype(np.float32)
        return node

    assert identical(params, widen(wide))
    write(tmp_path / "b", config, params, format="openai")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("count", [1, 3, 10, 11, 300])
def test_read_accepts_any_number_of_pieces(folder, identical, count):
    wanted = read(folder)[1]
    flat = np.concatenate([np.load(folder / f"params_{n}.npy") for n in range(10)])
    for path in folder.glob("params_*.npy"):
        path.unlink()
    for n, piece in enumerate(np.array_split(flat, count)):
        np.save(folder / f"params_{n}.npy", piece)
    assert identical(read(folder)[1], wanted)


def test_read_accepts_conv1d_shapes_without_the_leading_1(folder, tmp_path, contents, identical):
    """As AllenNLP's checkpoint has them: (10, 30), where OpenAI has (1, 10, 30)."""
    before = contents(folder)
    config, params = read(folder)
    shapes = json.loads((folder / "params_shapes.json").read_text())
    squeezed = [[n for n in shape if n != 1] for shape in shapes]
    assert squeezed != shapes
    (folder / "params_shapes.json").write_text(json.dumps(squeezed))
    again = read(folder)
    assert again[0] == config
    assert identical(again[1], params)
    write(tmp_path / "again", *again, format="openai")
    assert contents(tmp_path / "again") == before
    (folder / "params_shapes.json").write_text(
        json.dumps([*squeezed[:2], squeezed[2][::-1], *squeezed[3:]])
    )
    with pytest.raises(
        ValueError, match=r"entry 2 is \(36, 12\); GPT-1's h.0.attn.c_attn.weight is \(1, 12"
    ):
        read(folder)


def test_read_infers_config_from_shapes(checkpoint, folder, identical):
    made = checkpoint(LM_HEAD)
    (folder / "config.json").unlink()
    config, params = read(folder)
    numbers = {
        name: made.config[name] for name in ("n_layer", "n_embd", "n_positions", "vocab_size")
    }
    assert config == numbers | {
        "n_head": 12,
        "model_type": "openai-gpt",
        "architectures": [LM_HEAD],
    }
    assert identical(params, made.params)
    config, params = read(folder, architecture=CLASSIFICATION, new_head=True)
    assert config["architectures"] == [CLASSIFICATION]
    assert identical(params, made.params)
    _, params = read(folder, architecture=BASE)
    assert identical(params, made.params["transformer"])


def test_read_merges_config_with_shapes(folder):
    (folder / "config.json").write_text('{"num_attention_heads": 4, "hidden_size": 12, "mine": 1}')
    config, _ = read(folder)
    assert config == {
        "num_attention_heads": 4,
        "hidden_size": 12,
        "mine": 1,
        "n_layer": 2,
        "n_positions": 8,
        "vocab_size": 20,
        "architectures": [LM_HEAD],
    }
    (folder / "config.json").write_text('{"n_head": 4, "n_layer": 3}')
    with pytest.raises(ValueError, match=r"config.json says n_layer 3, the weights show 2"):
        read(folder)


def test_read_requires_n_head_that_divides_width(checkpoint, tmp_path):
    made = checkpoint(LM_HEAD, n_embd=10, n_head=5)
    write(tmp_path, made.config, made.params, format="openai")
    assert read(tmp_path)[0]["n_head"] == 5
    (tmp_path / "config.json").unlink()
    with pytest.raises(
        ValueError, match=r"12 does not divide the width 10; put a config.json with"
    ):
        read(tmp_path)


def test_read_names_missing_pieces(folder):
    (folder / "params_3.npy").unlink()
    (folder / "params_7.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks params_3.npy, params_7.npy"):
        read(folder)
    for path in folder.glob("params_?.npy"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks params_0.npy"):
        read(folder)


def test_read_reports_too_few_numbers(folder):
    total = sum(np.load(folder / f"params_{n}.npy").size for n in range(10))
    held = total - np.load(folder / "params_9.npy").size
    (folder / "params_9.npy").unlink()
    with pytest.raises(
        ValueError, match=rf"hold {held} numbers, params_shapes.json describes {total}"
    ):
        read(folder)


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (np.zeros(100, np.float64), "is float64 of shape (100,); it must be a float32 vector"),
        (np.zeros(100, ">f4"), "is >f4 of shape (100,); it must be a float32 vector"),
        (np.zeros(100, np.int32), "is int32 of shape (100,); it must be a float32 vector"),
        (np.zeros((10, 10), np.float32), "is float32 of shape (10, 10); it must be"),
        (np.array([{}]), "is not a whole .npy file of numbers"),
    ],
)
def test_read_rejects_invalid_pieces(folder, piece, message):
    np.save(folder / "params_4.npy", piece, allow_pickle=True)
    with pytest.raises(ValueError, match=r"params_4\.npy") as error:
        read(folder)
    assert str(error.value).startswith(str(folder / "params_4.npy"))
    assert message in str(error.value)


@pytest.mark.parametrize("keep", [0, 5, 90, 200])
def test_read_rejects_truncated_piece(folder, keep):
    path = folder / "params_4.npy"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"params_4.npy is not a whole .npy file of numbers"):
        read(folder)


@pytest.mark.parametrize(
    ("damage", "difference"),
    [
        (lambda data: data[:131] + b"\0" + data[131:], 1),
        (lambda data: data[:128] + b"\0" * 4 + data[128:], 4),
        (lambda data: data + b"\n", 1),
        (lambda data: data + data, None),
    ],
)
def test_read_compares_a_piece_with_its_header(folder, damage, difference):
    path = folder / "params_4.npy"
    data = path.read_bytes()
    path.write_bytes(damage(data))
    size = len(data) + (len(data) if difference is None else difference)
    with pytest.raises(ValueError, match=r"params_4\.npy") as error:
        read(folder)
    right = f"{path} has {size} bytes; by its header it must have {len(data)}"
    assert str(error.value) == right


def test_read_rejects_an_archive_of_arrays(folder):
    with (folder / "params_3.npy").open("wb") as file:
        np.savez(file, np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"params_3\.npy is an archive; it must be a \.npy file"):
        read(folder)


@pytest.mark.parametrize("shape", ["(10**30,)", f"({10**30},)", f"({2**62},)", "(-1,)", "(3.0,)"])
def test_read_rejects_impossible_shapes(folder, shape):
    path = folder / "params_3.npy"
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + header.encode() + bytes(400))
    with pytest.raises(
        ValueError, match=r"params_3\.npy is not a whole \.npy file of numbers"
    ) as error:
        read(folder)
    assert "\n" not in str(error.value)


def test_read_accepts_an_empty_piece(folder, identical):
    wanted = read(folder)[1]
    np.save(folder / "params_10.npy", np.zeros(0, np.float32))
    assert identical(read(folder)[1], wanted)


def test_read_parses_headers_in_one_thread(folder, monkeypatch):
    # Two threads of Python 3.11 that parse at once fail now and then.
    threads, load = set(), np.load

    def recorded(*args, **kwargs):
        threads.add(threading.get_ident())
        return load(*args, **kwargs)

    monkeypatch.setattr(np, "load", recorded)
    read(folder)
    assert threads == {threading.get_ident()}


def test_read_limits_the_pieces_that_it_names(folder):
    (folder / "params_1000000000.npy").touch()
    with pytest.raises(
        FileNotFoundError, match=r"lacks params_10\.npy, .*, params_29\.npy and oth"
    ):
        read(folder)


def test_read_reports_every_wrong_shape(folder):
    path = folder / "params_shapes.json"
    right = json.loads(path.read_text())
    assert right[:3] == [[8, 12], [20, 12], [1, 12, 36]]
    for i, shape in enumerate(right):
        shapes = [*right[:i], [*shape, 1], *right[i + 1 :]]
        path.write_text(json.dumps(shapes))
        with pytest.raises(ValueError, match=r"params_shapes\.json") as error:
            read(folder)
        text = str(error.value)
        assert text.startswith(str(path))
        assert ("entries 0 and 1 are" if i < 2 else f"entry {i} is {(*shape, 1)}; GPT-1's ") in text
    path.write_text(json.dumps([right[1], right[0], *right[2:]]))
    with pytest.raises(ValueError, match=r"config.json says n_positions 8, the weights show 20; "):
        read(folder)
    path.write_text(json.dumps(right[:-1]))
    with pytest.raises(ValueError, match="has 25 entries; GPT-1's are 2 "):
        read(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "must hold a list of shapes, not dict"),
        ("[", "is not JSON"),
        ("[]", "has 0 entries"),
        ("[3]", "entry 0 is 3; it must be a list of positive integers"),
        ("[[3, true]]", "entry 0 is [3, True]; it must be a list of positive integers"),
        ("[[3, 4], [3, -4]]", "entry 1 is [3, -4]; it must be a list of positive integers"),
    ],
)
def test_read_rejects_malformed_shapes_file(folder, text, message):
    (folder / "params_shapes.json").write_text(text)
    with pytest.raises(ValueError, match=r"params_shapes\.json") as error:
        read(folder)
    assert str(error.value).startswith(str(folder / "params_shapes.json"))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        (CLASSIFICATION, "score.weight"),
        (
            DOUBLE_HEADS,
            "lm_head.weight, multiple_choice_head.summary.weight, multiple_choice_head.summary.b",
        ),
        (LM_HEAD, "lm_head.weight"),
    ],
)
def test_write_rejects_heads(checkpoint, tmp_path, architecture, names):
    made = checkpoint(architecture, tie_word_embeddings=False)
    with pytest.raises(ValueError, match=f"cannot hold {names}"):
        write(tmp_path / "a", made.config, made.params, format="openai")
    assert not (tmp_path / "a").exists()


def test_write_replaces_the_other_format(checkpoint, folder, identical):
    made = checkpoint(BASE)
    write(folder, made.config, made.params)
    assert not list(folder.glob("params_*"))
    np.save(folder / "params_10.npy", np.zeros(3))
    write(folder, made.config, made.params, format="openai")
    assert not list(folder.glob("*.safetensors"))
    assert identical(read(folder)[1], made.params)


def test_write_restores_folder_if_save_fails(checkpoint, folder, contents, monkeypatch):
    before = contents(folder)
    made = checkpoint(LM_HEAD)
    made.params["transformer"]["tokens_embed"]["embedding"][:] = 1
    real = np.save

    def failing(file, array, **kwargs):
        real(file, array[:1], **kwargs)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", failing)
    with pytest.raises(OSError, match=r"cannot write to .*npy: No space left on device"):
        write(folder, made.config, made.params, format="openai")
    assert contents(folder) == before
