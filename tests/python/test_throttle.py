"""What is not sent to a server that is full: by a made-up clock, then through the client."""
import numpy as np
import pytest
import qmatmul
from qmatmul.throttle import OverloadThrottle
from test_errors import _full

FULL = qmatmul.Unavailable("full", reason="QUEUE_FULL", retry_after=0.005)


class Overload:
    """A server that takes `capacity` calls a second, with a queue of a few, and refuses the rest."""

    def __init__(self, throttle):
        self.throttle, self.now, self.sent, self.accepted = throttle, 1000.0, 0, 0

    def run(self, seconds, offered, capacity, weight="w"):
        room = 0.0
        for _ in range(int(seconds * offered)):
            self.now += 1 / offered
            room = min(5.0, room + capacity / offered)
            if self.throttle.refuse(weight, self.now):
                continue
            taken = room >= 1
            room -= taken
            self.sent += 1
            self.accepted += taken
            self.throttle.ended(weight, None if taken else FULL, self.now)


def test_a_server_with_room_is_sent_everything():
    load = Overload(OverloadThrottle(1.5))
    load.run(3, 1000, 1000)
    assert load.sent == 3000


def test_a_full_server_is_sent_a_little_more_than_it_takes_and_stays_full():
    load = Overload(OverloadThrottle(1.5))
    load.run(2, 1000, 100)
    load.sent = load.accepted = 0
    load.run(10, 1000, 100)
    assert load.sent == pytest.approx(10 * (150 + 10), rel=0.1) and load.accepted >= 900


def test_a_server_with_room_again_is_used_again_within_a_second():
    load = Overload(OverloadThrottle(1.5))
    load.run(5, 1000, 50)
    load.run(1.2, 1000, 1000)
    load.sent = 0
    load.run(1, 1000, 1000)
    assert load.sent == 1000


def test_weights_are_held_back_each_for_itself_and_zero_holds_nothing_back():
    load = Overload(OverloadThrottle(1.5))
    load.run(1, 1000, 0, "busy")
    assert load.throttle.refuse("busy", load.now) and not load.throttle.refuse("idle", load.now)
    all_sent = Overload(OverloadThrottle(0))
    all_sent.run(1, 1000, 0)
    assert all_sent.sent == 1000


def test_only_a_full_server_counts():
    throttle = OverloadThrottle(1.5)
    for error in [qmatmul.Unavailable("lost"), qmatmul.InvalidArgument("bad")] * 500:
        assert throttle.refuse("w", 1000.0) is None
        throttle.ended("w", error, 1000.0)


def test_the_client_stops_sending(fake):
    fake.answer = lambda method, request, context: _full(context, 0.001)
    row, throttled = np.zeros((1, 2), np.int8), 0
    with qmatmul.Client(fake.target, retries=qmatmul.RetryOptions(attempts_max=1)) as client:
        for _ in range(100):
            with pytest.raises(qmatmul.Unavailable) as caught:
                client.matmul(row, "w", out="INT32")
            assert caught.value.attempts == (caught.value.reason != "CLIENT_THROTTLED")
            throttled += caught.value.reason == "CLIENT_THROTTLED"
    assert throttled > 50 and len(fake.calls) == 100 - throttled
