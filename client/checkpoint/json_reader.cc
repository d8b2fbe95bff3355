#include "client/checkpoint/json_reader.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "server/core/printable.h"

namespace wsync {
namespace {

constexpr int kMaxDepth = 256;  // Python's own reader gives up near 1000; configs have about 6
constexpr size_t kFewKeys = 8;  // up to here a look along them is cheaper than a set
constexpr char kSpace[] = " \t\n\r";

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

// Tells which keys of one object were there before.
class Keys {
 public:
  bool Add(const std::string& key) {
    if (all_.empty() && few_.size() < kFewKeys) {
      if (std::find(few_.begin(), few_.end(), key) != few_.end()) return false;
      few_.push_back(key);
      return true;
    }
    if (all_.empty()) all_.insert(few_.begin(), few_.end());
    return all_.insert(key).second;
  }

 private:
  std::vector<std::string> few_;
  absl::flat_hash_set<std::string> all_;
};

void AppendUtf8(char32_t c, std::string* out) {
  if (c < 0x80) {
    *out += static_cast<char>(c);
  } else if (c < 0x800) {
    out->append({static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 0x3F))});
  } else if (c < 0x10000) {
    out->append({static_cast<char>(0xE0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 0x3F)),
                 static_cast<char>(0x80 | (c & 0x3F))});
  } else {
    out->append({static_cast<char>(0xF0 | c >> 18), static_cast<char>(0x80 | (c >> 12 & 0x3F)),
                 static_cast<char>(0x80 | (c >> 6 & 0x3F)), static_cast<char>(0x80 | (c & 0x3F))});
  }
}

// Where the number that begins at `at` ends; `at` itself if none does.
size_t NumberEnd(std::string_view text, size_t at) {
  const size_t begin = at;
  const auto digits = [&] {
    const size_t first = at;
    while (at < text.size() && IsDigit(text[at])) ++at;
    return at > first;
  };
  if (at < text.size() && text[at] == '-') ++at;
  if (at < text.size() && text[at] == '0') {
    ++at;
  } else if (!digits()) {
    return begin;
  }
  if (at < text.size() && text[at] == '.' && (++at, !digits())) return begin;
  if (at < text.size() && (text[at] == 'e' || text[at] == 'E')) {
    ++at;
    if (at < text.size() && (text[at] == '+' || text[at] == '-')) ++at;
    if (!digits()) return begin;
  }
  return at;
}

}  // namespace

JsonReader::JsonReader(std::string_view text, std::string what) : what_(std::move(what)), text_(text) {
  if (text_.starts_with("\xEF\xBB\xBF")) at_ = 3;
}

absl::Status JsonReader::Error(std::string_view why) const {
  const std::string_view before = text_.substr(0, std::min(at_, text_.size()));
  const size_t line = 1 + static_cast<size_t>(std::count(before.begin(), before.end(), '\n'));
  const size_t column = before.size() - (before.rfind('\n') + 1) + 1;  // npos + 1 is 0
  return absl::InvalidArgumentError(absl::StrCat(what_, " is not valid JSON at line ", line, ", column ", column, ": ",
                                                 absl::string_view(why.data(), why.size())));
}

void JsonReader::SkipSpace() { at_ = std::min(text_.find_first_not_of(kSpace, at_), text_.size()); }

bool JsonReader::Take(std::string_view token) {
  if (!text_.substr(at_).starts_with(token)) return false;
  at_ += token.size();
  return true;
}

absl::Status JsonReader::Expect(char c, std::string_view where) {
  SkipSpace();
  if (at_ < text_.size() && text_[at_] == c) {
    ++at_;
    return absl::OkStatus();
  }
  return Error(std::string("expected '") + c + "' " + std::string(where));
}

absl::Status JsonReader::Enter() {
  if (++depth_ <= kMaxDepth) return absl::OkStatus();
  return Error("it is nested more than 256 deep");
}

JsonReader::Kind JsonReader::Peek() {
  SkipSpace();
  switch (at_ < text_.size() ? text_[at_] : '\0') {
    case '{':
      return Kind::kObject;
    case '[':
      return Kind::kArray;
    case '"':
      return Kind::kString;
    case 't':
    case 'f':
    case 'n':
      return Kind::kWord;
    case 'N':
    case 'I':
    case '-':
      return Kind::kNumber;
    default:
      return at_ < text_.size() && IsDigit(text_[at_]) ? Kind::kNumber : Kind::kNothing;
  }
}

const char* JsonReader::PeekName() {
  constexpr const char* kNames[] = {"an object", "a list", "text", "a number", "true, false or null", "nothing"};
  return kNames[static_cast<size_t>(Peek())];
}

