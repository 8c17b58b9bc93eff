// The extension streamcca._cuda: moments on a CUDA device. Importing it calls nothing of the driver.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>

#include "bind/cuda_arrays.h"
#include "bind/module.h"
#include "core/error.h"
#include "cuda/accumulator.h"

namespace streamcca {
namespace {

using cuda::Accumulator;
using DoubleArray = py::array_t<double, py::array::c_style | py::array::forcecast>;
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

const std::vector<std::pair<const char*, cuda::Products>> kProducts = {{"float32", cuda::Products::f32}, {"float64", cuda::Products::f64}};

const char* name_of(cuda::Products products) { return products == cuda::Products::f32 ? "float32" : "float64"; }

cuda::Stream as_stream(std::uintptr_t stream) { return reinterpret_cast<cuda::Stream>(stream); }

std::unique_ptr<Accumulator> make(const std::vector<std::string>& names, const std::vector<std::size_t>& widths,
                                  const std::vector<std::pair<std::size_t, std::size_t>>& pairs, const std::string& precision,
                                  const std::string& nonfinite, int device, const std::string& ladder, std::size_t block_rows) {
  std::vector<View> views;
  for (std::size_t v = 0; v < names.size(); ++v) views.push_back({names[v], widths.at(v)});
  std::vector<Pair> wanted;
  for (const auto& [row, col] : pairs) {
    if (row >= views.size() || col >= views.size()) throw Error(ErrorKind::value, "pairs: no such view");
    wanted.push_back({row, col});
  }
  cuda::Options options;
  options.precision = parse<cuda::Precision>(
      precision, {{"auto", cuda::Precision::automatic}, {"float32", cuda::Precision::f32}, {"float64", cuda::Precision::f64}}, "precision");
  options.nonfinite = parse<cuda::NonFinite>(
      nonfinite, {{"raise", cuda::NonFinite::raise}, {"skip", cuda::NonFinite::skip}, {"propagate", cuda::NonFinite::propagate}},
      "nonfinite");
  options.ladder = parse<cuda::Ladder>(ladder,
                                       {{"best", cuda::Ladder::best},
                                        {"naive", cuda::Ladder::naive},
                                        {"tiled", cuda::Ladder::tiled},
                                        {"tensor", cuda::Ladder::tensor},
                                        {"hopper", cuda::Ladder::hopper}},
                                       "STREAMCCA_CUDA_LADDER");
  options.device = device;
  options.block_rows = block_rows;
  return std::make_unique<Accumulator>(views, wanted, options);
}

void update(Accumulator& self, const std::vector<py::capsule>& batch, const py::object& weights, std::uintptr_t stream) {
  std::vector<Rows> rows;
  int device = 0;
  for (std::size_t v = 0; v < self.views().size(); ++v) {
    const DeviceRows view = rows_of_capsule(batch.at(v), self.views()[v].name);
    if (v && view.device != device) {
      throw Error(ErrorKind::device, "view '" + self.views()[v].name + "': rows are on cuda:" + std::to_string(view.device) +
                                         ", expected cuda:" + std::to_string(device) + " as in view '" + self.views()[0].name +
                                         "'; move them to one device");
    }
    device = view.device;
    rows.push_back(view.rows);
  }
  std::vector<double> row_weights;
  if (!weights.is_none()) {
    const auto array = weights.cast<DoubleArray>();
    row_weights.assign(array.data(), array.data() + array.size());
    if (row_weights.size() != rows[0].rows) {
      throw Error(ErrorKind::value, "weights: got " + std::to_string(row_weights.size()) + " values for " + std::to_string(rows[0].rows) +
                                        " rows; pass one weight a row");
    }
  }
  const py::gil_scoped_release release;
  self.update(rows, device, weights.is_none() ? nullptr : row_weights.data(), as_stream(stream));
}

py::array to_array(std::vector<double>&& values) {
  auto* owned = new std::vector<double>(std::move(values));
  const py::capsule owner(owned, [](void* p) { delete static_cast<std::vector<double>*>(p); });
  return py::array_t<double>({static_cast<py::ssize_t>(owned->size())}, owned->data(), owner);
}

py::list to_list(std::vector<std::vector<double>>&& arrays) {
  py::list result;
  for (auto& values : arrays) result.append(to_array(std::move(values)));
  return result;
}

// The dictionary of _core.Accumulator.save: one kind of state for all devices.
py::dict save(Accumulator& self) {
  cuda::Snapshot s;
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
  d["block_rows"] = s.settled ? 0 : s.roots.size();
  d["block_weight"] = s.settled ? 0.0 : s.weight;
  d["rounding"] = s.rounding;
  d["row_unit"] = s.row_unit;
  d["roots"] = to_array(std::move(s.roots));
  d["shift"] = to_list(std::move(s.shift));
  d["sums"] = to_list(std::move(s.sums));
  d["squares"] = to_list(std::move(s.squares));
  d["pending"] = to_list(std::move(s.pending));
  d["moments"] = to_list(std::move(s.moments));
  return d;
}

std::vector<double> to_vector(const py::handle& array) {
  const auto values = array.cast<DoubleArray>();
  return {values.data(), values.data() + values.size()};
}

std::vector<std::vector<double>> from_list(const py::dict& d, const char* key, const std::vector<std::size_t>& sizes) {
  std::vector<std::vector<double>> result;
  for (const py::handle& item : d[key].cast<py::list>()) result.push_back(to_vector(item));
  bool fits = result.size() == sizes.size();
  for (std::size_t i = 0; fits && i < sizes.size(); ++i) fits = result[i].size() == sizes[i];
  if (!fits) throw Error(ErrorKind::value, std::string("state: '") + key + "' has other sizes than these views and pairs need");
  return result;
}

void restore(Accumulator& self, const py::dict& d) {
  cuda::Snapshot s;
  s.products = parse(d["products"].cast<std::string>(), kProducts, "products");
  s.started = d["started"].cast<bool>();
  s.settled = d["settled"].cast<bool>();
  s.rows = d["rows"].cast<std::uint64_t>();
  s.skipped = d["skipped"].cast<std::uint64_t>();
  s.weight = d["weight"].cast<double>();
  s.rounding = d["rounding"].cast<double>();
  s.row_unit = d["row_unit"].cast<double>();
  s.roots = to_vector(d["roots"]);
  if (s.roots.size() >= cuda::kHead) throw Error(ErrorKind::value, "state: more pending rows than the head holds");
  std::vector<std::size_t> widths, pending, moments;
  for (const View& view : self.views()) {
    widths.push_back(view.width);
    pending.push_back(view.width * s.roots.size());
  }
  for (const Pair& p : self.pairs()) {
    const std::size_t w = widths[p.col_view];
    moments.push_back(p.with_itself() ? w * (w + 1) / 2 : widths[p.row_view] * w);
  }
  s.pending = from_list(d, "pending", pending);
  s.shift = from_list(d, "shift", s.settled ? widths : std::vector<std::size_t>());
  s.sums = from_list(d, "sums", s.settled ? widths : std::vector<std::size_t>());
  s.squares = from_list(d, "squares", s.settled ? widths : std::vector<std::size_t>());
  s.moments = from_list(d, "moments", s.settled ? moments : std::vector<std::size_t>());
  const py::gil_scoped_release release;
  self.restore(s);
}

std::unique_ptr<DeviceArray> covariance(Accumulator& self, std::size_t pair, double ddof, std::uintptr_t stream) {
  const Pair& p = self.pairs().at(pair);
  cuda::SharedBuffer values;
  {
    const py::gil_scoped_release release;
    values = self.covariance(pair, ddof, as_stream(stream));
  }
  return std::make_unique<DeviceArray>(values,
                                       std::vector<std::int64_t>{static_cast<std::int64_t>(self.views()[p.row_view].width),
                                                                 static_cast<std::int64_t>(self.views()[p.col_view].width)},
                                       self.device());
}

std::unique_ptr<DeviceArray> tiles(Accumulator& self) {
  cuda::SharedBuffer values;
  {
    const py::gil_scoped_release release;
    values = self.tiles();
  }
  if (!values) throw Error(ErrorKind::value, "tiles: no rows yet, so nothing is on the device; call update first");
  const auto side = static_cast<std::int64_t>(cuda::kTile);
  return std::make_unique<DeviceArray>(values, std::vector<std::int64_t>{static_cast<std::int64_t>(self.tasks().size()), side, side},
                                       self.device());
}

py::tuple device_count() {
  std::string why;
  const int count = cuda::device_count(&why);
  return py::make_tuple(count, why);
}

}  // namespace
}  // namespace streamcca

