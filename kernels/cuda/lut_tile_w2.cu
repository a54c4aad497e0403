// The 2-bit kernels of lut_tile.cuh.
#include "kernels/cuda/lut_tile.cuh"

LUT_INSTANTIATE(lut_tile, 2)
