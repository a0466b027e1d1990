#include "client/cli/arguments.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>

namespace qmatmul::cli {
namespace {

constexpr OptionSpec kCommon[] = {
    {"--server", "HOST:PORT",
     "the server to call, or unix:/path (default: QMATMUL_SERVER, else "
     "127.0.0.1:8500)"},
    {"--timeout", "SECONDS", "how long a call may take (default: 30; an upload: 600)"},
    {"--message-bytes-max", "BYTES",
     "largest message either way (default: 67108864); a matmul beyond it is sent in parts by rows"},
    {"--json", "", "print one JSON document on stdout, and errors as JSON on stderr"},
    {"--help", "", "this text"},
};

// Edits (insert, delete, replace) from one word to the other.
size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

const OptionSpec* Find(std::span<const OptionSpec> options, std::string_view name) {
  for (const OptionSpec& option : options)
    if (option.name == name) return &option;
  for (const OptionSpec& option : kCommon)
    if (option.name == name) return &option;
  return nullptr;
}

Failure UnknownOption(std::string_view command, std::string_view name,
                      std::span<const OptionSpec> options) {
  std::vector<std::string_view> names;
  for (const OptionSpec& option : options) names.push_back(option.name);
  for (const OptionSpec& option : kCommon) names.push_back(option.name);
  std::string way_out = "`qmatmul " + std::string(command) + " --help` lists the options";
  if (const auto near = NearestWord(name, names))
    way_out = "did you mean " + std::string(*near) + "? " + way_out;
  return {kExitUsage, "qmatmul " + std::string(command) + " has no option " + std::string(name),
          way_out};
}

template <class T>
std::optional<T> ParseNumber(const std::string& text) {
  T value{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end) return std::nullopt;
  return value;
}

Failure BadValue(std::string_view name, const std::string& text, const std::string& expected) {
  return {kExitUsage, std::string(name) + " " + text + " is not " + expected};
}

std::string Range(double min, double max) {
  const auto text = [](double v) {
    std::string s = std::to_string(v);
    s.erase(s.find_last_not_of('0') + 1);
    if (s.ends_with('.')) s.pop_back();
    return s;
  };
  return "a number from " + text(min) + " to " + text(max);
}

int64_t ParseInteger(std::string_view name, const std::string& text, int64_t min, int64_t max) {
  const auto value = ParseNumber<int64_t>(text);
  if (!value || *value < min || *value > max)
    throw BadValue(name, text,
                   "a whole number from " + std::to_string(min) + " to " + std::to_string(max));
  return *value;
}

}  // namespace

std::span<const OptionSpec> CommonOptions() { return kCommon; }

Arguments Arguments::Parse(std::string_view command, std::span<const OptionSpec> options,
                           std::span<const std::string_view> words) {
  Arguments arguments;
  arguments.command_ = command;
  bool only_positionals = false;
  for (size_t i = 0; i < words.size(); ++i) {
    std::string_view word = words[i];
    if (only_positionals || word.size() < 2 || word[0] != '-') {
      arguments.positionals_.emplace_back(word);
      continue;
    }
    if (word == "--") {
      only_positionals = true;
      continue;
    }
    if (word == "-o") word = "--output";
    if (word == "-h") word = "--help";
    const size_t equals = word.find('=');
    const std::string_view name = word.substr(0, equals);
    const OptionSpec* option = Find(options, name);
    if (option == nullptr) throw UnknownOption(command, name, options);
    std::string value;
    if (equals != std::string_view::npos) {
      if (option->value.empty())
        throw Failure(kExitUsage, std::string(name) + " is a switch and takes no value");
      value = word.substr(equals + 1);
    } else if (!option->value.empty()) {
      if (++i == words.size())
        throw Failure(kExitUsage,
                      std::string(name) + " needs a value: " + std::string(option->value));
      value = words[i];
    }
    arguments.options_.emplace_back(name, value);
  }
  return arguments;
}

bool Arguments::Has(std::string_view name) const { return Text(name).has_value(); }

std::optional<std::string> Arguments::Text(std::string_view name) const {
  for (auto it = options_.rbegin(); it != options_.rend(); ++it)
    if (it->first == name) return it->second;
  return std::nullopt;
}

std::vector<std::string> Arguments::All(std::string_view name) const {
  std::vector<std::string> values;
  for (const auto& [option, value] : options_)
    if (option == name) values.push_back(value);
  return values;
}

int64_t Arguments::Integer(std::string_view name, int64_t fallback, int64_t min,
                           int64_t max) const {
  const auto text = Text(name);
  return text ? ParseInteger(name, *text, min, max) : fallback;
}

double Arguments::Number(std::string_view name, double fallback, double min, double max) const {
  const auto text = Text(name);
  if (!text) return fallback;
  const auto value = ParseNumber<double>(*text);
  if (!value || !(*value >= min && *value <= max)) throw BadValue(name, *text, Range(min, max));
  return *value;
}

std::vector<int64_t> Arguments::Integers(std::string_view name, std::vector<int64_t> fallback,
                                         int64_t min, int64_t max) const {
  const auto text = Text(name);
  if (!text) return fallback;
  std::vector<int64_t> values;
  size_t begin = 0;
  while (begin <= text->size()) {
    const size_t end = std::min(text->find(',', begin), text->size());
    values.push_back(ParseInteger(name, text->substr(begin, end - begin), min, max));
    begin = end + 1;
  }
  return values;
}

Failure Arguments::BadChoice(std::string_view name, const std::string& text,
                             std::span<const std::string_view> choices) {
  return BadValue(name, text, JoinChoices(choices));
}

std::optional<std::string_view> NearestWord(std::string_view typed,
                                            std::span<const std::string_view> candidates) {
  std::optional<std::string_view> best;
  // A third of the word may be wrong; beyond that a guess only confuses.
  size_t best_distance = std::max<size_t>(typed.size() / 3, 1) + 1;
  for (std::string_view candidate : candidates) {
    const size_t distance = EditDistance(typed, candidate);
    if (distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

std::string JoinChoices(std::span<const std::string_view> choices) {
  std::string text;
  for (size_t i = 0; i < choices.size(); ++i) {
    if (i > 0) text += i + 1 == choices.size() ? " or " : ", ";
    text += choices[i];
  }
  return text;
}

}  // namespace qmatmul::cli
