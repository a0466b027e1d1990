#include <openssl/evp.h>

#include <array>
#include <memory>
#include <string>

#include "client/types.h"

namespace qmatmul::client {
namespace {

std::string IdentityLine(const WeightUpload& w) {
  const int64_t scale_count = w.scales.count();
  std::string line = "qmatmul.weight.v1;";
  line += NameOf(w.dtype);
  line += ';';
  line += NameOf(w.layout);
  for (int64_t v : {w.k, w.n, w.group_size}) line += ';' + std::to_string(v);
  line += ';';
  line += scale_count > 0 ? NameOf(w.scales.dtype) : std::string_view("NONE");
  for (int64_t v : {scale_count, static_cast<int64_t>(w.bias.size())})
    line += ';' + std::to_string(v);
  line += '\n';
  return line;
}

}  // namespace

std::string DigestOf(const WeightUpload& weight) {
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(),
                                                                        &EVP_MD_CTX_free);
  const std::string line = IdentityLine(weight);
  EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr);
  EVP_DigestUpdate(context.get(), line.data(), line.size());
  EVP_DigestUpdate(context.get(), weight.data.data(), weight.data.size());
  EVP_DigestUpdate(context.get(), weight.scales.bytes.data(), weight.scales.bytes.size());
  EVP_DigestUpdate(context.get(), weight.bias.data(), weight.bias.size_bytes());

  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int bytes = 0;
  EVP_DigestFinal_ex(context.get(), digest.data(), &bytes);
  constexpr std::string_view kHex = "0123456789abcdef";
  std::string hex;
  for (unsigned int i = 0; i < bytes; ++i) {
    hex += kHex[digest[i] >> 4];
    hex += kHex[digest[i] & 15];
  }
  return hex;
}

}  // namespace qmatmul::client
