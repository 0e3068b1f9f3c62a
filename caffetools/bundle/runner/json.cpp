#include "json.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "bundle.h"

namespace caffetools {
namespace {

// Nesting of arrays and objects; preprocessing.json has three levels.
constexpr int MAX_DEPTH = 32;

void append_utf8(std::string& out, unsigned code) {
  if (code < 0x80) {
    out += static_cast<char>(code);
    return;
  }
  int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
  static const unsigned FIRST[] = {0, 0xC0, 0xE0, 0xF0};
  out += static_cast<char>(FIRST[more] | (code >> (6 * more)));
  while (more-- > 0) out += static_cast<char>(0x80 | ((code >> (6 * more)) & 0x3F));
}

// Length of the UTF-8 character at `at`, 0 where there is none.
size_t utf8_length(const std::string& text, size_t at) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const unsigned first = byte(at);
  if (first < 0x80) return 1;
  const size_t length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4) return 0;
  for (size_t i = 1; i < length; ++i)
    if ((byte(at + i) & 0xC0) != 0x80) return 0;
  const unsigned second = byte(at + 1);
  // Overlong forms, surrogates, and what is above U+10FFFF.
  if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) || (first == 0xF0 && second < 0x90) ||
    (first == 0xF4 && second > 0x8F))
    return 0;
  return length;
}

class Parser {
 public:
  explicit Parser(const std::string& text) : text_(text) {}

  Json whole() {
    Json value = parse(0);
    skip_space();
    if (at_ != text_.size()) fail("text after the value");
    return value;
  }

 private:
  [[noreturn]] void fail(const std::string& why) const { throw Error("not JSON at byte " + std::to_string(at_) + ": " + why); }

  int peek() const { return at_ < text_.size() ? static_cast<unsigned char>(text_[at_]) : -1; }

  void skip_space() {
    while (at_ < text_.size() && std::strchr(" \t\r\n", text_[at_]) && text_[at_]) ++at_;
  }

  void expect(char wanted) {
    skip_space();
    if (peek() != wanted) fail(std::string("'") + wanted + "' expected");
    ++at_;
  }

  bool accept(char wanted) {
    skip_space();
    if (peek() != wanted) return false;
    ++at_;
    return true;
  }

  bool accept_word(const char* word) {
    const size_t length = std::strlen(word);
    if (text_.compare(at_, length, word) != 0) return false;
    at_ += length;
    return true;
  }

  Json parse(int depth) {
    if (depth > MAX_DEPTH) fail("nested too deeply");
    skip_space();
    Json value;
    if (peek() == '{') {
      value.kind = Json::Kind::Object;
      parse_members(value, depth);
    } else if (peek() == '[') {
      value.kind = Json::Kind::Array;
      parse_items(value, depth);
    } else if (peek() == '"') {
      value.kind = Json::Kind::String;
      value.string = parse_string();
    } else if (accept_word("true") || accept_word("false")) {
      value.kind = Json::Kind::Bool;
      value.boolean = text_[at_ - 2] == 'u';
    } else if (!accept_word("null")) {
      value.kind = Json::Kind::Number;
      value.number = parse_number();
    }
    return value;
  }

  void parse_members(Json& value, int depth) {
    expect('{');
    if (accept('}')) return;
    do {
      skip_space();
      if (peek() != '"') fail("a name expected");
      std::string name = parse_string();
      expect(':');
      value.members[name] = parse(depth + 1);
    } while (accept(','));
    expect('}');
  }

  void parse_items(Json& value, int depth) {
    expect('[');
    if (accept(']')) return;
    do value.items.push_back(parse(depth + 1));
    while (accept(','));
    expect(']');
  }

  std::string parse_string() {
    expect('"');
    std::string out;
    while (true) {
      const int c = peek();
      if (c < 0x20) fail("a string without an end, or with a control character");
      ++at_;
      if (c == '"') return out;
      if (c == '\\')
        parse_escape(out);
      else
        out += static_cast<char>(c);
    }
  }

