// Where the parts of a JSON text lie, for a test that changes them.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

// A text, and the places of all its JSON values and members, each as first and end.
struct Original {
  using Place = std::pair<std::size_t, std::size_t>;

  explicit Original(std::string content) : text(std::move(content)) {
    std::size_t at = 0;
    value(at);
    for (const Place& each : values) {
      const bool sized = std::any_of(regions_.begin(), regions_.end(), [&](const Place& region) {
        return region.first <= each.first && each.second <= region.second;
      });
      if (sized && text[each.first] >= '0' && text[each.first] <= '9') sizes.push_back(each);
    }
  }

  std::string text;
  std::vector<Place> values;
  std::vector<Place> sizes;    // numbers in the profiles of a manifest, or the latents' of a program
  std::vector<Place> members;  // with the comma that follows or precedes

 private:
  void skip(std::size_t& at) const {
    while (at < text.size() && std::string(" \n\t\r").find(text[at]) != std::string::npos) ++at;
  }

  void value(std::size_t& at) {
    skip(at);
    const std::size_t start = at;
    if (text[at] == '{' || text[at] == '[') {
      list(at, text[at] == '{');
    } else if (text[at] == '"') {
      for (++at; text[at] != '"'; ++at) at += text[at] == '\\';
      ++at;
    } else {
      at = text.find_first_of(",]} \n\t\r", at);
    }
    values.emplace_back(start, at);
  }

  void list(std::size_t& at, bool object) {
    skip(++at);
    std::size_t comma = 0;
    while (text[at] != '}' && text[at] != ']') {
      std::size_t start = at;
      std::string key;
      if (object) {
        value(at);
        key = text.substr(start, at - start);
        values.pop_back();  // a key
        at = text.find(':', at) + 1;
      }
      value(at);
      if (key == "\"profiles\"" || key == "\"latent_shape\"") regions_.push_back(values.back());
      skip(at);
      if (text[at] == ',') {
        skip(++at);
      } else if (comma != 0) {
        start = comma;  // the last member goes with the comma before it
      }
      members.emplace_back(start, at);
      comma = text.rfind(',', at);
    }
    ++at;
  }

  std::vector<Place> regions_;
};
