// The options every command that talks to a coordinator takes: where it is, TLS, how long to wait.
#ifndef WSYNC_CLIENT_CLI_COORDINATOR_OPTIONS_H_
#define WSYNC_CLIENT_CLI_COORDINATOR_OPTIONS_H_

#include <CLI/CLI.hpp>
#include <string>

#include "absl/time/time.h"
#include "client/cli/usage.h"
#include "wsync/v1/config.pb.h"

namespace wsync::cli {

struct CoordinatorOptions {
  std::string address = "127.0.0.1:7470";
  std::string ca_file, cert_file, key_file;
  double timeout_s = 3;

  void AddTo(CLI::App& command) {
    command.add_option("-c,--coordinator", address, "the trainer agent's coordinator.listen")
        ->envname("WSYNC_COORDINATOR")
        ->check(TcpAddress())
        ->capture_default_str();
    command.add_option("--tls-ca", ca_file, "PEM of the authority that signed the agents")
        ->envname("WSYNC_TLS_CA_FILE");
    command.add_option("--tls-cert", cert_file, "PEM certificate of this client")->envname("WSYNC_TLS_CERT_FILE");
    command.add_option("--tls-key", key_file, "PEM key of this client")->envname("WSYNC_TLS_KEY_FILE");
    command.add_option("--timeout", timeout_s, "seconds to wait for an answer")
        ->check(Seconds(0.1, 3600))
        ->capture_default_str();
  }
  v1::TlsConfig Tls() const {
    v1::TlsConfig tls;
    tls.set_ca_file(ca_file);
    tls.set_cert_file(cert_file);
    tls.set_key_file(key_file);
    return tls;
  }
  absl::Duration Timeout() const { return absl::Seconds(timeout_s); }
};

}  // namespace wsync::cli

#endif  // WSYNC_CLIENT_CLI_COORDINATOR_OPTIONS_H_
