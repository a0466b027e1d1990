// A weight that a command registers for its own use and that is gone when the command ends, also
// when it ends by a Failure. Not copied, not moved; used by one thread. The client must outlive it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "client/client.h"

namespace qmatmul::cli {

class TemporaryWeight {
 public:
  // Registers int8 data [k, n], layout KN, without scales, under a name that starts with `prefix`
  // and is nobody else's. Failure when the server refuses it.
  TemporaryWeight(client::Client& client, std::string_view prefix, int64_t k, int64_t n,
                  const std::vector<int8_t>& data);
  // Any weight; its id becomes the prefix of the name.
  TemporaryWeight(client::Client& client, client::WeightUpload upload);
  ~TemporaryWeight();
  TemporaryWeight(const TemporaryWeight&) = delete;
  TemporaryWeight& operator=(const TemporaryWeight&) = delete;

  const std::string& id() const { return id_; }
  const client::WeightInfo& info() const { return info_; }
  // Deletes now and says how that went; the destructor then does nothing.
  client::Result<int64_t> Delete();

 private:
  client::Client& client_;
  std::string id_;
  client::WeightInfo info_;
  bool registered_ = false;
};

}  // namespace qmatmul::cli
