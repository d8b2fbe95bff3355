// Reads JSON as Python's json module writes it, straight into what the caller makes of it: no tree in between, so that
// the header of a million tensors costs what its bytes cost.
//
// Python's additions are numbers here: NaN, Infinity, -Infinity. Stricter than Python: a key given twice is an error,
// and so is text that is not UTF-8. A byte order mark at the front is passed over. Every error is INVALID_ARGUMENT,
// begins with `what` (such as "index 'a/b.json'") and gives line and column; after one, the reader is of no more use.
// One reader, one thread; `text` must outlive it.
#ifndef WSYNC_CLIENT_CHECKPOINT_JSON_READER_H_
#define WSYNC_CLIENT_CHECKPOINT_JSON_READER_H_

#include <cstddef>
#include <string>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace wsync {

class JsonReader {
 public:
  enum class Kind { kObject, kArray, kString, kNumber, kWord /* true, false, null */, kNothing };

  JsonReader(std::string_view text, std::string what);

  Kind Peek();             // of the value that comes next
  const char* PeekName();  // "an object", "a list", "text", "a number", "true, false or null", "nothing"

  // Calls `member` with each key; it reads that member's value, or skips it.
  absl::Status ReadObject(absl::FunctionRef<absl::Status(std::string&& key)> member);
  absl::Status ReadArray(absl::FunctionRef<absl::Status()> element);  // which reads one value
  absl::StatusOr<std::string> ReadString();
  absl::StatusOr<std::string_view> ReadNumber();  // as it is written
  absl::StatusOr<std::string_view> ReadWord();
  absl::Status Skip();  // any value, checked as if it were read
  absl::Status End();   // nothing but white space follows

  size_t position() const { return at_; }
  std::string_view TextSince(size_t position) const { return text_.substr(position, at_ - position); }

 private:
  absl::Status Error(std::string_view why) const;
  absl::Status Expect(char c, std::string_view where);
  void SkipSpace();
  bool Take(std::string_view token);
  absl::Status AddEscape(std::string* out);
  absl::StatusOr<char32_t> ReadHex();
  absl::Status Enter();

  const std::string what_;
  std::string_view text_;
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace wsync

#endif  // WSYNC_CLIENT_CHECKPOINT_JSON_READER_H_
