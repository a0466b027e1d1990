// The JSON of `qmatmul --json`: one function per thing that is printed. Field names are the
// contract's.
#pragma once

#include <nlohmann/json.hpp>

#include "client/cli/failure.h"
#include "client/types.h"

namespace qmatmul::cli {

using Json = nlohmann::ordered_json;

Json ToJson(const Failure& failure);
Json ToJson(const client::WeightInfo& weight);
Json ToJson(const client::Registration& registration);
Json ToJson(const client::Output& output);
Json ToJson(const client::Explanation& explanation);

// To stdout, indented, with a newline.
void PrintJson(const Json& json);

}  // namespace qmatmul::cli
