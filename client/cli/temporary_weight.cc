#include "client/cli/temporary_weight.h"

#include <unistd.h>

#include <random>

#include "client/cli/console.h"

namespace qmatmul::cli {
namespace {

client::WeightUpload Int8Upload(std::string_view id, int64_t k, int64_t n,
                                const std::vector<int8_t>& data) {
  client::WeightUpload upload;
  upload.id = id;
  upload.dtype = client::DataType::kInt8;
  upload.layout = client::Layout::kKN;
  upload.k = k;
  upload.n = n;
  upload.data = std::as_bytes(std::span(data));
  return upload;
}

}  // namespace

TemporaryWeight::TemporaryWeight(client::Client& client, std::string_view prefix, int64_t k,
                                 int64_t n, const std::vector<int8_t>& data)
    : TemporaryWeight(client, Int8Upload(prefix, k, n, data)) {}

TemporaryWeight::TemporaryWeight(client::Client& client, client::WeightUpload upload)
    : client_(client) {
  std::random_device random;
  id_ = upload.id + "-" + std::to_string(getpid()) + "-" + std::to_string(random());
  upload.id = id_;
  ProgressBar bar("uploading " + id_);
  info_ = ValueOf(client.RegisterWeight(
                      upload, [&bar](int64_t sent, int64_t total) { bar.Show(sent, total); }),
                  client)
              .weight;
  registered_ = true;
}

TemporaryWeight::~TemporaryWeight() {
  if (registered_) (void)client_.DeleteWeight(id_);
}

client::Result<int64_t> TemporaryWeight::Delete() {
  registered_ = false;
  return client_.DeleteWeight(id_);
}

}  // namespace qmatmul::cli
