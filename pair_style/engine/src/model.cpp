#include "model.h"

#include <chrono>
#include <cmath>
#include <numeric>

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include "error.h"
#include "memory.h"
#include "tally.h"

namespace nequip_md {
namespace {

// Sets the number of OpenMP threads during a call. It is restored afterwards, as it applies to the whole process, and
// other code may have sized arrays by it.
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

class Stopwatch {
 public:
    double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
    const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

const nequip_md_options &checked(const nequip_md_options &options)
{
    if (options.num_threads < 0 || options.num_threads > NEQUIP_MD_MAX_THREADS)
        throw Error(NEQUIP_MD_BAD_INPUT, "num_threads is " + std::to_string(options.num_threads) +
                                             "; it must be from 0 to " + std::to_string(NEQUIP_MD_MAX_THREADS));
    if (options.max_edges < 0)
        throw Error(NEQUIP_MD_BAD_INPUT,
                    "max_edges is " + std::to_string(options.max_edges) + "; it must be 0 or more");
    if (!std::isfinite(options.energy_factor) || options.energy_factor < 0)
        throw Error(NEQUIP_MD_BAD_INPUT,
                    "energy_factor is " + std::to_string(options.energy_factor) + "; it must be positive");
    return options;
}

}  // namespace

Model::Model(const std::string &path, const nequip_md_options &options)
    : Model(Package(path, checked(options).device ? options.device : "", options.device_index), options)
{
}

Model::Model(const Package &package, const nequip_md_options &options)
    : metadata_(package.metadata()),
      compute_(metadata_.device == "cpu" ? at::Device(at::kCPU)
                                         : at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(options.device_index))),
      num_threads_(options.num_threads),
      energy_factor_(options.energy_factor == 0 ? 1 : options.energy_factor),
      may_replay_(!options.no_replay),
      network_(package, compute_),
      guard_(metadata_, !options.no_guard),
      table_(compute_, metadata_, guard_.shortest()),
      pieces_(compute_, options.max_edges, metadata_.message_passing_layers == 0),
      replay_(compute_)
{
    if (!compute_.gpu()) keep_freed_memory();
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
    const Stopwatch watch;
    const bool arrays_on_gpu = system.memory == NEQUIP_MD_GPU_MEMORY && compute_.gpu();
    const auto order = arrays_on_gpu ? compute_.gpu()->order(system.stream) : nullptr;
    table_.update(system);
    results.seconds_lists = watch.seconds();
    const bool exchanged = metadata_.message_passing_layers > 0 && system.exchange;
    if (exchanged) {
        check_exchange();
        network_.exchange().prepare(*system.exchange, system.lists_changed, table_);
    }
    const Exchange::Scope exchange(network_.exchange(), exchanged);
    const Request request{{results.atom_virials != nullptr, results.centroid_virials != nullptr},
                          {results.atom_energies != nullptr, !arrays_on_gpu},
                          /*replay=*/may_replay_ && !exchanged};
    const Tally &tally = evaluate_table(request, results);
    results.seconds_model = watch.seconds() - results.seconds_lists;
    if (arrays_on_gpu)
        tally.add_on_gpu(table_, energy_factor_, results);
    else
        tally.add_to(table_, energy_factor_, results);
    guard_.look(tally, table_, results);
    results.seconds_results = watch.seconds() - results.seconds_lists - results.seconds_model;
    results.num_candidates = table_.num_candidates();
}

void Model::check_exchange()
{
    // a single layer reads types of ghosts, so its code exchanges nothing
    if (!metadata_.ghosts || (metadata_.message_passing_layers > 1 && !network_.exchange().possible()))
        throw Error(NEQUIP_MD_BAD_MODEL,
                    "exchange is set, but the model was exported for one process (it does not ask for features of "
                    "ghosts); write it again with: nequip-md-export MODEL -o OUT.pt2");
}

const std::vector<double> &Model::isolated_energies()
{
    if (!isolated_energies_.empty()) return isolated_energies_;
    const c10::InferenceMode no_autograd;
    const ThreadScope threads(num_threads_);
    const auto stream = compute_.enter();
    const int count = metadata_.num_types();
    // one atom of each type, so atoms, types, centres and owners have the same numbers
    std::vector<int> each(count);
    std::iota(each.begin(), each.end(), 0);
    const std::vector<int> no_neighbours(count, 0);
    const std::vector<const int *> empty_lists(count, nullptr);
    std::vector<double> positions(3 * count, 0.0), forces(3 * count, 0.0), energies(count, 0.0);

    nequip_md_system system{};
    system.num_all = system.num_caller_types = system.num_centres = count;
    system.positions = positions.data();
    system.types = system.type_map = system.centres = system.owner = each.data();
    system.num_neighbours = no_neighbours.data();
    system.neighbours = empty_lists.data();
    NeighbourTable table(compute_, metadata_,
                         {});  // a separate table, since the caller may rely on the lists of the other
    table.update(system);
    Tally tally(compute_, count, count, {false, false}, /*wide=*/true);
    Pieces(compute_, /*max_edges=*/0, /*divisible=*/false).run(table, network_, tally);
    tally.finish();
    tally.fetch(count, {/*atom_energies=*/true, /*arrays=*/true});

    nequip_md_results results{};
    results.forces = forces.data();
    results.atom_energies = energies.data();
    tally.add_to(table, energy_factor_, results);
    return isolated_energies_ = std::move(energies);
}

const Tally &Model::evaluate_table(const Request &request, nequip_md_results &results)
{
    if (const Tally *replayed = request.replay ? replay_.run(table_, request.wanted, request.fetched) : nullptr) {
        results.replayed = 1;
        results.num_pieces = 1;
        results.num_edges = replayed->num_edges();
        results.num_evaluated = replay_.num_edges();
        return *replayed;
    }
    const auto sums_are_right = [&](bool wide) {
        tally_.emplace(compute_, table_.num_centres(), table_.num_atoms(), request.wanted, wide);
        if (!wide || !pieces_.add_again(table_, *tally_)) pieces_.run(table_, network_, *tally_);
        tally_->finish();
        return tally_->fetch(table_.num_atoms(), request.fetched);
    };
    const bool fixed = sums_are_right(/*wide=*/false);
    if (!fixed) sums_are_right(/*wide=*/true);
    results.replayed = 0;
    results.num_pieces = pieces_.num_pieces();
    results.num_edges = pieces_.num_edges();
    results.num_evaluated = pieces_.num_evaluated();
    if (request.replay && fixed && pieces_.num_pieces() == 1 && replay_.worthwhile(pieces_.num_edges()))
        replay_.record(table_, network_, request.wanted, pieces_.num_edges());
    return *tally_;
}

}  // namespace nequip_md
