"""Sentence embeddings: texts → unit vectors [texts, 384], by numpy with a given linear layer, or by onnxruntime."""
from __future__ import annotations

from typing import Callable, Iterator, Sequence, Tuple

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from model import LinearFunction, Model, forward, model_path

TEXTS_PER_BATCH = 16

Hidden = Callable[[np.ndarray, np.ndarray], np.ndarray]


def embed(texts: Sequence[str], tokenizer: Tokenizer, hidden: Hidden) -> np.ndarray:
    """Mean-pooled, normalised embeddings. `hidden` gives [texts, tokens, 384] from ids and mask."""
    embeddings = np.empty((len(texts), 384), np.float32)
    for which, ids, mask in _batches(texts, tokenizer):
        states = hidden(ids, mask)
        mean = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
        embeddings[which] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    return embeddings


def _batches(texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[Tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(indices, ids, mask), texts of like length together, so that little is padded."""
    encoded = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    order = np.argsort([len(ids) for ids in encoded], kind="stable")
    for start in range(0, len(texts), TEXTS_PER_BATCH):
        which = order[start : start + TEXTS_PER_BATCH]
        tokens = max(len(encoded[i]) for i in which)
        ids = np.zeros((len(which), tokens), np.int64)
        mask = np.zeros_like(ids)
        for row, i in enumerate(which):
            ids[row, : len(encoded[i])] = encoded[i]
            mask[row, : len(encoded[i])] = 1
        yield which, ids, mask


def with_linear(model: Model, linear: LinearFunction) -> Hidden:
    """The numpy model, its linear layers computed by `linear`."""
    return lambda ids, mask: forward(model, ids, mask, linear)


def with_onnxruntime() -> Hidden:
    """The same ONNX file, whole, by onnxruntime in this process (float activations): what others would run."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model_path()), options, providers=["CPUExecutionProvider"])

    def hidden(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return session.run(None, feed)[0]

    return hidden
