// The 2-bit kernels of lut_gemv.cuh.
#include "kernels/cuda/lut_gemv.cuh"

LUT_INSTANTIATE(lut_gemv, 2)
