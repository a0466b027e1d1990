#include "client/cli/temporary_weight.h"

#include <unistd.h>

#include <random>

#include "client/cli/console.h"

namespace qmatmul::cli {

TemporaryWeight::TemporaryWeight(client::Client& client, std::string_view prefix, int64_t k,
                                 int64_t n, const std::vector<int8_t>& data)
    : client_(client) {
  std::random_device random;
  id_ = std::string(prefix) + "-" + std::to_string(getpid()) + "-" + std::to_string(random());
  client::WeightUpload upload;
  upload.id = id_;
  upload.dtype = client::DataType::kInt8;
  upload.layout = client::Layout::kKN;
  upload.k = k;
  upload.n = n;
  upload.data = std::as_bytes(std::span(data));
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
