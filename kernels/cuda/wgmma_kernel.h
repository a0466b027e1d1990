// Many rows on Hopper: wgmma from shared memory that TMA fills; sm_90a alone.
//
//     a block: 128 × 128 results, 128 k a stage, 4 stages
//       warps 0 … 3   one thread of them starts the copies of rows and columns, each 128 × 128 bytes
//       warps 4 … 11  two warpgroups of 64 rows, 64 sums a thread
//
//     full[stage]: both copies have arrived.  empty[stage]: all eight warps have read it.
//
// Lives on IGMMA.64x128x32.S8.S8. Tiles lie as TMA's 128-byte swizzle leaves them, which is what the matrix
// descriptors say; TMA fills with zeros what lies past an edge.
//
// Not emulated: it serves only where the self-test of the start has proved it on the device, and a wait that
// takes too long ends the launch with a trap instead of hanging.
//
// Thread-safety: device code.
#pragma once

#include "kernels/cuda/block.h"
#include "kernels/cuda/row_sink.h"

namespace qmatmul::cuda {

class WgmmaKernel {
 public:
  static constexpr int kThreads = 384, kRows = 128, kColumns = 128, kStageK = 128, kStages = 4;
  static constexpr int kSideBytes = 128 * kStageK, kStageBytes = 2 * kSideBytes;
  static constexpr int kAlignment = 1024;  // of a swizzled tile
  static constexpr int kReaders = 8;       // warps of the two warpgroups
  static constexpr int kSharedBytes = kStages * kStageBytes + kAlignment + 2 * kStages * 8 + 16;

#if defined(QMATMUL_CUDA_EMULATED) || !defined(__CUDA_ARCH_FEAT_SM90_ALL)
  static QMATMUL_DEVICE void Run(const WgmmaArgs&) { simt::Trap(); }
#else
  static QMATMUL_DEVICE void Run(const WgmmaArgs& args) {
    const ProductArgs& p = args.product;
    Block block;
    const uint32_t base = uint32_t(__cvta_generic_to_shared(simt::Shared()));
    block.tiles = (base + kAlignment - 1) / kAlignment * kAlignment;
    block.full = block.tiles + kStages * kStageBytes;
    block.empty = block.full + kStages * 8;
    block.row0 = simt::Block().z * kRows;
    block.column0 = simt::Block().x * kColumns;
    const int64_t stages = (p.operand_bytes + kStageK - 1) / kStageK, slice = simt::Block().y;
    block.begin = int(stages * slice / p.slices);
    block.end = int(stages * (slice + 1) / p.slices);
    if (simt::Thread() == 0) {
      for (int s = 0; s < kStages; ++s) {
        InitBarrier(block.full + 8 * s, 1);
        InitBarrier(block.empty + 8 * s, kReaders);
      }
      asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
    }
    simt::SyncThreads();
    // The same for a whole warp, and the compiler knows it: or it would not let wgmmas overlap.
    const int group = __shfl_sync(0xffffffffu, simt::Thread() / 128, 0) - 1;
    if (group < 0) {
      if (simt::Thread() == 0) Produce(args, block);
      return;
    }
    int32_t d[64] = {};
    Consume(block, group, d);
    if (p.slices > 1 && !Gather(p, block, d)) return;
    Put(p, block, d);
  }

 private:
  struct Block {
    uint32_t tiles, full, empty;  // addresses in shared memory
    int row0, column0, begin, end;

    QMATMUL_DEVICE int row(int half) const {
      const int thread = simt::Thread() - 128;  // of the two warpgroups
      return row0 + thread / 128 * 64 + thread % 128 / kWarp * 16 + thread % kWarp / 4 + 8 * half;
    }
    QMATMUL_DEVICE int column(int j) const { return column0 + 8 * j + simt::Thread() % 4 * 2; }
  };

