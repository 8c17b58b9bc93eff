#define STREAMCCA_LEVEL baseline
#define STREAMCCA_VECTOR_BYTES 16
#define STREAMCCA_VECTORS 2
#define STREAMCCA_SLICE 4
#define STREAMCCA_DEPTH 256
#include "cpu/kernels.inc"
