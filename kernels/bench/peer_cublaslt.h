// cuBLASLt's int8 product with int32 sums, from the library that the machine has: loaded by name, so that a
// build needs neither its headers nor its 400 MB.
//
// Thread-safety: one thread. Ownership: device memory is the caller's.
#pragma once

#include <cstdint>
#include <memory>

namespace qmatmul::bench {

class CublasLt {
 public:
  // Null where it is not installed.
  static std::unique_ptr<CublasLt> Open();
  ~CublasLt();

  // C[m, n] = A[m, k] · W[n, k]ᵀ, dense. False when the library has no way of doing it.
  bool Prepare(int64_t m, int64_t n, int64_t k);
  // `workspace`: kWorkspaceBytes of device memory that nothing else uses meanwhile.
  static constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;
  bool Enqueue(void* stream, const void* weight, const void* rows, void* results, void* workspace);

 private:
  struct Library;
  explicit CublasLt(std::unique_ptr<Library> library);
  void Forget();

  std::unique_ptr<Library> library_;
};

}  // namespace qmatmul::bench
