#define STREAMCCA_LEVEL avx512_bf16
#define STREAMCCA_VECTOR_BYTES 64
#define STREAMCCA_VECTORS 3
#define STREAMCCA_SLICE 8
#define STREAMCCA_NARROW
#include "cpu/kernels.inc"
