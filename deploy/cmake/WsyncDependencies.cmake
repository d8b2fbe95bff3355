# Every third-party package, found once. Debian 12's protobuf has no CMake config, so it comes first, by module.
find_package(Threads REQUIRED)
find_package(Protobuf REQUIRED)
if(WSYNC_STATIC)
  set(CMAKE_FIND_LIBRARY_SUFFIXES .a .so)
endif()
find_package(absl REQUIRED CONFIG)
find_package(gRPC REQUIRED CONFIG)
find_package(GTest REQUIRED CONFIG)
find_package(rapidcheck REQUIRED CONFIG)  # property tests
find_package(yaml-cpp REQUIRED CONFIG)
find_package(CLI11 REQUIRED CONFIG)
find_package(nlohmann_json REQUIRED CONFIG)
find_package(benchmark CONFIG)

# Header-only uses keep the binaries portable: no libfmt, libspdlog or libxxhash at run time.
add_library(wsync_spdlog INTERFACE)
target_compile_definitions(wsync_spdlog INTERFACE SPDLOG_FMT_EXTERNAL FMT_HEADER_ONLY)
target_link_libraries(wsync_spdlog INTERFACE Threads::Threads)
add_library(wsync_xxhash INTERFACE)
target_compile_definitions(wsync_xxhash INTERFACE XXH_INLINE_ALL)

add_library(wsync_absl INTERFACE)
target_link_libraries(wsync_absl INTERFACE absl::status absl::statusor absl::strings absl::str_format absl::time
  absl::flat_hash_map absl::flat_hash_set absl::span absl::synchronization)
