#include "kernels/bench/peer_cublaslt.h"

#include <dlfcn.h>

namespace qmatmul::bench {
namespace {

// As cublasLt.h and cublas_api.h number them.
constexpr int kCompute32I = 72, kInt8 = 3, kInt32 = 10;  // cublasComputeType_t, cudaDataType_t
constexpr int kTransA = 3;                               // CUBLASLT_MATMUL_DESC_TRANSA
constexpr int kOpTransposed = 1;                         // CUBLAS_OP_T
constexpr int kWorkspaceBytesMax = 1;                    // CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES
constexpr int64_t kAlgorithmBytes = 64, kHeuristicBytes = 64 + 8 + 4 + 4 + 16;
constexpr const char* kNames[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"};

struct alignas(8) Heuristic {  // cublasLtMatmulHeuristicResult_t
  unsigned char algorithm[kAlgorithmBytes];
  uint64_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};
static_assert(sizeof(Heuristic) == kHeuristicBytes);

}  // namespace

struct CublasLt::Library {
  void* handle = nullptr;
  void* lt = nullptr;
  int (*create)(void**) = nullptr;
  int (*destroy)(void*) = nullptr;
  int (*desc_create)(void**, int, int) = nullptr;
  int (*desc_set)(void*, int, const void*, size_t) = nullptr;
  int (*desc_destroy)(void*) = nullptr;
  int (*layout_create)(void**, int, uint64_t, uint64_t, int64_t) = nullptr;
  int (*layout_destroy)(void*) = nullptr;
  int (*preference_create)(void**) = nullptr;
  int (*preference_set)(void*, int, const void*, size_t) = nullptr;
  int (*preference_destroy)(void*) = nullptr;
  int (*heuristic)(void*, void*, void*, void*, void*, void*, void*, int, Heuristic*,
                   int*) = nullptr;
  int (*matmul)(void*, void*, const void*, const void*, void*, const void*, void*, const void*,
                const void*, void*, void*, void*, const void*, void*, size_t, void*) = nullptr;
  void *desc = nullptr, *a = nullptr, *b = nullptr, *c = nullptr;
  Heuristic best;

  template <typename F>
  bool Find(const char* name, F* function) {
    *function = reinterpret_cast<F>(dlsym(handle, name));
    return *function != nullptr;
  }
  bool FindAll() {
    return Find("cublasLtCreate", &create) && Find("cublasLtDestroy", &destroy) &&
           Find("cublasLtMatmulDescCreate", &desc_create) &&
           Find("cublasLtMatmulDescSetAttribute", &desc_set) &&
           Find("cublasLtMatmulDescDestroy", &desc_destroy) &&
           Find("cublasLtMatrixLayoutCreate", &layout_create) &&
           Find("cublasLtMatrixLayoutDestroy", &layout_destroy) &&
           Find("cublasLtMatmulPreferenceCreate", &preference_create) &&
           Find("cublasLtMatmulPreferenceSetAttribute", &preference_set) &&
           Find("cublasLtMatmulPreferenceDestroy", &preference_destroy) &&
           Find("cublasLtMatmulAlgoGetHeuristic", &heuristic) && Find("cublasLtMatmul", &matmul);
  }
};

CublasLt::CublasLt(std::unique_ptr<Library> library) : library_(std::move(library)) {}

std::unique_ptr<CublasLt> CublasLt::Open() {
  auto library = std::make_unique<Library>();
  for (const char* name : kNames)
    if (library->handle == nullptr) library->handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (library->handle == nullptr) return nullptr;
  if (!library->FindAll() || library->create(&library->lt) != 0) {
    dlclose(library->handle);
    return nullptr;
  }
  return std::unique_ptr<CublasLt>(new CublasLt(std::move(library)));
}

CublasLt::~CublasLt() {
  Forget();
  library_->destroy(library_->lt);
  dlclose(library_->handle);
}

void CublasLt::Forget() {
  Library& l = *library_;
  if (l.desc != nullptr) l.desc_destroy(l.desc);
  for (void** layout : {&l.a, &l.b, &l.c}) {
    if (*layout != nullptr) l.layout_destroy(*layout);
    *layout = nullptr;
  }
  l.desc = nullptr;
}

// Column-major, as it thinks: Cᵀ[n, m] = (Wᵀ[k, n])ᵀ · Aᵀ[k, m].
bool CublasLt::Prepare(int64_t m, int64_t n, int64_t k) {
  Library& l = *library_;
  Forget();
  if (l.desc_create(&l.desc, kCompute32I, kInt32) != 0) return false;
  if (l.desc_set(l.desc, kTransA, &kOpTransposed, sizeof kOpTransposed) != 0) return false;
  if (l.layout_create(&l.a, kInt8, uint64_t(k), uint64_t(n), k) != 0) return false;
  if (l.layout_create(&l.b, kInt8, uint64_t(k), uint64_t(m), k) != 0) return false;
  if (l.layout_create(&l.c, kInt32, uint64_t(n), uint64_t(m), n) != 0) return false;
  void* preference = nullptr;
  if (l.preference_create(&preference) != 0) return false;
  int found = 0;
  const uint64_t workspace_bytes = kWorkspaceBytes;  // without, what cuts K is left out
  (void)l.preference_set(preference, kWorkspaceBytesMax, &workspace_bytes, sizeof workspace_bytes);
  const int status = l.heuristic(l.lt, l.desc, l.a, l.b, l.c, l.c, preference, 1, &l.best, &found);
  l.preference_destroy(preference);
  return status == 0 && found > 0;
}

bool CublasLt::Enqueue(void* stream, const void* weight, const void* rows, void* results,
                       void* workspace) {
  Library& l = *library_;
  const int32_t one = 1, zero = 0;
  return l.matmul(l.lt, l.desc, &one, weight, l.a, rows, l.b, &zero, results, l.c, results, l.c,
                  l.best.algorithm, workspace, kWorkspaceBytes, stream) == 0;
}

}  // namespace qmatmul::bench
