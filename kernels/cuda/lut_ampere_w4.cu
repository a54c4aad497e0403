// The 4-bit kernels of lut_ampere.cuh.
#include "kernels/cuda/lut_ampere.cuh"

LUT_INSTANTIATE(lut_ampere, 4)
