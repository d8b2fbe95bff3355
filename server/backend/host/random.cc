#include "server/backend/host/random.h"

#include <sys/random.h>

#include <cerrno>
#include <cstdlib>

#include "absl/strings/escaping.h"
#include "absl/strings/string_view.h"

namespace wsync::host {

std::string RandomHex128() {
  char bits[16];
  ssize_t got = 0;
  do {
    got = getrandom(bits, sizeof(bits), 0);
  } while (got < 0 && errno == EINTR);
  if (got != sizeof(bits)) std::abort();  // up to 256 bytes are never cut short; without randomness no token is safe
  return absl::BytesToHexString(absl::string_view(bits, sizeof(bits)));
}

}  // namespace wsync::host
