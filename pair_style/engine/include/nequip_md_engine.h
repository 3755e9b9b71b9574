/* nequip_md_engine.h: evaluate an exported NequIP or Allegro potential from any MD engine.
 *
 * The library loads one artifact (a `.pt2` file written by `nequip-md-export`) and evaluates it on plain arrays. This
 * header is its whole interface. It needs a C99 or C++ compiler, but no header of torch.
 *
 * Life of a model
 *     nequip_md_load() makes a handle, nequip_md_evaluate() uses it any number of times, nequip_md_free() frees it. The
 *     handle owns what the pointers returned by these functions point to. The pointers are valid until
 * nequip_md_free(), those of nequip_md_last_error() and nequip_md_last_warning() until the next call on the handle.
 * Arrays passed in belong to the caller and are read or written during the call only.
 *
 * Structures
 *     Every structure begins with `struct_size`. Set the whole structure to zero and this field to its sizeof:
 *
 *         nequip_md_system system = {.struct_size = sizeof(nequip_md_system)};
 *
 *     Later versions add fields at the end, without a change of NEQUIP_MD_ABI_VERSION. Fields that the caller's
 *     structure does not have yet count as zero. A structure that is larger than the library's own is accepted if all
 *     bytes that the library does not know are zero. Otherwise it is refused, as a request would be ignored.
 *
 * Units
 *     Lengths are in angstrom, energies and virials in eV times `energy_factor` of the options, forces in that unit per
 *     angstrom. A caller that works in kcal/mol sets the factor to 23.06...; nothing else needs converting.
 *
 * Errors
 *     Functions that can fail return one of the NEQUIP_MD_* codes below (0 for success) and store a message that names
 *     the input, the reason and the remedy. No C++ exception leaves the library, and it never ends the process. After a
 *     failed evaluation the contents of the result arrays are undefined.
 *
 * Threads
 *     A handle may be used by one thread at a time; different handles are independent. A call uses as many OpenMP
 *     threads as the options say, and restores the previous number when it returns.
 *
 * Several processes
 *     A rank evaluates the energies of the atoms that it owns (its centres). Models without message passing (Allegro)
 *     need ghost atoms as far out as the cutoff and nothing else; forces on ghosts are returned and the caller adds
 *     them to those of the atoms that the ghosts are copies of. Models with message passing (NequIP) either run on one
 *     process, where `owner` says which atom each periodic image is a copy of, or need `exchange`, which says whose
 *     features other processes need, and sends and receives them.
 *
 * Periodic boundaries
 *     With `cell` the library makes the periodic images itself, for programs on one process that have no images of
 * their own. Without it each image is a further atom in the caller's arrays.
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
#define NEQUIP_MD_ABI_VERSION 6

/* Largest num_threads of the options. */
#define NEQUIP_MD_MAX_THREADS 1024

enum nequip_md_status {
    NEQUIP_MD_OK = 0,
    NEQUIP_MD_BAD_FILE = 1,   /* the file is missing, damaged, or no artifact */
    NEQUIP_MD_BAD_MODEL = 2,  /* the artifact has another format or torch version, or outputs that its format forbids */
    NEQUIP_MD_BAD_DEVICE = 3, /* the requested device does not exist */
    NEQUIP_MD_BAD_INPUT = 4,  /* an argument is wrong: null pointer, index out of range, position that is not finite */
    NEQUIP_MD_BAD_RESULT = 5, /* an energy or a force is NaN or infinite */
    NEQUIP_MD_INTERNAL = 6    /* any other error; the message is that of the underlying library */
};

/* Memory that holds arrays. */
enum nequip_md_memory {
    NEQUIP_MD_HOST_MEMORY = 0,
    NEQUIP_MD_GPU_MEMORY = 1 /* memory of the GPU that the model runs on */
};

/* A loaded potential. */
typedef struct nequip_md_model nequip_md_model;

/* Options of nequip_md_load(). Zero selects the default of every field but the first. */
typedef struct nequip_md_options {
    size_t struct_size;   /* sizeof(nequip_md_options) */
    const char *device;   /* "cpu" or "cuda"; NULL: the device that the artifact was exported for */
    int device_index;     /* which GPU, counted from 0; ignored on the CPU */
    int num_threads;      /* OpenMP threads during calls, at most NEQUIP_MD_MAX_THREADS; 0: the number that the calling
                           * process has set */
    double energy_factor; /* results are in eV times this; 0 or 1: eV */
    long long max_edges; /* largest number of edges to evaluate at a time, for models without message passing. It bounds
                          * memory and does not affect results. 0: all edges, or on a GPU as many as fit */
    int no_replay;       /* on a GPU, the evaluation of a small system is recorded once and replayed, which saves the
                          * time of launching its kernels one by one. 1: always launch them */
    int no_guard;        /* a configuration unlike the training data is reported once, see nequip_md_last_warning().
                          * 1: never report it */
} nequip_md_options;

