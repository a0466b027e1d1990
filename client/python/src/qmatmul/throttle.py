"""Which matmuls are not sent because the server is full: while it refuses calls for a weight, a client sends at most
`sent_per_accepted` times as many a second as were accepted in the last one, and 10 more, evenly. A refusal costs a server
nearly what a small call costs; the C++ client does the same (client/throttle.h).
"""
from __future__ import annotations

import threading
from collections import deque
from typing import Deque, Dict, Optional, Tuple

from .errors import Cancelled, QmatmulError, Unavailable

ALWAYS_SENT = 10.0  # a second, whatever was accepted: a lone caller hardly ever meets the throttle
BURST_S = 0.05  # a server whose queue is short would refuse most of a larger burst
WEIGHTS_MAX = 64  # that are remembered; beyond it all are forgotten


class _Second:
    """What was seen of one weight within the last second."""

    def __init__(self) -> None:
        self.ends: Deque[Tuple[float, bool]] = deque()  # when, and whether it was accepted
        self.accepted = 0
        self.tokens = ALWAYS_SENT
        self.filled = 0.0

    def forget(self, now: float) -> None:
        while self.ends and self.ends[0][0] <= now - 1.0:
            self.accepted -= self.ends.popleft()[1]


class OverloadThrottle:
    """Shared by all calls of one client. Thread-safe; it reads no clock. With 0 nothing is held back."""

    def __init__(self, sent_per_accepted: float) -> None:
        self._sent_per_accepted = sent_per_accepted
        self._lock = threading.Lock()
        self._weights: Dict[str, _Second] = {}

    def refuse(self, weight: str, now: float) -> Optional[QmatmulError]:
        """Before each attempt: None when it may be sent, or the error that it ends with instead."""
        with self._lock:
            seen = self._weights.get(weight)
            if seen is None:
                return None
            seen.forget(now)
            refused = len(seen.ends) - seen.accepted
            rate = ALWAYS_SENT + self._sent_per_accepted * seen.accepted
            seen.tokens = min(seen.tokens + rate * max(0.0, now - seen.filled), max(ALWAYS_SENT, rate * BURST_S))
            seen.filled = max(seen.filled, now)
            if refused == 0:
                return None
            if seen.tokens >= 1.0:
                seen.tokens -= 1.0
                return None
            return Unavailable(
                f"not sent: within a second the server took {seen.accepted} and refused {refused} calls of this client for "
                f'weight "{weight}", and {int(rate)} a second are sent to a server that is full; call less often, or use '
                "another server",
                reason="CLIENT_THROTTLED",
                metadata={"accepted": str(seen.accepted), "limit": str(int(rate))},
            )

    def ended(self, weight: str, error: Optional[QmatmulError], now: float) -> None:
        """How an attempt ended. Full is UNAVAILABLE with a time to come back; a call that was lost or
        cancelled counts as neither, and so does one that met a server which is draining."""
        unavailable = isinstance(error, Unavailable)
        # Another server may have room when this one is draining.
        full = isinstance(error, Unavailable) and bool(error.retry_after) and error.reason != "DRAINING"
        if self._sent_per_accepted <= 0 or (unavailable and not full) or isinstance(error, Cancelled):
            return
        with self._lock:
            seen = self._weights.get(weight)
            if seen is None:
                if len(self._weights) >= WEIGHTS_MAX:
                    self._weights.clear()
                seen = self._weights[weight] = _Second()
                seen.filled = now
            seen.forget(now)
            seen.ends.append((now, not full))
            seen.accepted += not full
