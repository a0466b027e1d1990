"""Figures of how the server bears load: tails, health, memory, saturation, what counting costs, the main job."""
import csv
import json
import os
import re
import shutil
import statistics
import subprocess
import time

from machine import CORES, NotAvailable, ROOT, clean

MIB = 1 << 20


def _background(machine, address, *options):
    return subprocess.Popen(machine.bench_words(address, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True)


def _end(load):
    """The JSON of a background load once it has ended by itself."""
    out, err = load.communicate(timeout=300)
    if load.returncode != 0:
        raise RuntimeError(f"the load beside it ended with {load.returncode}: {err.strip()[:300]}")
    return json.loads(out.splitlines()[-1])


def mixed_tail(machine):
    """p99 over p50 of calls of <= 64 rows at 70 % of saturation, Poisson, beside a client of 4096-row calls"""
    server = machine.server()
    weight = machine.register(server, "w", 4096, 4096)
    peak_s, run_s, rounds = (2, 3, 1) if machine.quick else (3, 8, 5)
    # The large calls run throughout; what is saturation for the small ones is found beside them. Anew before each run:
    # where other machines take a part of these cores, 70 % of what they did a minute ago may be more than all they can.
    large = _background(machine, server.address, "--weight", weight, "--rows", 4096, "--out", "INT8", "--concurrency", 1,
                        "--seconds", rounds * (peak_s + run_s + 1) + 2)
    small = ("--weight", weight, "--mix", "1:0.6,16:0.3,64:0.1", "--connections", 2)
    runs = []
    for _ in range(rounds):
        peak = clean(machine.bench(server.address, *small, "--concurrency", 64, "--seconds", peak_s))["qps"]
        run = clean(machine.bench(server.address, *small, "--rate", 0.7 * peak, "--seconds", run_s))
        latency = run["latency_us"]
        runs.append({"ratio": round(latency["p99"] / latency["p50"], 2), "peak_qps": round(peak, 1), "calls": run["ok"],
                     "late_sends": run["late_sends"], "latency_us": latency, "by_rows": [
                         {"rows": one["rows"], "p50": one["latency_us"]["p50"], "p99": one["latency_us"]["p99"]}
                         for one in run["by_rows"]]})
    beside = _end(large)
    yield "mixed_p99_over_p50", statistics.median(run["ratio"] for run in runs), "<= 6", {
        "runs": runs, "large_calls": beside["ok"], "large_p50_us": beside["latency_us"]["p50"]}


def health_saturated(machine):
    """p99 of the health Check while the server is saturated: 64 in flight of 64 rows, 4096x4096"""
    server = machine.server()
    weight = machine.register(server, "w", 4096, 4096)
    seconds = 4 if machine.quick else 20
    load = _background(machine, server.address, "--weight", weight, "--rows", 64, "--concurrency", 64, "--connections", 2,
                       "--seconds", seconds + 2)
    time.sleep(1)  # the load's own start; the probe runs while it lasts
    probe = clean(machine.probe(server.address, "health", "100/s", seconds))
    busy = _end(load)
    yield "health_p99_saturated", probe["p99_us"] / 1e3, "<= 20 ms", {
        "p50_ms": probe["p50_us"] / 1e3, "max_ms": probe["max_us"] / 1e3, "checks": probe["ok"],
        "late_sends": probe["late_sends"], "gops_meanwhile": round(busy["gops"], 1)}


def peak_memory(machine):
    """Peak RSS with 32 calls of 16 MiB in flight: what is beyond the weights, over the admitted bytes"""
    limits = [name for name in ("--in-flight-bytes-max", "--queue-weight-bytes-max") if machine.has_option(name)]
    server = machine.server(*(word for name in limits for word in (name, "2GiB")))
    weight = machine.register(server, "w", 4096, 1024)
    weights = server.metric("qmatmul_weight_bytes")
    # 4096 rows: 16 MiB in, 4 MiB out.
    load = _background(machine, server.address, "--weight", weight, "--rows", 4096, "--out", "INT8", "--concurrency", 32,
                       "--connections", 4, "--seconds", 5 if machine.quick else 20, "--timeout", 120)
    admitted = 0
    while load.poll() is None:
        admitted = max(admitted, server.metric("qmatmul_in_flight_bytes"))
        time.sleep(0.05)
    run = clean(_end(load))
    peak = server.memory_bytes("VmHWM")
    expected = 32 * 20 * MIB
    if admitted < expected * 0.5:
        raise RuntimeError(f"only {admitted / MIB:.0f} MiB were seen in flight, {expected / MIB:.0f} were meant")
    yield "peak_rss_over_admitted", (peak - weights) / admitted, "<= 2.2", {
        "peak_mib": round(peak / MIB, 1), "admitted_mib": round(admitted / MIB, 1), "weights_mib": round(weights / MIB, 1),
        "calls": run["ok"]}


# What valgrind's processor does not have is disabled outside of it, too: a calibration is of one set of kernels.
UNDER_VALGRIND = ("--threads", "1", "--disable-kernels", "cpu.amx_int8,cpu.avx512_vnni,cpu.avx_vnni")


def _instructions(machine, metrics: str, calls: int) -> int:
    """Instructions of a server that answers so many small calls, by callgrind."""
    out = machine.path(f"callgrind-{metrics}-{calls}")
    server = machine.server("--metrics", metrics, *UNDER_VALGRIND, "--team-spin-us-max", "0", under=(
        "valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"))
    weight = machine.register(server, "small", 64, 64)
    clean(machine.bench(server.address, "--weight", weight, "--rows", 1, "--concurrency", 8, "--requests", calls,
                        timeout=600))
    server.stop()
    with open(out, encoding="utf-8", errors="replace") as file:
        return int(re.search(r"^(?:summary|totals): (\d+)", file.read(), re.M)[1])


def metrics_cost(machine):
    """Instructions of a small call with metrics on over off (callgrind; this needs no hardware counters)"""
    if not shutil.which("valgrind"):
        raise NotAvailable("valgrind is not installed: apt-get install valgrind")
    machine.server(*UNDER_VALGRIND).stop()  # calibrates at full speed; the servers below read its file
    # A call is a long run less a short one, so that the start does not count. How calls meet on the sockets differs from
    # run to run, and on a machine that stalls they wake each other more often, which only adds: the fewest of several
    # runs of each kind, by turns.
    counts = (1000, 3000) if machine.quick else (2000, 8000)
    totals = {(metrics, calls): [] for metrics in ("on", "off") for calls in counts}
    for _ in range(1 if machine.quick else 3):
        for kind, seen in totals.items():
            seen.append(_instructions(machine, *kind))
    on, off = ((min(totals[metrics, counts[1]]) - min(totals[metrics, counts[0]])) / (counts[1] - counts[0])
               for metrics in ("on", "off"))
    yield "metrics_instructions", on / off - 1, "<= 0.01", {
        "a_call_on_off": [round(on), round(off)], "by": "callgrind",
        "totals": {f"{metrics}, {calls} calls": seen for (metrics, calls), seen in totals.items()}}


def saturation(machine):
    """10 x capacity for 60 s, M=1, K=N=16384, by clients that throttle as the SDK does: goodput over the peak, refusals,
    memory, recovery; and goodput by clients that do not"""
    server = machine.server()
    weight = machine.register(server, "w", 16384, 16384)
    options = ("--weight", weight, "--rows", 1, "--connections", 4)
    idle = clean(machine.bench(server.address, *options, "--seconds", 2))
    peak = clean(machine.bench(server.address, *options, "--concurrency", 128, "--seconds", 3 if machine.quick else 10))
    before = server.memory_bytes()
    seconds, calls = (8 if machine.quick else 60), machine.path("probe.csv")
    # A caller of few calls, before, while and after.
    probe = _background(machine, server.address, *options, "--rate", 10, "--arrivals", "constant", "--seconds",
                        seconds + 8, "--calls", calls)
    time.sleep(1)
    hard = (*options, "--rate", 10 * peak["qps"], "--timeout", 30)
    load = machine.bench(server.address, *hard, "--throttle", "--seconds", seconds, timeout=seconds + 120)
    probed = _end(probe)
    end_ns = load["unix_start_ns"] + load["seconds"] * 1e9 - probed["unix_start_ns"]
    slow_ns = 5e3 * idle["latency_us"]["p99"]
    with open(calls, encoding="ascii") as file:
        late = sorted((call for call in csv.DictReader(file) if int(call["intended_ns"]) >= end_ns),
                      key=lambda call: int(call["intended_ns"]))
    bad = [c["code"] != "OK" or int(c["done_ns"]) - int(c["intended_ns"]) > slow_ns for c in late]
    # Normal is a second without one. A call that is slow later has met another machine on these cores.
    normal = next((i for i in range(len(bad)) if not any(bad[i:i + 10])), len(bad))
    details = {"peak_qps": round(peak["qps"], 1), "offered_qps": round(load["sent"] / load["seconds"], 1),
               "ok": load["ok"], "failed": load["failed"], "errors": load["errors"], "seconds": seconds,
               "refused_p50_us": load["error_latency_us"]["p50"], "refused_p99_us": load["error_latency_us"]["p99"],
               "late_sends": load["late_sends"]}
    yield "saturation_goodput", load["qps"] / peak["qps"], ">= 0.8", details
    # What a client without the SDK's throttle leaves of it, on the same cores as the server.
    rude = machine.bench(server.address, *hard, "--seconds", seconds / 3, timeout=seconds + 120)
    yield "saturation_goodput_unthrottled", rude["qps"] / peak["qps"], "printed", {
        "offered_qps": round(rude["sent"] / rude["seconds"], 1), "errors": rude["errors"],
        "refused_p99_us": rude["error_latency_us"]["p99"]}
    unavailable = sum(count for name, count in load["errors"].items() if name.startswith("UNAVAILABLE"))
    yield "saturation_refused_as_unavailable", unavailable / max(load["failed"], 1), ">= 1", details
    yield "saturation_refused_p99_ms", load["error_latency_us"]["p99"] / 1e3, "<= 1000 ms", details
    refused = [int(c["done_ns"]) for c in late if c["code"] != "OK"]
    # Back to normal: a lone caller's calls are not refused, nor slower than 5 x the idle p99.
    recovered_ns = max((int(call["done_ns"]) for call in late[:normal]), default=end_ns)
    yield "saturation_recovery_s", (recovered_ns - end_ns) / 1e9, "<= 1 s", {
        "calls_after": len(late), "slow_or_refused_after": sum(bad), "idle_p99_us": idle["latency_us"]["p99"],
        "slow_or_refused_at_s": [round((int(call["done_ns"]) - end_ns) / 1e9, 2) for call, was in zip(late, bad) if was],
        "last_refusal_s": (max(refused, default=end_ns) - end_ns) / 1e9}
    yield "saturation_memory_growth_mib", (server.memory_bytes("VmHWM") - before) / MIB, "<= 512", {
        "before_mib": round(before / MIB, 1)}


def minilm(machine):
    """The MiniLM job's wall time: numpy, client, wire, queue, kernel; onnxruntime's beside it"""
    python = os.path.join(ROOT, "build", "venv", "bin", "python")
    if not os.access(python, os.X_OK):
        raise NotAvailable("build/venv is not there: deploy/python-env")
    server = machine.server()
    told = machine.path("job.json")
    done = subprocess.run([python, os.path.join(ROOT, "deploy", "minilm", "job.py"), "--target", server.address, "--json",
                           told], capture_output=True, text=True, timeout=900)
    if done.returncode != 0:
        raise RuntimeError(f"the job failed: {done.stderr.strip()[-300:]}")
    with open(told, encoding="utf-8") as file:
        times = json.load(file)
    yield "minilm_wall_s", times["wall_s"], "printed", {**times, "cores": CORES}


FIGURES = {"mixed_tail": mixed_tail, "health_saturated": health_saturated, "peak_memory": peak_memory,
           "metrics_cost": metrics_cost, "minilm": minilm, "saturation": saturation}
