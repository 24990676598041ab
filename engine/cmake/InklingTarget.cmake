# inkling_library(NAME SOURCES…): one library target per folder with an alias inkling::NAME and the project's
# compile settings. Warnings are errors in CI only (CI=true in the environment at configure time).

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()
find_program(INKLING_CCACHE ccache)
mark_as_advanced(INKLING_CCACHE)
if(INKLING_CCACHE AND PROJECT_IS_TOP_LEVEL)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${INKLING_CCACHE})
endif()
find_package(Threads REQUIRED)
include(GNUInstallDirs)

add_library(inkling_settings INTERFACE)
target_compile_features(inkling_settings INTERFACE cxx_std_20)
# No contraction: a*b+c becomes an FMA only where the code says so, or results would depend on the compiler's mood.
target_compile_options(inkling_settings INTERFACE
  "$<BUILD_INTERFACE:$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wshadow;-Wconversion;-Wno-missing-field-initializers;-ffp-contract=off>>"
  # g++ 12 sees an impossible overlap in std::string's operator+ (GCC bug 105651).
  $<$<COMPILE_LANG_AND_ID:CXX,GNU>:$<BUILD_INTERFACE:-Wno-restrict>>
  "$<$<COMPILE_LANGUAGE:CXX>:$<$<BOOL:$ENV{CI}>:-Werror>>")
if(INKLING_SANITIZE)
  string(REGEX REPLACE "fuzzer$" "fuzzer-no-link" INKLING_SANITIZE_COMPILE "${INKLING_SANITIZE}")
  target_compile_options(inkling_settings INTERFACE
    -fsanitize=${INKLING_SANITIZE_COMPILE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(inkling_settings INTERFACE -fsanitize=${INKLING_SANITIZE_COMPILE})
endif()

function(inkling_library name)
  add_library(inkling_${name} STATIC ${ARGN})
  add_library(inkling::${name} ALIAS inkling_${name})
  set_target_properties(inkling_${name} PROPERTIES EXPORT_NAME ${name})
  target_include_directories(inkling_${name} PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/inkling>)
  target_link_libraries(inkling_${name} PRIVATE $<BUILD_INTERFACE:inkling_settings>)
  target_compile_features(inkling_${name} PUBLIC cxx_std_20)
endfunction()

# inkling_isa_sources(TARGET STEM): adds STEM_portable.cpp and, on x86-64, STEM_avx2.cpp … with the flags of each
# instruction set. Those sources hold nothing but templates on their own vector type, so that no inline function
# compiled for AVX-512 can be picked by the linker for other code (a test looks at their symbols).
set(INKLING_FLAGS_portable "")
set(INKLING_FLAGS_avx2 -mavx2 -mfma -mf16c)
set(INKLING_FLAGS_avx512 ${INKLING_FLAGS_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl
    -mprefer-vector-width=512)
set(INKLING_FLAGS_avx512_vnni ${INKLING_FLAGS_avx512} -mavx512vnni)
set(INKLING_FLAGS_avx512_bf16 ${INKLING_FLAGS_avx512_vnni} -mavx512bf16)

# g++ 12's own AVX-512 headers trip these warnings (GCC bug 105593).
set(INKLING_QUIET_ISA -Wno-uninitialized)
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  list(APPEND INKLING_QUIET_ISA -Wno-maybe-uninitialized)
endif()

function(inkling_isa_sources target stem)
  set(isas portable)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    list(APPEND isas avx2 avx512 avx512_vnni avx512_bf16)
  endif()
  foreach(isa ${isas})
    set(source ${CMAKE_CURRENT_SOURCE_DIR}/${stem}_${isa}.cpp)
    if(EXISTS ${source})
      target_sources(${target} PRIVATE ${source})
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${INKLING_FLAGS_${isa}};-fno-math-errno;${INKLING_QUIET_ISA}")
    endif()
  endforeach()
endfunction()
