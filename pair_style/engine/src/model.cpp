#include "model.h"

#include <cmath>

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/InferenceMode.h>

#include "error.h"
#include "package.h"
#include "tally.h"

namespace nequip_md {
namespace {

// The thread count belongs to the whole process: its owner may have sized arrays by it.
class ThreadScope {
 public:
    explicit ThreadScope(int wanted) : before_(at::get_num_threads()), changed_(wanted > 0 && wanted != before_)
    {
        if (changed_) at::set_num_threads(wanted);
    }
    ~ThreadScope()
    {
        if (changed_) at::set_num_threads(before_);
    }
    ThreadScope(const ThreadScope &) = delete;
    ThreadScope &operator=(const ThreadScope &) = delete;

 private:
    const int before_;
    const bool changed_;
};

const nequip_md_options &checked(const nequip_md_options &options)
{
    if (options.num_threads < 0)
        throw Error(NEQUIP_MD_BAD_INPUT,
                    "num_threads is " + std::to_string(options.num_threads) + "; it must be 0 or more");
    if (options.max_edges < 0)
        throw Error(NEQUIP_MD_BAD_INPUT, "max_edges is " + std::to_string(options.max_edges) + "; it must be 0 or more");
    if (!std::isfinite(options.energy_factor) || options.energy_factor < 0)
        throw Error(NEQUIP_MD_BAD_INPUT,
                    "energy_factor is " + std::to_string(options.energy_factor) + "; it must be positive");
    return options;
}

at::Tensor upload_positions(const nequip_md_system &system, const at::Device &device)
{
    const int64_t count = 3 * static_cast<int64_t>(system.num_all);
    // A comparison with NaN is false, so that such an atom would merely lose its edges.
    for (int64_t k = 0; k < count; ++k)
        if (!std::isfinite(system.positions[k]))
            throw Error(NEQUIP_MD_BAD_INPUT,
                        "the position of an atom is not finite; the simulation has become unstable, or its input "
                        "is damaged",
                        static_cast<int>(k / 3));
    const auto options = at::TensorOptions().dtype(at::kDouble);
    if (count == 0) return at::empty({0, 3}, options.device(device));
    return at::from_blob(const_cast<double *>(system.positions), {system.num_all, 3}, options).to(device);
}

}  // namespace

Model::Model(const std::string &path, const nequip_md_options &options)
    : metadata_(open_package(path, checked(options).device ? options.device : "", options.device_index)),
      device_(metadata_.device == "cpu" ? at::Device(at::kCPU)
                                        : at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(options.device_index))),
      num_threads_(options.num_threads),
      energy_factor_(options.energy_factor == 0 ? 1 : options.energy_factor),
      network_(path, device_, metadata_.precision == "tf32"),
      chunks_(options.max_edges, device_.is_cuda() && metadata_.message_passing_layers == 0)
{
    if (options.max_edges > 0 && metadata_.message_passing_layers > 0)
        throw Error(NEQUIP_MD_BAD_INPUT,
                    "max_edges is " + std::to_string(options.max_edges) +
                        ", but a model with message passing (NequIP) cannot be evaluated in pieces; leave it 0");
}

void Model::evaluate(const nequip_md_system &system, nequip_md_results &results)
{
    const c10::InferenceMode no_autograd;
    const ThreadScope threads(num_threads_);
    if (!results.forces && system.num_all > 0) throw Error(NEQUIP_MD_BAD_INPUT, "evaluate: forces is NULL");
    table_.update(system, metadata_, device_);
    const at::Tensor positions = upload_positions(system, device_);
    const Graph graph = build_graph(table_, positions, metadata_.cutoff);
    tally(table_, graph, chunks_.run(network_, graph, metadata_.cutoff), system.num_all, energy_factor_, results);
    results.num_candidates = table_.centre_atom.size(0);
    results.num_edges = graph.num_real_edges;
    results.num_pieces = chunks_.num_pieces();
}

}  // namespace nequip_md
