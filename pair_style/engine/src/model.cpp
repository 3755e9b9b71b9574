#include "model.h"

#include <cmath>

#include <ATen/Parallel.h>
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

}  // namespace

Model::Model(const std::string &path, const nequip_md_options &options)
    : metadata_(open_package(path, checked(options).device ? options.device : "", options.device_index)),
      compute_(metadata_.device == "cpu" ? at::Device(at::kCPU)
                                         : at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(options.device_index))),
      num_threads_(options.num_threads),
      energy_factor_(options.energy_factor == 0 ? 1 : options.energy_factor),
      may_replay_(!options.no_replay),
      network_(path, compute_.device(), metadata_.precision == "tf32"),
      table_(compute_, metadata_),
      pieces_(compute_, options.max_edges, metadata_.message_passing_layers == 0),
      replay_(compute_)
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
    const auto stream = compute_.enter();
    if (!results.forces && system.num_all > 0) throw Error(NEQUIP_MD_BAD_INPUT, "evaluate: forces is NULL");
    table_.update(system);

    const bool energies = results.atom_energies != nullptr;
    const Tally::Wanted wanted{results.atom_virials != nullptr, results.centroid_virials != nullptr};
    if (const Tally *replayed = replay_.run(table_, wanted, energies)) {
        finish(*replayed, results, replayed->num_edges(), 1);
        return;
    }
    for (const bool wide : {false, true}) {
        Tally tally(compute_, table_.num_centres(), table_.num_atoms(), wanted, wide);
        pieces_.run(table_, network_, tally);
        tally.finish();
        if (!tally.fetch(table_.num_atoms(), energies)) continue;
        finish(tally, results, pieces_.num_edges(), pieces_.num_pieces());
        if (may_replay_ && !wide && pieces_.num_pieces() == 1 && replay_.worthwhile(pieces_.num_edges()))
            replay_.record(table_, network_, wanted, pieces_.num_edges());
        return;
    }
}

void Model::finish(const Tally &tally, nequip_md_results &results, int64_t num_edges, int64_t num_pieces) const
{
    tally.add_to(table_, energy_factor_, results);
    results.num_candidates = table_.num_candidates();
    results.num_edges = num_edges;
    results.num_pieces = num_pieces;
}

}  // namespace nequip_md
