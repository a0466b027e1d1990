#include "client/cli/npy.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <fstream>
#include <limits>
#include <optional>
#include <system_error>

#include "client/cli/failure.h"

namespace qmatmul::cli {
namespace {

struct TypeRow {
  NpyType type;
  std::string_view name;
  std::string_view descr;
  size_t bytes;
};

constexpr TypeRow kTypes[] = {
    {NpyType::kInt8, "int8", "|i1", 1},       {NpyType::kUint8, "uint8", "|u1", 1},
    {NpyType::kInt16, "int16", "<i2", 2},     {NpyType::kUint16, "uint16", "<u2", 2},
    {NpyType::kInt32, "int32", "<i4", 4},     {NpyType::kFloat16, "float16", "<f2", 2},
    {NpyType::kFloat32, "float32", "<f4", 4},
};
constexpr std::string_view kMagic{"\x93NUMPY", 6};
// numpy pads the header so that the data starts on such a boundary.
constexpr size_t kAlignment = 64;
constexpr size_t kDimensionsMax = 32;  // numpy's own

const TypeRow& RowOf(NpyType type) {
  return *std::find_if(std::begin(kTypes), std::end(kTypes),
                       [type](const TypeRow& row) { return row.type == type; });
}

Failure Bad(const std::string& origin, const std::string& what, std::string way_out = {}) {
  return {kExitFile, origin + ": " + what, std::move(way_out)};
}

// A reader of the header: a Python dictionary of a string, a bool and a tuple of integers.
class HeaderReader {
 public:
  HeaderReader(std::string_view text, const std::string& origin) : text_(text), origin_(origin) {}

  void Read() {
    Expect('{');
    while (!Take('}')) {
      const std::string_view key = String();
      Expect(':');
      if (key == "descr") {
        if (Peek() != '\'' && Peek() != '"')
          throw Bad(origin_, "is a structured array", "save one plain array with numpy.save");
        descr_ = String();
      } else if (key == "fortran_order") {
        fortran_ = Bool();
      } else if (key == "shape") {
        shape_ = Tuple();
      } else {
        throw Bad(origin_, "has an unknown header key '" + std::string(key) + "'");
      }
      if (!Take(',') && Peek() != '}') throw Malformed();
    }
    if (Peek() != '\0') throw Malformed();
    if (!descr_ || !fortran_ || !shape_)
      throw Bad(origin_, "has a header without descr, fortran_order or shape");
  }

  std::string_view descr() const { return *descr_; }
  bool fortran() const { return *fortran_; }
  const std::vector<int64_t>& shape() const { return *shape_; }

 private:
  Failure Malformed() const {
    return Bad(origin_, "has a malformed header near byte " + std::to_string(at_),
               "write the file with numpy.save");
  }
  char Peek() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  bool Take(char c) {
    if (Peek() != c) return false;
    ++at_;
    return true;
  }
  void Expect(char c) {
    if (!Take(c)) throw Malformed();
  }
  std::string_view String() {
    const char quote = Peek();
    if (quote != '\'' && quote != '"') throw Malformed();
    const size_t end = text_.find(quote, at_ + 1);
    if (end == std::string_view::npos) throw Malformed();
    const std::string_view value = text_.substr(at_ + 1, end - at_ - 1);
    at_ = end + 1;
    return value;
  }
  bool Bool() {
    Peek();
    for (const bool value : {false, true}) {
      const std::string_view word = value ? "True" : "False";
      if (text_.substr(at_).starts_with(word)) {
        at_ += word.size();
        return value;
      }
    }
    throw Malformed();
  }
  std::vector<int64_t> Tuple() {
    std::vector<int64_t> values;
    Expect('(');
    while (!Take(')')) {
      Peek();
      int64_t value = 0;
      const char* begin = text_.data() + at_;
      const auto [stop, error] = std::from_chars(begin, text_.data() + text_.size(), value);
      if (error != std::errc() || value < 0 || values.size() == kDimensionsMax) throw Malformed();
      at_ += static_cast<size_t>(stop - begin);
      values.push_back(value);
      if (!Take(',') && Peek() != ')') throw Malformed();
    }
    return values;
  }

