// Runs a fuzz target on a corpus and on mutations of it for a given time.
//   wire_split_fuzz CORPUS_FOLDER SECONDS [SEED]      (ten times as long where QMATMUL_NIGHTLY is set)
// Mutations: bits, bytes, stretches removed, repeated, swapped and copied from other inputs, and
// numbers written as over-long varints. Not guided by coverage, as libFuzzer's are; the corpus makes up
// for it by having the message's every part.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "tests/support/random.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using qmatmul::test::Random;

constexpr size_t kBytesMax = 4096;
constexpr size_t kPoolMax = 4000;

size_t Below(Random* random, size_t bound) {
  return bound == 0 ? 0 : static_cast<size_t>(random->Between(0, static_cast<int64_t>(bound) - 1));
}

void MutateOnce(std::string* s, const std::vector<std::string>& pool, Random* random) {
  const size_t at = Below(random, s->size() + 1);
  const size_t length = 1 + Below(random, random->Chance(70) ? 4 : 64);
  switch (random->Between(0, 8)) {
    case 0:
      if (at < s->size()) (*s)[at] = static_cast<char>((*s)[at] ^ (1 << random->Between(0, 7)));
      break;
    case 1:
      if (at < s->size()) (*s)[at] = static_cast<char>(random->Next());
      break;
    case 2: s->erase(std::min(at, s->size()), length); break;
    case 3: s->insert(at, s->substr(Below(random, s->size()), length)); break;
    case 4: s->insert(at, std::string(length, static_cast<char>(random->Next()))); break;
    case 5: {  // an over-long varint
      std::string varint(Below(random, 10), '\x80');
      s->insert(at, varint + static_cast<char>(random->Between(0, 127)));
      break;
    }
    case 6: {  // a stretch of another input
      const std::string& other = pool[Below(random, pool.size())];
      s->insert(at, other.substr(Below(random, other.size()), length * 4));
      break;
    }
    case 7: {  // a byte's continuation bit, which joins or parts numbers
      if (at < s->size()) (*s)[at] = static_cast<char>((*s)[at] ^ 0x80);
      break;
    }
    default:
      if (at < s->size()) (*s)[at] = static_cast<char>((*s)[at] + random->Between(-2, 2));
  }
}

std::vector<std::string> ReadCorpus(const char* folder) {
  std::vector<std::string> corpus;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::ifstream file(entry.path(), std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return corpus;
}

void Test(const std::string& input) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s CORPUS_FOLDER SECONDS [SEED]\n", argv[0]);
    return 2;
  }
  std::vector<std::string> pool = ReadCorpus(argv[1]);
  if (pool.empty()) {
    std::fprintf(stderr, "%s: no inputs in %s\n", argv[0], argv[1]);
    return 2;
  }
  for (const std::string& input : pool) Test(input);
  const auto seed = argc > 3 ? std::strtoull(argv[3], nullptr, 10)
                             : static_cast<unsigned long long>(
                                   std::chrono::system_clock::now().time_since_epoch().count());
  std::printf("seed %llu, %zu inputs\n", seed, pool.size());
  std::fflush(stdout);
  Random random(seed);
  const int seconds = std::atoi(argv[2]) * (std::getenv("QMATMUL_NIGHTLY") != nullptr ? 10 : 1);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  int64_t runs = 0;
  while (std::chrono::steady_clock::now() < end) {
    std::string input = pool[Below(&random, pool.size())];
    for (int64_t i = random.Between(1, 8); i > 0; --i) MutateOnce(&input, pool, &random);
    if (input.size() > kBytesMax) input.resize(kBytesMax);
    Test(input);
    ++runs;
    // Some go back, so that mutations add up.
    if (random.Chance(2)) {
      if (pool.size() < kPoolMax) pool.push_back(input);
      else pool[Below(&random, pool.size())] = input;
    }
  }
  std::printf("%lld inputs, no difference\n", static_cast<long long>(runs));
  return 0;
}
