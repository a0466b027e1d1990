// .npy files: what is written is read back, what numpy writes is read, what is broken is refused by
// name.
#include "client/cli/npy.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "client/cli/failure.h"

namespace qmatmul::cli {
namespace {

std::span<const std::byte> BytesOf(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// A file as numpy writes it, with this dictionary and data.
std::string FileOf(const std::string& dictionary, const std::string& data, char major = 1) {
  std::string file("\x93NUMPY");
  file += major;
  file += '\0';
  const std::string header = dictionary + "\n";
  file += static_cast<char>(header.size() & 0xff);
  file += static_cast<char>(header.size() >> 8);
  if (major == 2) file += std::string(2, '\0');
  return file + header + data;
}

TEST(Npy, WhatIsWrittenIsReadBack) {
  const std::vector<std::vector<int64_t>> shapes = {{}, {1}, {7}, {2, 3}, {0, 5}, {2, 1, 3}};
  const std::string path = std::filesystem::path(::testing::TempDir()) / "round_trip.npy";
  for (int t = 0; t <= static_cast<int>(NpyType::kFloat32); ++t) {
    const auto type = static_cast<NpyType>(t);
    for (const auto& shape : shapes) {
      size_t count = 1;
      for (int64_t extent : shape) count *= static_cast<size_t>(extent);
      std::vector<std::byte> data(count * cli::BytesOf(type));
      for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i * 37 + 5);
      WriteNpy(path, type, shape, data);
      const NpyArray array = ReadNpy(path);
      EXPECT_EQ(array.type, type) << NameOf(type);
      EXPECT_EQ(array.shape, shape) << NameOf(type);
      EXPECT_EQ(array.data, data) << NameOf(type) << " " << ShapeText(shape);
    }
  }
}

// The bytes that numpy 1.24's numpy.save writes for such an array.
TEST(Npy, HeaderIsNumpysOwn) {
  const std::vector<int64_t> shape = {2, 3};
  const std::string expected = std::string("\x93NUMPY\x01\x00v\x00", 10) +
                               "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }" +
                               std::string(58, ' ') + "\n";
  EXPECT_EQ(NpyHeader(NpyType::kFloat32, shape), expected);
  EXPECT_EQ(NpyHeader(NpyType::kInt8, std::vector<int64_t>{9}).substr(10, 56),
            "{'descr': '|i1', 'fortran_order': False, 'shape': (9,), ");
}

TEST(Npy, GoodFiles) {
  struct Row {
    const char* why;
    std::string file;
    std::vector<int64_t> shape;
    std::vector<int> data;  // bytes
  };
  const Row rows[] = {
      {"C order",
       FileOf("{'descr': '|i1', 'fortran_order': False, 'shape': (2, 2), }", "abcd"),
       {2, 2},
       {'a', 'b', 'c', 'd'}},
      {"Fortran order becomes C order",
       FileOf("{'descr': '|i1', 'fortran_order': True, 'shape': (2, 3), }", "acebdf"),
       {2, 3},
       {'a', 'e', 'd', 'c', 'b', 'f'}},
      {"Fortran order of two-byte elements in three dimensions",
       FileOf("{'descr': '<i2', 'fortran_order': True, 'shape': (2, 1, 2), }", "aAbBcCdD"),
       {2, 1, 2},
       {'a', 'A', 'c', 'C', 'b', 'B', 'd', 'D'}},
      {"format 2.0",
       FileOf("{'descr': '|u1', 'fortran_order': False, 'shape': (1,), }", "x", 2),
       {1},
       {'x'}},
      {"byte order of one-byte elements means nothing",
       FileOf("{'descr': '<i1', 'fortran_order': False, 'shape': (1,), }", "x"),
       {1},
       {'x'}},
      {"keys in another order, double quotes, no trailing commas",
       FileOf("{\"shape\": (1, 2), \"descr\": \"|i1\", \"fortran_order\": False}", "xy"),
       {1, 2},
       {'x', 'y'}},
      {"a scalar",
       FileOf("{'descr': '<u2', 'fortran_order': False, 'shape': (), }", "xy"),
       {},
       {'x', 'y'}},
      {"nothing in it",
       FileOf("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 4), }", ""),
       {0, 4},
       {}},
  };
  for (const Row& row : rows) {
    const NpyArray array = ParseNpy(BytesOf(row.file), "file");
    EXPECT_EQ(array.shape, row.shape) << row.why;
    std::vector<int> data;
    for (std::byte b : array.data) data.push_back(static_cast<int>(b));
    EXPECT_EQ(data, row.data) << row.why;
  }
}

TEST(Npy, BadFiles) {
  const std::string good = "{'descr': '|i1', 'fortran_order': False, 'shape': (4,), }";
  struct Row {
    const char* why;
    std::string file;
    const char* says;
  };
  const Row rows[] = {
      {"empty", "", "not a .npy file"},
      {"another format", "PK\x03\x04 and so on, a zip", "not a .npy file"},
      {"magic alone", "\x93NUMPY", "ends within its header"},
      {"no length", std::string("\x93NUMPY\x01\x00", 8), "ends within its header"},
      {"header longer than the file", std::string("\x93NUMPY\x01\x00\xff\xff{", 11),
       "ends within its header"},
      {"2.0 header longer than the file", std::string("\x93NUMPY\x02\x00\xff\xff\xff\xff{", 13),
       "ends within its header"},
      {"format 3.0", FileOf(good, "abcd", 3), "format 3.0"},
      {"data cut short", FileOf(good, "abc"), "has 3 bytes of data but shape [4] of int8 needs 4"},
      {"data with more", FileOf(good, "abcde"), "has 5 bytes of data"},
      {"float64", FileOf("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }", "12345678"),
       "float64"},
      {"int64", FileOf("{'descr': '<i8', 'fortran_order': False, 'shape': (1,), }", "12345678"),
       "int64"},
      {"big-endian", FileOf("{'descr': '>i4', 'fortran_order': False, 'shape': (1,), }", "1234"),
       "big-endian"},
      {"pickled objects", FileOf("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", "."),
       "'|O'"},
      {"bool", FileOf("{'descr': '|b1', 'fortran_order': False, 'shape': (1,), }", "1"), "'|b1'"},
      {"a record type",
       FileOf("{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': (1,), }", "1234"),
       "structured array"},
      {"no shape", FileOf("{'descr': '|i1', 'fortran_order': False, }", ""), "without descr"},
      {"unknown key", FileOf("{'descr': '|i1', 'colour': 'red', }", ""), "unknown header key"},
      {"negative extent", FileOf("{'descr': '|i1', 'fortran_order': False, 'shape': (-1,), }", ""),
       "malformed"},
      {"extent over 2^63",
       FileOf("{'descr': '|i1', 'fortran_order': False, 'shape': (9999999999999999999,), }", ""),
       "malformed"},
      {"product over 2^63",
       FileOf("{'descr': '<i4', 'fortran_order': False, 'shape': (3037000500, 3037000500), }", ""),
       "more than 2^63 bytes"},
      {"huge, but not there",
       FileOf("{'descr': '|i1', 'fortran_order': False, 'shape': (1099511627776,), }", "abcd"),
       "needs 1099511627776"},
      {"not a tuple", FileOf("{'descr': '|i1', 'fortran_order': False, 'shape': 4, }", "abcd"),
       "malformed"},
      {"not a bool", FileOf("{'descr': '|i1', 'fortran_order': 0, 'shape': (4,), }", "abcd"),
       "malformed"},
      {"never closed", FileOf("{'descr': '|i1', 'fortran_order': False", ""), "malformed"},
      {"string never closed", FileOf("{'descr", ""), "malformed"},
      {"something after the dictionary", FileOf(good + "x", "abcd"), "malformed"},
      {"two tokens without a comma", FileOf("{'descr': '|i1' 'shape': (4,)}", "abcd"), "malformed"},
  };
  for (const Row& row : rows) {
    try {
      ParseNpy(BytesOf(row.file), "bad.npy");
      ADD_FAILURE() << row.why << " was read";
    } catch (const Failure& failure) {
      EXPECT_EQ(failure.exit_code(), kExitFile) << row.why;
      EXPECT_NE(std::string(failure.what()).find(row.says), std::string::npos)
          << row.why << " says: " << failure.what();
      EXPECT_EQ(std::string(failure.what()).find("bad.npy: "), 0u) << "names the file: " << row.why;
    }
  }
}

// Every prefix of a good file, and every byte of its header changed: read or refused, never worse.
TEST(Npy, DamagedFilesDoNoHarm) {
  const std::string good = NpyHeader(NpyType::kInt16, std::vector<int64_t>{2, 2}) + "abcdefgh";
  const auto survives = [](const std::string& file) {
    try {
      ParseNpy(BytesOf(file), "damaged.npy");
      return true;
    } catch (const Failure&) { return false; }
  };
  ASSERT_TRUE(survives(good));
  for (size_t bytes = 0; bytes < good.size(); ++bytes)
    EXPECT_FALSE(survives(good.substr(0, bytes))) << "the first " << bytes << " bytes";
  size_t refused = 0;
  for (size_t i = 0; i < good.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = good;
      damaged[i] = static_cast<char>(damaged[i] ^ (1 << bit));
      refused += !survives(damaged);
    }
  }
  EXPECT_GT(refused, 200u) << "damage to magic, version, length and keys shows";
}

TEST(Npy, FilesThatCannotBeOpened) {
  EXPECT_THROW(ReadNpy("/no/such/file.npy"), Failure);
  EXPECT_THROW(ReadNpy(::testing::TempDir()), Failure) << "a directory";
  EXPECT_THROW(WriteNpy("/no/such/folder/file.npy", NpyType::kInt8, std::vector<int64_t>{0}, {}),
               Failure);
}

}  // namespace
}  // namespace qmatmul::cli
