// libnccl: sums and gathers between ranks of this machine, processes or threads, through memory they share. Calls do not
// block; what a rank brings is read when all have brought theirs.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <memory>
#include <string>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>

#include "device.h"

using namespace gpu;

enum Nccl : int { OK = 0, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, REMOTE_ERROR = 6, IN_PROGRESS = 7 };
enum Element : int { F32 = 7 };
enum Reduction : int { SUM = 0 };
constexpr int VERSION = 23007;

constexpr int MOST_RANKS = 16;
// Numbers a rank shows at once.
constexpr size_t PIECE = 1 << 16;

struct Shown {
    // Pieces it has written, and pieces of all ranks it has read.
    std::atomic<uint64_t> written, read;
    float numbers[PIECE];
};

// What ranks share; zeros at first.
struct Shared {
    std::atomic<int> joined, is_aborted;
    Shown ranks[MOST_RANKS];
};

struct Id {
    char name[128];
};

struct Comm {
    Shared *shared;
    int rank, ranks;
    // Of the collectives so far.
    uint64_t pieces = 0;
    // Somebody left while it waited for all.
    bool is_left = false;
    // This rank has left: what waits for others ends.
    std::atomic<bool> has_left{false};
    // What was recorded has it as well.
    std::shared_ptr<int> recorded = std::make_shared<int>(0);
};

static bool has_all(const Comm &comm, std::atomic<uint64_t> Shown::*count, uint64_t least) {
    return std::all_of(comm.shared->ranks, comm.shared->ranks + comm.ranks,
                       [&](const Shown &of) { return (of.*count).load() >= least; });
}

// An exchange of `count` numbers, piece by piece.
struct Exchange {
    Comm *comm;
    const float *mine;
    float *result;
    size_t count;
    bool is_sum;
    size_t done = 0;
    bool is_written = false;

    void take(size_t length) {
        const Shown *ranks = comm->shared->ranks;
        if (!is_sum) {
            for (int rank = 0; rank < comm->ranks; rank++)
                memcpy(result + rank * count + done, ranks[rank].numbers, length * sizeof(float));
            return;
        }
        // Ranks are added in another order in each piece, as those of a ring are.
        const int first = (int)(done / PIECE % comm->ranks);
        for (size_t at = 0; at < length; at++) {
            float sum = 0;
            for (int step = 0; step < comm->ranks; step++) sum += ranks[(first + step) % comm->ranks].numbers[at];
            result[done + at] = sum;
        }
    }

    bool attempt() {
        while (done < count) {
            Shown &own = comm->shared->ranks[comm->rank];
            const size_t length = std::min(PIECE, count - done);
            if (!is_written) {
                if (!has_all(*comm, &Shown::read, comm->pieces)) return false;
                memcpy(own.numbers, mine + done, length * sizeof(float));
                own.written = comm->pieces + 1;
                is_written = true;
            }
            if (!has_all(*comm, &Shown::written, comm->pieces + 1)) return false;
            take(length);
            comm->pieces++;
            own.read = comm->pieces;
            done += length;
            is_written = false;
        }
        return true;
    }
};

static int state_of(const Comm &comm) {
    if (comm.is_left) return REMOTE_ERROR;
    return comm.shared->joined < comm.ranks ? IN_PROGRESS : OK;
}

static int exchange(const char *name, Exchange work, void *stream) {
    Alone alone;
    if (const int state = state_of(*work.comm)) return state;
    const size_t results = work.is_sum ? work.count : work.count * (size_t)work.comm->ranks;
    const bool is_captured = stream_of(stream)->capture_status == CAPTURE_ACTIVE;
    auto attempt = [name, work, results, held = is_captured ? work.comm->recorded : nullptr]() mutable {
        const bool is_there = check(name, (DevicePointer)work.mine, work.count * sizeof(float)) &&
                              check(name, (DevicePointer)work.result, results * sizeof(float));
        // Who leaves has brought what it was asked for before.
        const bool has_anyone_left = work.comm->shared->is_aborted;
        if (!is_there || work.attempt()) return true;
        // It waits on all the same, as a kernel does that its own host has not ended.
        work.comm->is_left |= has_anyone_left;
        return work.comm->has_left.load();
    };
    return submit(stream_of(stream), {name, nullptr, attempt}) == SUCCESS ? OK : SYSTEM_ERROR;
}

// A device works by itself. Here work is done by whoever waits for it; but a rank whose host waits for another rank's, and
// not for its device, would keep that rank's device waiting.
static void keep_working() {
    static const bool is_begun = [] {
        std::thread([] {
            for (;; usleep(100)) {
                Alone alone;
                advance();
            }
        }).detach();
        return true;
    }();
    (void)is_begun;
}

CUDA int ncclGetVersion(int *version) {
    *version = VERSION;
    return OK;
}

CUDA int ncclGetUniqueId(Id *id) {
    static std::atomic<int> made{0};
    memset(id, 0, sizeof *id);
    snprintf(id->name, sizeof id->name, "/emulated-nccl-%d-%d", (int)getpid(), made++);
    return OK;
}

CUDA int ncclCommInitRankConfig(Comm **comm, int ranks, Id id, int rank, const void *) {
    if (ranks < 1 || ranks > MOST_RANKS || rank < 0 || rank >= ranks) return INVALID_ARGUMENT;
    const int file = shm_open(id.name, O_RDWR | O_CREAT, 0600);
    if (file < 0 || ftruncate(file, sizeof(Shared)) != 0) return SYSTEM_ERROR;
    void *memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (memory == MAP_FAILED) return SYSTEM_ERROR;
    *comm = new Comm{(Shared *)memory, rank, ranks};
    keep_working();
    // All have it now.
    if (++(*comm)->shared->joined == ranks) shm_unlink(id.name);
    return state_of(**comm);
}

CUDA int ncclCommGetAsyncError(Comm *comm, int *state) {
    *state = state_of(*comm);
    return OK;
}

CUDA int ncclAllReduce(const void *from, void *to, size_t count, int element, int reduction, Comm *comm, void *stream) {
    if (element != F32 || reduction != SUM) return INVALID_ARGUMENT;
    return exchange("ncclAllReduce", {comm, (const float *)from, (float *)to, count, true}, stream);
}

CUDA int ncclAllGather(const void *from, void *to, size_t count, int element, Comm *comm, void *stream) {
    if (element != F32) return INVALID_ARGUMENT;
    return exchange("ncclAllGather", {comm, (const float *)from, (float *)to, count, false}, stream);
}

// The memory stays: work that was queued looks into it. Returns once no recording has an exchange of it any more, as NCCL does.
CUDA int ncclCommAbort(Comm *comm) {
    comm->has_left = true;
    comm->shared->is_aborted = 1;
    while (comm->recorded.use_count() > 1) usleep(100);
    return OK;
}

CUDA const char *ncclGetErrorString(int) { return "an error of NCCL"; }
