#include <pybind11/stl.h>

#include <algorithm>
#include <string>

#include "bind/arrays.h"
#include "bind/module.h"
#include "core/error.h"
#include "cpu/accumulator.h"
#include "cpu/dispatch.h"

namespace streamcca {
namespace {

using Released = py::call_guard<py::gil_scoped_release>;

template <class Enum>
Enum parse(const std::string& text, const std::vector<std::pair<const char*, Enum>>& known, const char* option) {
  std::string names;
  for (const auto& [name, value] : known) {
    if (text == name) return value;
    names += (names.empty() ? "'" : ", '") + std::string(name) + "'";
  }
  throw Error(ErrorKind::value, std::string(option) + ": got '" + text + "', expected one of " + names);
}

Precision parse_precision(const std::string& text) {
  return parse<Precision>(text, {{"auto", Precision::automatic}, {"float32", Precision::f32}, {"float64", Precision::f64}}, "precision");
}

NonFinite parse_nonfinite(const std::string& text) {
  return parse<NonFinite>(text, {{"raise", NonFinite::raise}, {"skip", NonFinite::skip}, {"propagate", NonFinite::propagate}}, "nonfinite");
}

Products parse_products(const std::string& text) {
  return parse<Products>(text, {{"float32", Products::f32}, {"float64", Products::f64}}, "products");
}

const char* name_of(Products products) { return products == Products::f32 ? "float32" : "float64"; }

std::vector<Pair> make_pairs(const std::vector<std::pair<std::size_t, std::size_t>>& pairs, std::size_t views) {
  std::vector<Pair> result;
  for (const auto& [row, col] : pairs) {
    if (row >= views || col >= views) throw Error(ErrorKind::value, "pairs: no such view");
    result.push_back({row, col});
  }
  return result;
}

std::unique_ptr<Accumulator> make(const std::vector<std::string>& names, const std::vector<std::size_t>& widths,
                                  const std::vector<std::pair<std::size_t, std::size_t>>& pairs, const std::string& precision,
                                  const std::string& nonfinite, int threads) {
  std::vector<View> views;
  for (std::size_t v = 0; v < names.size(); ++v) views.push_back({names[v], widths.at(v)});
  return std::make_unique<Accumulator>(views, make_pairs(pairs, views.size()), parse_precision(precision), parse_nonfinite(nonfinite),
                                       threads);
}

// What an accumulator of these views will take: the state and one block, for the wider of the product types.
std::size_t state_bytes(const std::vector<std::size_t>& widths, const std::vector<std::pair<std::size_t, std::size_t>>& pairs) {
  std::vector<View> views;
  for (std::size_t width : widths) views.push_back({"", width});
  const std::vector<Pair> wanted = make_pairs(pairs, views.size());
  return std::max(MomentStore::bytes(views, wanted, Products::f32, active_kernels()),
                  MomentStore::bytes(views, wanted, Products::f64, active_kernels()));
}

// Python signals are looked at between blocks; an exception of the handler travels as it is.
void poll_signals() {
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

// Rows of all views, and what keeps them alive.
std::pair<std::vector<Rows>, std::vector<Borrowed>> borrow_batch(const Accumulator& self, const py::list& batch) {
  std::vector<Borrowed> borrowed;
  std::vector<Rows> rows;
  for (std::size_t v = 0; v < self.views().size(); ++v) {
    borrowed.push_back(borrow_rows(batch[v], self.views()[v].name));
    rows.push_back(borrowed.back().rows);
  }
  return {std::move(rows), std::move(borrowed)};
}

void check(const Accumulator& self, const py::list& batch) {
  const auto borrowed = borrow_batch(self, batch);  // destroyed after the lock is back
  const py::gil_scoped_release release;
  self.check(borrowed.first);
}

void update(Accumulator& self, const py::list& batch, const py::object& weights) {
  const auto borrowed = borrow_batch(self, batch);  // destroyed after the lock is back
  const std::vector<Rows>& rows = borrowed.first;
  std::vector<double> row_weights;
  if (!weights.is_none()) {
    row_weights = to_vector(weights.cast<DoubleArray>());
    if (row_weights.size() != rows[0].rows) {
      throw Error(ErrorKind::value, "weights: got " + std::to_string(row_weights.size()) + " values for " + std::to_string(rows[0].rows) +
                                        " rows; pass one weight a row");
    }
  }
  const py::gil_scoped_release release;
  self.update(rows, weights.is_none() ? nullptr : row_weights.data(), poll_signals);
}

// (covariance, (relative, rows, raw)); the latter describes its rounding and is empty for two views.
py::tuple covariance(const Accumulator& self, std::size_t pair, double ddof) {
  const Pair& p = self.pairs().at(pair);
  const std::size_t height = self.views()[p.row_view].width, width = self.views()[p.col_view].width;
  AlignedArray<double> values;
  Uncertainty uncertainty{0, 0, std::vector<double>(p.with_itself() ? height : 0)};
  {
    const py::gil_scoped_release release;
    values.resize(height * width);
    self.covariance(pair, ddof, values.data(), p.with_itself() ? &uncertainty : nullptr);
  }
  const auto h = static_cast<py::ssize_t>(height), w = static_cast<py::ssize_t>(width);
  py::tuple rounding =
      py::make_tuple(uncertainty.relative, uncertainty.rows, to_array(std::move(uncertainty.raw), {p.with_itself() ? h : 0}));
  return py::make_tuple(to_array(std::move(values), {h, w}), rounding);
}

py::array mean(const Accumulator& self, std::size_t view) {
  std::vector<double> values(self.views().at(view).width);
  {
    const py::gil_scoped_release release;
    self.mean(view, values.data());
  }
  const auto size = static_cast<py::ssize_t>(values.size());
  return to_array(std::move(values), {size});
}

py::list to_list(std::vector<std::vector<double>>&& arrays) {
  py::list result;
  for (auto& values : arrays) {
    const auto size = static_cast<py::ssize_t>(values.size());
    result.append(to_array(std::move(values), {size}));
  }
  return result;
}

py::dict save(const Accumulator& self) {
  State s;
  {
    const py::gil_scoped_release release;
    s = self.save();
  }
  py::dict d;
  d["products"] = name_of(s.products);
  d["started"] = s.started;
  d["settled"] = s.settled;
  d["rows"] = s.rows;
  d["skipped"] = s.skipped;
  d["weight"] = s.weight;
  d["block_rows"] = s.block_rows;
  d["block_weight"] = s.block_weight;
  d["rounding"] = s.rounding;
  d["row_unit"] = s.row_unit;
  const auto rows = static_cast<py::ssize_t>(s.roots.size());
  d["roots"] = to_array(std::move(s.roots), {rows});
  d["shift"] = to_list(std::move(s.shift));
  d["sums"] = to_list(std::move(s.sums));
  d["squares"] = to_list(std::move(s.squares));
  d["pending"] = to_list(std::move(s.pending));
  d["moments"] = to_list(std::move(s.moments));
  return d;
}

std::vector<std::vector<double>> from_list(const py::dict& d, const char* key, std::size_t count, const std::vector<std::size_t>& sizes) {
  std::vector<std::vector<double>> result;
  for (const py::handle& item : d[key].cast<py::list>()) result.push_back(to_vector(item.cast<DoubleArray>()));
  bool fits = result.size() == count;
  for (std::size_t i = 0; fits && i < count; ++i) fits = result[i].size() == sizes[i];
  if (!fits) throw Error(ErrorKind::value, std::string("state: '") + key + "' has other sizes than these views and pairs need");
  return result;
}

void restore(Accumulator& self, const py::dict& d) {
  State s;
  s.products = parse_products(d["products"].cast<std::string>());
  s.started = d["started"].cast<bool>();
  s.settled = d["settled"].cast<bool>();
  s.rows = d["rows"].cast<std::uint64_t>();
  s.skipped = d["skipped"].cast<std::uint64_t>();
  s.weight = d["weight"].cast<double>();
  s.block_weight = d["block_weight"].cast<double>();
  s.rounding = d["rounding"].cast<double>();
  s.row_unit = d["row_unit"].cast<double>();
  s.roots = to_vector(d["roots"].cast<DoubleArray>());
  // Files of earlier versions do not have it; all their blocks were accounted for by 256 rows.
  s.block_rows = d.contains("block_rows") ? d["block_rows"].cast<std::uint64_t>() : s.roots.size() % kHeadRows;
  if (s.roots.size() >= (s.settled ? kLongestBlock : kHeadRows) || (s.settled && !s.started)) {
    throw Error(ErrorKind::value, "state: more pending rows than a block holds, or a shift without rows");
  }
  std::vector<std::size_t> widths, pending, moments;
  for (const View& view : self.views()) {
    widths.push_back(view.width);
    pending.push_back(view.width * s.roots.size());
  }
  for (const Pair& p : self.pairs()) {
    const std::size_t w = widths[p.col_view];
    moments.push_back(p.with_itself() ? w * (w + 1) / 2 : widths[p.row_view] * w);
  }
  s.pending = from_list(d, "pending", widths.size(), pending);
  s.shift = from_list(d, "shift", s.settled ? widths.size() : 0, widths);
  s.sums = from_list(d, "sums", s.settled ? widths.size() : 0, widths);
  s.squares = from_list(d, "squares", s.settled ? widths.size() : 0, widths);
  s.moments = from_list(d, "moments", s.settled ? moments.size() : 0, moments);
  const py::gil_scoped_release release;
  self.restore(s);
}

}  // namespace

void bind_accumulator(py::module_& m) {
  py::class_<Accumulator>(m, "Accumulator")
      .def(py::init(&make), py::arg("names"), py::arg("widths"), py::arg("pairs"), py::arg("precision"), py::arg("nonfinite"),
           py::arg("threads"))
      .def("update", &update, py::arg("batch"), py::arg("weights") = py::none())
      .def("merge", &Accumulator::merge, py::arg("other"), Released())
      .def("reset", &Accumulator::reset, Released())
      .def("mark", &Accumulator::mark, Released())
      .def("return_to_mark", &Accumulator::return_to_mark, Released())
      .def("copy_of_mark", &Accumulator::copy_of_mark, Released())
      .def("check", &check, py::arg("batch"))
      .def("finish", &Accumulator::finish, Released())
      .def(
          "copy", [](const Accumulator& self) { return std::make_unique<Accumulator>(self); }, Released())
      .def("mean", &mean, py::arg("view"))
      .def("covariance", &covariance, py::arg("pair"), py::arg("ddof"))
      .def("save", &save)
      .def("restore", &restore, py::arg("state"))
      .def_property_readonly("rows", py::cpp_function(&Accumulator::rows, Released()))
      .def_property_readonly("weight", py::cpp_function(&Accumulator::weight, Released()))
      .def_property_readonly("skipped", py::cpp_function(&Accumulator::skipped, Released()))
      .def_property_readonly("started", py::cpp_function(&Accumulator::started, Released()))
      .def_property_readonly("products", py::cpp_function([](const Accumulator& self) { return name_of(self.products()); }, Released()));
  m.def("state_bytes", &state_bytes, py::arg("widths"), py::arg("pairs"));
  m.attr("BLOCK_ROWS") = kHeadRows;
}

}  // namespace streamcca