  static QMATMUL_DEVICE void InitBarrier(uint32_t barrier, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(count) : "memory");
  }
  static QMATMUL_DEVICE void Arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
  }
  static QMATMUL_DEVICE void Wait(uint32_t barrier, uint32_t parity) {
    // A barrier that never comes must not hang the device: no product takes so long.
    constexpr uint64_t kWaitNsMax = 10'000'000'000;
    uint32_t done = 0;
    for (uint64_t start = 0; done == 0;) {
      asm volatile(
          "{\n.reg .pred p;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p;\n}\n"
          : "=r"(done)
          : "r"(barrier), "r"(parity)
          : "memory");
      if (done != 0) return;
      uint64_t now;
      asm volatile("mov.u64 %0, %%globaltimer;\n" : "=l"(now));
      if (start == 0) start = now;
      if (now - start > kWaitNsMax) simt::Trap();
    }
  }
  static QMATMUL_DEVICE void CopyTile(uint32_t to, const TensorMap& map, int k, int row,
                                      uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%2, %3}], [%4];\n" ::"r"(to),
        "l"(&map), "r"(k), "r"(row), "r"(barrier)
        : "memory");
  }

  static QMATMUL_DEVICE void Produce(const WgmmaArgs& args, const Block& block) {
    for (int s = block.begin; s < block.end; ++s) {
      const int i = s - block.begin, slot = i % kStages;
      if (i >= kStages) Wait(block.empty + 8 * slot, uint32_t(i / kStages - 1) & 1);
      const uint32_t full = block.full + 8 * slot, tile = block.tiles + slot * kStageBytes;
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(full),
                   "r"(kStageBytes)
                   : "memory");
      CopyTile(tile, args.rows, s * kStageK, block.row0, full);
      CopyTile(tile + kSideBytes, args.columns, s * kStageK, block.column0, full);
    }
  }

  // K-major, 128-byte swizzle: eight rows are 1,024 bytes apart.
  static QMATMUL_DEVICE uint64_t Descriptor(uint32_t address) {
    return uint64_t((address & 0x3ffff) >> 4) | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 |
           uint64_t{1} << 62;
  }

  static QMATMUL_DEVICE void Multiply(int32_t (&d)[64], uint64_t a, uint64_t b) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, %64, "
        "%65, p;\n}\n"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]),
          "+r"(d[7]), "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]),
          "+r"(d[14]), "+r"(d[15]), "+r"(d[16]), "+r"(d[17]), "+r"(d[18]), "+r"(d[19]), "+r"(d[20]),
          "+r"(d[21]), "+r"(d[22]), "+r"(d[23]), "+r"(d[24]), "+r"(d[25]), "+r"(d[26]), "+r"(d[27]),
          "+r"(d[28]), "+r"(d[29]), "+r"(d[30]), "+r"(d[31]), "+r"(d[32]), "+r"(d[33]), "+r"(d[34]),
          "+r"(d[35]), "+r"(d[36]), "+r"(d[37]), "+r"(d[38]), "+r"(d[39]), "+r"(d[40]), "+r"(d[41]),
          "+r"(d[42]), "+r"(d[43]), "+r"(d[44]), "+r"(d[45]), "+r"(d[46]), "+r"(d[47]), "+r"(d[48]),
          "+r"(d[49]), "+r"(d[50]), "+r"(d[51]), "+r"(d[52]), "+r"(d[53]), "+r"(d[54]), "+r"(d[55]),
          "+r"(d[56]), "+r"(d[57]), "+r"(d[58]), "+r"(d[59]), "+r"(d[60]), "+r"(d[61]), "+r"(d[62]),
          "+r"(d[63])
        : "l"(a), "l"(b));
  }

  static QMATMUL_DEVICE void Consume(const Block& block, int group, int32_t (&d)[64]) {
    // wgmma.wait_group speaks for its own warp: each says that it has read.
    const bool speaks = simt::Thread() % kWarp == 0;
    for (int s = block.begin; s < block.end; ++s) {
      const int i = s - block.begin, slot = i % kStages;
      Wait(block.full + 8 * slot, uint32_t(i / kStages) & 1);
      const uint32_t rows = block.tiles + slot * kStageBytes + group * (kSideBytes / 2);
      const uint32_t columns = block.tiles + slot * kStageBytes + kSideBytes;
      asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
#pragma unroll
      for (int k = 0; k < kStageK; k += 32)
        Multiply(d, Descriptor(rows + k), Descriptor(columns + k));
      asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
      // The stage before this one has been read now.
      asm volatile("wgmma.wait_group.sync.aligned 1;\n" ::: "memory");
      if (i > 0 && speaks) Arrive(block.empty + 8 * ((i - 1) % kStages));
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;\n" ::: "memory");
  }

  template <typename Visit>
  static QMATMUL_DEVICE void EachSum(const ProductArgs& p, const Block& block, int32_t (&d)[64],
                                     Visit visit) {
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      const int row = block.row(i / 2 % 2), n = block.column(i / 4) + i % 2;
      if (row < p.row_count && n < p.weight.n)
        visit(p.partial + int64_t(row) * p.weight.n + n, &d[i]);
    }
  }

  static QMATMUL_DEVICE void SyncWarpgroups() { asm volatile("bar.sync 1, 256;\n" ::: "memory"); }
  static QMATMUL_DEVICE bool Gather(const ProductArgs& p, const Block& block, int32_t (&d)[64]) {
    EachSum(p, block, d, [](int32_t* partial, int32_t* sum) { simt::AtomicAdd(partial, *sum); });
    uint32_t* ticket = p.tickets + int64_t(simt::Block().z) * simt::Grid().x + simt::Block().x;
    auto* flag = reinterpret_cast<int*>(simt::Shared() + kSharedBytes - 16);
    // LastOfTile (block.h), for the warpgroups alone: the first four warps are gone.
    simt::Fence();
    SyncWarpgroups();
    if (simt::Thread() == 128) {
      *flag = simt::AtomicAdd(ticket, uint32_t{1}) == uint32_t(p.slices - 1);
      if (*flag != 0) *ticket = 0;
    }
    SyncWarpgroups();
    simt::Fence();
    if (*flag == 0) return false;
    EachSum(p, block, d,
            [](int32_t* partial, int32_t* sum) { *sum = simt::AtomicExchange(partial, 0); });
    return true;
  }

  static QMATMUL_DEVICE void Put(const ProductArgs& p, const Block& block, int32_t (&d)[64]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = block.row(half);
      RowSink sink = row < p.row_count ? RowSink(p, row) : RowSink();
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        const int n = block.column(i / 2) + i % 2;
        if (sink.any() && n < p.weight.n)
          sink.PutSum(n, sink.Correct(d[i / 2 * 4 + 2 * half + i % 2], 0, n));
      }
      sink.Finish();
    }
  }
#endif
};

}  // namespace qmatmul::cuda