  void parse_escape(std::string& out) {
    static const char FROM[] = "\"\\/bfnrt", TO[] = "\"\\/\b\f\n\r\t";
    const int c = peek();
    const char* found = c > 0 ? std::strchr(FROM, c) : nullptr;
    if (c != 'u' && !found) fail("an unknown escape");
    ++at_;
    if (found) {
      out += TO[found - FROM];
      return;
    }
    unsigned code = parse_hex();
    if (code >= 0xD800 && code < 0xDC00) {
      const unsigned low = accept_word("\\u") ? parse_hex() : 0;
      if (low < 0xDC00 || low > 0xDFFF) fail("half of a surrogate pair");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    } else if (code >= 0xDC00 && code < 0xE000) {
      fail("half of a surrogate pair");
    }
    append_utf8(out, code);
  }

  unsigned parse_hex() {
    unsigned code = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const int c = peek();
      const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
      if (digit < 0) fail("four hexadecimal digits expected");
      code = code * 16 + static_cast<unsigned>(digit);
    }
    return code;
  }

  size_t parse_digits() {
    const size_t start = at_;
    while (peek() >= '0' && peek() <= '9') ++at_;
    if (at_ == start) fail("a value expected");
    return at_ - start;
  }

  double parse_number() {
    const size_t start = at_;
    if (peek() == '-') ++at_;
    const bool zero = peek() == '0';
    if (parse_digits() > 1 && zero) fail("a number that begins with 0");
    if (peek() == '.') {
      ++at_;
      parse_digits();
    }
    if (peek() == 'e' || peek() == 'E') {
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      parse_digits();
    }
    const double number = std::strtod(text_.substr(start, at_ - start).c_str(), nullptr);
    if (!std::isfinite(number)) fail("a number that is too large");
    return number;
  }

  const std::string& text_;
  size_t at_ = 0;
};

}  // namespace

const Json* Json::find(const std::string& name) const {
  const auto found = members.find(name);
  return found == members.end() ? nullptr : &found->second;
}

const Json& Json::at(const std::string& name) const {
  if (const Json* found = find(name)) return *found;
  throw Error("'" + name + "' is missing");
}

const std::string& Json::as_string(const char* what) const {
  if (kind != Kind::String) throw Error(std::string(what) + " is not a string");
  return string;
}

double Json::as_number(const char* what) const {
  if (kind != Kind::Number) throw Error(std::string(what) + " is not a number");
  return number;
}

int Json::as_int(const char* what, int lowest, int highest) const {
  const double value = as_number(what);
  if (value < lowest || value > highest || value != std::floor(value))
    throw Error(std::string(what) + " is not a whole number from " + std::to_string(lowest) + " to " + std::to_string(highest));
  return static_cast<int>(value);
}

std::vector<float> Json::as_floats(const char* what) const {
  if (kind != Kind::Array || items.empty()) throw Error(std::string(what) + " is not a list of numbers");
  std::vector<float> values;
  for (const Json& item : items) {
    const double value = item.as_number(what);
    if (std::abs(value) > 1e30) throw Error(std::string(what) + " has a number above 1e30");
    values.push_back(static_cast<float>(value));
  }
  return values;
}

Json parse_json(const std::string& text) { return Parser(text).whole(); }

std::string quote_json(const std::string& text) {
  std::string out = "\"";
  for (size_t at = 0; at < text.size();) {
    const unsigned char c = static_cast<unsigned char>(text[at]);
    const size_t length = utf8_length(text, at);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += text[at];
    } else if (c < 0x20) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\u%04x", c);
      out += escaped;
    } else if (length == 0) {
      out += "\\ufffd";
    } else {
      out.append(text, at, length);
    }
    at += length ? length : 1;
  }
  return out + '"';
}

bool is_utf8(const std::string& text) {
  for (size_t at = 0; at < text.size();) {
    const size_t length = utf8_length(text, at);
    if (!length) return false;
    at += length;
  }
  return true;
}

}  // namespace caffetools
