#include "server/rpc/tls_files.h"

#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509_vfy.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/rpc/errno_text.h"

namespace wsync {
namespace {

constexpr size_t kMaxPemBytes = size_t{16} << 20;  // every public authority there is takes 0.3 MB

template <auto Free>
struct Deleter {
  template <typename T>
  void operator()(T* object) const {
    Free(object);
  }
};
using Certificate = std::unique_ptr<X509, Deleter<X509_free>>;
using PrivateKey = std::unique_ptr<EVP_PKEY, Deleter<EVP_PKEY_free>>;
using Bio = std::unique_ptr<BIO, Deleter<BIO_free>>;
using Store = std::unique_ptr<X509_STORE, Deleter<X509_STORE_free>>;
using StoreContext = std::unique_ptr<X509_STORE_CTX, Deleter<X509_STORE_CTX_free>>;

void FreeStack(STACK_OF(X509) * stack) { sk_X509_free(stack); }  // and not what is in it
using Stack = std::unique_ptr<STACK_OF(X509), Deleter<FreeStack>>;

// A key of the configuration and the file it names.
struct Source {
  absl::string_view key;
  const std::string& file;

  std::string Text() const { return absl::StrCat(key, " ", file); }
  absl::Status Error(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat(key, " ", file, what));
  }
};

absl::StatusOr<std::string> ReadFile(const Source& source) {
  const int fd = open(source.file.c_str(), O_RDONLY | O_CLOEXEC);
  int error = fd < 0 ? errno : 0;
  std::string text;
  char block[8192];
  for (ssize_t got = 1; error == 0 && got != 0 && text.size() <= kMaxPemBytes;) {
    got = read(fd, block, sizeof(block));
    if (got > 0) text.append(block, static_cast<size_t>(got));
    if (got < 0 && errno != EINTR) error = errno;
  }
  if (fd >= 0) close(fd);
  if (error != 0) {
    return absl::InvalidArgumentError(absl::StrCat("cannot read ", source.Text(), ": ", ErrnoText(error)));
  }
  if (text.size() > kMaxPemBytes) return source.Error(" is larger than 16 MiB; is it the right file?");
  return text;
}

// The obvious mix-ups are found by the blocks' names.
absl::StatusOr<std::string> ReadPem(const Source& source, absl::string_view marker) {
  if (source.file.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        source.key, " is not set; TLS needs tls.ca_file, tls.cert_file and tls.key_file: set all three, or none"));
  }
  auto text = ReadFile(source);
  if (!text.ok()) return text.status();
  if (text->find(std::string(marker)) != std::string::npos) return text;
  return source.Error(absl::StrCat(" holds no PEM block with \"", marker, "\"; is it the right file?"));
}

Bio Over(const std::string& pem) { return Bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size()))); }

absl::StatusOr<std::vector<Certificate>> ParseCertificates(const Source& source, const std::string& pem) {
  std::vector<Certificate> certificates;
  const Bio bio = Over(pem);
  ERR_clear_error();
  while (Certificate next{PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr)}) {
    certificates.push_back(std::move(next));
  }
  const bool at_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;  // how OpenSSL says so
  ERR_clear_error();
  if (at_end && !certificates.empty()) return certificates;
  return source.Error(absl::StrCat(": certificate ", certificates.size() + 1,
                                   " in it is damaged and cannot be parsed; copy it again, or issue a new one"));
}

absl::StatusOr<PrivateKey> ParseKey(const Source& source, const std::string& pem) {
  const auto no_passphrase = [](char*, int, int, void*) { return -1; };
  const Bio bio = Over(pem);
  PrivateKey key(PEM_read_bio_PrivateKey(bio.get(), nullptr, no_passphrase, nullptr));
  ERR_clear_error();
  if (key != nullptr) return key;
  if (pem.find("ENCRYPTED") != std::string::npos) {
    return source.Error(
        " is encrypted, and nobody is there to type its passphrase; give it without one, readable for "
        "this user alone (openssl pkey -in FILE -out FILE)");
  }
  return source.Error(": the key in it is damaged and cannot be parsed; copy it again, or issue a new one");
}

std::string NameOf(const X509_NAME* name) {
  char text[256];
  X509_NAME_oneline(name, text, sizeof(text));
  return absl::CHexEscape(text);
}

absl::Time TimeOf(const ASN1_TIME* time) {
  std::tm parts = {};
  return ASN1_TIME_to_tm(time, &parts) == 1 ? absl::FromTimeT(timegm(&parts)) : absl::InfinitePast();
}

// To the second: nobody reads fractions.
absl::Duration Whole(absl::Duration duration) { return absl::Trunc(duration, absl::Seconds(1)); }

