# Every third-party package, found once. Debian 12's protobuf has no CMake config, so it comes first, by module.
if(WSYNC_STATIC)
  set(CMAKE_FIND_LIBRARY_SUFFIXES .a .so)
  set(OPENSSL_USE_STATIC_LIBS ON)
  set(Protobuf_USE_STATIC_LIBS ON)
endif()
find_package(Threads REQUIRED)
find_package(Protobuf REQUIRED)
find_package(absl REQUIRED CONFIG)
find_package(gRPC REQUIRED CONFIG)
find_package(OpenSSL REQUIRED)  # gRPC's own; used to look at certificates
find_package(GTest REQUIRED CONFIG)
find_package(rapidcheck REQUIRED CONFIG)  # property tests
find_package(yaml-cpp REQUIRED CONFIG)
find_package(CLI11 REQUIRED CONFIG)
find_package(nlohmann_json REQUIRED CONFIG)
find_package(benchmark CONFIG)
find_library(WSYNC_FIU NAMES libfiu.a fiu REQUIRED)  # failpoints of the test daemons

# Debian's packages describe only their shared libraries to CMake; the archives lie beside them.
function(wsync_prefer_archives)
  get_property(packages DIRECTORY PROPERTY IMPORTED_TARGETS)
  foreach(package IN LISTS packages)
    get_target_property(configurations ${package} IMPORTED_CONFIGURATIONS)
    foreach(configuration IN LISTS configurations)
      get_target_property(library ${package} IMPORTED_LOCATION_${configuration})
      string(REGEX REPLACE "\\.so[.0-9]*$" ".a" archive "${library}")
      if(NOT archive STREQUAL library AND EXISTS "${archive}")
        set_target_properties(${package} PROPERTIES IMPORTED_LOCATION_${configuration} "${archive}")
      endif()
    endforeach()
  endforeach()
endfunction()
if(WSYNC_STATIC)
  wsync_prefer_archives()
  set_target_properties(re2::re2 PROPERTIES INTERFACE_LINK_LIBRARIES "-l:libre2.a")  # pkg-config gave -lre2
  add_link_options(-static-libstdc++ -static-libgcc -s)
  # Archives that need each other, in whatever order they come.
  string(REPLACE "<LINK_LIBRARIES>" "-Wl,--start-group <LINK_LIBRARIES> -Wl,--end-group" CMAKE_CXX_LINK_EXECUTABLE
    "${CMAKE_CXX_LINK_EXECUTABLE}")
endif()

# Header-only uses keep the binaries portable: no libfmt, libspdlog or libxxhash at run time.
add_library(wsync_spdlog INTERFACE)
target_compile_definitions(wsync_spdlog INTERFACE SPDLOG_FMT_EXTERNAL FMT_HEADER_ONLY)
target_link_libraries(wsync_spdlog INTERFACE Threads::Threads)
add_library(wsync_xxhash INTERFACE)
target_compile_definitions(wsync_xxhash INTERFACE XXH_INLINE_ALL)

add_library(wsync_absl INTERFACE)
target_link_libraries(wsync_absl INTERFACE absl::status absl::statusor absl::strings absl::str_format absl::time
  absl::flat_hash_map absl::flat_hash_set absl::span absl::synchronization)
