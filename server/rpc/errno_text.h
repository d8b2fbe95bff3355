// The system's words for an errno value, in lower case to stand inside our messages: "address already in use".
#ifndef WSYNC_SERVER_RPC_ERRNO_TEXT_H_
#define WSYNC_SERVER_RPC_ERRNO_TEXT_H_

#include <cctype>
#include <string>
#include <system_error>

namespace wsync {

inline std::string ErrnoText(int error) {
  std::string text = std::generic_category().message(error);
  if (!text.empty()) text[0] = static_cast<char>(std::tolower(static_cast<unsigned char>(text[0])));
  return text;
}

}  // namespace wsync

#endif  // WSYNC_SERVER_RPC_ERRNO_TEXT_H_
