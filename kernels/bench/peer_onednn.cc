// oneDNN's matmul primitive, weights reordered once into the layout it asks for: s8s8 as a caller
// would write it, and u8s8 (activations + 128, taken off by column sums outside the timed part),
// its fast path.
#include <dnnl.h>
#include <omp.h>

#if __has_include(<oneapi/dnnl/dnnl.hpp>)
#include <oneapi/dnnl/dnnl.hpp>
#else
#include <dnnl.hpp>
#endif

#include "kernels/bench/peer.h"
#include "kernels/bench/roof.h"

namespace qmatmul::bench {
namespace {

class OneDnn final : public Peer {
 public:
  explicit OneDnn(bool unsigned_activations) : unsigned_(unsigned_activations) {}

  std::string name() const override { return unsigned_ ? "onednn.u8s8" : "onednn.s8s8"; }

  bool Prepare(const Problem& p) override {
    omp_set_num_threads(p.threads);
    problem_ = p;
    activations_.assign(p.activations.begin(), p.activations.end());
    if (unsigned_)
      for (int8_t& a : activations_) a = static_cast<int8_t>(a ^ 0x80);
    weight_.assign(p.weight.begin(), p.weight.end());
    result_.assign(size_t(p.m * p.n), 0);
    using dnnl::memory;
    const auto type = unsigned_ ? memory::data_type::u8 : memory::data_type::s8;
    const memory::desc a({p.m, p.k}, type, memory::format_tag::ab);
    const memory::desc b_plain({p.k, p.n}, memory::data_type::s8, memory::format_tag::ab);
    const memory::desc b_any({p.k, p.n}, memory::data_type::s8, memory::format_tag::any);
    const memory::desc c({p.m, p.n}, memory::data_type::s32, memory::format_tag::ab);
#if DNNL_VERSION_MAJOR >= 3
    const dnnl::matmul::primitive_desc description(engine_, a, b_any, c);
#else
    const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(a, b_any, c), engine_);
#endif
    memory plain(b_plain, engine_, weight_.data());
    memory packed(description.weights_desc(), engine_);
    dnnl::reorder(plain, packed).execute(stream_, plain, packed);
    stream_.wait();
    matmul_ = dnnl::matmul(description);
    arguments_ = {{DNNL_ARG_SRC, memory(a, engine_, activations_.data())},
                  {DNNL_ARG_WEIGHTS, packed},
                  {DNNL_ARG_DST, memory(c, engine_, result_.data())}};
    return true;
  }

  double Run(int count) override {
    const int64_t start = BenchClockNs(problem_.threads);
    for (int i = 0; i < count; ++i) {
      matmul_.execute(stream_, arguments_);
      stream_.wait();
    }
    return double(BenchClockNs(problem_.threads) - start) / count;
  }

  std::span<const int32_t> result() const override {
    corrected_.assign(result_.begin(), result_.end());
    if (!unsigned_) return corrected_;
    std::vector<int32_t> sums(size_t(problem_.n), 0);
    for (int64_t k = 0; k < problem_.k; ++k)
      for (int64_t n = 0; n < problem_.n; ++n)
        sums[size_t(n)] += weight_[size_t(k * problem_.n + n)];
    for (int64_t m = 0; m < problem_.m; ++m)
      for (int64_t n = 0; n < problem_.n; ++n)
        corrected_[size_t(m * problem_.n + n)] -= 128 * sums[size_t(n)];
    return corrected_;
  }

 private:
  const bool unsigned_;
  Problem problem_;
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  dnnl::matmul matmul_;
  std::unordered_map<int, dnnl::memory> arguments_;
  LineVector<int8_t> activations_, weight_;
  LineVector<int32_t> result_;
  mutable std::vector<int32_t> corrected_;
};

}  // namespace

std::vector<std::unique_ptr<Peer>> MakePeers(const std::string& name) {
  std::vector<std::unique_ptr<Peer>> peers;
  if (name != "onednn") return peers;
  peers.push_back(std::make_unique<OneDnn>(false));
  peers.push_back(std::make_unique<OneDnn>(true));
  return peers;
}

}  // namespace qmatmul::bench
