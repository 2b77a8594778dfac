#include "node.hpp"

#include <nlohmann/json.hpp>

#include "failure.hpp"

namespace flowblending::detail {

constexpr std::size_t kLongestReason = 120;

Document::Document(const char* text, std::size_t size, std::string file) : file_(std::move(file)) {
  try {
    value_ = std::make_unique<nlohmann::json>(nlohmann::json::parse(text, text + size));
  } catch (const nlohmann::json::exception& error) {
    // "[json.exception.parse_error.101] parse error at line 1, ...: what, and the last token, however long"
    const std::string reason = error.what();
    const std::size_t start = reason.find("] ") == std::string::npos ? 0 : reason.find("] ") + 2;
    fail(Code::bad_file, file_, " is no valid JSON (", reason.substr(start, kLongestReason), "); write it again.");
  }
}

Document::~Document() = default;

Node Document::root() const { return Node(*value_, file_); }

Node Node::at(const char* key) const {
  if (!value_->is_object()) damaged("an object was expected");
  const auto found = value_->find(key);
  if (found == value_->end()) Node(*value_, this, key, 0).damaged("it is missing");
  return Node(*found, this, key, 0);
}

bool Node::has(const char* key) const { return value_->is_object() && value_->contains(key); }

std::size_t Node::size() const {
  if (!value_->is_array()) damaged("a list was expected");
  return value_->size();
}

Node Node::operator[](std::size_t index) const { return Node((*value_)[index], this, nullptr, index); }

void Node::each(const std::function<void(const Node&)>& visit) const {
  for (std::size_t index = 0, count = size(); index < count; ++index) visit((*this)[index]);
}

void Node::members(const std::function<void(const std::string&, const Node&)>& visit) const {
  if (!value_->is_object()) damaged("an object was expected");
  for (auto member = value_->begin(); member != value_->end(); ++member) {
    visit(member.key(), Node(member.value(), this, member.key().c_str(), 0));
  }
}

const std::string& Node::text() const {
  const auto* found = value_->get_ptr<const std::string*>();
  if (found == nullptr) damaged("a text was expected");
  // Names go to C interfaces, which end at a null.
  if (found->find('\0') != std::string::npos) damaged("a text without null characters was expected");
  return *found;
}

bool Node::is_integer() const { return value_->is_number_integer(); }

std::int64_t Node::integer(std::int64_t least, std::int64_t most) const {
  if (!value_->is_number_integer()) damaged("a whole number was expected");
  const bool beyond = value_->is_number_unsigned() && value_->get<std::uint64_t>() > static_cast<std::uint64_t>(most);
  const auto found = value_->get<std::int64_t>();
  if (beyond || found < least || found > most) {
    damaged("a number from " + std::to_string(least) + " to " + std::to_string(most) + " was expected");
  }
  return found;
}

float Node::single() const {
  const double found = number();
  if (!(found >= -3.4e38 && found <= 3.4e38)) damaged("a number within the range of float32 was expected");
  return static_cast<float>(found);
}

double Node::number() const {
  if (!value_->is_number()) damaged("a number was expected");
  return value_->get<double>();
}

void Node::damaged(const std::string& why) const {
  fail(Code::bad_file, file(), " is damaged at ", path(), " (", why, "); write it again.");
}

const std::string& Node::file() const { return parent_ == nullptr ? *file_ : parent_->file(); }

std::string Node::path() const {
  if (parent_ == nullptr) return "its top";
  const std::string own = key_ == nullptr ? std::to_string(index_) : key_;
  return parent_->parent_ == nullptr ? own : parent_->path() + "." + own;
}

}  // namespace flowblending::detail
