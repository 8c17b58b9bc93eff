#include "linalg/lapack.h"

#include <algorithm>
#include <climits>
#include <numeric>
#include <string>

#include "core/error.h"

namespace streamcca {
namespace {

int lapack_int(std::size_t n) {
  if (n > static_cast<std::size_t>(INT_MAX)) {
    throw Error(ErrorKind::numeric, "a matrix dimension of " + std::to_string(n) + " exceeds the 32-bit integers of SciPy's LAPACK");
  }
  return static_cast<int>(n);
}

// The size that a workspace query answered. LAPACK computes it in 32 bits, so `need` says what it really takes.
int workspace(const char* routine, double answer, double need) {
  if (need > INT_MAX || answer < 1 || answer > INT_MAX) {
    throw Error(ErrorKind::numeric, std::string("LAPACK ") + routine +
                                        " would need a workspace beyond its 32-bit integers; truncate the views to fewer directions, or "
                                        "leave neurons out");
  }
  return static_cast<int>(answer);
}

double square(std::size_t n) { return static_cast<double>(n) * static_cast<double>(n); }

void check(const char* routine, int info) {
  if (info != 0) {
    throw Error(ErrorKind::numeric, std::string("LAPACK ") + routine + " failed with info = " + std::to_string(info) +
                                        "; the moments may hold values that are not finite");
  }
}

// d x count, columns in the order largest eigenvalue first, from ascending columns.
void reverse_columns(Matrix* m) {
  for (std::size_t i = 0, j = m->cols; i + 1 < j--; ++i) std::swap_ranges(m->column(i), m->column(i) + m->rows, m->column(j));
}

Matrix product(const Lapack& lapack, char transpose_a, const Matrix& a, const Matrix& b, std::size_t rows, std::size_t inner) {
  Matrix c(rows, b.cols);
  if (c.values.empty() || inner == 0) return c;
  char plain = 'N';
  int m = lapack_int(rows), n = lapack_int(b.cols), k = lapack_int(inner), lda = lapack_int(a.rows), ldb = lapack_int(b.rows);
  double one = 1, zero = 0;
  lapack.dgemm(&transpose_a, &plain, &m, &n, &k, &one, const_cast<double*>(a.values.data()), &lda, const_cast<double*>(b.values.data()),
               &ldb, &zero, c.values.data(), &m);
  return c;
}

// Divide and conquer works on all d eigenvectors at once, in d^2 doubles that LAPACK counts in 32 bits.
bool fits_divide_and_conquer(std::size_t d) { return square(d) + 4 * static_cast<double>(d) + 1 <= INT_MAX; }

// All eigenvalues and eigenvectors of the tridiagonal matrix, ascending, by divide and conquer.
// The fastest for many: 0.04 s where dstemr takes 0.18 s (d = 1024, 870 wanted).
void divide_and_conquer(const Lapack& lapack, Spectrum* t) {
  const std::size_t d = t->diagonal.size();
  t->vectors = Matrix(d, d);
  t->eigenvalues = t->diagonal;
  std::vector<double> off = t->off_diagonal;
  int n = lapack_int(d), info = 0, work_size = -1, int_work_size = -1, int_work_query = 0;
  double work_query = 0;
  char job = 'I';
  double* values = t->eigenvalues.data();
  double* vectors = t->vectors.values.data();
  lapack.dstedc(&job, &n, values, off.data(), vectors, &n, &work_query, &work_size, &int_work_query, &int_work_size, &info);
  work_size = workspace("dstedc", work_query, square(d) + 4 * static_cast<double>(d) + 1);
  int_work_size = workspace("dstedc", int_work_query, 5 * static_cast<double>(d) + 3);
  AlignedArray<double> work(static_cast<std::size_t>(work_size));
  std::vector<int> int_work(static_cast<std::size_t>(int_work_size));
  lapack.dstedc(&job, &n, values, off.data(), vectors, &n, work.data(), &work_size, int_work.data(), &int_work_size, &info);
  check("dstedc", info);
}

// Eigenvectors for the `count` largest eigenvalues by relatively robust representations, whose cost grows with count; false
// if they fail.
bool representations(const Lapack& lapack, const Spectrum& t, std::size_t count, Matrix* z, std::vector<double>* ascending) {
  const std::size_t d = t.diagonal.size();
  *z = Matrix(d, count);
  int n = lapack_int(d), columns = lapack_int(z->cols), lowest = n - columns + 1, highest = n, found = 0, try_accurate = 1;
  int info = 0, work_size = lapack_int(18 * d), int_work_size = lapack_int(10 * d);
  double unused = 0;
  char job = 'V', range = 'I';
  std::vector<double> diagonal = t.diagonal, off = t.off_diagonal, work(18 * d);
  std::vector<int> support(2 * z->cols), int_work(10 * d);
  ascending->resize(d);
  lapack.dstemr(&job, &range, &n, diagonal.data(), off.data(), &unused, &unused, &lowest, &highest, &found, ascending->data(),
                z->values.data(), &n, &columns, support.data(), &try_accurate, work.data(), &work_size, int_work.data(), &int_work_size,
                &info);
  ascending->resize(z->cols);
  return info == 0 && found == columns;
}

// From the tridiagonal basis back to that of the matrix, in place.
void back_transform(const Lapack& lapack, const Spectrum& t, Matrix* z) {
  char side = 'L', uplo = 'L', plain = 'N';
  int n = lapack_int(z->rows), columns = lapack_int(z->cols), work_size = -1, info = 0;
  double work_query = 0;
  auto* reflectors = const_cast<double*>(t.reflectors.values.data());
  auto* tau = const_cast<double*>(t.tau.data());
  lapack.dormtr(&side, &uplo, &plain, &n, &columns, reflectors, &n, tau, z->values.data(), &n, &work_query, &work_size, &info);
  work_size = workspace("dormtr", work_query, 0);
  std::vector<double> work(static_cast<std::size_t>(work_size));
  lapack.dormtr(&side, &uplo, &plain, &n, &columns, reflectors, &n, tau, z->values.data(), &n, work.data(), &work_size, &info);
  check("dormtr", info);
}

// Both algorithms take equally long at about this part of all eigenvectors (d = 256 to 2048).
constexpr std::size_t kManyFrom = 8;  // d / 8

bool better_all(std::size_t count, std::size_t d) { return count * kManyFrom >= d && fits_divide_and_conquer(d); }

}  // namespace

Matrix multiply(const Lapack& lapack, const Matrix& a, const Matrix& b) { return product(lapack, 'N', a, b, a.rows, a.cols); }

Matrix multiply_transposed(const Lapack& lapack, const Matrix& a, const Matrix& b) { return product(lapack, 'T', a, b, a.cols, a.rows); }

void outer_product_minus(const Lapack& lapack, const Matrix& a, Matrix* c) {
  char uplo = 'L', plain = 'N';
  int n = lapack_int(a.rows), k = lapack_int(a.cols);
  double one = 1, minus_one = -1;
  lapack.dsyrk(&uplo, &plain, &n, &k, &one, const_cast<double*>(a.values.data()), &n, &minus_one, c->values.data(), &n);
}

// In eight chains: one would wait for each addition.
double sum_of_squares(const Matrix& m) {
  double sums[8] = {};
  for (std::size_t i = 0; i < m.values.size(); ++i) sums[i % 8] += m.values[i] * m.values[i];
  return std::accumulate(sums, sums + 8, 0.0);
}

Matrix columns_of(const Matrix& m, std::size_t first, std::size_t count) {
  Matrix part(m.rows, count);
  std::copy_n(m.column(first), count * m.rows, part.values.begin());
  return part;
}

Matrix last_columns(Matrix m, std::size_t count) {
  std::copy_n(m.column(m.cols - count), count * m.rows, m.values.begin());
  m.values.resize(count * m.rows);
  m.cols = count;
  return m;
}

Matrix transpose(const Matrix& m) {
  Matrix t(m.cols, m.rows);
  for (std::size_t j = 0; j < m.cols; ++j) {
    for (std::size_t i = 0; i < m.rows; ++i) t.column(i)[j] = m.column(j)[i];
  }
  return t;
}

void scale_rows(Matrix* m, const std::vector<double>& factors) {
  for (std::size_t j = 0; j < m->cols; ++j) {
    for (std::size_t i = 0; i < m->rows; ++i) m->column(j)[i] *= factors[i];
  }
}

void scale_columns(Matrix* m, const std::vector<double>& factors) {
  for (std::size_t j = 0; j < m->cols; ++j) {
    for (std::size_t i = 0; i < m->rows; ++i) m->column(j)[i] *= factors[j];
  }
}

Matrix orthonormalize(const Lapack& lapack, Matrix* m) {
  int rows = lapack_int(m->rows), cols = lapack_int(m->cols), info = 0, work_size = lapack_int(64 * m->cols);
  std::vector<double> tau(m->cols), work(64 * m->cols);
  lapack.dgeqrf(&rows, &cols, m->values.data(), &rows, tau.data(), work.data(), &work_size, &info);
  check("dgeqrf", info);
  Matrix r(m->cols, m->cols);
  for (std::size_t j = 0; j < m->cols; ++j) std::copy_n(m->column(j), j + 1, r.column(j));
  lapack.dorgqr(&rows, &cols, &cols, m->values.data(), &rows, tau.data(), work.data(), &work_size, &info);
  check("dorgqr", info);
  return r;
}

bool has_cholesky_factor(const Lapack& lapack, Matrix a) {
  char uplo = 'L';
  int n = lapack_int(a.rows), info = 0;
  lapack.dpotrf(&uplo, &n, a.values.data(), &n, &info);
  return info == 0;
}

Spectrum decompose(const Lapack& lapack, Matrix a, std::size_t at_least) {
  Spectrum t;
  int n = lapack_int(a.rows), info = 0, work_size = -1;
  char uplo = 'L';
  t.diagonal.resize(a.rows);
  t.off_diagonal.resize(a.rows);
  t.tau.resize(a.rows);
  double work_query = 0;
  lapack.dsytrd(&uplo, &n, a.values.data(), &n, t.diagonal.data(), t.off_diagonal.data(), t.tau.data(), &work_query, &work_size, &info);
  work_size = workspace("dsytrd", work_query, 0);
  std::vector<double> work(static_cast<std::size_t>(work_size));
  lapack.dsytrd(&uplo, &n, a.values.data(), &n, t.diagonal.data(), t.off_diagonal.data(), t.tau.data(), work.data(), &work_size, &info);
  check("dsytrd", info);
  t.reflectors = std::move(a);
  if (better_all(at_least, t.reflectors.rows)) {
    divide_and_conquer(lapack, &t);
    return t;
  }
  t.eigenvalues = t.diagonal;
  std::vector<double> off = t.off_diagonal;
  lapack.dsterf(&n, t.eigenvalues.data(), off.data(), &info);
  check("dsterf", info);
  return t;
}

Matrix leading_eigenvectors(const Lapack& lapack, Spectrum t, std::size_t count, std::vector<double>* eigenvalues) {
  const std::size_t d = t.diagonal.size();
  Matrix z(d, 0);
  eigenvalues->clear();
  if (count == 0) return z;
  if (t.vectors.cols || better_all(count, d) || !representations(lapack, t, count, &z, eigenvalues)) {
    if (!t.vectors.cols) divide_and_conquer(lapack, &t);
    eigenvalues->assign(t.eigenvalues.end() - static_cast<std::ptrdiff_t>(count), t.eigenvalues.end());
    z = last_columns(std::move(t.vectors), count);
  }
  back_transform(lapack, t, &z);
  reverse_columns(&z);
  std::reverse(eigenvalues->begin(), eigenvalues->end());
  return z;
}

Svd thin_svd(const Lapack& lapack, Matrix a) {
  const std::size_t rank = std::min(a.rows, a.cols);
  Svd result{Matrix(a.rows, rank), Matrix(rank, a.cols), std::vector<double>(rank)};
  if (rank == 0) return result;
  int m = lapack_int(a.rows), n = lapack_int(a.cols), r = lapack_int(rank), info = 0, work_size = -1;
  char job = 'S';
  double work_query = 0;
  std::vector<int> int_work(8 * rank);
  lapack.dgesdd(&job, &m, &n, a.values.data(), &m, result.s.data(), result.u.values.data(), &m, result.vt.values.data(), &r, &work_query,
                &work_size, int_work.data(), &info);
  // 3 r^2 + 7 r by its documentation; the blocked reductions before it take 64 columns more.
  const double longer = static_cast<double>(std::max(a.rows, a.cols));
  work_size = workspace("dgesdd", work_query, 4 * square(rank) + 7 * static_cast<double>(rank) + 64 * longer);
  std::vector<double> work(static_cast<std::size_t>(work_size));
  lapack.dgesdd(&job, &m, &n, a.values.data(), &m, result.s.data(), result.u.values.data(), &m, result.vt.values.data(), &r, work.data(),
                &work_size, int_work.data(), &info);
  check("dgesdd", info);
  return result;
}

}  // namespace streamcca
