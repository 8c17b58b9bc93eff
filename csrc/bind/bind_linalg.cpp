#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <memory>
#include <optional>
#include <string>

#include "bind/arrays.h"
#include "bind/module.h"
#include "bind/operands.h"
#include "core/error.h"
#include "linalg/cca.h"
#include "linalg/truncate.h"

namespace streamcca {
namespace {

std::optional<Lapack> loaded;

const Lapack& lapack() {
  if (!loaded) throw Error(ErrorKind::numeric, "LAPACK is not loaded; use streamcca._backend, which loads it");
  return *loaded;
}

// "void (char *, int *, d *)" -> "cid": one letter an argument. Anything but plain int for integers (an
// ILP64 build, say) gives '?', which no expected signature contains.
std::string signature_letters(const std::string& name) {
  std::string letters;
  std::size_t begin = name.find('(') + 1;
  while (begin < name.size()) {
    const std::size_t end = std::min(name.find(", ", begin), name.find(')', begin));
    const std::string argument = name.substr(begin, end - begin);
    const bool is_double = argument == "double *" || (argument.size() > 4 && argument.substr(argument.size() - 4) == "_d *");
    letters += argument == "char *" ? 'c' : argument == "int *" ? 'i' : is_double ? 'd' : '?';
    if (end >= name.size() || name[end] == ')') break;
    begin = end + 2;
  }
  return letters;
}

template <class Function>
void take(const py::dict& capsules, const char* routine, const std::string& expected, Function* function) {
  const auto capsule = capsules[routine].cast<py::capsule>();
  const std::string name = capsule.name();
  if (signature_letters(name) != expected) {
    throw Error(ErrorKind::numeric, std::string("SciPy's ") + routine + " has signature " + name +
                                        ", expected 32-bit integers and float64; install a standard build of SciPy");
  }
  *function = reinterpret_cast<Function>(capsule.get_pointer());
}

void load_lapack(const py::dict& capsules) {
  Lapack l{};
  take(capsules, "dgemm", "cciiiddididdi", &l.dgemm);
  take(capsules, "dsyrk", "cciiddiddi", &l.dsyrk);
  take(capsules, "dsytrd", "cididdddii", &l.dsytrd);
  take(capsules, "dsterf", "iddi", &l.dsterf);
  take(capsules, "dstemr", "cciddddiiiddiiiidiiii", &l.dstemr);
  take(capsules, "dormtr", "ccciididdidii", &l.dormtr);
  take(capsules, "dstedc", "cidddidiiii", &l.dstedc);
  take(capsules, "dgeqrf", "iididdii", &l.dgeqrf);
  take(capsules, "dorgqr", "iiididdii", &l.dorgqr);
  take(capsules, "dpotrf", "cidii", &l.dpotrf);
  take(capsules, "dgesdd", "ciididdididiii", &l.dgesdd);
  loaded = l;
}

RuleKind parse_rule(const std::string& name) {
  if (name == "variance") return RuleKind::variance;
  if (name == "nuclear") return RuleKind::nuclear;
  if (name == "rank") return RuleKind::rank;
  if (name == "full") return RuleKind::full;
  throw Error(ErrorKind::value, "rule: got '" + name + "', expected 'variance', 'nuclear', 'rank' or 'full'");
}

// Shapes are the package's own business; a wrong one is a defect in it, and must not read past an end.
void check_shape(bool fits, const char* what) {
  if (!fits) throw Error(ErrorKind::value, std::string(what) + ": shapes do not fit together");
}

TruncatedView truncate_array(const DoubleArray& covariance, double relative, double rows, const DoubleArray& raw, const std::string& rule,
                             double value, double ridge) {
  check_shape(covariance.ndim() == 2 && covariance.shape(0) == covariance.shape(1) && raw.size() == covariance.shape(0), "truncate");
  DenseSymmetric c(lapack(), to_matrix(covariance));
  std::vector<double> diagonal;
  for (py::ssize_t i = 0; i < covariance.shape(0); ++i) diagonal.push_back(covariance.at(i, i));
  const Rule parsed{parse_rule(rule), value};
  CovarianceError error{relative, rows, to_vector(raw)};
  const py::gil_scoped_release release;
  return truncate(lapack(), &c, std::move(diagonal), std::move(error), parsed, ridge);
}

// The same of a covariance that lies elsewhere: see operands.h.
TruncatedView truncate_operand(const py::object& covariance, const DoubleArray& diagonal, double relative, double rows,
                               const DoubleArray& raw, const std::string& rule, double value, double ridge) {
  check_shape(raw.size() == diagonal.size(), "truncate");
  SymmetricOperand c(covariance, static_cast<std::size_t>(diagonal.size()));
  const Rule parsed{parse_rule(rule), value};
  CovarianceError error{relative, rows, to_vector(raw)};
  std::vector<double> variances = to_vector(diagonal);
  const py::gil_scoped_release release;
  return truncate(lapack(), &c, std::move(variances), std::move(error), parsed, ridge);
}

// `kept`: `cross` is the kx x ky covariance of projections, not the dx x dy one of the neurons.
Canonical correlate_views(const TruncatedView& x, const TruncatedView& y, const DoubleArray& cross, bool kept) {
  const auto size = [kept](const TruncatedView& v) { return static_cast<py::ssize_t>(kept ? v.rank : v.width); };
  check_shape(cross.ndim() == 2 && cross.shape(0) == size(x) && cross.shape(1) == size(y), "canonical");
  Matrix matrix = to_matrix(cross);
  const py::gil_scoped_release release;
  if (kept) return canonical_kept(lapack(), x, y, std::move(matrix));
  return canonical(lapack(), x, y, std::make_shared<DenseCross>(lapack(), std::move(matrix)));
}

Canonical correlate_operand(const TruncatedView& x, const TruncatedView& y, const py::object& cross) {
  auto operand = std::make_shared<CrossOperand>(cross);
  const py::gil_scoped_release release;
  return canonical(lapack(), x, y, std::move(operand));
}

// `side` "" weighs all correlations alike (CCA, SVCCA); "x" or "y" by projection (PWCCA).
py::dict compare_views(const TruncatedView& x, const TruncatedView& y, const Canonical& found, const std::string& side) {
  const Variates& v = found.variates;
  check_shape(
      v.x_weights.rows == x.width && v.y_weights.rows == y.width && v.x_coordinates.rows == x.rank && v.y_coordinates.rows == y.rank,
      "compare");
  const MeanOver mean_over = side == "x" ? MeanOver::projection_x : side == "y" ? MeanOver::projection_y : MeanOver::correlations;
  Comparison c;
  {
    const py::gil_scoped_release release;
    c = compare(lapack(), x, y, found, mean_over);
  }
  const auto m = static_cast<py::ssize_t>(c.correlations.size());
  py::dict result;
  result["mean"] = c.mean;
  result["mean_error_bound"] = c.mean_error_bound;
  result["shares_error_bound"] = c.shares_error_bound;
  result["correlations"] = to_array(std::move(c.correlations), {m});
  result["correlation_error_bounds"] = to_array(std::move(c.correlation_error_bounds), {m});
  result["shares"] = to_array(std::move(c.shares), {m});
  result["x_weights"] = to_array(std::move(c.x_weights));
  result["y_weights"] = to_array(std::move(c.y_weights));
  return result;
}

// Every field, for files of truncated views.
py::dict save_view(const TruncatedView& v) {
  const auto array = [](std::vector<double> values) {
    const auto size = static_cast<py::ssize_t>(values.size());
    return to_array(std::move(values), {size});
  };
  py::dict d;
  d["width"] = v.width, d["live"] = v.live, d["rank"] = v.rank, d["numerical_rank"] = v.numerical_rank;
  d["lowest_rank"] = v.lowest_rank, d["highest_rank"] = v.highest_rank;
  d["unit"] = v.unit, d["next_eigenvalue"] = v.next_eigenvalue, d["trace"] = v.trace, d["share"] = v.share, d["margin"] = v.margin;
  d["tolerance"] = v.tolerance, d["backward_error"] = v.backward_error;
  d["error_relative"] = v.error.relative, d["error_rows"] = v.error.rows, d["error_raw"] = array(v.error.raw);
  d["vectors"] = to_array(Matrix(v.vectors)), d["eigenvalues"] = array(v.eigenvalues), d["scale"] = array(v.scale);
  return d;
}

TruncatedView restore_view(const py::dict& d) {
  const auto count = [&d](const char* key) { return py::cast<std::size_t>(d[key]); };
  const auto number = [&d](const char* key) { return py::cast<double>(d[key]); };
  const auto values = [&d](const char* key) { return to_vector(py::cast<DoubleArray>(d[key])); };
  check_shape(py::cast<DoubleArray>(d["vectors"]).ndim() == 2, "restore_view");
  TruncatedView v;
  v.width = count("width"), v.live = count("live"), v.rank = count("rank"), v.numerical_rank = count("numerical_rank");
  v.lowest_rank = count("lowest_rank"), v.highest_rank = count("highest_rank");
  v.unit = number("unit"), v.next_eigenvalue = number("next_eigenvalue"), v.trace = number("trace");
  v.share = number("share"), v.margin = number("margin"), v.tolerance = number("tolerance");
  v.backward_error = number("backward_error"), v.error = {number("error_relative"), number("error_rows"), values("error_raw")};
  v.vectors = to_matrix(py::cast<DoubleArray>(d["vectors"])), v.eigenvalues = values("eigenvalues"), v.scale = values("scale");
  const auto all = [](const auto& numbers, auto holds) { return std::all_of(std::begin(numbers), std::end(numbers), holds); };
  const auto sound = [](double value) { return std::isfinite(value) && value >= 0; };
  const bool fits = v.vectors.rows == v.width && v.vectors.cols == v.rank && v.eigenvalues.size() == v.rank && v.rank > 0 &&
                    v.rank <= v.width && v.live <= v.width && v.scale.size() == v.width && v.error.raw.size() == v.width;
  const double single[] = {v.next_eigenvalue, v.trace, v.tolerance, v.backward_error, v.error.relative, v.error.rows};
  check_shape(fits && v.lowest_rank <= v.rank && v.unit > 0 && sound(v.unit) && std::isfinite(v.share) && std::isfinite(v.margin) &&
                  all(single, sound) && all(v.scale, sound) && all(v.error.raw, sound) &&
                  all(v.eigenvalues, [&](double value) { return sound(value) && value > 0; }) &&
                  all(v.vectors.values, [](double value) { return std::isfinite(value); }),
              "restore_view");
  return v;
}

}  // namespace

void bind_linalg(py::module_& m) {
  m.def("load_lapack", &load_lapack, py::arg("capsules"));
  m.def("truncate", &truncate_array, py::arg("covariance"), py::arg("relative"), py::arg("rows"), py::arg("raw"), py::arg("rule"),
        py::arg("value"), py::arg("ridge"));
  m.def("truncate_operand", &truncate_operand, py::arg("covariance"), py::arg("diagonal"), py::arg("relative"), py::arg("rows"),
        py::arg("raw"), py::arg("rule"), py::arg("value"), py::arg("ridge"));
  m.def("canonical_operand", &correlate_operand, py::arg("x"), py::arg("y"), py::arg("cross"));
  py::class_<Canonical>(m, "Canonical");
  m.def("canonical", &correlate_views, py::arg("x"), py::arg("y"), py::arg("cross"), py::arg("kept"));
  m.def("compare", &compare_views, py::arg("x"), py::arg("y"), py::arg("found"), py::arg("side"));
  py::class_<TruncatedView>(m, "TruncatedView")
      .def_readonly("width", &TruncatedView::width)
      .def_readonly("rank", &TruncatedView::rank)
      .def_readonly("numerical_rank", &TruncatedView::numerical_rank)
      .def_property_readonly("trace", [](const TruncatedView& v) { return v.trace * v.unit * v.unit; })
      .def_readonly("share", &TruncatedView::share)
      .def_readonly("margin", &TruncatedView::margin)
      .def_readonly("lowest_rank", &TruncatedView::lowest_rank)
      .def_readonly("highest_rank", &TruncatedView::highest_rank)
      .def_readonly("live", &TruncatedView::live)
      .def("save", &save_view)
      .def_static("restore", &restore_view, py::arg("state"))
      // What takes centered rows (n, d) to their coordinates (n, k) in the kept directions.
      .def_property_readonly("projection",
                             [](const TruncatedView& v) {
                               Matrix p = v.vectors;
                               std::vector<double> unscale = v.scale;
                               for (double& value : unscale) value = value > 0 ? 1 / value : 0;
                               scale_rows(&p, unscale);
                               return to_array(std::move(p));
                             })
      .def_property_readonly("vectors", [](const TruncatedView& v) { return to_array(Matrix(v.vectors)); })
      .def_property_readonly("eigenvalues", [](const TruncatedView& v) {
        std::vector<double> values = v.eigenvalues;
        for (double& value : values) value *= v.unit * v.unit;
        const auto size = static_cast<py::ssize_t>(values.size());
        return to_array(std::move(values), {size});
      });
}

}  // namespace streamcca