PYBIND11_MODULE(_cuda, m) {
  using namespace streamcca;
  m.doc() = "CUDA kernels of streamcca; use the streamcca package instead.";
  bind_errors(m);
  py::class_<DeviceArray>(m, "DeviceArray")
      .def(
          "__dlpack__",
          [](const DeviceArray& self, const py::object&, const py::object& max_version, const py::object&, const py::object&) {
            return self.dlpack(max_version);
          },
          py::kw_only(), py::arg("stream") = py::none(), py::arg("max_version") = py::none(), py::arg("dl_device") = py::none(),
          py::arg("copy") = py::none())
      .def("__dlpack_device__", &DeviceArray::dlpack_device)
      .def_property_readonly("shape", [](const DeviceArray& self) { return py::tuple(py::cast(self.shape())); });
  py::class_<cuda::Accumulator>(m, "Accumulator")
      .def(py::init(&make), py::arg("names"), py::arg("widths"), py::arg("pairs"), py::arg("precision"), py::arg("nonfinite"),
           py::arg("device") = -1, py::arg("ladder") = "tensor", py::arg("block_rows") = 0)
      .def("update", &update, py::arg("batch"), py::arg("weights"), py::arg("stream"))
      .def("reset", &cuda::Accumulator::reset, Released())
      .def("save", &save)
      .def("restore", &restore, py::arg("state"))
      .def("covariance", &covariance, py::arg("pair"), py::arg("ddof"), py::arg("stream"))
      .def("tiles", &tiles)
      .def_property_readonly("settled", py::cpp_function(&cuda::Accumulator::settled, Released()))
      .def(
          "mean", [](cuda::Accumulator& self, std::size_t view) { return to_array(self.mean(view)); }, py::arg("view"))
      .def(
          "uncertainty",
          [](cuda::Accumulator& self, std::size_t pair, double ddof) {
            Uncertainty u = self.uncertainty(pair, ddof);
            return py::make_tuple(u.relative, u.rows, to_array(std::move(u.raw)));
          },
          py::arg("pair"), py::arg("ddof"))
      .def("tasks",
           [](const cuda::Accumulator& self) {
             std::vector<std::pair<std::uint32_t, std::uint32_t>> result;
             for (const cuda::Task& task : self.tasks()) result.emplace_back(task.row_group, task.col_group);
             return result;
           })
      .def("units",
           [](const cuda::Accumulator& self) {
             std::vector<std::pair<std::uint32_t, std::uint32_t>> result;
             for (const cuda::Unit& unit : self.units()) result.emplace_back(unit.tile[0], unit.tile[1]);
             return result;
           })
      .def_property_readonly("rows", py::cpp_function(&cuda::Accumulator::rows, Released()))
      .def_property_readonly("weight", py::cpp_function(&cuda::Accumulator::weight, Released()))
      .def_property_readonly("skipped", py::cpp_function(&cuda::Accumulator::skipped, Released()))
      .def_property_readonly("started", py::cpp_function(&cuda::Accumulator::started, Released()))
      .def_property_readonly("device", &cuda::Accumulator::device)
      .def_property_readonly("block_rows", &cuda::Accumulator::depth)
      .def_property_readonly("room",
                             [](const cuda::Accumulator& self) {
                               std::vector<std::size_t> planes;
                               for (std::size_t p = 0; p < cuda::kPlaneSets; ++p) {
                                 if (self.room().second >> p & 1) planes.push_back(p);
                               }
                               return py::make_tuple(self.room().first, py::tuple(py::cast(planes)));
                             })
      .def_property_readonly("products", py::cpp_function([](cuda::Accumulator& self) { return name_of(self.products()); }, Released()));
  m.def("device_count", &device_count);
  m.def("device_name", &cuda::device_name, py::arg("device"));
  m.def(
      "memory_use",
      [](int device) {
        const cuda::MemoryUse use = cuda::memory_use(device);
        return py::make_tuple(use.now, use.most);
      },
      py::arg("device"));
  m.def("forget_most_used", &cuda::forget_most_used, py::arg("device"));
  m.attr("EMULATED") = cuda::is_emulated();
  m.attr("NO_TILE") = cuda::kNoTile;
  m.attr("BLOCK_ROWS") = cuda::kMostBlockRows;
}
