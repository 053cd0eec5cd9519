// All layers of a ragged pass in one call, for decoders that are built like LLaMA.
//
// One parallel region runs from the first layer to the logits. A phase is split into units that
// threads take one after the other, so a thread that the system holds up holds up nobody else.
// Numbers are bfloat16 between the phases, as in transformers, and float32 within.
#include <omp.h>
#include <sched.h>

#include "attention.h"
#include "linear.h"
#include "lora.h"
#include "rows.h"

// The structs are shared with cpu_decoder.py.
struct Layer {
    Norm norm, mlp_norm, q_norm, k_norm;
    Linear q, k, v, o, gate, up, down;
    LayerCache cache;
};

struct Model {
    const Layer* layers;
    std::int64_t num_layers, hidden;
    Shape shape;
    Norm norm;
    Linear head;
};

// How much of a phase is taken and done; one to a cache line.
struct alignas(64) Phase {
    std::int32_t taken, done;
};

struct Pass {
    std::int64_t tokens;
    bf16* hidden;               // [T, hidden]: embeddings; in the end what the last layer gives
    const bf16 *cos, *sin;      // [T, size]
    const std::int64_t* slots;  // [T]
    const Span* spans;
    std::int64_t num_spans;
    const std::int32_t* blocks;
    const std::int64_t* wanted;  // [N] tokens; null is all
    std::int64_t num_wanted;
    bf16* logits;            // [N, vocabulary]
    bf16* scratch;           // scratch_size() of them
    Phase* phases;  // num_phases(), all zero
    std::int64_t threads;
    double* seconds;  // spent in linear layers, attention, head, rest; null: nobody asks
    const Pair* const* loras;         // of each LoRA, the pairs of all layers; null: no LoRA
    const std::int32_t* token_loras;  // [T] which one, or -1
    const Run* runs;
    std::int64_t num_runs, low_width;
};

namespace {

constexpr int PHASES = 12;   // of a layer, with LoRA
enum Projection { Q, K, V, O, GATE, UP, DOWN, PROJECTIONS };
constexpr int SPINS = 2000;  // some 50 us
enum Kind_of_work { LINEAR, ATTENTION, HEAD, REST };

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

struct Place {
    std::int64_t row, column;
    int rows, columns;
};

// How a product is split into tiles.
class Tiling {
public:
    // widest: blocks of columns, for few rows.
    Tiling(std::int64_t tokens, std::int64_t outputs, int threads, std::int64_t widest)
        : tokens_(tokens) {
        const std::int64_t down = std::max<std::int64_t>(1, ceil_div(tokens, TILE_ROWS));
        rows_ = down == 1 ? std::max<std::int64_t>(1, tokens)
                          : ceil_div(ceil_div(tokens, down), 8) * 8;
        // As wide as fits, and leaves the same to every thread.
        widest = std::clamp<std::int64_t>(TILE_FLOATS / COLUMNS / rows_, 1, widest);
        const std::int64_t own = ceil_div(ceil_div(outputs, COLUMNS), threads);
        columns_ = COLUMNS * ceil_div(own, ceil_div(own, widest));
        across_ = ceil_div(outputs, columns_);
        units = across_ * ceil_div(tokens, rows_);
    }

    Place place(std::int64_t unit) const {
        const std::int64_t row = unit / across_ * rows_;
        return {row, unit % across_ * columns_, static_cast<int>(std::min(rows_, tokens_ - row)),
                static_cast<int>(columns_)};
    }