absl::Status JsonReader::ReadObject(absl::FunctionRef<absl::Status(std::string&& key)> member) {
  if (absl::Status status = Expect('{', "to begin an object"); !status.ok()) return status;
  if (absl::Status status = Enter(); !status.ok()) return status;
  Keys keys;
  for (bool first = true;; first = false) {
    SkipSpace();
    if (first && Take("}")) break;
    auto key = ReadString();
    if (!key.ok()) return key.status();
    if (!keys.Add(*key)) {
      return absl::InvalidArgumentError(
          absl::StrCat(what_, " has the key '", Printable(*key, kMaxShownName), "' twice"));
    }
    if (absl::Status status = Expect(':', "after a key"); !status.ok()) return status;
    if (absl::Status status = member(std::move(*key)); !status.ok()) return status;
    SkipSpace();
    if (Take("}")) break;
    if (absl::Status status = Expect(',', "or '}' after a member"); !status.ok()) return status;
  }
  --depth_;
  return absl::OkStatus();
}

absl::Status JsonReader::ReadArray(absl::FunctionRef<absl::Status()> element) {
  if (absl::Status status = Expect('[', "to begin a list"); !status.ok()) return status;
  if (absl::Status status = Enter(); !status.ok()) return status;
  for (bool first = true;; first = false) {
    SkipSpace();
    if (first && Take("]")) break;
    if (absl::Status status = element(); !status.ok()) return status;
    SkipSpace();
    if (Take("]")) break;
    if (absl::Status status = Expect(',', "or ']' after an element"); !status.ok()) return status;
  }
  --depth_;
  return absl::OkStatus();
}

absl::StatusOr<std::string> JsonReader::ReadString() {
  if (absl::Status status = Expect('"', "to begin text"); !status.ok()) return status;
  std::string out;
  while (at_ < text_.size() && text_[at_] != '"') {
    if (static_cast<unsigned char>(text_[at_]) < 0x20) return Error("a control character inside text is not escaped");
    if (text_[at_] == '\\') {
      if (absl::Status status = AddEscape(&out); !status.ok()) return status;
      continue;
    }
    const size_t length = Utf8Length(text_.substr(at_));
    if (length == 0) return Error("a byte is not UTF-8");
    out.append(text_.substr(at_, length));
    at_ += length;
  }
  if (at_ >= text_.size()) return Error("text does not end");
  ++at_;
  return out;
}

absl::StatusOr<char32_t> JsonReader::ReadHex() {
  char32_t value = 0;
  for (int i = 0; i < 4; ++i, ++at_) {
    const char c = at_ < text_.size() ? text_[at_] : '\0';
    const char lower = static_cast<char>(c | 0x20);
    if (!IsDigit(c) && !(lower >= 'a' && lower <= 'f')) return Error("expected four hexadecimal digits after \\u");
    value = value << 4 | static_cast<char32_t>(IsDigit(c) ? c - '0' : lower - 'a' + 10);
  }
  return value;
}

absl::Status JsonReader::AddEscape(std::string* out) {
  constexpr std::string_view kLetters = "\"\\/bfnrt", kMeanings = "\"\\/\b\f\n\r\t";
  const char letter = at_ + 1 < text_.size() ? text_[at_ + 1] : '\0';
  const size_t simple = letter == '\0' ? std::string_view::npos : kLetters.find(letter);
  if (simple != std::string_view::npos) {
    *out += kMeanings[simple];
    at_ += 2;
    return absl::OkStatus();
  }
  if (letter != 'u') return Error("an escape in text is none of JSON's");
  at_ += 2;
  auto c = ReadHex();
  if (!c.ok()) return c.status();
  if (*c >= 0xD800 && *c < 0xDC00 && Take("\\u")) {
    const auto low = ReadHex();
    if (!low.ok()) return low.status();
    if (*low < 0xDC00 || *low > 0xDFFF) return Error("half of a surrogate pair stands alone");
    c = 0x10000 + ((*c - 0xD800) << 10) + (*low - 0xDC00);
  }
  if (*c >= 0xD800 && *c <= 0xDFFF) return Error("half of a surrogate pair stands alone");
  AppendUtf8(*c, out);
  return absl::OkStatus();
}

absl::StatusOr<std::string_view> JsonReader::ReadNumber() {
  SkipSpace();
  const size_t begin = at_;
  if (Take("NaN") || Take("Infinity") || Take("-Infinity")) return TextSince(begin);
  at_ = NumberEnd(text_, at_);
  if (at_ == begin) return Error("expected a number");
  return TextSince(begin);
}

absl::StatusOr<std::string_view> JsonReader::ReadWord() {
  SkipSpace();
  const size_t begin = at_;
  if (Take("true") || Take("false") || Take("null")) return TextSince(begin);
  return Error("expected a value");
}

absl::Status JsonReader::Skip() {
  switch (Peek()) {
    case Kind::kObject:
      return ReadObject([this](std::string&&) { return Skip(); });
    case Kind::kArray:
      return ReadArray([this] { return Skip(); });
    case Kind::kString:
      return ReadString().status();
    case Kind::kNumber:
      return ReadNumber().status();
    default:
      return ReadWord().status();
  }
}

absl::Status JsonReader::End() {
  SkipSpace();
  return at_ == text_.size() ? absl::OkStatus() : Error("something follows after its end");
}

}  // namespace wsync
