#include "server/rpc/tls.h"

#include <grpc/grpc_security_constants.h>

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "server/rpc/tls_files.h"

namespace wsync {
namespace {

bool Enabled(const v1::TlsConfig& tls) {
  return !tls.ca_file().empty() || !tls.cert_file().empty() || !tls.key_file().empty();
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> ServerCredentialsFor(const v1::TlsConfig& tls) {
  if (!Enabled(tls)) return grpc::InsecureServerCredentials();
  auto pem = LoadTlsFiles(tls, absl::Now());
  if (!pem.ok()) return pem.status();
  grpc::SslServerCredentialsOptions options(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_root_certs = pem->ca;
  options.pem_key_cert_pairs.push_back({pem->key, pem->cert});
  return grpc::SslServerCredentials(options);
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> ChannelCredentialsFor(const v1::TlsConfig& tls) {
  if (!Enabled(tls)) return grpc::InsecureChannelCredentials();
  auto pem = LoadTlsFiles(tls, absl::Now());
  if (!pem.ok()) return pem.status();
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = pem->ca;
  options.pem_private_key = pem->key;
  options.pem_cert_chain = pem->cert;
  return grpc::SslCredentials(options);
}

absl::Status AuthorizePeer(const v1::TlsConfig& tls, const grpc::ServerContextBase& context) {
  if (!Enabled(tls) || tls.allowed_peers().empty()) return absl::OkStatus();
  std::vector<std::string> identities;  // the alternative names alone: a common name is no identity
  const auto auth = context.auth_context();
  if (auth != nullptr) {
    for (const grpc::string_ref& identity : auth->FindPropertyValues(GRPC_X509_SAN_PROPERTY_NAME)) {
      identities.emplace_back(identity.data(), identity.size());
    }
  }
  const auto& allowed = tls.allowed_peers();
  for (const std::string& identity : identities) {
    if (std::find(allowed.begin(), allowed.end(), identity) != allowed.end()) return absl::OkStatus();
  }
  const std::string shown = identities.empty() ? "none" : absl::CHexEscape(absl::StrJoin(identities, ", "));
  return absl::PermissionDeniedError(
      absl::StrCat("the peer's certificate carries no identity of tls.allowed_peers; it has: ", shown,
                   "; add one of them there, or issue another certificate"));
}

}  // namespace wsync
