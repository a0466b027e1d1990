"""torch._int_mm as a peer of kernels_bench --device-time, spoken to over pipes.

Requests on standard input, one line each, answers on standard output:
  prepare M K N BYTES   random int8 rows, and as many copies of a [N, K] weight as fill BYTES; "ok" or "no REASON"
  time ROUNDS           "BEST MEDIAN": nanoseconds of one product, by the device's events; each round reads every copy
  check                 "ok" when the last product is the exact one, else "no REASON"
The device is the first GPU, or the CPU where TORCH_PEER_DEVICE says so, which shows that the script works.
torch._int_mm has limits of its own (on a GPU more than 16 rows, K and N multiples of 8): then the answer is "no".
"""

import os
import sys
import time


class Product:
    def __init__(self, torch, device, m, k, n, size):
        self.torch, self.device = torch, device
        generator = torch.Generator().manual_seed(5)
        self.rows = torch.randint(-128, 128, (m, k), dtype=torch.int8, generator=generator).to(device)
        weight = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=generator).to(device)
        self.weights = [weight.clone().t() for _ in range(max(1, -(-size // (n * k))))]
        self.result = torch._int_mm(self.rows, self.weights[0])  # says what it cannot do

    def round(self):
        for weight in self.weights:
            self.result = self.torch._int_mm(self.rows, weight)

    def time_ns(self):
        if self.device == "cpu":
            start = time.perf_counter_ns()
            self.round()
            return (time.perf_counter_ns() - start) / len(self.weights)
        begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        self.round()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e6 / len(self.weights)

    def differs(self):
        """Sums of int8 products are whole numbers that a double holds."""
        double = self.torch.float64
        exact = self.rows.to(double) @ self.weights[0].to(double)
        return int((exact != self.result.to(double)).sum())


def answer(state, words):
    if words[0] == "prepare":
        state["product"] = None  # its memory is wanted
        state["product"] = Product(state["torch"], state["device"], *map(int, words[1:]))
        return "ok"
    if words[0] == "time":
        state["product"].round()  # warms up
        times = sorted(state["product"].time_ns() for _ in range(int(words[1])))
        return f"{times[0]} {times[len(times) // 2]}"
    wrong = state["product"].differs()
    return f"no {wrong} sums differ" if wrong else "ok"


def main():
    state = {"device": os.environ.get("TORCH_PEER_DEVICE", "cuda")}
    for line in sys.stdin:
        try:
            if "torch" not in state:
                import torch
                state["torch"] = torch
            said = answer(state, line.split())
        except (ImportError, RuntimeError, AssertionError) as error:
            said = "no " + " ".join(str(error).split())[:200]
        print(said, flush=True)


if __name__ == "__main__":
    main()
