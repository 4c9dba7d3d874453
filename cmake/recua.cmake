# How every folder of src/ is built: recua_library() for its code, recua_test() for its tests.

add_library(recua_flags INTERFACE)
target_compile_options(recua_flags INTERFACE -Wall -Wextra -Wshadow -Wconversion -Werror
                       # A row's result must not depend on how the compiler fuses (docs/architecture.md).
                       -ffp-contract=off -fno-omit-frame-pointer)
target_include_directories(recua_flags INTERFACE ${CMAKE_SOURCE_DIR}/src)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # g++ 12 reports these two in its own library's inlined code.
  target_compile_options(recua_flags INTERFACE -Wno-restrict -Wno-maybe-uninitialized)
endif()
if(RECUA_SANITIZE)
  target_compile_options(recua_flags INTERFACE -fsanitize=${RECUA_SANITIZE})
  target_link_options(recua_flags INTERFACE -fsanitize=${RECUA_SANITIZE})
  if(RECUA_SANITIZE MATCHES "undefined")
    target_compile_options(recua_flags INTERFACE -fno-sanitize-recover=all)
  endif()
endif()

# For what is compiled far more often than it runs: tests, and folders that wait more than they compute. Half of
# the time that a sanitizer's tree takes goes into optimizing coroutines. SANITIZED: only there.
function(recua_compile_quickly target)
  cmake_parse_arguments(ARG "SANITIZED" "" "" ${ARGN})
  if(RECUA_SANITIZE)
    target_compile_options(${target} PRIVATE -O0)
  elseif(CMAKE_BUILD_TYPE STREQUAL "Release" AND NOT ARG_SANITIZED)
    target_compile_options(${target} PRIVATE -O1)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      # It then mistakes the frames of coroutines for memory of the global operator new.
      target_compile_options(${target} PRIVATE -Wno-mismatched-new-delete)
    endif()
  endif()
endfunction()

# recua_library(name SOURCES a.cc ... DEPS other folders or imported targets ...)
function(recua_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  if(ARG_SOURCES)
    add_library(recua_${name} STATIC ${ARG_SOURCES})
    target_link_libraries(recua_${name} PUBLIC recua_flags ${ARG_DEPS})
  else()
    add_library(recua_${name} INTERFACE)
    target_link_libraries(recua_${name} INTERFACE recua_flags ${ARG_DEPS})
  endif()
endfunction()

# recua_test(name SOURCES a_test.cc ... DEPS ...): one GoogleTest program, found by ctest case by case.
# Tests read golden files through RECUA_GOLDEN_DIR and optional ones through RECUA_SHARED_DATA.
function(recua_test name)
  if(NOT RECUA_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE recua_flags ${ARG_DEPS} GTest::gtest GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE
    RECUA_GOLDEN_DIR="${CMAKE_SOURCE_DIR}/tests/golden"
    RECUA_SHARED_DATA="${CMAKE_SOURCE_DIR}/../shared/data"
    RECUA_BINARY="${CMAKE_BINARY_DIR}/bin/recua")
  recua_compile_quickly(${name})
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES TIMEOUT 600)
endfunction()
