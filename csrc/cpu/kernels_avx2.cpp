#define STREAMCCA_LEVEL avx2
#define STREAMCCA_VECTOR_BYTES 32
#define STREAMCCA_VECTORS 3
#define STREAMCCA_SLICE 4
// Blocks of 128 rows: with 256, a panel of 24 columns (two lines a row, 32 KB) leaves no room in first-level caches of that size.
#define STREAMCCA_DEPTH 128
#include "cpu/kernels.inc"
