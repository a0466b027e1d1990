// Between the SDK's own types and the messages of the contract. Private to client/, like every
// header of it that shows protobuf and gRPC types. Free functions without state.
#pragma once

#include <grpcpp/grpcpp.h>

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "client/status.h"
#include "client/types.h"
#include "google/rpc/status.pb.h"
#include "qmatmul/v1/qmatmul.pb.h"

namespace qmatmul::client {

// An error of this side, in the server's form.
Status Refusal(Code code, std::string reason, std::string message);
// Takes ErrorInfo, BadRequest and RetryInfo out of the error's details. Never for an OK status.
Status FromGrpc(const grpc::Status& status);
// The same for an error that came as a message of its own, in a stream.
Status FromRpc(const google::rpc::Status& status);

std::string ResourceName(std::string_view id);  // "weights/{id}"
std::string IdOf(const std::string& resource_name);

void ToProto(const WeightUpload& weight, const std::string& digest, v1::WeightSpec* spec);
void ToProto(const Scales& scales, v1::Scales* message);
void ToProto(const OutputSpec& output, v1::OutputSpec* spec);
void ToProto(const MatMulOptions& options, v1::MatMulOptions* message);
void ToProto(const ChainStep& step, v1::ChainStep* message);

WeightInfo FromProto(const v1::Weight& weight);
Explanation FromProto(const v1::ExplainResponse& response);
DeviceInfo FromProto(const v1::Device& device);
KernelInfo FromProto(const v1::Kernel& kernel);
Statistics FromProto(const v1::Statistics& statistics);

// All but the data.
Output FromProto(const v1::OutputTensor& tensor);

}  // namespace qmatmul::client
