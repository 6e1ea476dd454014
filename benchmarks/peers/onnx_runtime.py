"""ONNX Runtime, with the graph that torch exports of Hugging Face's model."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.peers import hugging_face
from benchmarks.timing import cores


def forward(folder: Path, head: bool, dtype: str = "float32") -> Callable[[np.ndarray], np.ndarray]:
    """Return the forward of the language model, or of the transformer alone.

    Args:
        folder: a checkpoint.
        head: with the logits.
        dtype: float32, or int8 by its own quantizer.

    Raises:
        ValueError: it is the build for the CPU, and the platform a GPU.
    """
    import onnxruntime

    with tempfile.TemporaryDirectory() as exported:
        file = Path(exported) / "model.onnx"
        export(folder, head, file)
        if dtype == "int8":
            quantize(file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores()
        provider = "CUDA" if jax.default_backend() == "gpu" else "CPU"
        if f"{provider}ExecutionProvider" not in onnxruntime.get_available_providers():
            raise ValueError("this onnxruntime has no CUDA, which onnxruntime-gpu has")
        session = onnxruntime.InferenceSession(
            str(file), options, providers=[f"{provider}ExecutionProvider"]
        )

    def run(ids: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(None, {"ids": ids.astype(np.int64)})[0])

    return run


def export(folder: Path, head: bool, file: Path) -> None:
    """Export a checkpoint by ``torch.export``, with any batch and length.

    The older exporter, which traces (``dynamo=False``), writes a graph with wrong logits.
    """
    import torch

    model = hugging_face.load(folder)

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = model if head else model.transformer

        def forward(self, ids: Any) -> Any:
            return self.module(input_ids=ids, return_dict=False)[0]

    dynamic: Any = torch.export.Dim.DYNAMIC
    torch.onnx.export(
        Logits().eval().cpu(),
        (torch.zeros(2, 3, dtype=torch.long),),
        str(file),
        dynamo=True,
        verbose=False,
        dynamic_shapes=({0: dynamic, 1: dynamic},),
        input_names=["ids"],
        output_names=["out"],
        external_data=False,  # the quantizer's preparation does not find data beside the file
    )


def quantize(file: Path) -> None:
    """Replace a graph by one in int8: ONNX Runtime's dynamic quantization at its fastest.

    Its preparation folds the transposition of the embedding, so that the head's product is
    quantized too. Weights are int8 by channel. Measured (Zen 4) at 1 x 16 and 1 x 128: 29 and
    102 ms, by tensor 33 and 102, as uint8 55 and 152, without the head 40 and 124. Only products
    are quantized: in int8, the embedding would be converted as a whole at every call.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = file.with_suffix(".prepared.onnx")
    quant_pre_process(str(file), str(prepared), skip_symbolic_shape=True)
    quantize_dynamic(
        prepared,
        file,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
    )
