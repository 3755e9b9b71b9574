// CPU kernels of the operators nequip_md::*, in the C functions that AOTInductor calls for operators of these names.
//
// At export this file is compiled into a static library, which is linked into the artifact.
#include <utility>

#include "convolution.h"
#include "segments.h"
#include "tensors.h"

namespace {

using nequip_md::Array;
using nequip_md::Convolution;
using nequip_md::Failure;
using nequip_md::guarded;
using nequip_md::Segments;

Array allocate(std::initializer_list<std::int64_t> sizes, std::int32_t dtype, AtenTensorHandle* out) {
  return nequip_md::allocate(sizes, dtype, aoti_torch_device_type_cpu(), 0, out);
}

// Calls body with a value of the element type of a floating-point tensor.
template <typename Body>
void with_dtype(std::int32_t dtype, Body body) {
  if (dtype == aoti_torch_dtype_float32()) {
    body(float{});
  } else if (dtype == aoti_torch_dtype_float64()) {
    body(double{});
  } else {
    throw Failure{"the element type is neither float32 nor float64"};
  }
}

// Calls body(Segments<T, M, L>{}) for M = components and L = orders, l_max <= 4.
template <typename T, typename Body>
void with_orders(std::int64_t components, std::int64_t orders, Body body) {
  if (components == 1 && orders == 1) return body(Segments<T, 1, 1>{});
  if (components == 4 && orders == 1) return body(Segments<T, 4, 1>{});
  if (components == 4 && orders == 2) return body(Segments<T, 4, 2>{});
  if (components == 9 && orders == 1) return body(Segments<T, 9, 1>{});
  if (components == 9 && orders == 3) return body(Segments<T, 9, 3>{});
  if (components == 16 && orders == 1) return body(Segments<T, 16, 1>{});
  if (components == 16 && orders == 4) return body(Segments<T, 16, 4>{});
  if (components == 25 && orders == 1) return body(Segments<T, 25, 1>{});
  if (components == 25 && orders == 5) return body(Segments<T, 25, 5>{});
  throw Failure{"the number of components is not (l_max + 1)^2 with l_max <= 4"};
}

// Calls body(row_ptr, i) for every centre i, on all threads.
template <typename Body>
void for_each_centre(const Array& row_ptr, Body body) {
  const std::int64_t centres = row_ptr.size(0) - 1;
#pragma omp parallel for schedule(dynamic, 4)
  for (std::int64_t i = 0; i < centres; ++i) body(row_ptr.as<std::int64_t>(), i);
}

}  // namespace

