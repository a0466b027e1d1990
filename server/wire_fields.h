// Readers of single message fields, shared by the wire_*.cc files and by nothing else: an enum, a
// list of scales, and the refusal that names a field.
//
// Thread-safety: free functions without shared state.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "qmatmul/v1/qmatmul.pb.h"
#include "server/engine/request.h"
#include "server/engine/status.h"
#include "server/field_path.h"

namespace qmatmul {

// INVALID_ARGUMENT for `field`; value and limit go into the metadata when they are not empty.
Status Invalid(std::string reason, std::string field, std::string message, std::string value = {},
               std::string limit = {});

// DTYPE_MISSING for 0, ENUM_UNKNOWN for a number the contract does not have.
Status ReadDataType(v1::DataType value, const FieldPath& field, DataType* dtype);
// LAYOUT_MISSING, ENUM_UNKNOWN.
Status ReadLayout(v1::Layout value, const FieldPath& field, Layout* layout);
Status ReadOverflow(v1::Overflow value, const FieldPath& field, Overflow* overflow);
Status ReadActivation(v1::Activation value, const FieldPath& field, Activation* activation);

// Scales must be finite and ±0 or within 2^-47 … 2^47 in magnitude (SCALE_RANGE).
bool ScaleInRange(float scale);
// The values, widened to fp32, not yet looked at. DTYPE_MISSING, SCALE_DTYPE, BYTES_MISMATCH.
Status ReadScales(const v1::Scales& message, const FieldPath& field, std::vector<float>* scales);

// Sets request->bytes, input and output. REPLY_TOO_LARGE: the reply must pass the same limit as a
// request, or gRPC would drop a finished answer.
Status MeasureReply(int64_t reply_bytes_max, Request* request);

v1::DataType ToWire(DataType dtype);
v1::Layout ToWire(Layout layout);
v1::Overflow ToWire(Overflow overflow);

}  // namespace qmatmul
