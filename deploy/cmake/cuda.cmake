# Enables the language CUDA with the nvcc that deploy/install-deps --cuda installs, or else the machine's own.
# The runtime is linked statically: the program starts without a driver, and finds no device then.
file(GLOB toolkit ${PROJECT_SOURCE_DIR}/build/cuda-toolkit/lib/python3*/site-packages/nvidia/cu13)
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(QMATMUL_NVCC nvcc HINTS ${toolkit}/bin PATHS /usr/local/cuda/bin)
  if(NOT QMATMUL_NVCC)
    message(FATAL_ERROR "QMATMUL_CUDA=ON needs nvcc: run deploy/install-deps --cuda, or say -DCMAKE_CUDA_COMPILER=<nvcc>")
  endif()
  set(CMAKE_CUDA_COMPILER ${QMATMUL_NVCC})
endif()
if(toolkit AND CMAKE_CUDA_COMPILER MATCHES "cuda-toolkit")
  # The wheels keep the static runtime where nvcc does not look.
  set(CMAKE_CUDA_FLAGS "${CMAKE_CUDA_FLAGS} -L${toolkit}/lib" CACHE STRING "Flags of nvcc" FORCE)
  link_directories(${toolkit}/lib)
endif()
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  # 80 holds PTX as well, which newer GPUs compile when they load it.
  set(CMAKE_CUDA_ARCHITECTURES "80;90a-real")
endif()
if(QMATMUL_CCACHE)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${QMATMUL_CCACHE})
endif()
enable_language(CUDA)
# nvcc 12 and newer know C++20; CMake 3.25 does not know that the newest do.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
# Numerics §2: never fused, denormals kept.
string(APPEND CMAKE_CUDA_FLAGS " -fmad=false -ftz=false -prec-div=true")
