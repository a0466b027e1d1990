"""When a call that was refused with UNAVAILABLE is tried again.

Only a refusal that carries RetryInfo is retried: the server said that it did nothing and when to come back. The
budget (the scheme of gRFC A6) keeps retries from multiplying the load of a server that is full: each refusal
takes a token, each success gives back a tenth, and below half nothing is retried.
"""
from __future__ import annotations

import random
import threading
import time
from typing import Callable, TypeVar

from .errors import Unavailable

T = TypeVar("T")

TOKENS_MAX = 10.0
TOKENS_PER_SUCCESS = 0.1


class RetryBudget:
    """Shared by all calls of one client. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens = TOKENS_MAX

    def succeeded(self) -> None:
        with self._lock:
            self._tokens = min(TOKENS_MAX, self._tokens + TOKENS_PER_SUCCESS)

    def refused(self) -> bool:
        """Counts a refusal; true when a retry may be spent on it."""
        with self._lock:
            self._tokens = max(0.0, self._tokens - 1.0)
            return self._tokens > TOKENS_MAX / 2


def call_with_retries(
    attempt: Callable[[float], T],
    timeout_s: float,
    budget: RetryBudget,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> T:
    """attempt(seconds left), again after the server's delay while the deadline and the budget allow it.

    The delay is stretched by up to a half at random, so that clients refused together do not return together.
    """
    deadline = now() + timeout_s
    while True:
        try:
            value = attempt(max(0.0, deadline - now()))
        except Unavailable as error:
            if error.retry_after is None or not budget.refused():
                raise
            delay_s = error.retry_after * (1 + random.random() / 2)
            if now() + delay_s >= deadline:
                raise
            sleep(delay_s)
        else:
            budget.succeeded()
            return value
