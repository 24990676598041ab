# cmake --install: libraries, headers under include/inkling in the folders of the source, a CMake package, a pkg-config
# file, the program and the sample model. tests/consumer uses what is installed.
include(CMakePackageConfigHelpers)

set(folders engine attention weights tokenizer model)
install(TARGETS inkling_base inkling_engine inkling_attention inkling_weights inkling_tokenizer inkling_model
        EXPORT inklingTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(TARGETS inkling RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
foreach(folder ${folders})
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/${folder} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/inkling
          FILES_MATCHING PATTERN "*.h" PATTERN cpu/simd EXCLUDE PATTERN sample EXCLUDE PATTERN cmake EXCLUDE)
endforeach()
install(DIRECTORY ${PROJECT_SOURCE_DIR}/weights/sample DESTINATION ${CMAKE_INSTALL_DATADIR}/inkling)

set(config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/inkling)
install(EXPORT inklingTargets NAMESPACE inkling:: DESTINATION ${config_dir})
file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/inklingConfig.cmake
"include(CMakeFindDependencyMacro)
find_dependency(Threads)
find_dependency(spdlog)
find_dependency(OpenSSL)
if(${INKLING_CUDA_FOUND})
  find_dependency(CUDAToolkit)
endif()
if(${INKLING_MPI})
  find_dependency(MPI COMPONENTS C)
endif()
include(\${CMAKE_CURRENT_LIST_DIR}/inklingTargets.cmake)
")
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/inklingConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/inklingConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/inklingConfigVersion.cmake
        DESTINATION ${config_dir})

set(cuda_libraries "")
if(INKLING_CUDA_FOUND)
  set(cuda_libraries " -L${CUDAToolkit_LIBRARY_DIR} -lcudart_static -ldl -lrt")
endif()
set(mpi_libraries "")
if(INKLING_MPI)
  find_package(MPI REQUIRED COMPONENTS C)  # model/ has found it, in its own scope
  list(JOIN MPI_C_LIBRARIES " " mpi_libraries)
  string(STRIP " ${MPI_C_LINK_FLAGS} ${mpi_libraries}" mpi_libraries)
  string(PREPEND mpi_libraries " ")
endif()
file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/inkling.pc
"prefix=${CMAKE_INSTALL_PREFIX}
Name: inkling
Description: ${PROJECT_DESCRIPTION}
Version: ${PROJECT_VERSION}
Requires.private: spdlog libcrypto libpcre2-8 sentencepiece
Cflags: -I\${prefix}/${CMAKE_INSTALL_INCLUDEDIR}/inkling
Libs: -L\${prefix}/${CMAKE_INSTALL_LIBDIR} -linkling_model -linkling_attention -linkling_weights -linkling_tokenizer -linkling_engine -linkling_base${cuda_libraries}${mpi_libraries} -pthread
")
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/inkling.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
