/* nequip_md_engine.h: evaluate an exported NequIP or Allegro potential from any MD engine.
 *
 * The library loads one artifact (a `.pt2` file written by `nequip-md-export`) and evaluates it from plain arrays. This
 * header is its whole interface; it needs a C99 or C++ compiler and nothing of torch.
 *
 * Life of a model
 *     nequip_md_load() makes a handle, nequip_md_evaluate() uses it any number of times, nequip_md_free() ends it. A
 *     handle owns everything that it returns a pointer to; such pointers live until nequip_md_free(), that of
 *     nequip_md_last_error() and nequip_md_last_warning() until the next call on the handle. Arrays passed in belong to
 *     the caller and are read or written during the call only.
 *
 * Structures
 *     Every structure begins with `struct_size`. Set the whole structure to zero and this field to its sizeof:
 *
 *         nequip_md_system system = {.struct_size = sizeof(nequip_md_system)};
 *
 *     Later versions add fields at the end, which need no other NEQUIP_MD_ABI_VERSION. A library takes fields that the
 *     caller's structure does not have yet as zero. It accepts a structure that is larger than its own if all bytes
 *     that it does not know are zero, and otherwise refuses it, as it would ignore what the caller asks for.
 *
 * Units
 *     Lengths are angstrom. Energies are eV times `energy_factor` of the options, forces are that per angstrom,
 *     virials are that. A caller who works in kcal/mol sets the factor to 23.06...; nothing else needs converting.
 *
 * Errors
 *     Functions that can fail return one of the NEQUIP_MD_* codes below, 0 being success, and leave a sentence that
 *     names the input, the reason and the remedy. No C++ exception ever leaves the library, and it never ends the
 *     process. After a failed evaluation the contents of the result arrays are undefined.
 *
 * Threads
 *     One handle may be used by one thread at a time; different handles are independent. While a call runs, it uses
 *     as many OpenMP threads as the options say; the number set before the call is put back when it returns.
 *
 * Several processes
 *     A rank evaluates the energies of the atoms that it owns (its centres). Models without message passing (Allegro)
 *     need ghost atoms as far out as the cutoff and nothing else; forces on ghosts are returned and the caller adds
 *     them to those of the atoms that the ghosts are copies of. Models with message passing (NequIP) either run on one
 *     process, where `owner` says which atom each periodic image is a copy of, or need `exchange`, by which the caller
 *     brings the features of ghosts from the processes that own them.
 *
 * Periodic boundaries
 *     With `cell` the library makes the periodic images itself, for programs on one process that have none of their
 *     own. Without it every image is one more atom in the caller's arrays.
 */
#ifndef NEQUIP_MD_ENGINE_H
#define NEQUIP_MD_ENGINE_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define NEQUIP_MD_API
#else
#define NEQUIP_MD_API __attribute__((visibility("default")))
#endif

/* Changes whenever a function or a field below does, not when fields are added (see Structures above). A caller
 * compares it with nequip_md_abi_version(). */
#define NEQUIP_MD_ABI_VERSION 5

/* Largest num_threads of the options. */
#define NEQUIP_MD_MAX_THREADS 1024

enum nequip_md_status {
    NEQUIP_MD_OK = 0,
    NEQUIP_MD_BAD_FILE = 1,   /* the artifact is missing, is damaged, or is no artifact */
    NEQUIP_MD_BAD_MODEL = 2,  /* an artifact of another format or torch version, or one that breaks the contract */
    NEQUIP_MD_BAD_DEVICE = 3, /* the device asked for is not there */
    NEQUIP_MD_BAD_INPUT = 4,  /* an argument: null pointer, index out of range, position that is not finite */
    NEQUIP_MD_BAD_RESULT = 5, /* an energy or a force came out as NaN or infinite */
    NEQUIP_MD_INTERNAL = 6    /* anything else; the message is that of the library underneath */
};

/* Where arrays lie. */
enum nequip_md_memory {
    NEQUIP_MD_HOST_MEMORY = 0,
    NEQUIP_MD_GPU_MEMORY = 1 /* memory of the GPU that the model runs on; refused by this version */
};

/* A loaded potential. */
typedef struct nequip_md_model nequip_md_model;