  std::string_view text_;
  const std::string& origin_;
  size_t at_ = 0;
  std::optional<std::string_view> descr_;
  std::optional<bool> fortran_;
  std::optional<std::vector<int64_t>> shape_;
};

NpyType TypeOf(std::string_view descr, const std::string& origin) {
  for (const TypeRow& row : kTypes) {
    const bool one_byte =
        row.bytes == 1 && descr.size() == 3 && descr.substr(1) == row.descr.substr(1);
    if (row.descr == descr || one_byte) return row.type;
  }
  const std::string found = "has elements of type '" + std::string(descr) + "'";
  if (descr.starts_with('>'))
    throw Bad(origin, found + " (big-endian)", "save a.astype(a.dtype.newbyteorder('<'))");
  if (descr == "<f8") throw Bad(origin, found + " (float64)", "save a.astype('float32')");
  if (descr == "<i8") throw Bad(origin, found + " (int64)", "save a.astype('int8') or 'int32'");
  throw Bad(origin, found, "use int8, uint8, int16, uint16, int32, float16 or float32");
}

// The header's text and where the data starts.
std::pair<std::string_view, size_t> FindHeader(std::string_view file, const std::string& origin) {
  if (!file.starts_with(kMagic))
    throw Bad(origin, "is not a .npy file", "write it with numpy.save");
  if (file.size() < 8) throw Bad(origin, "ends within its header");
  const int major = static_cast<unsigned char>(file[6]);
  const int minor = static_cast<unsigned char>(file[7]);
  if (minor != 0 || (major != 1 && major != 2))
    throw Bad(origin, "is .npy format " + std::to_string(major) + "." + std::to_string(minor),
              "formats 1.0 and 2.0 are read; numpy.save writes 1.0 for a plain array");
  const size_t length_bytes = major == 1 ? 2 : 4;
  const size_t begin = 8 + length_bytes;
  size_t length = 0;
  if (file.size() >= begin) std::memcpy(&length, file.data() + 8, length_bytes);
  if (file.size() < begin || file.size() - begin < length)
    throw Bad(origin, "ends within its header");
  return {file.substr(begin, length), begin + length};
}

int64_t CheckedBytes(const std::vector<int64_t>& shape, size_t element_bytes,
                     const std::string& origin) {
  int64_t bytes = static_cast<int64_t>(element_bytes);
  for (int64_t extent : shape)
    if (__builtin_mul_overflow(bytes, extent, &bytes))
      throw Bad(origin, "has shape " + ShapeText(shape) + ", more than 2^63 bytes");
  return bytes;
}

// Column-major to row-major, for any number of dimensions.
std::vector<std::byte> FromFortran(std::span<const std::byte> data, std::span<const int64_t> shape,
                                   size_t element_bytes) {
  std::vector<std::byte> result(data.size());
  std::vector<int64_t> index(shape.size(), 0);
  for (size_t to = 0; to < data.size(); to += element_bytes) {
    size_t from = 0;
    for (size_t d = shape.size(); d-- > 0;)
      from = from * static_cast<size_t>(shape[d]) + static_cast<size_t>(index[d]);
    std::memcpy(result.data() + to, data.data() + from * element_bytes, element_bytes);
    for (size_t d = shape.size(); d-- > 0;) {
      if (++index[d] < shape[d]) break;
      index[d] = 0;
    }
  }
  return result;
}

}  // namespace

std::string_view NameOf(NpyType type) { return RowOf(type).name; }
size_t BytesOf(NpyType type) { return RowOf(type).bytes; }

int64_t NpyArray::count() const { return static_cast<int64_t>(data.size() / BytesOf(type)); }

std::string ShapeText(std::span<const int64_t> shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

NpyArray ParseNpy(std::span<const std::byte> file, const std::string& origin) {
  const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
  const auto [header_text, data_begin] = FindHeader(text, origin);
  HeaderReader header(header_text, origin);
  header.Read();
  NpyArray array;
  array.type = TypeOf(header.descr(), origin);
  array.shape = header.shape();
  const int64_t expected = CheckedBytes(array.shape, BytesOf(array.type), origin);
  const auto data = file.subspan(data_begin);
  if (static_cast<int64_t>(data.size()) != expected)
    throw Bad(origin,
              "has " + std::to_string(data.size()) + " bytes of data but shape " +
                  ShapeText(array.shape) + " of " + std::string(NameOf(array.type)) + " needs " +
                  std::to_string(expected),
              "the file is cut short or has something appended");
  if (header.fortran() && array.shape.size() > 1)
    array.data = FromFortran(data, array.shape, BytesOf(array.type));
  else array.data.assign(data.begin(), data.end());
  return array;
}

NpyArray ReadNpy(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Bad(path, "cannot be read: " + std::generic_category().message(errno));
  std::vector<std::byte> bytes;
  std::array<char, 1 << 16> block;
  while (file.read(block.data(), block.size()), file.gcount() > 0) {
    const auto* begin = reinterpret_cast<const std::byte*>(block.data());
    bytes.insert(bytes.end(), begin, begin + file.gcount());
  }
  if (file.bad() || bytes.empty())
    throw Bad(path, bytes.empty() ? "is empty, or not a file" : "cannot be read to its end");
  return ParseNpy(bytes, path);
}

std::string NpyHeader(NpyType type, std::span<const int64_t> shape) {
  std::string dictionary =
      "{'descr': '" + std::string(RowOf(type).descr) + "', 'fortran_order': False, 'shape': (";
  for (int64_t extent : shape) dictionary += std::to_string(extent) + ", ";
  if (shape.size() > 1) dictionary.resize(dictionary.size() - 2);
  if (shape.size() == 1) dictionary.resize(dictionary.size() - 1);
  dictionary += "), }";
  const size_t prefix = kMagic.size() + 4;
  const size_t unpadded = prefix + dictionary.size() + 1;
  dictionary.append((kAlignment - unpadded % kAlignment) % kAlignment, ' ');
  dictionary += '\n';
  std::string header(kMagic);
  header += '\x01';
  header += '\x00';
  header += static_cast<char>(dictionary.size() & 0xff);
  header += static_cast<char>(dictionary.size() >> 8);
  return header + dictionary;
}

void WriteNpy(const std::string& path, NpyType type, std::span<const int64_t> shape,
              std::span<const std::byte> data) {
  const std::string header = NpyHeader(type, shape);
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(header.data(), static_cast<std::streamsize>(header.size()));
  file.write(reinterpret_cast<const char*>(data.data()), static_cast<std::streamsize>(data.size()));
  file.close();
  if (!file) throw Bad(path, "cannot be written: " + std::generic_category().message(errno));
}

}  // namespace qmatmul::cli
