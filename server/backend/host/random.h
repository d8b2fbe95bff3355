// Unguessable names and tokens from the kernel's generator. Thread-safe.
#ifndef WSYNC_SERVER_BACKEND_HOST_RANDOM_H_
#define WSYNC_SERVER_BACKEND_HOST_RANDOM_H_

#include <string>

namespace wsync::host {

std::string RandomHex128();  // 128 random bits as 32 lower-case hexadecimal digits

}  // namespace wsync::host

#endif  // WSYNC_SERVER_BACKEND_HOST_RANDOM_H_
