// Reading a program's instructions, each checked against the slots and what was written to them before.
#pragma once

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "node.hpp"
#include "spec.hpp"

namespace flowblending::detail {

constexpr std::size_t kMostBranches = 16;

inline std::vector<std::string> texts(const Node& node) {
  std::vector<std::string> found;
  node.each([&](const Node& each) { found.push_back(each.text()); });
  return found;
}

// The rows of one call have to lie side by side, so no slot may be wanted at two places.
class Places {
 public:
  void check(const std::vector<int>& out, const Node& node) {
    if (out.size() == 1) return;
    for (std::size_t row = 0; row < out.size(); ++row) {
      const auto place = std::make_pair(out, row);
      if (!places_.emplace(out[row], place).second && places_.at(out[row]) != place) {
        node.damaged("its slots cannot lie side by side, because one lies beside others already");
      }
    }
  }

 private:
  std::map<int, std::pair<std::vector<int>, std::size_t>> places_;
};

class Instructions {
 public:
  Instructions(const Program& program, const Node& slots) : program_(program) {
    for (std::size_t index = 0; index < program.slots.size(); ++index) {
      if (!numbers_.emplace(program.slots[index], static_cast<int>(index)).second)
        slots[index].damaged("it occurs twice");
    }
    written_.insert(0);
    for (const int each : program.given) written_.insert(each);
  }

  Instruction read(const Node& node) {
    if (node.has("terms")) return mix(node);
    if (node.has("share")) return rescale(node);
    if (node.has("branches")) return run(node);
    if (node.has("source")) return place(node);
    node.damaged("a run, a mix, a rescaling or a placing was expected; a newer version may know others");
  }

 private:
  int slot(const Node& node) const {
    const auto found = numbers_.find(node.text());
    if (found == numbers_.end()) node.damaged("the slot is not in the list of slots");
    return found->second;
  }

  // A slot that may be written.
  int target(const Node& node) const {
    const int found = slot(node);
    if (program_.given.count(found) != 0) node.damaged("a slot that is given may not be written");
    return found;
  }
  void check_alike(int one, int other, const Node& node) const {
    const auto &a = program_.partial.find(one), &b = program_.partial.find(other), &none = program_.partial.end();
    if ((a == none) != (b == none) || (a != none && a->second != b->second))
      node.damaged("it holds other latent frames than the slot that is written");
  }
  void check_written(int number, const Node& node) const {
    if (written_.count(number) == 0) node.damaged("the slot is read before anything was written to it");
  }

  Run run(const Node& node) {
    Run run;
    const Node model = node.at("model");
    run.model = model.text();
    if (program_.engines.count(run.model) == 0) model.damaged("the model is not in the list of engines");
    const Node branches = node.at("branches");
    run.branches = texts(branches);
    // What a caller gives beside the branches' conditions has that name.
    if (std::find(run.branches.begin(), run.branches.end(), kGiven) != run.branches.end())
      branches.damaged("another branch than given was expected");
    const Node out = node.at("out");
    out.each([&](const Node& each) {
      run.out.push_back(target(each));
      if (program_.partial.count(run.out.back()) != 0) each.damaged("a run writes every latent frame");
    });
    const std::size_t count = run.branches.size();
    if (count == 0 || count > kMostBranches || run.out.size() != count ||
        std::set<std::string>(run.branches.begin(), run.branches.end()).size() != count ||
        std::set<int>(run.out.begin(), run.out.end()).size() != count) {
      node.damaged("different branches, and a different slot for each were expected");
    }
    if (std::set<int>(run.out.begin(), run.out.end()).count(0) != 0) out.damaged("a run may not write to latents");
    places_.check(run.out, out);
    written_.insert(run.out.begin(), run.out.end());
    return run;
  }

  Mix mix(const Node& node) {
    Mix mix;
    const Node out = node.at("out");
    mix.out = target(out);
    std::set<int> seen;
    const Node terms = node.at("terms");
    terms.each([&](const Node& term) {
      if (term.size() != 2) term.damaged("a coefficient and a slot were expected");
      const int from = slot(term[1]);
      check_written(from, term);
      check_alike(mix.out, from, term);
      if (!seen.insert(from).second) term.damaged("a slot may occur once");
      if (from == mix.out && !mix.terms.empty()) term.damaged("the slot that is written has to come first");
      mix.terms.emplace_back(term[0].single(), from);
    });
    if (mix.terms.empty()) terms.damaged("at least one term was expected");
    written_.insert(mix.out);
    return mix;
  }

  Rescale rescale(const Node& node) {
    const Node out = node.at("out"), reference = node.at("reference"), share = node.at("share");
    Rescale rescale{target(out), slot(reference), share.number()};
    check_written(rescale.out, out);
    check_written(rescale.reference, reference);
    check_alike(rescale.out, rescale.reference, reference);
    if (rescale.out == rescale.reference) reference.damaged("another slot than the one that is written was expected");
    if (!(rescale.share > 0 && rescale.share <= 1)) share.damaged("a number above 0 and at most 1 was expected");
    return rescale;
  }

  Place place(const Node& node) {
    const Node out = node.at("out"), source = node.at("source");
    const Place place{target(out), slot(source)};
    check_written(place.out, out);
    check_written(place.source, source);
    if (program_.partial.count(place.out) != 0) out.damaged("a slot of every latent frame was expected");
    if (program_.partial.count(place.source) == 0) source.damaged("a slot of some latent frames was expected");
    return place;
  }

  const Program& program_;
  std::map<std::string, int> numbers_;
  std::set<int> written_;
  Places places_;
};

}  // namespace flowblending::detail
