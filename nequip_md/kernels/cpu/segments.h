// Loops over the edges of a centre, vectorised over channels.
//
// Layouts (row-major, contiguous): a, w [E, L, C]; y [E, M]; z [N, M, C]; row_ptr [N + 1]. M = (l_max + 1)^2, and L is
// l_max + 1, or 1 if one factor serves every l. A block of channels fills one vector register, and its sums over edges
// or components stay in registers. So each array is read or written once, and there is no array [E, M, C]. One thread
// adds the edges of a centre in their order, so results do not depend on the number of threads.
#pragma once

#include <cstdint>

namespace nequip_md {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// A vector of channels; Width = 1 is the scalar tail.
template <typename T, int Width>
struct Block {
  typedef T type __attribute__((vector_size(Width * sizeof(T))));
  static type load(const T* p) {
    type v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(T* p, type v) { __builtin_memcpy(p, &v, sizeof v); }
  static T sum(type v) {
    T s = 0;
    for (int k = 0; k < Width; ++k) s += v[k];
    return s;
  }
};

constexpr int isqrt(int m) {
  int l = 0;
  while ((l + 1) * (l + 1) <= m) ++l;
  return l;
}

// Order (l) of component m.
constexpr int order_of(int m) { return isqrt(m); }

template <typename T, int M, int L>
struct Segments {
  static_assert(L == 1 || L * L == M);
  static constexpr int slot(int m) { return L == 1 ? 0 : order_of(m); }
  static constexpr int kWidth = kVectorBytes / sizeof(T);

  // slots[l] = s[e, c] a[e, l, c] for one block of channels, with s absent (nullptr) or [E, C].
  template <typename B>
  static void load_slots(const T* a, const T* s, std::int64_t e, std::int64_t channels, std::int64_t c,
                         typename B::type* slots) {
    for (int l = 0; l < L; ++l) slots[l] = B::load(a + (e * L + l) * channels + c);
    if (!s) return;
    const auto scale = B::load(s + e * channels + c);
    for (int l = 0; l < L; ++l) slots[l] *= scale;
  }

  // out[i, m, c] = sum_e s[e, c] a[e, slot(m), c] y[e, m], with s absent (nullptr) or [E, C].
  template <int W>
  static void moment_block(const T* a, const T* s, const T* y, const std::int64_t* row_ptr, std::int64_t i,
                           std::int64_t channels, std::int64_t c, T* out) {
    using B = Block<T, W>;
    typename B::type sum[M] = {};
    for (std::int64_t e = row_ptr[i]; e < row_ptr[i + 1]; ++e) {
      typename B::type slots[L];
      load_slots<B>(a, s, e, channels, c, slots);
#pragma GCC unroll 32
      for (int m = 0; m < M; ++m) sum[m] += slots[slot(m)] * y[e * M + m];
    }
    for (int m = 0; m < M; ++m) B::store(out + (i * M + m) * channels + c, sum[m]);
  }

  static void moment(const T* a, const T* s, const T* y, const std::int64_t* row_ptr, std::int64_t i,
                     std::int64_t channels, T* out) {
    std::int64_t c = 0;
    for (; c + kWidth <= channels; c += kWidth) moment_block<kWidth>(a, s, y, row_ptr, i, channels, c, out);
    for (; c < channels; ++c) moment_block<1>(a, s, y, row_ptr, i, channels, c, out);
  }

  // out[e, slot, c] = g[e, c] sum_{m in slot} y[e, m] z[i, m, c], with g absent or [E, C].
  template <int W>
  static void spread_block(const T* g, const T* y, const T* z, const std::int64_t* row_ptr, std::int64_t i,
                           std::int64_t channels, std::int64_t c, T* out) {
    using B = Block<T, W>;
    typename B::type row[M];
    for (int m = 0; m < M; ++m) row[m] = B::load(z + (i * M + m) * channels + c);
    for (std::int64_t e = row_ptr[i]; e < row_ptr[i + 1]; ++e) {
      typename B::type slots[L] = {};
#pragma GCC unroll 32
      for (int m = 0; m < M; ++m) slots[slot(m)] += row[m] * y[e * M + m];
      if (g) {
        const auto scale = B::load(g + e * channels + c);
        for (int l = 0; l < L; ++l) slots[l] *= scale;
      }
      for (int l = 0; l < L; ++l) B::store(out + (e * L + l) * channels + c, slots[l]);
    }
  }

  static void spread(const T* g, const T* y, const T* z, const std::int64_t* row_ptr, std::int64_t i,
                     std::int64_t channels, T* out) {
    std::int64_t c = 0;
    for (; c + kWidth <= channels; c += kWidth) spread_block<kWidth>(g, y, z, row_ptr, i, channels, c, out);
    for (; c < channels; ++c) spread_block<1>(g, y, z, row_ptr, i, channels, c, out);
  }

  // out[e, m] = sum_c s[e, c] a[e, slot(m), c] z[i, m, c], with s absent or [E, C].
  static void dot(const T* a, const T* s, const T* z, const std::int64_t* row_ptr, std::int64_t i,
                  std::int64_t channels, T* out) {
    using B = Block<T, kWidth>;
    for (std::int64_t e = row_ptr[i]; e < row_ptr[i + 1]; ++e) {
      typename B::type sum[M] = {};
      T tail[M] = {};
      std::int64_t c = 0;
      for (; c + kWidth <= channels; c += kWidth) {
        typename B::type slots[L];
        load_slots<B>(a, s, e, channels, c, slots);
#pragma GCC unroll 32
        for (int m = 0; m < M; ++m) sum[m] += slots[slot(m)] * B::load(z + (i * M + m) * channels + c);
      }
      for (; c < channels; ++c) {
        const T scale = s ? s[e * channels + c] : T(1);
        for (int m = 0; m < M; ++m)
          tail[m] += scale * a[(e * L + slot(m)) * channels + c] * z[(i * M + m) * channels + c];
      }
      for (int m = 0; m < M; ++m) out[e * M + m] = B::sum(sum[m]) + tail[m];
    }
  }

  // out[e, c] = sum_l w[e, l, c] sum_{m in l} y[e, m] z[i, m, c].
  template <int W>
  static void contract_block(const T* w, const T* y, const T* z, const std::int64_t* row_ptr, std::int64_t i,
                             std::int64_t channels, std::int64_t c, T* out) {
    using B = Block<T, W>;
    typename B::type row[M];
    for (int m = 0; m < M; ++m) row[m] = B::load(z + (i * M + m) * channels + c);
    for (std::int64_t e = row_ptr[i]; e < row_ptr[i + 1]; ++e) {
      typename B::type slots[L] = {};
#pragma GCC unroll 32
      for (int m = 0; m < M; ++m) slots[slot(m)] += row[m] * y[e * M + m];
      typename B::type total = {};
      for (int l = 0; l < L; ++l) total += slots[l] * B::load(w + (e * L + l) * channels + c);
      B::store(out + e * channels + c, total);
    }
  }

  static void contract(const T* w, const T* y, const T* z, const std::int64_t* row_ptr, std::int64_t i,
                       std::int64_t channels, T* out) {
    std::int64_t c = 0;
    for (; c + kWidth <= channels; c += kWidth) contract_block<kWidth>(w, y, z, row_ptr, i, channels, c, out);
    for (; c < channels; ++c) contract_block<1>(w, y, z, row_ptr, i, channels, c, out);
  }
};

}  // namespace nequip_md