    std::int64_t units;

private:
    std::int64_t tokens_, rows_, columns_, across_;
};

void multiply(const Linear& l, const bf16* x, const Place& at, float* tile) {
    const bf16* rows = x + at.row * l.inputs;
    // The last tile may be cut off: packed weights end there.
    const int columns = static_cast<int>(std::min<std::int64_t>(
        at.columns, ceil_div(l.outputs - at.column, COLUMNS) * COLUMNS));
    apply(l, rows, at.rows, at.column, columns, tile, at.columns);
}

// Calls write(row, column, index in the tile, lanes) for every sixteen numbers.
template <class Write>
void each(const Place& at, std::int64_t outputs, Write write) {
    for (int r = 0; r < at.rows; ++r) {
        for (int c = 0; c < at.columns && at.column + c < outputs; c += LANES) {
            const auto left = static_cast<int>(std::min<std::int64_t>(
                LANES, outputs - at.column - c));
            write(at.row + r, at.column + c, r * at.columns + c, first_lanes(left));
        }
    }
}

// One thread's view of a pass. All go through the same phases.
class Worker {
public:
    Worker(const Model& model, const Pass& pass)
        : model_(model), pass_(pass), shape_(model.shape), tokens_(pass.tokens),
          query_size_(shape_.heads * shape_.size), kv_size_(shape_.kv_heads * shape_.size),
          threads_(omp_get_num_threads()) {
        normed_ = pass.scratch;
        queries_ = normed_ + tokens_ * model.hidden;
        keys_ = queries_ + tokens_ * query_size_;
        values_ = keys_ + tokens_ * kv_size_;
        attended_ = values_ + tokens_ * kv_size_;
        gated_ = attended_ + tokens_ * query_size_;
        if (model.num_layers) low_ = gated_ + tokens_ * model.layers[0].gate.outputs;
        if (pass.seconds && omp_get_thread_num() == 0) clock_ = omp_get_wtime();
    }

    void run() {
        for (layer_ = 0; layer_ < model_.num_layers; ++layer_) run_layer(model_.layers[layer_]);
        const std::int64_t rows = pass_.num_wanted;
        share(REST, rows, [&](std::int64_t r) {
            const std::int64_t token = pass_.wanted ? pass_.wanted[r] : r;
            normalize(model_.norm, hidden(token), model_.hidden, normed_ + r * model_.hidden);
        });
        const Tiling tiles(rows, model_.head.outputs, threads_, 8);
        share(HEAD, tiles.units, [&](std::int64_t unit) {
            keep(model_.head, normed_, tiles.place(unit), pass_.logits);
        });
    }

private:
    void run_layer(const Layer& l) {
        normalize_all(l.norm);
        project(l);
        share(REST, tokens_, [&](std::int64_t t) { position(l, t); });
        attend(l.cache);
        add(l.o, O, attended_);
        normalize_all(l.mlp_norm);
        gate(l);
        add(l.down, DOWN, gated_);
    }

    const Pair& pair(int lora, int projection) const {
        return pass_.loras[lora][layer_ * PROJECTIONS + projection];
    }

    bf16* low(int projection, std::int64_t token) const {
        // Projections that see the same input stand side by side until they are added.
        const int place = projection <= V ? projection : projection == UP;
        return low_ + (place * tokens_ + token) * pass_.low_width;
    }

    // The products with A, for projections of one input.
    void shrink_all(int first, int count, const bf16* x, std::int64_t inputs) {
        if (!pass_.loras) return;
        const std::int64_t strips = pass_.low_width / LOW_STEP;
        share(LINEAR, pass_.num_runs * count * strips, [&](std::int64_t unit) {
            const Run& run = pass_.runs[unit / strips / count];
            const int projection = first + static_cast<int>(unit / strips % count);
            shrink(pair(run.lora, projection), x + run.start * inputs, inputs, run.count,
                   unit % strips * LOW_STEP, low(projection, run.start), pass_.low_width);
        });
    }

    // The products with B, on a tile of a layer's output.
    void expand_all(int projection, const Linear& l, const Place& at, float* tile) {
        if (!pass_.loras) return;
        const std::int64_t padded = ceil_div(l.outputs, COLUMNS) * COLUMNS;
        const std::int32_t* loras = pass_.token_loras + at.row;
        for (int r = 0, count; r < at.rows; r += count) {
            const int most = std::min(EXPANDED_ROWS, at.rows - r);
            for (count = 1; count < most && loras[r + count] == loras[r];) ++count;
            if (loras[r] < 0 || !pair(loras[r], projection).rank) continue;
            for (int c = 0; c < at.columns && at.column + c < padded; c += COLUMNS)
                expand(pair(loras[r], projection), low(projection, at.row + r), pass_.low_width,
                       count, padded, at.column + c, tile + r * at.columns + c, at.columns);
        }
    }

