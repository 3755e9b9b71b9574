// Loops of the tensor-product convolution, vectorised over channels.
//
// F(x, y, w, g) = sum over edges e, paths p, channels u of C^p_abc x[j(e), a, u] y[e, b] w[e, p, u] g[i(e), c, p, u].
// For each edge the coefficients are contracted with y first. The result is a sparse matrix [a, c] for each path, which
// multiplies the channels. Layouts are those of nequip_md/ops/tensor_product_convolution.py; `paths` holds the fields
// of its ConvolutionPath. One thread computes each row of the result, adding edges in their order, so results do not
// depend on the number of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "segments.h"

namespace nequip_md {

template <typename T>
class Convolution {
 public:
  Convolution(const std::int64_t* paths, std::int64_t numbers, const T* cg) {
    for (std::int64_t k = 0; k + kFields <= numbers; k += kFields) add_path(paths + k, cg);
  }

  // Number of values that `couple` writes.
  std::size_t couplings() const { return entries_; }

  // sum_b C_abc y_b for every path and every (a, c) that is not always zero.
  void couple(const T* y, T* coupling) const {
    for (std::size_t k = 0; k < entries_; ++k) coupling[k] = 0;
    for (const Term& term : terms_) coupling[term.entry] += term.value * y[term.b];
  }

  // out[c, p, u] += w[p, u] sum_a A_ac x[a, u], of one edge.
  void add_message(const T* coupling, const T* x, const T* w, T* out) const {
    for (const Path& path : paths_)
      apply(path.by_output, coupling, x + path.x_offset, path.mul, w + path.w_offset, path.mul, out + path.out_offset,
            path.out_channels);
  }

  // dx[a, u] += sum_p w[p, u] sum_c A_ac g[c, p, u], of one edge.
  void add_to_node(const T* coupling, const T* g, const T* w, T* dx) const {
    for (const Path& path : paths_)
      apply(path.by_input, coupling, g + path.out_offset, path.out_channels, w + path.w_offset, path.mul,
            dx + path.x_offset, path.mul);
  }

  // dw[p, u] = sum_ac A_ac x[a, u] g[c, p, u] and dy[b] = sum_p,ac C_abc sum_u w[p, u] x[a, u] g[c, p, u], of one edge.
  // `sums` is room for couplings() values.
  void edge_gradients(const T* coupling, const T* x, const T* w, const T* g, std::int64_t orders, T* sums, T* dy,
                      T* dw) const {
    for (const Path& path : paths_) {
      const T* wp = w + path.w_offset;
      T* dwp = dw + path.w_offset;
      for (std::int64_t u = 0; u < path.mul; ++u) dwp[u] = 0;
      for (std::size_t c = 0; c + 1 < path.by_output.begin.size(); ++c) {
        const T* gc = g + path.out_offset + c * path.out_channels;
        for (std::size_t k = path.by_output.begin[c]; k < path.by_output.begin[c + 1]; ++k) {
          const Entry entry = path.by_output.entries[k];
          const T* xa = x + path.x_offset + entry.source * path.mul;
          sums[entry.coupling] = product(coupling[entry.coupling], xa, gc, wp, path.mul, dwp);
        }
      }
    }
    for (std::int64_t b = 0; b < orders; ++b) dy[b] = 0;
    for (const Term& term : terms_) dy[term.b] += term.value * sums[term.entry];
  }

 private:
  static constexpr int kFields = 10;
  static constexpr int kWidth = kVectorBytes / sizeof(T);

  struct Term {
    std::size_t entry;
    std::int64_t b;
    T value;
  };
  struct Entry {
    std::int64_t source;
    std::size_t coupling;
  };
  // Entries (source, destination) of a path's matrix, by destination.
  struct Rows {
    std::vector<std::size_t> begin{0};
    std::vector<Entry> entries;
  };
  struct Path {
    std::int64_t mul, x_offset, w_offset, out_offset, out_channels;
    Rows by_output, by_input;
  };

