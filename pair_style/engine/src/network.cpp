#include "network.h"

#include <sstream>

#include <ATen/Context.h>

#include "error.h"

namespace nequip_md {
namespace {

// AOTInductor checks neither shapes nor types of outputs, which are read as raw memory later.
void check_output(const std::string &path, const char *name, const at::Tensor &tensor, at::IntArrayRef shape)
{
    if (tensor.scalar_type() == at::kDouble && tensor.sizes() == shape) return;
    std::ostringstream message;
    message << "artifact '" << path << "' returned " << name << " of type " << tensor.scalar_type() << " and shape "
            << tensor.sizes() << " where the contract says Double and " << shape << "; export the model again";
    throw Error(NEQUIP_MD_BAD_MODEL, message.str());
}

// Allows or forbids TF32 in cuBLAS during an evaluation. It is restored afterwards, as it applies to the whole process.
class TF32Scope {
 public:
    explicit TF32Scope(bool allow) : before_(at::globalContext().allowTF32CuBLAS())
    {
        at::globalContext().setAllowTF32CuBLAS(allow);
    }
    ~TF32Scope() { at::globalContext().setAllowTF32CuBLAS(before_); }
    TF32Scope(const TF32Scope &) = delete;
    TF32Scope &operator=(const TF32Scope &) = delete;

 private:
    const bool before_;
};

}  // namespace

Network::Network(const Package &package, const Compute &compute)
    : path_(package.path()),
      allow_tf32_(package.metadata().precision == "tf32"),
      folder_(std::make_unique<TemporaryFolder>(package.size()))
{
    // A handle is used by one thread at a time, and only this mode allows recording a GPU's work (gpu.h).
    constexpr bool run_single_threaded = true;
    constexpr size_t num_runners = 1;
    const std::string library = package.unpack(*folder_);
    const auto &makers = torch::inductor::getAOTIModelRunnerRegistry();
    try {
        // Without an index the weights would be loaded to the current device.
        runner_ = makers.at(package.metadata().device)(library, num_runners, compute.device().str(), folder_->path(),
                                                       run_single_threaded);
    } catch (const std::exception &error) {
        throw Error(NEQUIP_MD_BAD_FILE, "the compiled code in '" + path_ + "' does not load (" +
                                            first_line(error.what()) +
                                            "); export the model again on a machine like this one");
    }
    exchange_.emplace(compute, library);
    // Loaded code does not need its file any more, so no file is left behind even if the process is killed. A GPU's
    // kernels are loaded from files when they are first needed, so these stay.
    if (!compute.gpu()) folder_.reset();
}

std::vector<at::Tensor> Network::call(const Graph &graph)
{
    const TF32Scope precision(allow_tf32_);
    const auto check = [this] {
        if (exchange_->failure() != 0)
            throw Error(NEQUIP_MD_INTERNAL, "the caller's function `transfer` returned " +
                                                std::to_string(exchange_->failure()) + ", so ghosts have no features");
    };
    try {
        std::vector<at::Tensor> outputs =
            runner_->run({graph.edge_vectors, graph.edge_index, graph.row_ptr, graph.node_types});
        check();
        return outputs;
    } catch (const std::exception &) {
        check();  // throws a better message if the exchange failed
        throw;
    }
}

Evaluation Network::run(const Graph &graph)
{
    const std::vector<at::Tensor> outputs = call(graph);
    folder_.reset();
    if (outputs.size() != 2)
        throw Error(NEQUIP_MD_BAD_MODEL, "artifact '" + path_ + "' returned " + std::to_string(outputs.size()) +
                                             " outputs where the contract says 2; export the model again");
    check_output(path_, "node_energy", outputs[0], {graph.num_nodes()});
    check_output(path_, "edge_gradient", outputs[1], {graph.num_edges(), 3});
    return {outputs[0].contiguous(), outputs[1].contiguous()};
}

}  // namespace nequip_md
