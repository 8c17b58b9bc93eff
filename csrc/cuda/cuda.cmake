# The extension _cuda. Below the binding it needs csrc/core alone; csrc/cpu and csrc/cuda do not know each other.
set(cuda_kernels
  csrc/cuda/rows.cu
  csrc/cuda/pack.cu
  csrc/cuda/multiply_ordinary.cu
  csrc/cuda/multiply_planes.cu
  csrc/cuda/multiply_groups.cu
  csrc/cuda/multiply_doubles.cu
  csrc/cuda/read.cu)
set(cuda_host
  csrc/core/rows.cpp
  csrc/core/schedule.cpp
  csrc/core/uncertainty.cpp
  csrc/cuda/accumulator.cpp
  csrc/cuda/accumulator_memory.cpp
  csrc/cuda/accumulator_reads.cpp
  csrc/cuda/block.cpp
  csrc/cuda/tile_plan.cpp
  csrc/bind/bind_errors.cpp
  csrc/bind/cuda_arrays.cpp
  csrc/bind/cuda_module.cpp)

if(STREAMCCA_EMULATE_CUDA)
  # The same kernel sources, as C++. Unrolling is nvcc's business; the emulator never runs for users.
  set_source_files_properties(${cuda_kernels} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++;-Wno-unknown-pragmas")
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
    # Rounding of vectors; and its state, which every emulated thread looks at all the time, is one addition away.
    set_source_files_properties(csrc/cuda/emulator.cpp csrc/cuda/emulator_groups.cpp csrc/cuda/emulator_barriers.cpp csrc/cuda/emulator_numbers.cpp
      csrc/cuda/fibers.cpp PROPERTIES COMPILE_OPTIONS "-march=native;-ftls-model=initial-exec")
  endif()
  pybind11_add_module(_cuda NO_EXTRAS ${cuda_kernels} ${cuda_host}
    csrc/cuda/emulator.cpp csrc/cuda/emulator_groups.cpp csrc/cuda/emulator_barriers.cpp csrc/cuda/emulator_numbers.cpp
    csrc/cuda/fibers.cpp csrc/cuda/runtime_emulated.cpp)
  target_link_libraries(_cuda PRIVATE streamcca_flags)
  streamcca_hide_archives(_cuda)
  install(TARGETS _cuda LIBRARY DESTINATION streamcca)
  return()
endif()

if(STREAMCCA_CUDA STREQUAL "OFF")
  return()
endif()
include(CheckLanguage)
check_language(CUDA)  # compiles something, so a broken nvcc is none
if(NOT CMAKE_CUDA_COMPILER)
  if(STREAMCCA_CUDA STREQUAL "ON")
    message(FATAL_ERROR "STREAMCCA_CUDA=ON, but no working nvcc was found; put it on PATH or set CUDACXX, or use AUTO or OFF")
  endif()
  message(STATUS "streamcca: no working nvcc, so no CUDA kernels")
  return()
endif()

# Ampere and Hopper data-center cards as machine code; newer cards compile the PTX when it is first used.
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 80-virtual)
endif()
if("${CMAKE_CUDA_ARCHITECTURES}" MATCHES "90a")
  set_source_files_properties(csrc/cuda/runtime.cpp PROPERTIES COMPILE_DEFINITIONS STREAMCCA_WARP_GROUPS)
endif()
set(CMAKE_CUDA_STANDARD 17)  # CMake 3.25 does not know that nvcc 13 has C++20
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
find_package(CUDAToolkit QUIET)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.0 OR NOT TARGET CUDA::cudart_static)  # 12.0: sm_90a
  if(STREAMCCA_CUDA STREQUAL "ON")
    message(FATAL_ERROR "STREAMCCA_CUDA=ON, but nvcc is ${CMAKE_CUDA_COMPILER_VERSION} (12.0 or newer is needed) or came without "
      "libcudart_static.a; install a newer toolkit with the runtime's development files")
  endif()
  message(STATUS "streamcca: nvcc is older than 12.0 or has no static runtime, so no CUDA kernels")
  return()
endif()

pybind11_add_module(_cuda NO_EXTRAS ${cuda_kernels} ${cuda_host} csrc/cuda/runtime.cpp)
target_include_directories(_cuda PRIVATE csrc)
target_link_libraries(_cuda PRIVATE CUDA::cudart_static)
streamcca_hide_archives(_cuda)
target_compile_options(_cuda PRIVATE
  $<$<COMPILE_LANGUAGE:CXX>:-O3 -Wall -Wextra -Wconversion -Wshadow>
  $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<BOOL:${STREAMCCA_WERROR}>>:-Werror>
  $<$<COMPILE_LANGUAGE:CUDA>:-O3 --expt-relaxed-constexpr -Xptxas=-v -Xcompiler=-Wall,-Wextra,-Wconversion,-Wshadow>
  $<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${STREAMCCA_WERROR}>>:-Werror=all-warnings -Xcompiler=-Werror>)
set_target_properties(_cuda PROPERTIES CUDA_VISIBILITY_PRESET hidden)
install(TARGETS _cuda LIBRARY DESTINATION streamcca)
