// What the test programs share: faults that are counted and told, and texts to be changed.
#pragma once

#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>

#include "flowblending/flowblending.hpp"

inline int faults = 0;

inline void expect(bool good, const std::string& what) {
  if (good) return;
  ++faults;
  std::fprintf(stderr, "FAULT: %s\n", what.c_str());
}

// A refusal of a kind, whose message has these words.
inline void refused(const flowblending::Status& status, flowblending::Code code, const std::string& words) {
  const std::string& message = status.message();
  expect(status.code() == code && message.find(words) != std::string::npos,
         "expected '" + words + "', got " + std::to_string(static_cast<int>(status.code())) + " '" + message + "'");
}

inline void write(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

inline std::string text_of(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(stream), {});
}

// JSON without white space between its parts, so that it can be changed by text.
inline std::string compact(const std::string& path) {
  std::string text;
  bool quoted = false;
  for (const char each : text_of(path)) {
    if (each == '"') quoted = !quoted;
    if (quoted || (each != ' ' && each != '\n')) text += each;
  }
  return text;
}

// `text` with the first occurrence of some words replaced.
inline std::string with(std::string text, const std::string& words, const std::string& others) {
  const std::size_t found = text.find(words);
  expect(found != std::string::npos, "'" + words + "' is there to be changed");
  return found == std::string::npos ? text : text.replace(found, words.size(), others);
}
