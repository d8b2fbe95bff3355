// The files of the `tls` section, read and held against each other before anybody connects: of a key that does not fit
// or a certificate that has expired gRPC says "Socket closed" at the other end, and nothing here.
#ifndef WSYNC_SERVER_RPC_TLS_FILES_H_
#define WSYNC_SERVER_RPC_TLS_FILES_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "wsync/v1/config.pb.h"

namespace wsync {

struct TlsFiles {
  std::string ca, cert, key;  // PEM
};

// REQUIRES: one of the three files is set. INVALID_ARGUMENT names the key, the file, what is wrong with it and what to
// do: one is not set or cannot be read; no certificate or key in it, or a damaged or encrypted one; the key is not that
// of the certificate; the certificate is not valid `now` (with the time it ends or begins); it, or the authority that
// issued it, does not lead to one of ca_file.
absl::StatusOr<TlsFiles> LoadTlsFiles(const v1::TlsConfig& tls, absl::Time now);

}  // namespace wsync

#endif  // WSYNC_SERVER_RPC_TLS_FILES_H_
