// The command line of one subcommand: a table of options says what may be typed, Arguments holds
// what was.
//
// It is a page of our own instead of a library because a command then reads as its table, and every
// error can name the nearest thing that would have been right. Values of Arguments throw Failure
// (kExitUsage) when what was typed does not fit; the text it hands out lives as long as the
// Arguments.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "client/cli/failure.h"

namespace qmatmul::cli {

struct OptionSpec {
  std::string_view name;   // "--layout"
  std::string_view value;  // "KN|NK" in the help; empty: a switch without a value
  std::string_view help;
};

// Options that every command has.
std::span<const OptionSpec> CommonOptions();

class Arguments {
 public:
  // `command` is the word in error messages. Options may be written --name value or --name=value,
  // may repeat, and may stand between positionals; after `--` everything is positional; -o is
  // --output.
  static Arguments Parse(std::string_view command, std::span<const OptionSpec> options,
                         std::span<const std::string_view> words);

  const std::vector<std::string>& positionals() const { return positionals_; }
  bool Has(std::string_view name) const;
  // The last value given, if any.
  std::optional<std::string> Text(std::string_view name) const;
  std::vector<std::string> All(std::string_view name) const;
  int64_t Integer(std::string_view name, int64_t fallback, int64_t min, int64_t max) const;
  double Number(std::string_view name, double fallback, double min, double max) const;
  // "1,2,8" as numbers.
  std::vector<int64_t> Integers(std::string_view name, std::vector<int64_t> fallback, int64_t min,
                                int64_t max) const;

  // One of an SDK enum's values, by its name; `fallback` when the option is absent.
  template <class Enum, size_t kCount>
  Enum Choice(std::string_view name, const Enum (&choices)[kCount], Enum fallback) const {
    const auto text = Text(name);
    if (!text) return fallback;
    std::vector<std::string_view> names;
    for (Enum choice : choices) {
      if (NameOf(choice) == *text) return choice;
      names.push_back(NameOf(choice));
    }
    throw BadChoice(name, *text, names);
  }

 private:
  static Failure BadChoice(std::string_view name, const std::string& text,
                           std::span<const std::string_view> choices);

  std::string command_;
  std::vector<std::string> positionals_;
  std::vector<std::pair<std::string, std::string>> options_;
};

// The candidate that is nearest to what was typed, if one is near enough to be worth naming.
std::optional<std::string_view> NearestWord(std::string_view typed,
                                            std::span<const std::string_view> candidates);
// "a, b or c".
std::string JoinChoices(std::span<const std::string_view> choices);

}  // namespace qmatmul::cli
