"""Figures of what a call costs beside the kernel: rates, CPU time and round trips, as ratios in one run."""
import statistics

from machine import CORES, clean, interleaved, ratio

IN_FLIGHT = 32
TEAM = ("q-.*", "qmm-team-.*")  # the names of the threads that compute


def median(values):
    return statistics.median(values)


def rounded(values: dict) -> dict:
    return {name: [round(value, 3) for value in list_of] for name, list_of in values.items()}


def small_call(machine):
    """QPS of MatMul M=1, K=N=64 over QPS of an empty RPC (health Check) on the same server, 32 in flight"""
    server = machine.server()
    weight = machine.register(server, "small", 64, 64)
    values = interleaved(
        machine,
        matmul=lambda: clean(machine.bench(server.address, "--weight", weight, "--rows", 1, "--concurrency", IN_FLIGHT,
                                           "--seconds", machine.seconds()))["qps"],
        empty=lambda: clean(machine.probe(server.address, "health", IN_FLIGHT, machine.seconds()))["qps"])
    yield "small_call_ratio", ratio(values, "matmul", "empty"), ">= 0.85", {"qps": rounded(values)}


def server_cpu(machine):
    """Server CPU of a call in the threads that do not compute, over that of an echo: M=1, 4096x4096, 32 in flight"""
    # Not all CPU time less that of kernels_bench: a product takes longer beside other work on shared cores, and
    # the difference of two such large times would say more of the machine's moment than of the server.
    server, echo = machine.server(), machine.echo()
    weight = machine.register(server, "w", 4096, 4096)
    sizes, team_us, rates = [], [], []

    def matmul():
        cpu, team, rows = server.cpu_s(), server.thread_cpu_s(*TEAM), server.metric("qmatmul_rows_total")
        run = clean(machine.bench(server.address, "--weight", weight, "--rows", 1, "--concurrency", IN_FLIGHT,
                                  "--seconds", machine.seconds()))
        cpu, team = server.cpu_s() - cpu, server.thread_cpu_s(*TEAM) - team
        rows = server.metric("qmatmul_rows_total") - rows
        sizes.append((round(run["request_bytes_mean"]), round(run["reply_bytes_mean"])))
        rates.append(f"{run['qps']:.0f}/s")
        team_us.append(team * 1e6 / rows)
        return (cpu - team) * 1e6 / rows

    def echoed(load):
        cpu = echo.cpu_s()
        run = clean(machine.probe(echo.address, "echo:%d:%d" % sizes[-1], load, machine.seconds()))
        return (echo.cpu_s() - cpu) * 1e6 / run["ok"]

    # Beside the goal: an echo answers several times as many calls a second, so that its threads seldom sleep.
    values = interleaved(machine, beyond_kernel=matmul, echo=lambda: echoed(IN_FLIGHT),
                         echo_at_the_same_rate=lambda: echoed(rates[-1]))
    yield "server_cpu_beyond_kernel", ratio(values, "beyond_kernel", "echo"), "<= 1.5", {
        "us": rounded(values), "us_of_the_threads_that_compute": [round(us, 1) for us in team_us], "bytes": sizes[-1]}


def stream(machine):
    """QPS of the small call on one bidi stream, 32 in flight, over QPS of an empty unary RPC"""
    server = machine.server()
    weight = machine.register(server, "small", 64, 64)
    values = interleaved(
        machine,
        stream=lambda: clean(machine.bench(server.address, "--weight", weight, "--rows", 1, "--concurrency", IN_FLIGHT,
                                           "--stream", "--seconds", machine.seconds()))["qps"],
        empty=lambda: clean(machine.probe(server.address, "health", IN_FLIGHT, machine.seconds()))["qps"])
    yield "stream_ratio", ratio(values, "stream", "empty"), ">= 1.5", {"qps": rounded(values)}


def served_gops(machine):
    """Served GOPS over the kernel's on the same threads: 4096x4096, 4 in flight"""
    server = machine.server()
    weight = machine.register(server, "w", 4096, 4096)
    for output, goal in (("INT8", ">= 0.90"), ("INT32", ">= 0.85")):
        for rows in (64, 256):
            values = interleaved(
                machine,
                served=lambda: clean(machine.bench(
                    server.address, "--weight", weight, "--rows", rows, "--out", output, "--concurrency", 4,
                    "--connections", 4, "--seconds", machine.seconds()))["gops"],
                kernel=lambda: 2e-3 * rows * 4096 * 4096
                / machine.kernel_us(rows, 4096, 4096, CORES, output, fresh=True))
            yield f"served_gops_m{rows}_{output.lower()}", ratio(values, "served", "kernel"), goal, {
                "gops": rounded(values), "threads": CORES}