    // Does what is left of a phase, and returns when all of it is done. Nobody has to come:
    // while the system holds up a thread between two phases, the others go on without it.
    template <class Work>
    void share(Kind_of_work kind, std::int64_t units, Work work) {
        Phase& phase = pass_.phases[next_phase_++];
        while (true) {
            const std::int64_t unit = __atomic_fetch_add(&phase.taken, 1, __ATOMIC_RELAXED);
            if (unit >= units) break;
            work(unit);
            __atomic_fetch_add(&phase.done, 1, __ATOMIC_RELEASE);
        }
        for (int spins = 0; __atomic_load_n(&phase.done, __ATOMIC_ACQUIRE) < units; ++spins) {
            if (spins < SPINS) {
                _mm_pause();
            } else {
                sched_yield();  // whoever has the last unit may be waiting for this core
            }
        }
        if (clock_ > 0) {
            const double now = omp_get_wtime();
            pass_.seconds[kind] += now - clock_;
            clock_ = now;
        }
    }

    void normalize_all(const Norm& norm) {
        share(REST, tokens_, [&](std::int64_t t) {
            normalize(norm, hidden(t), model_.hidden, normed_ + t * model_.hidden);
        });
    }

    void project(const Layer& l) {
        shrink_all(Q, 3, normed_, l.q.inputs);
        const Tiling q(tokens_, l.q.outputs, threads_, 4), kv(tokens_, l.k.outputs, threads_, 4);
        share(LINEAR, q.units + 2 * kv.units, [&](std::int64_t unit) {
            if (unit < q.units) return keep(l.q, normed_, q.place(unit), queries_, Q);
            unit -= q.units;
            if (unit < kv.units) return keep(l.k, normed_, kv.place(unit), keys_, K);
            keep(l.v, normed_, kv.place(unit - kv.units), values_, V);
        });
    }

    // Norms and rotates a token's heads; its keys and values go to its slot.
    void position(const Layer& l, std::int64_t t) {
        const int size = shape_.size;
        const bf16 *cos = pass_.cos + t * size, *sin = pass_.sin + t * size;
        for (int h = 0; h < shape_.heads; ++h) {
            bf16* query = queries_ + t * query_size_ + h * size;
            if (l.q_norm.weight) normalize(l.q_norm, query, size, query);
            rotate(query, cos, sin, size, query);
        }
        for (int h = 0; h < shape_.kv_heads; ++h) {
            const std::int64_t from = t * kv_size_ + h * size;
            const std::int64_t slot = (h * l.cache.slots + pass_.slots[t]) * size;
            if (l.k_norm.weight) normalize(l.k_norm, keys_ + from, size, keys_ + from);
            rotate(keys_ + from, cos, sin, size, l.cache.keys + slot);
            std::memcpy(l.cache.values + slot, values_ + from, size * sizeof(bf16));
        }
    }

    void attend(const LayerCache& cache) {
        const int rows = QUERIES / (shape_.heads / shape_.kv_heads);
        const auto units_of = [&](const Span& span) {
            return ceil_div(span.count, rows) * shape_.kv_heads;
        };
        std::int64_t units = 0;
        for (std::int64_t s = 0; s < pass_.num_spans; ++s) units += units_of(pass_.spans[s]);
        const Span* span = pass_.spans;
        std::int64_t before = 0;  // a thread's units come in order: the span is never behind
        share(ATTENTION, units, [&](std::int64_t unit) {
            while (unit - before >= units_of(*span)) before += units_of(*span++);
            const int head = static_cast<int>((unit - before) % shape_.kv_heads);
            const int row = static_cast<int>((unit - before) / shape_.kv_heads) * rows;
            Attention(shape_, cache, *span, pass_.blocks, head, row,
                      std::min(rows, span->count - row))
                .run(queries_, attended_);
        });
    }

