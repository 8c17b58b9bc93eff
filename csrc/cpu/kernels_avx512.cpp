#define STREAMCCA_LEVEL avx512
#define STREAMCCA_VECTOR_BYTES 64
#define STREAMCCA_VECTORS 3
#define STREAMCCA_SLICE 8
#include "cpu/kernels.inc"
