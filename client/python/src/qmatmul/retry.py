"""When a call that ended with UNAVAILABLE is tried again: exponential backoff with full jitter, never past the deadline,
out of a budget that all calls of a client share, so that clients of a full server do not multiply its load.
"""
from __future__ import annotations

import enum
import random
import threading
import time
from dataclasses import dataclass
from typing import Callable, Optional, TypeVar

from .errors import QmatmulError, Unavailable

T = TypeVar("T")


@dataclass(frozen=True)
class RetryOptions:
    """How a client retries; `Client(retries=RetryOptions(attempts_max=1))` does not.

    Attributes:
      attempts_max: of one call, the first included.
      backoff_s, backoff_max_s: retry number i waits what the server asked for and a random time of up to
        min(backoff_max_s, backoff_s * 2**(i - 1)) more.
      budget_max, budget_per_call: a retry takes one token of at most budget_max, a call brings budget_per_call.
      sent_per_accepted: while the server refuses matmuls of a weight for being full, so many are sent for each that it
        accepted within the last second (and 10 more); others raise Unavailable CLIENT_THROTTLED before they cost it
        anything. 0: all are sent.
      seed: of the random waits, for tests.
    """

    attempts_max: int = 5
    backoff_s: float = 0.02
    backoff_max_s: float = 2.0
    budget_max: float = 10.0
    budget_per_call: float = 0.1
    sent_per_accepted: float = 1.25
    seed: Optional[int] = None


class Repeatable(enum.Enum):
    """Which UNAVAILABLE may be tried again."""

    NEVER = 0
    REFUSED = 1  # the server said when to come back (RetryInfo): it has done nothing
    IDEMPOTENT = 2  # also when the connection was lost underway: twice is as good as once


class RetryPolicy:
    """Shared by all calls of one client. Thread-safe; it neither waits nor reads a clock."""

    def __init__(self, options: RetryOptions = RetryOptions()) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._tokens = options.budget_max
        self._random = random.Random(options.seed)

    def call_starts(self) -> None:
        with self._lock:
            self._tokens = min(self._options.budget_max, self._tokens + self._options.budget_per_call)

    def wait_s(self, error: QmatmulError, repeatable: Repeatable, attempts: int, left_s: float) -> Optional[float]:
        """The wait before one more attempt when `attempts` were made; None when the error is final. Takes the token."""
        options = self._options
        if attempts >= options.attempts_max or not _may_repeat(error, repeatable):
            return None
        longest = min(options.backoff_max_s, options.backoff_s * 2.0 ** min(attempts - 1, 60))
        with self._lock:
            wait = (error.retry_after or 0.0) + self._random.uniform(0.0, longest)
            # The sum of tenths is a little less than it should be.
            if wait >= left_s or self._tokens < 1.0 - 1e-9:
                return None
            self._tokens -= 1.0
            return wait


def _may_repeat(error: QmatmulError, repeatable: Repeatable) -> bool:
    if not isinstance(error, Unavailable) or repeatable is Repeatable.NEVER:
        return False
    # Without a reason it is the transport that failed, and nobody knows how far the call got.
    return error.retry_after is not None or (repeatable is Repeatable.IDEMPOTENT and not error.reason)


def call_with_retries(
    attempt: Callable[[float], T],
    timeout_s: float,
    policy: RetryPolicy,
    repeatable: Repeatable = Repeatable.IDEMPOTENT,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> T:
    """attempt(seconds left), again while the policy and the deadline allow it. The error says how often it was."""
    deadline = now() + timeout_s
    attempts = 0
    while True:
        attempts += 1
        try:
            answer = attempt(max(0.0, deadline - now()))
        except QmatmulError as error:
            # What the throttle refused was not sent, and brings nothing to the budget.
            throttled = error.reason == "CLIENT_THROTTLED"
            error.attempts = attempts - throttled
            if attempts == 1 and not throttled:
                policy.call_starts()
            wait = policy.wait_s(error, repeatable, attempts, deadline - now())
            if wait is None:
                raise
        else:
            if attempts == 1:
                policy.call_starts()
            return answer
        sleep(wait)