/* How features of ghosts travel between processes, for models with message passing. The library computes features for
 * the centres of this process only, and a layer reads those of their neighbours too.
 *
 * The atoms that are no centres are ghosts. A ghost's features come from another process (`received`) or from a centre
 * of this one (`images`). Ghosts that are in neither list must not be within the cutoff of a centre.
 *
 * All entries are atoms. They are read when lists_changed is set, or when the atoms of the model have changed. */
typedef struct nequip_md_exchange {
    size_t struct_size; /* sizeof(nequip_md_exchange) */

    /* Sends `outgoing` to the other processes and receives `incoming` from them, before each layer that needs features
     * of ghosts (reduce 0), and once more for each of these layers in the backward pass (reduce 1): the same number of
     * times on all processes, also on those without atoms.
     *
     * reduce 0: outgoing has the features of the atoms in `sent`, in this order, and incoming is to have those of
     * `received`. reduce 1: outgoing has the gradients of `received`, and incoming is to have those of `sent`, which
     * the library adds up. An atom's features have bytes_each bytes. Both arrays are in host memory.
     *
     * Returns 0 for success. With any other value the evaluation fails. */
    int (*transfer)(void *context, int reduce, const void *outgoing, void *incoming, long long bytes_each);
    void *context; /* first argument of `transfer` */

    int num_sent;         /* centres whose features other processes need; one may occur several times */
    const int *sent;      /* [num_sent] */
    int num_received;     /* ghosts whose features other processes send, each once */
    const int *received;  /* [num_received] */
    int num_images;       /* ghosts that are copies of centres of this process, each once */
    const int *images;    /* [num_images] */
    const int *originals; /* [num_images], the centres that they are copies of */
} nequip_md_exchange;

/* Atoms and, unless the library is to find them, full neighbour lists as LAMMPS keeps them. "Atom" is an index into the
 * arrays of length num_all. */
typedef struct nequip_md_system {
    size_t struct_size;      /* sizeof(nequip_md_system) */
    int num_all;             /* number of atoms in the arrays: owned atoms and ghosts (periodic images, atoms of other
                              * ranks) */
    const double *positions; /* [num_all][3], angstrom */
    const int *types;        /* [num_all], the caller's own type numbers, 0 <= type < num_caller_types */
    int num_caller_types;    /* length of type_map */
    const int *type_map;     /* [num_caller_types], model type of each caller's type; -1: atoms of it are ignored */

    int num_centres;              /* number of centres, the atoms whose energies are computed */
    const int *centres;           /* [num_centres], atoms, each at most once; NULL: the first num_centres atoms */
    const int *num_neighbours;    /* indexed by atom, read for the centres only */
    const int *const *neighbours; /* indexed by atom: lists with at least all atoms within the cutoff; each pair is in
                                   * both lists. If both pointers are NULL, the library finds all neighbours among the
                                   * atoms of the model */
    double skin;        /* Verlet skin of lists that the library finds, angstrom: they reach this far beyond the cutoff.
                         * lists_changed can be 0 until two atoms have approached each other by this distance */
    int neighbour_mask; /* neighbour = entry & mask (LAMMPS keeps flags in the high bits); 0: no mask */
    int lists_changed;  /* 0 promises that num_all, centres and neighbours are those of the previous call */

    const int *owner; /* [num_all], the centre that each atom is or is a copy of. Required by models with message
                       * passing, unless `cell` or `exchange` is set; NULL otherwise */

    const double *cell; /* [3][3], rows are the lattice vectors, angstrom. The arrays then hold the atoms of one cell,
                         * which may lie outside of it. The library makes their periodic images as far out as cutoff +
                         * skin, finds the neighbours (num_neighbours, neighbours and owner must be NULL), and adds the
                         * results of an image to its atom. While lists_changed is 0, images move with their atoms and
                         * with the cell, so positions must be continuous; set lists_changed when an atom was moved by a
                         * lattice vector. NULL: the arrays hold all atoms, images included */
    int periodic[3];    /* with `cell`: whether the system repeats along each of its vectors. Other vectors are not read
                         * and may be zero */

    int memory;   /* NEQUIP_MD_HOST_MEMORY or NEQUIP_MD_GPU_MEMORY: the memory of positions, types and the arrays of the
                   * results; all other arrays are in host memory */
    void *stream; /* with NEQUIP_MD_GPU_MEMORY: the cudaStream_t in whose order the arrays are read and written; NULL:
                   * the default stream. The call waits for the evaluation, but not for the last sums in this stream */

    const nequip_md_exchange *exchange; /* for models with message passing on several processes; NULL: each atom that is
                                         * no centre is a copy of its `owner` */
} nequip_md_system;

