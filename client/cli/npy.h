// numpy's .npy files, as far as tensors of this service need them: format 1.0 and 2.0; int8, uint8,
// int16, uint16 (also the bits of bfloat16, which numpy lacks), int32, float16 and float32;
// little-endian. Fortran-ordered arrays are turned into C order on reading.
//
// A file is untrusted input: every size is checked against the bytes that are there before anything
// is allocated. Errors are Failure (kExitFile) that names the file, what was found and the way out.
// Plain functions and values, without state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace qmatmul::cli {

enum class NpyType : uint8_t { kInt8, kUint8, kInt16, kUint16, kInt32, kFloat16, kFloat32 };

std::string_view NameOf(NpyType type);  // numpy's name, "float32"
size_t BytesOf(NpyType type);           // of one element

struct NpyArray {
  NpyType type = NpyType::kInt8;
  std::vector<int64_t> shape;   // empty: a scalar
  std::vector<std::byte> data;  // C order

  int64_t count() const;
};

NpyArray ReadNpy(const std::string& path);
// The same from memory; `origin` names the source in errors.
NpyArray ParseNpy(std::span<const std::byte> file, const std::string& origin);

void WriteNpy(const std::string& path, NpyType type, std::span<const int64_t> shape,
              std::span<const std::byte> data);
// The bytes before the data: magic, version 1.0, header, padded to 64 bytes.
std::string NpyHeader(NpyType type, std::span<const int64_t> shape);

// "[2, 384]".
std::string ShapeText(std::span<const int64_t> shape);

}  // namespace qmatmul::cli
