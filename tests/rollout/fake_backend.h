// A backend whose every step a Script controls. What arrives is what the source of source_testing.h sends; a check is a
// comparison with it.
#ifndef WSYNC_TESTS_ROLLOUT_FAKE_BACKEND_H_
#define WSYNC_TESTS_ROLLOUT_FAKE_BACKEND_H_

#include <memory>

#include "server/backend/backend.h"
#include "tests/rollout/script.h"

namespace wsync {

// `script` must outlive it.
std::unique_ptr<Backend> NewFakeBackend(Script* script);

}  // namespace wsync

#endif  // WSYNC_TESTS_ROLLOUT_FAKE_BACKEND_H_