extern "C" {

AOTITorchError aoti_torch_cpu_segment_sum(AtenTensorHandle values_, AtenTensorHandle, AtenTensorHandle row_ptr_,
                                          AtenTensorHandle* out_) {
  return guarded("segment_sum", [&] {
    const Array values(values_), row_ptr(row_ptr_);
    const std::int64_t channels = values.size(1);
    const Array out = allocate({row_ptr.size(0) - 1, channels}, values.dtype, out_);
    with_dtype(values.dtype, [&](auto zero) {
      using T = decltype(zero);
      for_each_centre(row_ptr, [&](const std::int64_t* rows, std::int64_t i) {
        T* sum = out.as<T>() + i * channels;
        for (std::int64_t c = 0; c < channels; ++c) sum[c] = 0;
        for (std::int64_t e = rows[i]; e < rows[i + 1]; ++e)
          for (std::int64_t c = 0; c < channels; ++c) sum[c] += values.as<T>()[e * channels + c];
      });
    });
  });
}

AOTITorchError aoti_torch_cpu_edge_moment(AtenTensorHandle a_, AtenTensorHandle y_, AtenTensorHandle,
                                          AtenTensorHandle row_ptr_, AtenTensorHandle* out_) {
  return guarded("edge_moment", [&] {
    const Array a(a_), y(y_), row_ptr(row_ptr_);
    const Array out = allocate({row_ptr.size(0) - 1, y.size(1), a.size(2)}, a.dtype, out_);
    with_dtype(a.dtype, [&](auto zero) {
      using T = decltype(zero);
      with_orders<T>(y.size(1), a.size(1), [&](auto segments) {
        for_each_centre(row_ptr, [&](const std::int64_t* rows, std::int64_t i) {
          segments.moment(a.as<T>(), nullptr, y.as<T>(), rows, i, a.size(2), out.as<T>());
        });
      });
    });
  });
}

AOTITorchError aoti_torch_cpu_edge_spread(AtenTensorHandle y_, AtenTensorHandle z_, AtenTensorHandle,
                                          AtenTensorHandle row_ptr_, std::int64_t orders, AtenTensorHandle* out_) {
  return guarded("edge_spread", [&] {
    const Array y(y_), z(z_), row_ptr(row_ptr_);
    const Array out = allocate({y.size(0), orders, z.size(2)}, y.dtype, out_);
    with_dtype(y.dtype, [&](auto zero) {
      using T = decltype(zero);
      with_orders<T>(y.size(1), orders, [&](auto segments) {
        for_each_centre(row_ptr, [&](const std::int64_t* rows, std::int64_t i) {
          segments.spread(nullptr, y.as<T>(), z.as<T>(), rows, i, z.size(2), out.as<T>());
        });
      });
    });
  });
}

AOTITorchError aoti_torch_cpu_edge_dot(AtenTensorHandle a_, AtenTensorHandle z_, AtenTensorHandle,
                                       AtenTensorHandle row_ptr_, AtenTensorHandle* out_) {
  return guarded("edge_dot", [&] {
    const Array a(a_), z(z_), row_ptr(row_ptr_);
    const Array out = allocate({a.size(0), z.size(1)}, a.dtype, out_);
    with_dtype(a.dtype, [&](auto zero) {
      using T = decltype(zero);
      with_orders<T>(z.size(1), a.size(1), [&](auto segments) {
        for_each_centre(row_ptr, [&](const std::int64_t* rows, std::int64_t i) {
          segments.dot(a.as<T>(), nullptr, z.as<T>(), rows, i, a.size(2), out.as<T>());
        });
      });
    });
  });
}

AOTITorchError aoti_torch_cpu_edge_contract(AtenTensorHandle w_, AtenTensorHandle y_, AtenTensorHandle z_,
                                            AtenTensorHandle, AtenTensorHandle row_ptr_, AtenTensorHandle* out_) {
  return guarded("edge_contract", [&] {
    const Array w(w_), y(y_), z(z_), row_ptr(row_ptr_);
    const Array out = allocate({w.size(0), w.size(2)}, w.dtype, out_);
    with_dtype(w.dtype, [&](auto zero) {
      using T = decltype(zero);
      with_orders<T>(y.size(1), w.size(1), [&](auto segments) {
        for_each_centre(row_ptr, [&](const std::int64_t* rows, std::int64_t i) {
          segments.contract(w.as<T>(), y.as<T>(), z.as<T>(), rows, i, w.size(2), out.as<T>());
        });
      });
    });
  });
}

AOTITorchError aoti_torch_cpu_edge_contract_backward(AtenTensorHandle g_, AtenTensorHandle w_, AtenTensorHandle y_,
                                                     AtenTensorHandle z_, AtenTensorHandle, AtenTensorHandle row_ptr_,
                                                     AtenTensorHandle* dw_, AtenTensorHandle* dy_,
                                                     AtenTensorHandle* dz_) {
  return guarded("edge_contract_backward", [&] {
    const Array g(g_), w(w_), y(y_), z(z_), row_ptr(row_ptr_);
    const Array dw = allocate({w.size(0), w.size(1), w.size(2)}, w.dtype, dw_);
    const Array dy = allocate({y.size(0), y.size(1)}, w.dtype, dy_);
    const Array dz = allocate({z.size(0), z.size(1), z.size(2)}, w.dtype, dz_);
    with_dtype(w.dtype, [&](auto zero) {
      using T = decltype(zero);
      with_orders<T>(y.size(1), w.size(1), [&](auto segments) {
        for_each_centre(row_ptr, [&](const std::int64_t* rows, std::int64_t i) {
          const std::int64_t channels = w.size(2);
          segments.spread(g.as<T>(), y.as<T>(), z.as<T>(), rows, i, channels, dw.as<T>());
          segments.dot(w.as<T>(), g.as<T>(), z.as<T>(), rows, i, channels, dy.as<T>());
          segments.moment(w.as<T>(), g.as<T>(), y.as<T>(), rows, i, channels, dz.as<T>());
        });
      });
    });
  });
}

AOTITorchError aoti_torch_cpu_channel_product(AtenTensorHandle x_, AtenTensorHandle y_, AtenTensorHandle w_,
                                              AtenTensorHandle table_, AtenTensorHandle values_, std::int64_t dim,
                                              AtenTensorHandle* out_) {
  return guarded("channel_product", [&] {
    const Array x(x_), y(y_), w(w_), table(table_), values(values_);
    const std::int64_t nodes = x.size(0), channels = x.size(2), terms = table.size(1);
    const Array out = allocate({nodes, dim, channels}, x.dtype, out_);
    with_dtype(x.dtype, [&](auto zero) {
      using T = decltype(zero);
      const std::int64_t* path = table.as<std::int64_t>();
      const std::int64_t *first = path + terms, *second = first + terms, *output = second + terms;
#pragma omp parallel for
      for (std::int64_t n = 0; n < nodes; ++n) {
        T* sum = out.as<T>() + n * dim * channels;
        for (std::int64_t k = 0; k < dim * channels; ++k) sum[k] = 0;
        for (std::int64_t t = 0; t < terms; ++t) {
          const T value = values.as<T>()[t];
          const T* xt = x.as<T>() + (n * x.size(1) + first[t]) * channels;
          const T* yt = y.as<T>() + (n * y.size(1) + second[t]) * channels;
          const T* wt = w.as<T>() + path[t] * channels;
          T* st = sum + output[t] * channels;
#pragma omp simd
          for (std::int64_t c = 0; c < channels; ++c) st[c] += value * wt[c] * xt[c] * yt[c];
        }
      }
    });
  });
}

AOTITorchError aoti_torch_cpu_tensor_product_convolution(AtenTensorHandle x_, AtenTensorHandle y_, AtenTensorHandle w_,
                                                         AtenTensorHandle, AtenTensorHandle neighbour_,
                                                         AtenTensorHandle row_ptr_, AtenTensorHandle cg_,
                                                         const std::int64_t* paths, std::int64_t numbers,
                                                         std::int64_t width, AtenTensorHandle* out_) {
  return guarded("tensor_product_convolution", [&] {
    const Array x(x_), y(y_), w(w_), neighbour(neighbour_), row_ptr(row_ptr_), cg(cg_);
    const std::int64_t nodes = row_ptr.size(0) - 1;
    const Array out = allocate({nodes, width}, x.dtype, out_);
    with_dtype(x.dtype, [&](auto zero) {
      using T = decltype(zero);
      const Convolution<T> convolution(paths, numbers, cg.as<T>());
#pragma omp parallel
      {
        std::vector<T> coupling(convolution.couplings());
#pragma omp for schedule(dynamic, 4)
        for (std::int64_t i = 0; i < nodes; ++i) {
          T* sum = out.as<T>() + i * width;
          for (std::int64_t k = 0; k < width; ++k) sum[k] = 0;
          for (std::int64_t e = row_ptr.as<std::int64_t>()[i]; e < row_ptr.as<std::int64_t>()[i + 1]; ++e) {
            convolution.couple(y.as<T>() + e * y.size(1), coupling.data());
            convolution.add_message(coupling.data(), x.as<T>() + neighbour.as<std::int64_t>()[e] * x.size(1),
                                    w.as<T>() + e * w.size(1), sum);
          }
        }
      }
    });
  });
}

AOTITorchError aoti_torch_cpu_tensor_product_convolution_nodes(AtenTensorHandle y_, AtenTensorHandle w_,
                                                               AtenTensorHandle g_, AtenTensorHandle centre_,
                                                               AtenTensorHandle neighbour_, AtenTensorHandle,
                                                               AtenTensorHandle cg_, const std::int64_t* paths,
                                                               std::int64_t numbers, std::int64_t nodes,
                                                               std::int64_t width, AtenTensorHandle* out_) {
  return guarded("tensor_product_convolution_nodes", [&] {
    const Array y(y_), w(w_), g(g_), centre(centre_), neighbour(neighbour_), cg(cg_);
    const Array out = allocate({nodes, width}, g.dtype, out_);
    const nequip_md::Incoming incoming(neighbour.as<std::int64_t>(), y.size(0), nodes);
    with_dtype(g.dtype, [&](auto zero) {
      using T = decltype(zero);
      const Convolution<T> convolution(paths, numbers, cg.as<T>());
#pragma omp parallel
      {
        std::vector<T> coupling(convolution.couplings());
#pragma omp for schedule(dynamic, 4)
        for (std::int64_t j = 0; j < nodes; ++j) {
          T* sum = out.as<T>() + j * width;
          for (std::int64_t k = 0; k < width; ++k) sum[k] = 0;
          for (std::int64_t k = incoming.begin[j]; k < incoming.begin[j + 1]; ++k) {
            const std::int64_t e = incoming.edges[k];
            convolution.couple(y.as<T>() + e * y.size(1), coupling.data());
            convolution.add_to_node(coupling.data(), g.as<T>() + centre.as<std::int64_t>()[e] * g.size(1),
                                    w.as<T>() + e * w.size(1), sum);
          }
        }
      }
    });
  });
}

AOTITorchError aoti_torch_cpu_tensor_product_convolution_edges(AtenTensorHandle x_, AtenTensorHandle y_,
                                                               AtenTensorHandle w_, AtenTensorHandle g_,
                                                               AtenTensorHandle centre_, AtenTensorHandle neighbour_,
                                                               AtenTensorHandle, AtenTensorHandle cg_,
                                                               const std::int64_t* paths, std::int64_t numbers,
                                                               AtenTensorHandle* dy_, AtenTensorHandle* dw_) {
  return guarded("tensor_product_convolution_edges", [&] {
    const Array x(x_), y(y_), w(w_), g(g_), centre(centre_), neighbour(neighbour_), cg(cg_);
    const Array dy = allocate({y.size(0), y.size(1)}, y.dtype, dy_);
    const Array dw = allocate({w.size(0), w.size(1)}, y.dtype, dw_);
    with_dtype(y.dtype, [&](auto zero) {
      using T = decltype(zero);
      const Convolution<T> convolution(paths, numbers, cg.as<T>());
#pragma omp parallel
      {
        std::vector<T> coupling(convolution.couplings()), sums(convolution.couplings());
#pragma omp for schedule(static)
        for (std::int64_t e = 0; e < y.size(0); ++e) {
          convolution.couple(y.as<T>() + e * y.size(1), coupling.data());
          convolution.edge_gradients(coupling.data(), x.as<T>() + neighbour.as<std::int64_t>()[e] * x.size(1),
                                     w.as<T>() + e * w.size(1), g.as<T>() + centre.as<std::int64_t>()[e] * g.size(1),
                                     y.size(1), sums.data(), dy.as<T>() + e * y.size(1), dw.as<T>() + e * w.size(1));
        }
      }
    });
  });
}

}  // extern "C"