/* How to load; zero in every field after the first asks for the defaults. */
typedef struct nequip_md_options {
    size_t struct_size; /* sizeof(nequip_md_options) */
    const char *device; /* "cpu" or "cuda"; NULL: the device that the artifact was exported for */
    int device_index;   /* which GPU, counted from 0; ignored on the CPU */
    int num_threads;    /* OpenMP threads during calls, at most NEQUIP_MD_MAX_THREADS; 0: whatever is set in the calling
                         * process */
    double energy_factor; /* results are in eV times this; 0 or 1: eV */
    long long max_edges;  /* evaluate at most so many edges at a time, which bounds memory; the results do not depend on
                           * it. For models without message passing. 0: all at once, or on a GPU as many as fit */
    int no_replay;        /* on a GPU, the evaluation of a small system is recorded once and replayed, which saves the
                           * time of launching its kernels one by one. 1: never do that */
    int no_guard;         /* an evaluation that leaves what the model was trained on is reported once, see
                           * nequip_md_last_warning(). 1: never */
} nequip_md_options;

/* Called during the evaluation of a model with message passing, before each layer that needs features of ghosts, and
 * again for each of these on the way back to forces; the same number of times on all processes.
 *
 * features: [owned + ghosts][width], floating-point numbers of bytes_each (4 or 8) bytes, on the device of the model;
 * on a GPU they are to be read and written in the order of `stream`, a cudaStream_t. The first rows are those of the
 * centres in the order of `centres` (those that type_map ignores have none), the last `ghosts` rows those of all other
 * atoms in their order. Rows between them belong to no atom.
 *
 * reduce 0: fill the rows of ghosts with those of the atoms that they are copies of. reduce 1: add the rows of ghosts
 * to those of the atoms that they are copies of.
 *
 * Returns 0, or another number if it failed: then the evaluation does. */
typedef int (*nequip_md_exchange)(void *context, int reduce, void *features, long long owned, long long ghosts,
                                  long long width, int bytes_each, void *stream);

/* Atoms and, unless the library is to find them, full neighbour lists as LAMMPS keeps them. "Atom" is an index into the
 * arrays of length num_all. */
typedef struct nequip_md_system {
    size_t struct_size;      /* sizeof(nequip_md_system) */
    int num_all;             /* atoms in the arrays: owned ones and ghosts (periodic images, atoms of other ranks) */
    const double *positions; /* [num_all][3], angstrom */
    const int *types;        /* [num_all], the caller's own type numbers, 0 <= type < num_caller_types */
    int num_caller_types;    /* length of type_map */
    const int *type_map;     /* [num_caller_types], model type of each caller's type, -1: to be ignored */

    int num_centres;              /* atoms whose energies are wanted; each atom at most once */
    const int *centres;           /* [num_centres], atoms; NULL: the first num_centres atoms */
    const int *num_neighbours;    /* indexed by atom, read for the centres only */
    const int *const *neighbours; /* indexed by atom: at least all within the cutoff, each pair both ways. If both are
                                   * NULL, the library finds the neighbours: all other atoms of the model */
    double skin;        /* angstrom; how far beyond the cutoff it looks, so that neighbours stay right until two
                         * atoms have come closer by it, and lists_changed can be 0 so long */
    int neighbour_mask; /* neighbour = entry & mask (LAMMPS keeps flags in the high bits); 0: no mask */
    int lists_changed;  /* 0 promises that num_all, centres and neighbours are those of the call before */

    const int *owner; /* [num_all], the centre that each atom is or is a copy of; needed only by models with
                       * message passing, and not by them with `cell` or `exchange`; NULL otherwise */

    const double *cell; /* [3][3], rows are the lattice vectors, angstrom: the arrays hold the atoms of one cell, which
                         * may lie outside of it, and the library makes their periodic images as far out as cutoff +
                         * skin, finds the neighbours (num_neighbours, neighbours and owner must be NULL), and gives
                         * what belongs to an image to its atom. While lists_changed is 0, images move with their atoms
                         * and with the cell; positions must then be continuous: atoms that were moved by a lattice
                         * vector need lists_changed. NULL: all atoms there are stand in the arrays */
    int periodic[3];    /* with `cell`: whether there are images along each of its vectors. A vector without is not
                         * read and may be zero */

    int memory;   /* NEQUIP_MD_HOST_MEMORY or NEQUIP_MD_GPU_MEMORY: where positions, types and the arrays of the results
                   * lie, all other arrays are in host memory */
    void *stream; /* with NEQUIP_MD_GPU_MEMORY: the cudaStream_t in whose order they are read and written, NULL: the
                   * default stream. The call waits for the evaluation, but not for the last sums in this stream */

    nequip_md_exchange exchange; /* of models with message passing on several processes: brings features of ghosts;
                                  * NULL: each atom that is no centre is a copy of its `owner` */
    void *exchange_context;      /* handed to it */
} nequip_md_system;

/* What to compute. Values are ADDED to the arrays, so that several contributions can share them; zero them first if
 * need be. `energy`, `virial` and the counts are set, not added to. */
