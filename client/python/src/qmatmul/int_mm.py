"""torch_int_mm: what torch._int_mm computes, by the service."""
from __future__ import annotations

import sys
from typing import Any

import numpy as np

from .client import Client
from .messages import Output


def torch_int_mm(a: Any, weight_id: str, *, client: Client, timeout_s: float | None = None) -> Any:
    """The int32 sums of int8 activations and a registered weight: torch._int_mm(a, w) with w at the server.

    Unlike torch._int_mm it takes any M, K and N, and its weight is packed once, at registration.

    Args:
      a: int8 [M, K]: a numpy array, or a torch tensor on any device.
      weight_id: a registered weight [K, N]; its scales and bias play no part.

    Returns: int32 [M, N]: a numpy array for a numpy array, a torch tensor on a's device for a torch tensor. Both own
      their memory.
    Raises: as Client.matmul.
    """
    torch = sys.modules.get("torch")  # a tensor cannot exist unless its caller imported torch
    tensor = a if torch is not None and isinstance(a, torch.Tensor) else None
    array = np.asarray(a) if tensor is None else tensor.detach().cpu().numpy()
    out = Output("INT32", skip_bias=True)
    sums = client.matmul(array, weight_id, out=out, timeout_s=timeout_s).array.copy()
    return sums if torch is None or tensor is None else torch.from_numpy(sums).to(tensor.device)