  void add_path(const std::int64_t* f, const T* cg) {
    const std::int64_t rows = 2 * f[0] + 1, middle = 2 * f[1] + 1, columns = 2 * f[2] + 1;
    Path path{f[3], f[4], f[5], f[6] + f[8], f[7], {}, {}};
    std::vector<std::int64_t> entry(rows * columns, -1);
    for (std::int64_t c = 0; c < columns; ++c) {
      for (std::int64_t a = 0; a < rows; ++a) {
        for (std::int64_t b = 0; b < middle; ++b) {
          const T value = cg[f[9] + (a * middle + b) * columns + c];
          if (value == 0) continue;
          if (entry[a * columns + c] < 0) {
            entry[a * columns + c] = entries_++;
            path.by_output.entries.push_back({a, static_cast<std::size_t>(entry[a * columns + c])});
          }
          terms_.push_back({static_cast<std::size_t>(entry[a * columns + c]), f[1] * f[1] + b, value});
        }
      }
      path.by_output.begin.push_back(path.by_output.entries.size());
    }
    for (std::int64_t a = 0; a < rows; ++a) {
      for (std::int64_t c = 0; c < columns; ++c)
        if (entry[a * columns + c] >= 0)
          path.by_input.entries.push_back({c, static_cast<std::size_t>(entry[a * columns + c])});
      path.by_input.begin.push_back(path.by_input.entries.size());
    }
    paths_.push_back(std::move(path));
  }

  // out[d, u] += w[u] sum over the entries of row d of coupling * in[source, u].
  static void apply(const Rows& rows, const T* coupling, const T* in, std::int64_t in_stride, const T* w,
                    std::int64_t mul, T* out, std::int64_t out_stride) {
    std::int64_t u = 0;
    for (; u + kWidth <= mul; u += kWidth)
      apply_block<kWidth>(rows, coupling, in + u, in_stride, w + u, out + u, out_stride);
    for (; u < mul; ++u) apply_block<1>(rows, coupling, in + u, in_stride, w + u, out + u, out_stride);
  }

  template <int W>
  static void apply_block(const Rows& rows, const T* coupling, const T* in, std::int64_t in_stride, const T* w, T* out,
                          std::int64_t out_stride) {
    using B = Block<T, W>;
    const auto weight = B::load(w);
    for (std::size_t d = 0; d + 1 < rows.begin.size(); ++d) {
      typename B::type sum = {};
      for (std::size_t k = rows.begin[d]; k < rows.begin[d + 1]; ++k)
        sum += B::load(in + rows.entries[k].source * in_stride) * coupling[rows.entries[k].coupling];
      T* row = out + d * out_stride;
      B::store(row, B::load(row) + weight * sum);
    }
  }

  // dw[u] += scale x[u] g[u]; returns sum_u w[u] x[u] g[u].
  static T product(T scale, const T* x, const T* g, const T* w, std::int64_t mul, T* dw) {
    using B = Block<T, kWidth>;
    typename B::type sum = {};
    T tail = 0;
    std::int64_t u = 0;
    for (; u + kWidth <= mul; u += kWidth) {
      const auto both = B::load(x + u) * B::load(g + u);
      B::store(dw + u, B::load(dw + u) + both * scale);
      sum += both * B::load(w + u);
    }
    for (; u < mul; ++u) {
      dw[u] += scale * x[u] * g[u];
      tail += x[u] * g[u] * w[u];
    }
    return B::sum(sum) + tail;
  }

  std::vector<Path> paths_;
  std::vector<Term> terms_;
  std::size_t entries_ = 0;
};

// Edges that end at each node, in their order: a counting sort of `neighbour`.
struct Incoming {
  std::vector<std::int64_t> begin, edges;

  Incoming(const std::int64_t* neighbour, std::int64_t count, std::int64_t nodes) : begin(nodes + 1, 0), edges(count) {
    for (std::int64_t e = 0; e < count; ++e) ++begin[neighbour[e] + 1];
    for (std::int64_t j = 0; j < nodes; ++j) begin[j + 1] += begin[j];
    std::vector<std::int64_t> next(begin.begin(), begin.end() - 1);
    for (std::int64_t e = 0; e < count; ++e) edges[next[neighbour[e]]++] = e;
  }
};

}  // namespace nequip_md