typedef struct nequip_md_results {
    size_t struct_size;       /* sizeof(nequip_md_results) */
    double energy;            /* sum over the centres */
    double virial[6];         /* xx, yy, zz, xy, xz, yz of the sum over edges of -r (x) dE/dr; its trace / 3V is the
                               * pressure without the kinetic part */
    double *forces;           /* [num_all][3]; required */
    double *atom_energies;    /* [num_all], filled for centres; or NULL */
    double *atom_virials;     /* [num_all][6], as `virial`, each edge shared equally by its two atoms; or NULL */
    double *centroid_virials; /* [num_all][9], xx, yy, zz, xy, xz, yz, yx, zx, zy, each edge given to its neighbour
                               * atom, which makes the heat flux of a model without message passing exact; or NULL */
    int failed_atom;          /* after an error that concerns one atom: that atom; else -1 */
    int warned_atom;          /* after an evaluation with a warning: the two atoms that it concerns; */
    int warned_neighbour;     /* else -1 */
    long long num_candidates; /* entries of the neighbour lists, given or found, between atoms of the model */
    long long num_edges;      /* those within the cutoff of their types, which the model saw */
    long long num_evaluated;  /* edges with padding: two of each evaluation at least, and the room of a recording */
    long long num_pieces;     /* evaluations of the model, see max_edges */
    int replayed;             /* 1: a recording was replayed, see no_replay */
    double seconds_lists;     /* wall time of checking and sending positions, and of neighbours where lists changed */
    double seconds_model;     /* of edges, model and sums, until they are back in host memory */
    double seconds_results;   /* of adding them to the arrays above */
} nequip_md_results;

/* The NEQUIP_MD_ABI_VERSION that the library was built with. */
NEQUIP_MD_API int nequip_md_abi_version(void);

/* Number of usable devices: 1 for "cpu", the number of GPUs for "cuda", 0 for anything else. */
NEQUIP_MD_API int nequip_md_device_count(const char *device);

/* Load the artifact at `path`. `options` may be NULL. On success *model is a new handle. On failure *model is NULL and
 * the sentence is written to `message` (at most message_size bytes with the closing zero; 1000 is plenty). */
NEQUIP_MD_API int nequip_md_load(const char *path, const nequip_md_options *options, nequip_md_model **model,
                                 char *message, size_t message_size);

/* End a model. NULL is allowed. */
NEQUIP_MD_API void nequip_md_free(nequip_md_model *model);

/* The artifact's metadata: the text of one key, or NULL if it has none such. Keys are listed in docs/engine.md. */
NEQUIP_MD_API const char *nequip_md_metadata(const nequip_md_model *model, const char *key);

/* Number of atom types of the model. */
NEQUIP_MD_API int nequip_md_num_types(const nequip_md_model *model);

/* Name of a model type, usually a chemical symbol; NULL if the type is out of range. */
NEQUIP_MD_API const char *nequip_md_type_name(const nequip_md_model *model, int type);

/* Largest cutoff, angstrom. */
NEQUIP_MD_API double nequip_md_cutoff(const nequip_md_model *model);

/* Cutoff of neighbours of one model type around centres of another, angstrom; not symmetric in general, and 0 if a type
 * is out of range. */
NEQUIP_MD_API double nequip_md_pair_cutoff(const nequip_md_model *model, int centre, int neighbour);

/* 0: strictly local, any set of centres can be evaluated alone. Else the number of layers that pass messages. */
NEQUIP_MD_API int nequip_md_message_passing_layers(const nequip_md_model *model);

/* Energy of an atom of a model type without any neighbour, in the unit of the results: what the model gives to an atom
 * that all others are out of reach of. The first call evaluates the model; the caller's lists stay valid. */
NEQUIP_MD_API int nequip_md_isolated_energy(nequip_md_model *model, int type, double *energy);

/* Energies, forces and virials of one configuration. */
NEQUIP_MD_API int nequip_md_evaluate(nequip_md_model *model, const nequip_md_system *system,
                                     nequip_md_results *results);

/* A sentence on something in the last nequip_md_evaluate() that the model was not trained on: two atoms much closer
 * than any pair of their types in the training data; empty if nothing. It is reported once for a handle, and only if
 * the artifact's metadata has `closest_distances`. The key `largest_force` is for callers, who alone know the whole
 * force on an atom. */
NEQUIP_MD_API const char *nequip_md_last_warning(const nequip_md_model *model);

/* The sentence left by the last nequip_md_evaluate() or nequip_md_isolated_energy() on this handle; empty after a
 * success. */
NEQUIP_MD_API const char *nequip_md_last_error(const nequip_md_model *model);

#ifdef __cplusplus
}
#endif

#endif
