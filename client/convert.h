// Between the SDK's own types and the messages of the contract. The only header of client/ that
// shows protobuf and gRPC types; it is private to client.cc and convert.cc. Free functions without
// state.
#pragma once

#include <grpcpp/grpcpp.h>

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "client/status.h"
#include "client/types.h"
#include "qmatmul/v1/qmatmul.pb.h"

namespace qmatmul::client {

// Takes ErrorInfo, BadRequest and RetryInfo out of the error's details. Never for an OK status.
Status FromGrpc(const grpc::Status& status);

std::string ResourceName(std::string_view id);  // "weights/{id}"
std::string IdOf(const std::string& resource_name);

void ToProto(const WeightUpload& weight, const std::string& digest, v1::WeightSpec* spec);
void ToProto(const Activations& activations, v1::ActivationTensor* tensor);
void ToProto(const OutputSpec& output, v1::OutputSpec* spec);
void ToProto(const MatMulOptions& options, v1::MatMulOptions* message);

WeightInfo FromProto(const v1::Weight& weight);
Explanation FromProto(const v1::ExplainResponse& response);
DeviceInfo FromProto(const v1::Device& device);
KernelInfo FromProto(const v1::Kernel& kernel);
Statistics FromProto(const v1::Statistics& statistics);

// Moves the bytes out of the reply, or copies them into `into` when that is not empty.
Result<Output> TakeOutput(v1::OutputTensor* tensor, std::span<std::byte> into);

}  // namespace qmatmul::client