std::string TimeText(absl::Time time) { return absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", time, absl::UTCTimeZone()); }

// `whose`: the file that the certificate is in, or one that leads from it.
absl::Status CheckDates(const Source& whose, X509* certificate, absl::Time now) {
  const std::string named = absl::StrCat(": the certificate of ", NameOf(X509_get_subject_name(certificate)));
  const absl::Time begin = TimeOf(X509_get0_notBefore(certificate)), end = TimeOf(X509_get0_notAfter(certificate));
  if (now >= end) {
    return whose.Error(absl::StrCat(named, " expired on ", TimeText(end), ", ", absl::FormatDuration(Whole(now - end)),
                                    " ago; issue a new one, and start again"));
  }
  if (now < begin) {
    return whose.Error(absl::StrCat(named, " is not valid before ", TimeText(begin), ", in ",
                                    absl::FormatDuration(Whole(begin - now)),
                                    "; is this host's clock right? Else issue a new one"));
  }
  return absl::OkStatus();
}

// Whether `chain` leads to one of `authorities`, as a peer would look at it that trusts the same ones.
absl::Status CheckChain(const Source& ca, const Source& cert, const std::vector<Certificate>& authorities,
                        const std::vector<Certificate>& chain, absl::Time now) {
  const Store store(X509_STORE_new());
  for (const Certificate& authority : authorities) X509_STORE_add_cert(store.get(), authority.get());
  const Stack others(sk_X509_new_null());
  for (size_t i = 1; i < chain.size(); ++i) sk_X509_push(others.get(), chain[i].get());
  const StoreContext context(X509_STORE_CTX_new());
  X509_STORE_CTX_init(context.get(), store.get(), chain[0].get(), others.get());
  X509_STORE_CTX_set_flags(context.get(), X509_V_FLAG_PARTIAL_CHAIN);  // as gRPC does
  X509_STORE_CTX_set_time(context.get(), 0, absl::ToTimeT(now));
  const bool verified = X509_verify_cert(context.get()) == 1;
  const int error = X509_STORE_CTX_get_error(context.get());
  X509* const at = X509_STORE_CTX_get_current_cert(context.get());
  ERR_clear_error();
  if (verified) return absl::OkStatus();
  if (at != nullptr && (error == X509_V_ERR_CERT_HAS_EXPIRED || error == X509_V_ERR_CERT_NOT_YET_VALID)) {
    return CheckDates(ca, at, now);
  }
  return cert.Error(absl::StrCat(": the certificate of ", NameOf(X509_get_subject_name(chain[0].get())),
                                 " was issued by ", NameOf(X509_get_issuer_name(chain[0].get())),
                                 ", and that leads to no authority of ", ca.Text(), " (",
                                 X509_verify_cert_error_string(error),
                                 "); put the authority there (a file may hold several), or take another "
                                 "certificate"));
}

}  // namespace

absl::StatusOr<TlsFiles> LoadTlsFiles(const v1::TlsConfig& tls, absl::Time now) {
  const Source ca{"tls.ca_file", tls.ca_file()}, cert{"tls.cert_file", tls.cert_file()};
  const Source key{"tls.key_file", tls.key_file()};
  auto ca_pem = ReadPem(ca, "BEGIN CERTIFICATE");
  if (!ca_pem.ok()) return ca_pem.status();
  auto cert_pem = ReadPem(cert, "BEGIN CERTIFICATE");
  if (!cert_pem.ok()) return cert_pem.status();
  auto key_pem = ReadPem(key, "PRIVATE KEY");
  if (!key_pem.ok()) return key_pem.status();
  const auto authorities = ParseCertificates(ca, *ca_pem);
  if (!authorities.ok()) return authorities.status();
  const auto chain = ParseCertificates(cert, *cert_pem);
  if (!chain.ok()) return chain.status();
  const auto parsed_key = ParseKey(key, *key_pem);
  if (!parsed_key.ok()) return parsed_key.status();
  const bool fits = X509_check_private_key(chain->front().get(), parsed_key->get()) == 1;
  ERR_clear_error();
  if (!fits) {
    return key.Error(absl::StrCat(" is not the key of ", cert.Text(), "; give the two that were issued together"));
  }
  if (absl::Status status = CheckDates(cert, chain->front().get(), now); !status.ok()) return status;
  if (absl::Status status = CheckChain(ca, cert, *authorities, *chain, now); !status.ok()) return status;
  return TlsFiles{*std::move(ca_pem), *std::move(cert_pem), *std::move(key_pem)};
}

}  // namespace wsync
