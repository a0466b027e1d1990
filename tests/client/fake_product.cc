#include "tests/client/fake_product.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "tests/client/fake_server.h"

namespace qmatmul::testing {
namespace {

// Of the activations' row m: the only one, or that row's.
template <class Values>
auto OfRow(const Values& values, int64_t m, int64_t none) {
  return values.empty() ? static_cast<typename Values::value_type>(none)
                        : values[values.size() == 1 ? 0 : static_cast<size_t>(m)];
}

std::vector<int32_t> Sums(const v1::ActivationTensor& a, int64_t n) {
  const int64_t rows = a.shape(0), k = a.shape(1);
  const std::vector<int32_t> zero_points(a.zero_points().begin(), a.zero_points().end());
  std::vector<int32_t> sums;
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t column = 0; column < n; ++column) {
      int32_t sum = 0;
      for (int64_t i = 0; i < k; ++i) {
        const int32_t w = static_cast<int32_t>((i * 31 + column * 17) % 7 - 3);
        sum += (static_cast<int8_t>(a.data()[static_cast<size_t>(m * k + i)]) -
                OfRow(zero_points, m, 0)) *
               w;
      }
      sums.push_back(sum);
    }
  }
  return sums;
}

template <class T>
void Append(std::string* bytes, T value) {
  bytes->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

// The k greatest of each row and their columns.
void TakeTop(const std::vector<int32_t>& sums, int64_t n, int64_t top_k, v1::OutputTensor* output) {
  for (size_t row = 0; row < sums.size(); row += static_cast<size_t>(n)) {
    std::vector<int32_t> columns(static_cast<size_t>(n));
    std::iota(columns.begin(), columns.end(), 0);
    std::stable_sort(columns.begin(), columns.end(), [&](int32_t x, int32_t y) {
      return sums[row + static_cast<size_t>(x)] > sums[row + static_cast<size_t>(y)];
    });
    for (int64_t i = 0; i < top_k; ++i) {
      const int32_t column = columns[static_cast<size_t>(i)];
      Append(output->mutable_data(), sums[row + static_cast<size_t>(column)]);
      Append(output->mutable_indices(), column);
    }
  }
}

grpc::Status Overflow(int output, size_t count, size_t first, int64_t n) {
  const std::string row = std::to_string(first / static_cast<size_t>(n));
  const std::string column = std::to_string(first % static_cast<size_t>(n));
  return ErrorOf(grpc::StatusCode::OUT_OF_RANGE, "OVERFLOW",
                 std::to_string(count) + " results of output " + std::to_string(output) +
                     " do not fit INT8, the first at row " + row + ", column " + column,
                 {{"row", row}, {"column", column}, {"count", std::to_string(count)}});
}

grpc::Status Fill(const v1::MatMulRequest& request, int i, v1::OutputTensor* output) {
  const v1::ActivationTensor& a = request.activations();
  const v1::OutputSpec& spec =
      request.then().empty() ? request.outputs(i) : request.then().rbegin()->output();
  const std::string& weight =
      request.then().empty() ? request.weights(i) : request.then().rbegin()->weight();
  const int64_t n = FakeColumns(weight), width = spec.top_k() > 0 ? spec.top_k() : n;
  std::vector<float> scales(a.static_scales().scales().data().size() / sizeof(float));
  if (!scales.empty())
    std::memcpy(scales.data(), a.static_scales().scales().data().data(),
                scales.size() * sizeof(float));
  std::vector<int32_t> sums = Sums(a, n);
  for (int32_t& sum : sums) sum += 1000 * request.then_size();
  output->set_dtype(spec.dtype());
  output->add_shape(a.shape(0));
  output->add_shape(width);
  size_t overflows = 0, first = 0;
  if (spec.top_k() > 0) TakeTop(sums, n, spec.top_k(), output);
  for (size_t e = 0; spec.top_k() == 0 && e < sums.size(); ++e) {
    const int64_t row = static_cast<int64_t>(e) / n;
    if (spec.dtype() == v1::DATA_TYPE_INT32) Append(output->mutable_data(), sums[e]);
    if (spec.dtype() == v1::DATA_TYPE_F32)
      Append(output->mutable_data(), static_cast<float>(sums[e]) * OfRow(scales, row, 1));
    if (spec.dtype() != v1::DATA_TYPE_INT8) continue;
    if (sums[e] != std::clamp(sums[e], -128, 127) && overflows++ == 0) first = e;
    Append(output->mutable_data(), static_cast<int8_t>(std::clamp(sums[e], -128, 127)));
  }
  if (overflows > 0 && spec.overflow() == v1::OVERFLOW_ERROR)
    return Overflow(i, overflows, first, n);
  v1::Execution* e = output->mutable_execution();
  e->set_weight(weight);
  e->set_digest("content of " + weight);
  e->set_batch_rows(a.shape(0));
  e->set_padded_rows(1);
  e->set_queue_ns(100 + a.shape(0));
  e->set_compute_ns(10 * a.shape(0));
  e->set_verified(request.options().verify());
  e->set_overflow_count(static_cast<int64_t>(overflows));
  return grpc::Status::OK;
}

}  // namespace

int64_t FakeColumns(const std::string& name) {
  return std::stoll(name.substr(name.rfind('n') + 1));
}

grpc::Status FakeProduct(const v1::MatMulRequest& request, v1::MatMulResponse* response,
                         int64_t reply_bytes_max) {
  for (int i = 0; i < request.weights_size(); ++i)
    if (grpc::Status status = Fill(request, i, response->add_outputs()); !status.ok())
      return status;
  if (static_cast<int64_t>(response->ByteSizeLong()) > reply_bytes_max)
    return ErrorOf(grpc::StatusCode::RESOURCE_EXHAUSTED, "REPLY_TOO_LARGE",
                   "the reply would hold more than " + std::to_string(reply_bytes_max) + " bytes");
  return grpc::Status::OK;
}

}  // namespace qmatmul::testing
