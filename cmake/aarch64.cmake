# Toolchain: built on Debian 12 for 64-bit Arm Linux, tests run by qemu-user. scripts/setup-aarch64 makes the sysroot.

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc-12)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++-12)

# The compiler brings the libraries of C and C++ (which qemu finds below /usr/aarch64-linux-gnu) and keeps its own
# idea of where headers are, so this is no --sysroot: all else comes from here, and programs from the host.
get_filename_component(RECUA_AARCH64_SYSROOT "${CMAKE_CURRENT_LIST_DIR}/../build/aarch64-sysroot" ABSOLUTE)
set(CMAKE_FIND_ROOT_PATH ${RECUA_AARCH64_SYSROOT})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)
set(ENV{PKG_CONFIG_SYSROOT_DIR} ${RECUA_AARCH64_SYSROOT})
set(ENV{PKG_CONFIG_LIBDIR}
  ${RECUA_AARCH64_SYSROOT}/usr/lib/aarch64-linux-gnu/pkgconfig:${RECUA_AARCH64_SYSROOT}/usr/share/pkgconfig)
# Headers that differ between architectures have a folder of their own.
set(CMAKE_CXX_STANDARD_INCLUDE_DIRECTORIES
  ${RECUA_AARCH64_SYSROOT}/usr/include/aarch64-linux-gnu ${RECUA_AARCH64_SYSROOT}/usr/include)
set(CMAKE_C_STANDARD_INCLUDE_DIRECTORIES ${CMAKE_CXX_STANDARD_INCLUDE_DIRECTORIES})
# What libraries need in turn, for the linker and for whoever runs a program (a RUNPATH would not do for those).
set(CMAKE_EXE_LINKER_FLAGS_INIT
  "-Wl,-rpath-link,${RECUA_AARCH64_SYSROOT}/usr/lib/aarch64-linux-gnu -Wl,--disable-new-dtags")

# Which CPU qemu is: the environment variable QEMU_CPU.
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64-static;-L;/usr/aarch64-linux-gnu)