    void gate(const Layer& l) {
        shrink_all(GATE, 2, normed_, l.gate.inputs);
        const std::int64_t outputs = l.gate.outputs;
        const Tiling tiles(tokens_, outputs, threads_, 4);
        share(LINEAR, tiles.units, [&](std::int64_t unit) {
            alignas(64) float gates[TILE_FLOATS], ups[TILE_FLOATS];
            const Place at = tiles.place(unit);
            multiply(l.gate, normed_, at, gates);
            expand_all(GATE, l.gate, at, gates);
            multiply(l.up, normed_, at, ups);
            expand_all(UP, l.up, at, ups);
            each(at, outputs, [&](std::int64_t row, std::int64_t column, int i, __mmask16 here) {
                store(gated_ + row * outputs + column,
                      gated(_mm512_load_ps(gates + i), _mm512_load_ps(ups + i)), here);
            });
        });
    }

    // hidden += x W^T
    void add(const Linear& l, Projection projection, const bf16* x) {
        shrink_all(projection, 1, x, l.inputs);
        const Tiling tiles(tokens_, l.outputs, threads_, 4);
        share(LINEAR, tiles.units, [&](std::int64_t unit) {
            alignas(64) float tile[TILE_FLOATS];
            const Place at = tiles.place(unit);
            multiply(l, x, at, tile);
            expand_all(projection, l, at, tile);
            each(at, l.outputs, [&](std::int64_t row, std::int64_t column, int i, __mmask16 here) {
                bf16* to = hidden(row) + column;
                store(to, _mm512_add_ps(load(to, here), _mm512_load_ps(tile + i)), here);
            });
        });
    }

    // out = x W^T, one tile of it
    void keep(const Linear& l, const bf16* x, const Place& at, bf16* out, int projection = -1) {
        alignas(64) float tile[TILE_FLOATS];
        multiply(l, x, at, tile);
        if (projection >= 0) expand_all(projection, l, at, tile);
        each(at, l.outputs, [&](std::int64_t row, std::int64_t column, int i, __mmask16 here) {
            store(out + row * l.outputs + column, _mm512_load_ps(tile + i), here);
        });
    }

    bf16* hidden(std::int64_t token) const { return pass_.hidden + token * model_.hidden; }

    const Model& model_;
    const Pass& pass_;
    const Shape& shape_;
    const std::int64_t tokens_, query_size_, kv_size_;
    const int threads_;
    bf16 *normed_, *queries_, *keys_, *values_, *attended_, *gated_, *low_ = nullptr;
    std::int64_t layer_ = 0;
    int next_phase_ = 0;
    double clock_ = 0;
};

}  // namespace

extern "C" {

// Changes with the structs.
std::int64_t guanaco_struct_bytes() {
    return sizeof(Layer) * 1000000 + sizeof(Model) * 1000 + sizeof(Pass) + sizeof(Pair);
}

std::int64_t guanaco_scratch_size(const Model* model, std::int64_t tokens, std::int64_t low_width) {
    const Shape& s = model->shape;
    return tokens * (model->hidden + 2 * (s.heads + s.kv_heads) * s.size + 3 * low_width +
                     (model->num_layers ? model->layers[0].gate.outputs : 0));
}

std::int64_t guanaco_phase_bytes(const Model* model) {
    return (model->num_layers * PHASES + 2) * sizeof(Phase);
}

// out [rows, outputs] = what a layer gives for x [rows, inputs].
void guanaco_multiply(const Linear* layer, const bf16* x, std::int64_t rows, bf16* out,
                      std::int64_t threads) {
    const Tiling tiles(rows, layer->outputs, static_cast<int>(threads), 4);
#pragma omp parallel for schedule(dynamic) num_threads(static_cast<int>(threads))
    for (std::int64_t unit = 0; unit < tiles.units; ++unit) {
        alignas(64) float tile[TILE_FLOATS];
        const Place at = tiles.place(unit);
        multiply(*layer, x, at, tile);
        each(at, layer->outputs, [&](std::int64_t row, std::int64_t column, int i, __mmask16 here) {
            store(out + row * layer->outputs + column, _mm512_load_ps(tile + i), here);
        });
    }
}

void guanaco_run(const Model* model, const Pass* pass) {
#pragma omp parallel num_threads(static_cast<int>(pass->threads))
    Worker(*model, *pass).run();
}
}
