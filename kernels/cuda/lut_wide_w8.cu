// The 8-bit kernels of lut_wide.cuh.
#include "kernels/cuda/lut_wide.cuh"

LUT_INSTANTIATE(lut_wide, 8)