def batched_rows(machine):
    """M=1, 64 in flight: rows/s x t, with t the time of a row's kernel and transport, and over batching off"""
    machine.need_option("--batch-rows-max")
    server, alone, echo = machine.server(), machine.server("--batch-rows-max", "1"), machine.echo()
    for n in (4096, 11008):
        for one in (server, alone):
            machine.register(one, f"w{n}", 4096, n)
        sizes, batches = [], []

        def rows_per_s(one):
            run = clean(machine.bench(one.address, "--weight", f"w{n}", "--rows", 1, "--concurrency", 64, "--connections",
                                      2, "--seconds", machine.seconds()))
            sizes.append((round(run["request_bytes_mean"]), round(run["reply_bytes_mean"])))
            batches.append(run["batch_rows_mean"])
            return run["qps"]

        def echo_cpu_us():
            cpu = echo.cpu_s()
            run = clean(machine.probe(echo.address, "echo:%d:%d" % sizes[-1], 64, machine.seconds()))
            return (echo.cpu_s() - cpu) * 1e6 / run["ok"] + run["client_cpu_us"]

        values = interleaved(
            machine, batched=lambda: rows_per_s(server), off=lambda: rows_per_s(alone), echo_cpu_us=echo_cpu_us,
            kernel_us=lambda: machine.kernel_us(64, 4096, n, CORES, fresh=True))
        shares = [rows * 1e-6 * (kernel / 64 + cpu / CORES) for rows, kernel, cpu in
                  zip(values["batched"], values["kernel_us"], values["echo_cpu_us"])]
        details = {**rounded(values), "batch_rows_mean": round(median(batches[::2]), 1)}
        yield f"batched_rows_4096x{n}", median(shares), ">= 0.75", details
        yield f"batching_gain_4096x{n}", ratio(values, "batched", "off"), ">= 1.3", details


def round_trip(machine):
    """p50 at 1 in flight, M=1, 4096x4096, minus the kernel's time: TCP loopback and a unix socket"""
    server, echo = machine.server(unix=True), machine.echo()
    weight = machine.register(server, "w", 4096, 4096)
    inside, sizes = [], []

    def p50(address):
        run = clean(machine.bench(address, "--weight", weight, "--rows", 1, "--seconds", machine.seconds()))
        inside.append(run["server_us"])
        sizes.append((round(run["request_bytes_mean"]), round(run["reply_bytes_mean"])))
        return run["latency_us"]["p50"]

    # Where it goes: an echo of the same bytes has the transport alone, and a product that the server computes once in
    # a while takes longer than one that kernels_bench does over and over.
    values = interleaved(
        machine, tcp=lambda: p50(server.address), unix=lambda: p50(server.socket),
        kernel=lambda: machine.kernel_us(1, 4096, 4096, CORES, fresh=True),
        echo=lambda: clean(machine.probe(echo.address, "echo:%d:%d" % sizes[-1], 1, machine.seconds()))["p50_us"])
    served = {name: median(split[name] for split in inside) for name in ("queue_p50", "compute_p50")}
    for way, goal in (("tcp", "<= 150 us"), ("unix", "<= 120 us")):
        beyond = median(a - b for a, b in zip(values[way], values["kernel"]))
        yield f"round_trip_{way}", beyond, goal, {"p50_us": rounded(values), "server_us": served}


def qkv(machine):
    """Calls' worth a second of Q, K, V in one call over three calls: M=1, 384x384, 32 in flight"""
    server = machine.server()
    weights = []
    for name in ("q", "k", "v"):
        weights += ["--weight", machine.register(server, name, 384, 384)]

    def qps(*options):
        run = clean(machine.bench(server.address, *weights, "--rows", 1, "--concurrency", IN_FLIGHT, "--seconds",
                                  machine.seconds(), *options))
        return run["qps"]

    values = interleaved(machine, one_call=lambda: 3 * qps("--together"), three_calls=lambda: qps())
    yield "qkv_ratio", ratio(values, "one_call", "three_calls"), ">= 2.2", {"calls_worth_per_s": rounded(values)}


FIGURES = {"small_call": small_call, "server_cpu": server_cpu, "stream": stream, "served_gops": served_gops,
           "batched_rows": batched_rows, "round_trip": round_trip, "qkv": qkv}
