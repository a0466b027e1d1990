// The option tables of the subcommands, in one place so that one spelling means one thing
// everywhere.
#pragma once

#include "client/cli/arguments.h"

namespace qmatmul::cli {

inline constexpr OptionSpec kRegisterOptions[] = {
    {"--layout", "KN|NK",
     "required: KN when the file is [K, N] (x @ w), NK when it is [N, K] "
     "(torch.nn.Linear.weight)"},
    {"--dtype", "TYPE",
     "INT8 (default), INT4 or INT2: the file is int8 all the same, with values of -8 to 7 or -1 to "
     "1"},
    {"--group-size", "G",
     "INT4, required: how many values along K share a scale; K for all of them"},
    {"--scales", "FILE.npy",
     "weight scales: one, or one per column, or [K/G, N] for INT4; float32, float16, or uint16 "
     "with --bf16-scales"},
    {"--bf16-scales", "", "the uint16 values of --scales are the bits of bfloat16"},
    {"--bias", "FILE.npy", "float32, one per column"},
    {"--replace", "", "the name may move to this content, whatever it holds now"},
    {"--replace-digest", "HEX", "the name may move if it holds exactly this digest now"},
};

inline constexpr OptionSpec kMatMulOptions[] = {
    {"--out", "TYPE", "required: INT32, INT16, INT8, F32, F16 or BF16"},
    {"--output", "Y.npy",
     "-o: where the result goes (BF16 as uint16); without it a preview is printed"},
    {"--arithmetic", "W8A8|W8A32", "for float activations; --dynamic and --scales imply W8A8"},
    {"--dynamic", "", "float activations: the server quantizes each row by its own max|a| / 127"},
    {"--scales", "VALUE|FILE.npy", "activation scales: one, or one per row"},
    {"--zero-points", "VALUE|FILE.npy", "activation zero points: one, or one per row (int32)"},
    {"--bf16", "", "the uint16 values of X.npy are the bits of bfloat16"},
    {"--overflow", "RULE", "integer outputs: SATURATE (default), WRAP or ERROR"},
    {"--out-scale", "VALUE", "INT8, INT16: q = round(y / scale) + zero point"},
    {"--out-zero-point", "VALUE", "with --out-scale"},
    {"--relu", "", "y > 0 ? y : 0 before the conversion to the output type"},
    {"--skip-bias", "", "leave the weight's bias out"},
    {"--top-k", "K", "only the K greatest of each row, greatest first, with their columns"},
    {"--then", "ID[:relu]",
     "continue with this weight on the result, which may repeat; write `:relu` after a weight's "
     "ID, "
     "the first one's too, for ReLU on its result; the options above are for the last"},
    {"--indices", "FILE.npy", "with --top-k: where the columns go (int32); once per weight"},
    {"--activation-scales", "FILE.npy",
     "where the scales of a raw-sum reply to float activations go"},
    {"--device", "ID", "cpu, cuda:0, ...; default: the server chooses"},
    {"--kernel", "NAME", "a full kernel name; default: the server chooses"},
    {"--verify", "", "have the server check this answer before it sends it"},
};

inline constexpr OptionSpec kExplainOptions[] = {
    {"--rows", "M", "rows of the request (default: 1)"},
    {"--activations", "TYPE", "INT8 (default), UINT8, F32, F16 or BF16"},
    {"--out", "TYPE", "INT32 (default), INT16, INT8, F32, F16 or BF16"},
    {"--arithmetic", "W8A8|W8A32", "needed for float activations"},
    {"--device", "ID", "as in matmul"},
    {"--kernel", "NAME", "as in matmul"},
};

inline constexpr OptionSpec kBenchOptions[] = {
    {"--in-process", "", "measure the kernels of this program; no server is needed"},
    {"--rows", "M,M,...", "a run for each (default: 1,2,3,7,8,63,64,65,84,88)"},
    {"--k", "K", "default: 4096"},
    {"--n", "N", "default: 4096"},
    {"--threads", "T,T,...", "in process: team sizes (default: 1 and the whole team)"},
    {"--kernel", "NAME",
     "in process: a kernel name or a part of it that only one has; server: a full name"},
    {"--ab", "K1,K2", "two kernels, alternating in one run: both GOPS and the ratio K1 / K2"},
    {"--seconds", "S", "how long each figure is measured (default: 0.3; loading a server: 1)"},
    {"--requests", "N", "server: at most so many calls a run; alone: exactly so many"},
    {"--concurrency", "C,C,...", "server: calls in flight, a run for each (default: 1)"},
    {"--rate", "R", "server: calls a second whatever comes back, latency from the intended time"},
    {"--arrivals", "KIND", "with --rate: poisson (default) or constant"},
    {"--mix", "M:SHARE,...", "server: row counts with their shares in one run: 1:0.9,64:0.1"},
    {"--weight", "ID", "server: a registered weight; may be given several times"},
    {"--shape", "KxN", "server: a random weight for this run; may be given several times"},
    {"--together", "", "server: all the weights in each call, as Q, K and V"},
    {"--cases", "FILE.json", "server: weights and requests of a case file"},
    {"--out", "TYPE", "server: INT32 (default), INT16, INT8, F32, F16 or BF16"},
    {"--seed", "S", "server: of the activations, the order and the arrivals (default: 1)"},
    {"--verify", "SHARE", "server: of the replies, 0 to 1, compared with the reference"},
    {"--latency-limit-ms", "L", "server: also count the calls answered within it (goodput)"},
    {"--stream", "", "server: over one StreamMatMul a connection"},
    {"--connections", "N", "server: default 1"},
    {"--throttle", "",
     "server, with --rate: hold calls back as the SDK does while the server is full (UNAVAILABLE "
     "CLIENT_THROTTLED)"},
    {"--routing-header", "", "server: send qmatmul-weight, for balancers that hash it"},
    {"--metrics", "HOST:PORT", "server: its HTTP address; adds its own split of the time"},
    {"--calls", "FILE.csv", "server: every call of the last run, a line each"},
    {"--csv", "", "server: a line a run; --json prints one object a line"},
};

inline constexpr OptionSpec kGenLoadOptions[] = {
    {"--weight", "ID", "a registered weight; may be given several times"},
    {"--rows", "M,M,...", "row counts in equal shares (default: 1)"},
    {"--mix", "M:SHARE,...", "row counts with their shares: 1:0.9,64:0.1"},
    {"--count", "N", "requests in the file (default: as few as show the shares, at most 1000)"},
    {"--activations", "X.npy", "one request, with these int8 [M, K] activations"},
    {"--cases", "FILE.json", "the requests of a case file; its weights under their own names"},
    {"--register", "", "with --cases: register its weights, and leave them there"},
    {"--out", "TYPE", "INT32 (default), INT16, INT8, F32, F16 or BF16"},
    {"--kernel", "NAME", "a full kernel name; default: the server chooses"},
    {"--seed", "S", "of the activations and the order (default: 1)"},
};

inline constexpr OptionSpec kHealthOptions[] = {
    {"--wait", "SECONDS", "keep asking until the server is serving, at most this long"},
};

}  // namespace qmatmul::cli
