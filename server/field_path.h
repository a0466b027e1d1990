// Where a field of a message is, "outputs[2].dtype": spelt out only when it is refused.
//
// Thread-safety: a plain value. Ownership: none of its words, which are literals.
#pragma once

#include <string>

namespace qmatmul {

struct FieldPath {
  FieldPath(const char* field) : list(field) {}  // NOLINT: a path of one word is written as one
  FieldPath(const char* list_field, int at, const char* member_field = "")
      : list(list_field), index(at), member(member_field) {}
  // A field of the message that this path leads to.
  FieldPath Of(const char* field) const {
    FieldPath path = *this;
    path.leaf = field;
    return path;
  }
  std::string Text() const {
    std::string text = list;
    if (index >= 0) text += "[" + std::to_string(index) + "]";
    return text + member + leaf;
  }
  operator std::string() const { return Text(); }  // NOLINT: for those who take a field's name

  const char* list;
  int index = -1;  // no list
  const char* member = "";
  const char* leaf = "";
};

}  // namespace qmatmul
