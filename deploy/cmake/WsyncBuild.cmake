# How every target of wsync is compiled: one place for flags, include root and test labels.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin")
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
# -O2: the inner loops ask for more themselves (kernels/), and everything else would only compile longer.
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -DNDEBUG")
find_program(WSYNC_CCACHE ccache)
if(WSYNC_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${WSYNC_CCACHE}")
endif()

# Flags for our own code; generated code takes only the sanitizers (wsync_sanitize).
add_library(wsync_flags INTERFACE)
target_compile_options(wsync_flags INTERFACE -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Wno-missing-field-initializers)
if(WSYNC_WERROR)
  target_compile_options(wsync_flags INTERFACE -Werror)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  target_compile_options(wsync_flags INTERFACE -Wthread-safety)
endif()
# IEEE arithmetic is part of the wire contract: no contraction into fused multiply-add.
target_compile_options(wsync_flags INTERFACE -ffp-contract=off)
target_include_directories(wsync_flags INTERFACE "${PROJECT_SOURCE_DIR}")
target_compile_definitions(wsync_flags INTERFACE WSYNC_VERSION="${PROJECT_VERSION}")

if(WSYNC_SANITIZE)
  # -O1: gRPC's headers take 26 s a file at -O2 under ASan and UBSan, 15 s so, and the tests run as fast. By clang -O0 is
  # half as long again, and only the loops that weights go through are too slow for it.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O0 -g1")
  else()
    set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O1 -g1")
  endif()
  add_compile_options(-fsanitize=${WSYNC_SANITIZE} -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${WSYNC_SANITIZE})
  if(WSYNC_SANITIZE MATCHES "undefined")
    add_compile_options(-fno-sanitize-recover=undefined)
  endif()
endif()

# wsync_library(name SOURCES a.cc b.cc DEPS x y): one static library per folder; headers are included from the root.
function(wsync_library name)
  cmake_parse_arguments(A "" "" "SOURCES;DEPS" ${ARGN})
  add_library(${name} STATIC ${A_SOURCES})
  target_link_libraries(${name} PUBLIC ${A_DEPS} PRIVATE wsync_flags)
  target_include_directories(${name} PUBLIC "${PROJECT_SOURCE_DIR}")
endfunction()

function(wsync_executable name)
  cmake_parse_arguments(A "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${A_SOURCES})
  target_link_libraries(${name} PRIVATE ${A_DEPS} wsync_flags)
endfunction()

# wsync_test(name_test LABEL unit SOURCES name_test.cc DEPS x [TIMEOUT 60] [RUNNER r.sh] [DATA]): one ctest entry per
# binary. The label may be a list; all tests of a label are built by the target wsync_tests_<label>. RUNNER is a command
# that is given the binary. DATA defines WSYNC_TEST_DATA, for those that read tests/data (no other compile line names the
# checkout's path, so checkouts can share a ccache).
function(wsync_test name)
  cmake_parse_arguments(PARSE_ARGV 1 A "DATA" "LABEL;TIMEOUT;RUNNER" "SOURCES;DEPS;ARGS")
  add_executable(${name} ${A_SOURCES})
  target_link_libraries(${name} PRIVATE ${A_DEPS} GTest::gmock GTest::gtest GTest::gtest_main wsync_flags)
  if(A_DATA)
    target_compile_definitions(${name} PRIVATE WSYNC_TEST_DATA="${PROJECT_SOURCE_DIR}/tests/data")
  endif()
  add_test(NAME ${name} COMMAND ${A_RUNNER} $<TARGET_FILE:${name}> ${A_ARGS})
  foreach(label IN LISTS A_LABEL)
    if(NOT TARGET wsync_tests_${label})
      add_custom_target(wsync_tests_${label})
    endif()
    add_dependencies(wsync_tests_${label} ${name})
  endforeach()
  if(NOT A_TIMEOUT)
    set(A_TIMEOUT 120)
  endif()
  set_tests_properties(${name} PROPERTIES LABELS "${A_LABEL}" TIMEOUT ${A_TIMEOUT}
    ENVIRONMENT "TSAN_OPTIONS=suppressions=${PROJECT_SOURCE_DIR}/tests/tsan.supp:halt_on_error=1;UBSAN_OPTIONS=print_stacktrace=1")
endfunction()

# For SKIP_REGULAR_EXPRESSION: a gtest program of which nothing ran. CTest takes what matches for skipped whatever the
# exit code, so a pattern of the reason's words would hide what failed beside a skipped test, or with such words.
set(WSYNC_NOTHING_RAN
  "\\[  PASSED  \\] 0 tests\\.\n\\[  SKIPPED \\] [0-9]+ tests?, listed below:\n(\\[  SKIPPED \\] [^\n]*\n)*$")
