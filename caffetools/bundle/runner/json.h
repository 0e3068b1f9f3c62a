// A reader for the JSON of preprocessing.json, so that the runner needs no library but OpenCV. Strict, as RFC 8259 defines it.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace caffetools {

struct Json {
  enum class Kind { Null, Bool, Number, String, Array, Object };

  Kind kind = Kind::Null;
  bool boolean = false;
  double number = 0;
  std::string string;
  std::vector<Json> items;
  std::map<std::string, Json> members;

  // All of these throw Error where the value is of another kind or out of range; `what` names it in the message.
  const Json& at(const std::string& name) const;
  const Json* find(const std::string& name) const;
  const std::string& as_string(const char* what) const;
  double as_number(const char* what) const;
  int as_int(const char* what, int lowest, int highest) const;
  std::vector<float> as_floats(const char* what) const;
};

// Parses the whole text. Throws Error with the offset of the first byte that is wrong.
Json parse_json(const std::string& text);

// A string as JSON, with its quotes; bytes that are not UTF-8 become U+FFFD.
std::string quote_json(const std::string& text);

bool is_utf8(const std::string& text);

}  // namespace caffetools
