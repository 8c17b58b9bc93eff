// MomentStore of float32 products on a matrix unit: rows are packed as everywhere, and a flush brings them into one of the unit's
// forms (matrix_unit.h) before it multiplies: the narrow one where it holds all values of a block, else digits. Tiles with a group that is
// unfit for the unit (tiny, huge or not finite) take the vector kernels on the packed rows.
#pragma once
#include "cpu/matrix_unit.h"
#include "cpu/typed_store.h"

namespace streamcca {

class MatrixStore final : public TypedStore<float> {
 public:
  MatrixStore(const std::vector<View>& views, const std::vector<Pair>& pairs, const KernelTable& kernels);
  std::unique_ptr<MomentStore> clone() const override { return std::make_unique<MatrixStore>(*this); }
  // In the mean, and those of the tiles' corners counted.
  static std::size_t products_per_value(const std::vector<View>& views, const std::vector<Pair>& pairs);
  static std::size_t bytes(const std::vector<View>& views, const std::vector<Pair>& pairs);

  void read_pair(std::size_t pair, bool with_pending, double* out, int threads) const override;

 private:
  // The pending rows, ready for the unit. Written again at every flush: a copy needs its size alone.
  struct Forms {
    RawArray<unsigned char> split, turned;
    AlignedArray<double> units;
    std::vector<Fit> fits;
    std::vector<char> fourth_order;
    explicit Forms(std::size_t count)
        : split(count * kFormBytes), turned(count * kFormBytes), units(count * kGroup<float>), fits(count), fourth_order(count) {}
    Forms(const Forms& other) : Forms(other.fits.size()) {}
    Forms& operator=(const Forms&) { return *this; }
  };

  static Layout layout(const std::vector<View>& views);

  std::size_t form_of(std::size_t group, std::size_t block) const { return group * blocks_ + block; }
  void look_at(std::size_t group, Forms* forms) const;
  bool is_narrow(const Forms& forms, std::size_t block) const;
  void split(std::size_t begin, std::size_t end, Forms* forms) const;
  // One or two groups from a column on; the view may end after the first.
  Operand operand(const Forms& forms, const RawArray<unsigned char>& layout, std::size_t view, std::size_t column, std::size_t groups,
                  std::size_t block) const;
  bool all_fit(const Forms& forms, std::size_t view, std::size_t column, std::size_t groups, std::size_t block) const;
  void multiply_pending(int team, Upcoming upcoming) override;
  void multiply_block(const Forms& forms, const Strip& strip, std::size_t slice, Tile tile, std::size_t block, bool narrow, double* out,
                      Waiting* waiting, const void* ahead) const;
  void multiply_with_vectors(const Strip& strip, std::size_t slice, Tile tile, std::size_t block, double* out) const;

  const MatrixUnit& unit_;
  Forms forms_;
};

}  // namespace streamcca
