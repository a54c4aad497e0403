// The 3-bit kernels of lut_ampere.cuh.
#include "kernels/cuda/lut_ampere.cuh"

LUT_INSTANTIATE(lut_ampere, 3)
