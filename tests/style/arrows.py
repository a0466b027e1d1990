"""Which room may include which: the arrows of the house, as a table.

A rule holds for every file that its path pattern matches; the first pattern that matches decides.
`only` lists what quoted includes may name, `never` what no include, quoted or not, may name.
"""
import re
from typing import NamedTuple


class Rule(NamedTuple):
    path: str
    only: str
    never: str
    why: str


# Headers of the service's libraries, which the kernels library must not know; the engine may use Abseil.
_RPC = r"grpc|google/|.*\.pb\.h"
_SERVICE_LIBRARIES = _RPC + r"|absl/|spdlog|prometheus|nlohmann|fmt/|openssl"

RULES = [
    Rule(r"kernels/reference\.(h|cc)", r"kernels/(reference|matmul)\.h", _SERVICE_LIBRARIES + r"|.*intrin\.h",
         "the oracle shares no code with the kernels (seeds E3)"),
    Rule(r"kernels/devices\.cc", r"kernels/[a-z_]+\.h|kernels/[a-z]+/[a-z]+_device\.h", _SERVICE_LIBRARIES,
         "the device table sees each device folder by its door"),
    Rule(r"kernels/cpu/(scalar|avx|amx|neon|sve)\w*\.cc",
         r"kernels/cpu/(micro_kernel|micro_kernels|pack|row_ops|emulation\w*)\.h|kernels/cpu/\w+\.inc|kernels/matmul\.h"
         r"|tests/support/(amx|avx512)_stand_in\.h",
         _SERVICE_LIBRARIES, "an instruction set's file knows the micro-kernel and the layout, nothing above"),
    Rule(r"kernels/bench/.*", r"kernels/.*", _SERVICE_LIBRARIES, "the benchmark needs the kernels library only"),
    Rule(r"kernels/[a-z]+/.*", r"kernels/.*", _SERVICE_LIBRARIES,
         "the kernels library needs the standard library and Linux only"),
    Rule(r"kernels/[^/]*", r"kernels/[a-z0-9_]+\.h", _SERVICE_LIBRARIES,
         "kernels/ itself does not look into a device's folder"),
    Rule(r"server/engine/.*", r"server/engine/.*|kernels/[a-z_]+\.h", _RPC,
         "the engine knows neither RPC nor protobuf, and devices only by kernels/device.h"),
    Rule(r"server/wire\w*\.(h|cc)",
         r"server/(wire\w*|field_path|status\w*|options|limits|reply\w*|buffer\w*|grpc_status)\.h|server/engine/.*"
         r"|kernels/(matmul|device|half)\.h|qmatmul/.*|google/.*", r"spdlog.*|prometheus.*",
         "wire turns bytes into views; it neither serves nor logs"),
    Rule(r"server/.*", r"server/.*|kernels/[a-z_]+\.h|qmatmul/.*|google/.*|grpc/.*", r"kernels/[a-z]+/.*",
         "the server reaches the kernels library by its own headers"),
    Rule(r"client/(client|load\w*|pack|retry_options|status|stream|types)\.h",
         r"client/(client|load\w*|pack|retry_options|status|stream|types)\.h", _SERVICE_LIBRARIES,
         "no proto or gRPC type in the SDK's headers"),
    Rule(r"client/cli/.*", r"client/.*|kernels/.*|qmatmul/.*", r"server/.*",
         "the program knows the SDK and the kernels"),
    Rule(r"client/.*\.(h|cc)", r"client/.*|qmatmul/.*|google/.*|grpc/.*", r"server/.*|kernels/.*",
         "the SDK knows the contract only"),
    Rule(r"tests/(kernels|oracle)/.*", r"kernels/.*|tests/.*", _SERVICE_LIBRARIES,
         "the kernels' tests build without gRPC"),
]

_INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^">]+)[">]')


def check_arrows(path: str, text: str) -> list[tuple[int, str]]:
    rule = next((r for r in RULES if re.fullmatch(r.path, path)), None)
    if rule is None or not path.endswith((".h", ".cc", ".inc")):
        return []
    problems = []
    for number, line in enumerate(text.splitlines(), 1):
        match = _INCLUDE.match(line)
        if not match:
            continue
        quoted, name = match[1] == '"', match[2]
        if (quoted and not re.fullmatch(rule.only, name)) or re.match(rule.never, name):
            problems.append((number, f"includes {name}: {rule.why}"))
    return problems
