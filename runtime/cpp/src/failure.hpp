// Inside the library, what goes wrong is thrown; `guarded` turns it into a Status at the public functions.
#pragma once

#include <exception>
#include <new>
#include <sstream>
#include <string>
#include <utility>

#include "flowblending/flowblending.hpp"

namespace flowblending::detail {

class Failure : public std::exception {
 public:
  Failure(Code code, std::string message) : code_(code), message_(std::move(message)) {}
  Code code() const noexcept { return code_; }
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  Code code_;
  std::string message_;
};

template <typename... Parts>
[[noreturn]] void fail(Code code, const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Failure(code, message.str());
}

// "[1, 16, 5]"
template <typename Sizes>
std::string brackets(const Sizes& sizes) {
  std::ostringstream text;
  const char* separator = "[";
  for (const auto& size : sizes) {
    text << separator << size;
    separator = ", ";
  }
  return sizes.empty() ? "[]" : text.str() + "]";
}

// A status, without its message where even that finds no memory.
inline Status told(Code code, const char* before, const char* reason = "", const char* after = "") noexcept {
  try {
    return Status(code, std::string(before) + reason + after);
  } catch (...) {
    return Status(code, std::string());
  }
}

template <typename Action>
Status guarded(Action&& action) noexcept {
  try {
    std::forward<Action>(action)();
    return Status();
  } catch (const Failure& failure) {
    return told(failure.code(), failure.what());
  } catch (const std::bad_alloc&) {
    return told(Code::unavailable, "There is not enough memory; stop other programs, or use a smaller size.");
  } catch (const std::exception& error) {
    return told(Code::failed, "An unexpected error occurred (", error.what(), "); report it.");
  } catch (...) {
    return told(Code::failed, "An unknown error occurred, perhaps thrown by the progress callback; report it.");
  }
}

template <typename T, typename Action>
Result<T> guarded_result(Action&& action) noexcept {
  // Not a default T: those that have one need not be valid.
  std::variant<std::monostate, T> made;
  Status status = guarded([&] { made.template emplace<1>(action()); });
  if (status.ok()) return Result<T>(std::move(*std::get_if<1>(&made)));
  return Result<T>(std::move(status));
}

}  // namespace flowblending::detail
