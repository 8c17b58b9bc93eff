// BLAS and LAPACK by function pointer: the binding takes them from SciPy's cython_blas and cython_lapack
// capsules, so the library links to no BLAS and uses the one (and the threads) that SciPy uses.
// Fortran calling convention, column-major, 32-bit integers; the binding checks the capsules' signatures.
#pragma once
#include <cstddef>
#include <vector>

#include "core/aligned.h"

namespace streamcca {

struct Lapack {
  void (*dgemm)(char*, char*, int*, int*, int*, double*, double*, int*, double*, int*, double*, double*, int*);
  void (*dsyrk)(char*, char*, int*, int*, double*, double*, int*, double*, double*, int*);
  void (*dsytrd)(char*, int*, double*, int*, double*, double*, double*, double*, int*, int*);
  void (*dsterf)(int*, double*, double*, int*);
  void (*dstemr)(char*, char*, int*, double*, double*, double*, double*, int*, int*, int*, double*, double*, int*, int*, int*, int*,
                 double*, int*, int*, int*, int*);
  void (*dormtr)(char*, char*, char*, int*, int*, double*, int*, double*, double*, int*, double*, int*, int*);
  void (*dstedc)(char*, int*, double*, double*, double*, int*, double*, int*, int*, int*, int*);
  void (*dgeqrf)(int*, int*, double*, int*, double*, double*, int*, int*);
  void (*dorgqr)(int*, int*, int*, double*, int*, double*, double*, int*, int*);
  void (*dpotrf)(char*, int*, double*, int*, int*);
  void (*dgesdd)(char*, int*, int*, double*, int*, double*, double*, int*, double*, int*, double*, int*, int*, int*);
};

// Dense column-major float64 matrix that owns its entries.
struct Matrix {
  Matrix() = default;
  Matrix(std::size_t rows_, std::size_t cols_) : rows(rows_), cols(cols_), values(rows_ * cols_) {}
  double* column(std::size_t j) { return values.data() + j * rows; }
  const double* column(std::size_t j) const { return values.data() + j * rows; }

  std::size_t rows = 0;
  std::size_t cols = 0;
  AlignedArray<double> values;
};

Matrix multiply(const Lapack& lapack, const Matrix& a, const Matrix& b);             // a b
Matrix multiply_transposed(const Lapack& lapack, const Matrix& a, const Matrix& b);  // a' b
// Lower triangle of c := a a' - c, for symmetric c.
void outer_product_minus(const Lapack& lapack, const Matrix& a, Matrix* c);
double sum_of_squares(const Matrix& m);
Matrix columns_of(const Matrix& m, std::size_t first, std::size_t count);  // a copy
Matrix last_columns(Matrix m, std::size_t count);                          // in m's memory
Matrix transpose(const Matrix& m);
// diag(factors) m and m diag(factors), in place.
void scale_rows(Matrix* m, const std::vector<double>& factors);
void scale_columns(Matrix* m, const std::vector<double>& factors);

// Columns of the tall matrix m become orthonormal, by Householder reflections; returns the triangular factor r of m = q r.
Matrix orthonormalize(const Lapack& lapack, Matrix* m);
// Whether the symmetric matrix a, of which the lower triangle is read, is positive definite, as far as float64 can tell.
bool has_cholesky_factor(const Lapack& lapack, Matrix a);

// All eigenvalues of the symmetric matrix a, ascending, and what is needed to get eigenvectors.
struct Spectrum {
  Matrix reflectors;  // dsytrd's output, lower triangle
  std::vector<double> diagonal, off_diagonal, tau;
  std::vector<double> eigenvalues;  // ascending
  Matrix vectors;                   // all of the tridiagonal matrix, if they came with the eigenvalues
};
// `at_least`: how many eigenvectors will be asked for. If many, they come from divide and conquer together with the
// eigenvalues, and nothing is computed twice.
Spectrum decompose(const Lapack& lapack, Matrix a, std::size_t at_least = 0);
// Eigenvectors of the `count` largest eigenvalues, d x count, largest first; `eigenvalues` gets the values
// that belong to them.
Matrix leading_eigenvectors(const Lapack& lapack, Spectrum spectrum, std::size_t count, std::vector<double>* eigenvalues);

// Thin singular value decomposition a = u diag(s) vt.
struct Svd {
  Matrix u, vt;
  std::vector<double> s;
};
Svd thin_svd(const Lapack& lapack, Matrix a);

}  // namespace streamcca
