// safetensors and .npy.
#include "flowblending/files.hpp"

#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>

#include "failure.hpp"
#include "node.hpp"
#include "spec.hpp"

namespace flowblending {
namespace {

using detail::fail;

constexpr std::int64_t kLargest = std::int64_t{1} << 34;

const std::map<std::string, DType> kSafetensors = {
    {"F32", DType::float32}, {"F16", DType::float16}, {"I64", DType::int64}, {"I32", DType::int32}};
const std::map<std::string, DType> kNpy = {
    {"<f4", DType::float32}, {"<f2", DType::float16}, {"<i8", DType::int64}, {"<i4", DType::int32}};

// Bytes of an array, or -1 if they are more than `limit`.
std::int64_t bytes_of(const std::vector<std::int64_t>& shape, DType dtype, std::int64_t limit) {
  std::int64_t bytes = size_of(dtype);
  for (const std::int64_t size : shape) {
    if (size != 0 && bytes > limit / size) return -1;
    bytes *= size;
  }
  return bytes > limit ? -1 : bytes;
}

Array array(DType dtype, std::vector<std::int64_t> shape, const std::string& content, std::int64_t start,
            std::int64_t bytes) {
  const auto first = content.begin() + start;
  return {dtype, std::move(shape), std::vector<unsigned char>(first, first + bytes)};
}

std::map<std::string, Array> parse_safetensors(const std::string& content, const std::string& path) {
  std::uint64_t length = 0;
  for (std::size_t byte = 8; content.size() >= 8 && byte-- > 0;) {
    length = length << 8 | static_cast<unsigned char>(content[byte]);
  }
  if (content.size() < 8 || length > content.size() - 8) {
    fail(Code::bad_file, path, " is no safetensors file; write one with fb-run --emit-inputs.");
  }
  const std::int64_t start = 8 + static_cast<std::int64_t>(length);
  const std::int64_t size = static_cast<std::int64_t>(content.size()) - start;
  const detail::Document header(content.data() + 8, static_cast<std::size_t>(length), path);
  std::map<std::string, Array> arrays;
  const detail::Node root = header.root();
  root.members([&](const std::string& name, const detail::Node& node) {
    if (name == "__metadata__") return;
    const detail::Node type = node.at("dtype");
    const auto dtype = kSafetensors.find(type.text());
    if (dtype == kSafetensors.end()) type.damaged("one of F32, F16, I64 and I32 was expected");
    std::vector<std::int64_t> shape;
    node.at("shape").each([&](const detail::Node& each) { shape.push_back(each.integer(0, kLargest)); });
    const detail::Node offsets = node.at("data_offsets");
    if (offsets.size() != 2) offsets.damaged("two offsets were expected");
    const std::int64_t begin = offsets[0].integer(0, size), end = offsets[1].integer(begin, size);
    if (bytes_of(shape, dtype->second, kLargest) != end - begin) offsets.damaged("they do not fit the shape");
    arrays.emplace(name, array(dtype->second, std::move(shape), content, start + begin, end - begin));
  });
  return arrays;
}

// The value of a key in the header's Python dictionary, up to one of the characters given.
std::string value_of(const std::string& header, const std::string& key, const char* end, const std::string& path) {
  const std::size_t found = header.find("'" + key + "': ");
  const std::size_t from = found == std::string::npos ? found : found + key.size() + 4;
  const std::size_t to = from == std::string::npos ? from : header.find_first_of(end, from);
  if (to == std::string::npos || to == from)
    fail(Code::bad_file, path, " is a .npy file without a ", key, "; write it with numpy.save.");
  return header.substr(from, to - from);
}

Array parse_npy(const std::string& content, const std::string& path) {
  // numpy/lib/format.py: magic, version, the header's length in two bytes (version 1) or four, the header.
  const bool magic = content.size() >= 12 && content.compare(0, 6, "\x93NUMPY") == 0;
  if (!magic || content[6] < 1 || content[6] > 3)
    fail(Code::bad_file, path, " is no .npy file; write it with numpy.save.");
  std::size_t length = 0;
  const std::size_t digits = content[6] == 1 ? 2 : 4;
  for (std::size_t byte = digits; byte-- > 0;) length = length << 8 | static_cast<unsigned char>(content[8 + byte]);
  const std::size_t start = 8 + digits + length;
  if (start > content.size()) fail(Code::bad_file, path, " ends inside its header; write it again.");
  const std::string header = content.substr(8 + digits, length);
  const auto dtype = kNpy.find(value_of(header, "descr", ",", path).substr(1, 3));
  if (dtype == kNpy.end() || value_of(header, "fortran_order", ",", path) != "False") {
    fail(Code::bad_file, path, " is not float32, float16, int64 or int32 in C order; convert it.");
  }
  std::vector<std::int64_t> shape;
  std::istringstream sizes(value_of(header, "shape", ")", path).substr(1));
  for (std::string part; std::getline(sizes, part, ',');) {
    const std::size_t digit = part.find_first_not_of(' ');
    if (digit == std::string::npos) continue;
    std::int64_t size = 0;
    for (const char each : part.substr(digit)) {
      if (each < '0' || each > '9' || size > kLargest)
        fail(Code::bad_file, path, " has a damaged shape; write it again.");
      size = size * 10 + (each - '0');
    }
    shape.push_back(size);
  }
  const auto size = static_cast<std::int64_t>(content.size() - start);
  if (bytes_of(shape, dtype->second, size) != size)
    fail(Code::bad_file, path, " does not have the size that its shape asks for; write it again.");
  return array(dtype->second, std::move(shape), content, static_cast<std::int64_t>(start), size);
}

}  // namespace

Result<std::map<std::string, Array>> read_safetensors(const std::string& path) noexcept {
  return detail::guarded_result<std::map<std::string, Array>>(
      [&] { return parse_safetensors(detail::read_file(path, kLargest), path); });
}

Result<Array> read_npy(const std::string& path) noexcept {
  return detail::guarded_result<Array>([&] { return parse_npy(detail::read_file(path, kLargest), path); });
}

Status write_npy(const std::string& path, const float* data, const std::vector<std::int64_t>& shape) noexcept {
  return detail::guarded([&] {
    const std::int64_t bytes = bytes_of(shape, DType::float32, std::numeric_limits<std::int64_t>::max());
    std::string sizes;
    for (const std::int64_t size : shape) sizes += std::to_string(size) + ",";
    std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + sizes + "), }";
    header.append(64 - (10 + header.size() + 1) % 64, ' ');
    header += '\n';
    const auto length = static_cast<unsigned>(header.size());
    const char prefix[10] = {
        '\x93', 'N', 'U', 'M', 'P', 'Y', 1, 0, static_cast<char>(length & 255), static_cast<char>(length >> 8)};
    // Under a temporary name first, so that nobody sees half of it.
    const std::string temporary = path + "." + std::to_string(getpid());
    std::ofstream stream(temporary, std::ios::binary);
    stream.write(prefix, sizeof prefix);
    stream.write(header.data(), static_cast<std::streamsize>(header.size()));
    stream.write(reinterpret_cast<const char*>(data), bytes);
    stream.close();
    if (!stream || std::rename(temporary.c_str(), path.c_str()) != 0) {
      std::remove(temporary.c_str());
      fail(Code::bad_file, "Cannot write ", path, "; name a file in a folder that you can write to.");
    }
  });
}

}  // namespace flowblending
