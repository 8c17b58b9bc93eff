#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "bind/arrays.h"
#include "bind/module.h"
#include "core/error.h"
#include "linalg/cca.h"
#include "linalg/error_bound.h"
#include "linalg/truncate.h"

namespace streamcca {
namespace {

std::optional<Lapack> loaded;

const Lapack& lapack() {
  if (!loaded) throw Error(ErrorKind::numeric, "LAPACK is not loaded; call streamcca._backend.load_lapack() first");
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
  take(capsules, "dsytrd", "cididdddii", &l.dsytrd);
  take(capsules, "dsterf", "iddi", &l.dsterf);
  take(capsules, "dstemr", "cciddddiiiddiiiidiiii", &l.dstemr);
  take(capsules, "dormtr", "ccciididdidii", &l.dormtr);
  take(capsules, "dsyevd", "ccididdiiii", &l.dsyevd);
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

TruncatedView truncate_array(const DoubleArray& covariance, const DoubleArray& raw, double relative, const std::string& rule, double value,
                             double ridge) {
  Matrix c = to_matrix(covariance);
  const Rule parsed{parse_rule(rule), value};
  Uncertainty uncertainty{relative, to_vector(raw)};
  const py::gil_scoped_release release;
  return truncate(lapack(), std::move(c), std::move(uncertainty), parsed, ridge);
}

void divide_by_scale(Matrix* m, const std::vector<double>& row_scale, const std::vector<double>& col_scale) {
  for (std::size_t j = 0; j < m->cols; ++j) {
    const double col = col_scale.empty() ? 1 : col_scale[j];
    for (std::size_t i = 0; i < m->rows; ++i) {
      m->column(j)[i] = row_scale[i] > 0 && col > 0 ? m->column(j)[i] / (row_scale[i] * col) : 0;
    }
  }
}

// `side` "" weighs all correlations alike (CCA, SVCCA); "x" or "y" by projection (PWCCA).
py::dict correlate_views(const TruncatedView& x, const TruncatedView& y, const DoubleArray& cross_covariance, const std::string& side) {
  Matrix cross = to_matrix(cross_covariance);
  Cca cca;
  std::vector<double> shares;
  ErrorBound bound;
  {
    const py::gil_scoped_release release;
    divide_by_scale(&cross, x.scale, y.scale);
    cca = correlate(lapack(), x, y, cross);
    shares.assign(cca.correlations.size(), 1.0);
    if (side == "x") shares = projection_weights(lapack(), x, cca.x_coordinates);
    if (side == "y") shares = projection_weights(lapack(), y, cca.y_coordinates);
    double total = 0;
    for (double share : shares) total += share;
    for (double& share : shares) share /= total;
    bound = error_bound(lapack(), x, y, cross, cca, shares);
    // Shares move with the covariance too; where two correlations mix, by as much again.
    if (!side.empty()) bound.mean = std::min(1.0, 2 * bound.mean);
    divide_by_scale(&cca.x_weights, x.scale, {});
    divide_by_scale(&cca.y_weights, y.scale, {});
  }
  double mean = 0;
  for (std::size_t i = 0; i < shares.size(); ++i) mean += shares[i] * cca.correlations[i];
  const auto m = static_cast<py::ssize_t>(shares.size());
  py::dict result;
  result["mean"] = mean;
  result["mean_error_bound"] = bound.mean;
  result["correlations"] = to_array(std::move(cca.correlations), {m});
  result["correlation_error_bounds"] = to_array(std::move(bound.correlations), {m});
  result["shares"] = to_array(std::move(shares), {m});
  result["x_weights"] = to_array(std::move(cca.x_weights));
  result["y_weights"] = to_array(std::move(cca.y_weights));
  return result;
}

}  // namespace

void bind_linalg(py::module_& m) {
  m.def("load_lapack", &load_lapack, py::arg("capsules"));
  m.def("truncate", &truncate_array, py::arg("covariance"), py::arg("raw"), py::arg("relative"), py::arg("rule"), py::arg("value"),
        py::arg("ridge"));
  m.def("correlate", &correlate_views, py::arg("x"), py::arg("y"), py::arg("cross"), py::arg("side"));
  py::class_<TruncatedView>(m, "TruncatedView")
      .def_readonly("width", &TruncatedView::width)
      .def_readonly("rank", &TruncatedView::rank)
      .def_readonly("numerical_rank", &TruncatedView::numerical_rank)
      .def_property_readonly("trace", [](const TruncatedView& v) { return v.trace * v.unit * v.unit; })
      .def_readonly("share", &TruncatedView::share)
      .def_readonly("margin", &TruncatedView::margin)
      .def_readonly("cut_resolved", &TruncatedView::cut_resolved)
      .def_property_readonly("vectors", [](const TruncatedView& v) { return to_array(Matrix(v.vectors)); })
      .def_property_readonly("eigenvalues",
                             [](const TruncatedView& v) {
                               std::vector<double> values = v.eigenvalues;
                               for (double& value : values) value *= v.unit * v.unit;
                               const auto size = static_cast<py::ssize_t>(values.size());
                               return to_array(std::move(values), {size});
                             })
      .def_property_readonly("scale", [](const TruncatedView& v) {
        return to_array(std::vector<double>(v.scale), {static_cast<py::ssize_t>(v.scale.size())});
      });
}

}  // namespace streamcca
