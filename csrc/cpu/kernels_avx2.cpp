#define STREAMCCA_LEVEL avx2
#define STREAMCCA_VECTOR_BYTES 32
#define STREAMCCA_VECTORS 3
#define STREAMCCA_SLICE 4
#include "cpu/kernels.inc"