/* Results, and the arrays to compute. Values are ADDED to the arrays, so that several contributions can share them; set
 * them to zero first if that is not wanted. `energy`, `virial` and the counts are set, not added to. */
typedef struct nequip_md_results {
    size_t struct_size;       /* sizeof(nequip_md_results) */
    double energy;            /* sum over the centres */
    double virial[6];         /* xx, yy, zz, xy, xz, yz of the sum over edges of -r (x) dE/dr; its trace / 3V is the
                               * pressure without the kinetic part */
    double *forces;           /* [num_all][3]; required */
    double *atom_energies;    /* [num_all], filled for centres; or NULL */
    double *atom_virials;     /* [num_all][6], like `virial`; each edge is shared equally by its two atoms; or NULL */
    double *centroid_virials; /* [num_all][9], xx, yy, zz, xy, xz, yz, yx, zx, zy; each edge belongs to its neighbour
                               * atom, which makes the heat flux of a model without message passing exact; or NULL */
    int failed_atom;          /* the atom that an error concerns, or -1 */
    int warned_atom;          /* the two atoms that a warning concerns, or -1 */
    int warned_neighbour;
    long long num_candidates; /* entries of the neighbour lists, given or found, between atoms of the model */
    long long num_edges;      /* entries within the cutoff of their types: the edges of the model's graph */
    long long num_evaluated;  /* edges with padding: two or more for each evaluation, the capacity of a recording */
    long long num_pieces;     /* evaluations of the model, see max_edges */
    int replayed;             /* 1: a recording was replayed, see no_replay */
    double seconds_lists;     /* wall time to check and upload positions, and to update neighbours if lists changed */
    double seconds_model;     /* wall time of edges, model and sums, until the sums are in host memory */
    double seconds_results;   /* wall time to add the sums to the arrays above */
} nequip_md_results;

/* The NEQUIP_MD_ABI_VERSION that the library was built with. */
NEQUIP_MD_API int nequip_md_abi_version(void);

/* Number of usable devices: 1 for "cpu", the number of GPUs for "cuda", 0 for any other name. */
NEQUIP_MD_API int nequip_md_device_count(const char *device);

/* Load the artifact at `path`. `options` may be NULL. On success *model is a new handle. On failure *model is NULL and
 * an error message is written to `message` (at most message_size bytes with the terminating zero; 1000 suffice). */
NEQUIP_MD_API int nequip_md_load(const char *path, const nequip_md_options *options, nequip_md_model **model,
                                 char *message, size_t message_size);

/* Free a model. NULL is allowed. */
NEQUIP_MD_API void nequip_md_free(nequip_md_model *model);

/* Value of a key of the artifact's metadata, or NULL if there is no such key. docs/engine.md lists the keys. */
NEQUIP_MD_API const char *nequip_md_metadata(const nequip_md_model *model, const char *key);

/* Number of atom types of the model. */
NEQUIP_MD_API int nequip_md_num_types(const nequip_md_model *model);

/* Name of a model type, usually a chemical symbol; NULL if the type is out of range. */
NEQUIP_MD_API const char *nequip_md_type_name(const nequip_md_model *model, int type);

/* Largest cutoff, angstrom. */
NEQUIP_MD_API double nequip_md_cutoff(const nequip_md_model *model);

/* Cutoff for neighbours of one model type around centres of another, angstrom. It is not symmetric in general, and 0 if
 * a type is out of range. */
NEQUIP_MD_API double nequip_md_pair_cutoff(const nequip_md_model *model, int centre, int neighbour);

/* Number of message-passing layers. 0: the model is strictly local, so any set of centres can be evaluated alone. */
NEQUIP_MD_API int nequip_md_message_passing_layers(const nequip_md_model *model);

/* Energy of an atom of a model type that has no neighbour within the cutoff, in the unit of the results. The first call
 * evaluates the model; the caller's lists stay valid. */
NEQUIP_MD_API int nequip_md_isolated_energy(nequip_md_model *model, int type, double *energy);

/* Compute energies, forces and virials of one configuration. */
NEQUIP_MD_API int nequip_md_evaluate(nequip_md_model *model, const nequip_md_system *system,
                                     nequip_md_results *results);

/* Warning of the last nequip_md_evaluate(): two atoms are much closer than any pair of their types in the training
 * data; empty if there is none. A handle reports this once, and only if the artifact's metadata has the key
 * `closest_distances`. Callers can use the key `largest_force` likewise, as only they know the total force on an atom.
 */
NEQUIP_MD_API const char *nequip_md_last_warning(const nequip_md_model *model);

/* Error message of the last nequip_md_evaluate() or nequip_md_isolated_energy() on this handle; empty after success. */
NEQUIP_MD_API const char *nequip_md_last_error(const nequip_md_model *model);

#ifdef __cplusplus
}
#endif

#endif
