# Makes find_package(bda) work. bda::checkpoint has an export set of its own, so that an installed
# bda needs no JSON library unless the caller asks for that component or has it anyway.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)
set(config_dir "${CMAKE_INSTALL_LIBDIR}/cmake/bda")

install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/bda" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(TARGETS bda EXPORT bda)
install(EXPORT bda FILE bda-targets.cmake NAMESPACE bda:: DESTINATION "${config_dir}")
if(BDA_CHECKPOINT)
  install(TARGETS bda_checkpoint EXPORT bda_checkpoint)
  install(EXPORT bda_checkpoint FILE bda-checkpoint-targets.cmake NAMESPACE bda::
          DESTINATION "${config_dir}")
endif()
if(BDA_CUDA)
  install(TARGETS bda_cuda bda_cuda_backend EXPORT bda_cuda)
  install(EXPORT bda_cuda FILE bda-cuda-targets.cmake NAMESPACE bda:: DESTINATION "${config_dir}")
endif()
configure_package_config_file("${CMAKE_CURRENT_LIST_DIR}/bdaConfig.cmake.in"
                              "${PROJECT_BINARY_DIR}/bdaConfig.cmake"
                              INSTALL_DESTINATION "${config_dir}")
# Below 1.0 a minor version may break, and the headers serve any architecture.
write_basic_package_version_file("${PROJECT_BINARY_DIR}/bdaConfigVersion.cmake"
                                 COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES "${PROJECT_BINARY_DIR}/bdaConfig.cmake" "${PROJECT_BINARY_DIR}/bdaConfigVersion.cmake"
        DESTINATION "${config_dir}")
