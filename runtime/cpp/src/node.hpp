// JSON with places: a node knows how it was reached, so that a damaged file is told by place. The JSON library itself
// is behind node.cpp, because every file that includes it takes seconds to compile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace flowblending::detail {

// Made on the way down from a document: each lives no longer than the node it came from.
class Node {
 public:
  Node at(const char* key) const;
  bool has(const char* key) const;

  // Of a list.
  std::size_t size() const;
  Node operator[](std::size_t index) const;
  void each(const std::function<void(const Node&)>& visit) const;
  // Of an object.
  void members(const std::function<void(const std::string& key, const Node&)>& visit) const;

  const std::string& text() const;
  bool is_integer() const;
  std::int64_t integer(std::int64_t least, std::int64_t most) const;
  // A number that float32 can hold, rounded to one.
  float single() const;
  double number() const;

  [[noreturn]] void damaged(const std::string& why) const;

 private:
  friend class Document;
  Node(const nlohmann::json& value, const std::string& file) : value_(&value), file_(&file) {}
  Node(const nlohmann::json& value, const Node* parent, const char* key, std::size_t index)
      : value_(&value), parent_(parent), key_(key), index_(index) {}

  const std::string& file() const;
  std::string path() const;

  const nlohmann::json* value_;
  const std::string* file_ = nullptr;
  const Node* parent_ = nullptr;
  const char* key_ = nullptr;
  std::size_t index_ = 0;
};

// A parsed text. `file` is its name in messages.
class Document {
 public:
  Document(const char* text, std::size_t size, std::string file);
  Document(const std::string& text, std::string file) : Document(text.data(), text.size(), std::move(file)) {}
  Document(const Document&) = delete;
  Document& operator=(const Document&) = delete;
  ~Document();

  Node root() const;

 private:
  std::string file_;
  std::unique_ptr<nlohmann::json> value_;
};

}  // namespace flowblending::detail
