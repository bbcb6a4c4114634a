// Memory of devices: addresses that are given out once and not again for long, so that one that is used too late is
// found; no number in what is new; what lies behind an allocation is looked at when it is given back.
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>

#include "graph.h"

namespace gpu {

// Few, and in no round place, so that hardly any two numbers side by side look like one.
constexpr uint64_t FIRST = 0x4a5000000000, SIZE = (uint64_t)1 << 36, PAGE = 4096;
// Pools grow by this much.
constexpr size_t CHUNK = 2 << 20;
constexpr int POISON = 0xff;
constexpr int MOST_DEVICES = 16;

struct Allocation {
    size_t bytes;
    int device;
    Owner owner;
    bool is_mapped = false, is_given_back = false;
    // With what is looked at behind it.
    size_t pages() const { return (bytes + PAGE - 1) / PAGE * PAGE; }
};

struct Memory {
    // Of the pool what is given out, and what was given back by work that is not done.
    size_t by_device = 0, in_pool = 0, leaving_pool = 0, pool = 0, graphs = 0;
    size_t used() const { return by_device + pool + graphs; }
};

static std::map<DevicePointer, Allocation> allocations;
static Memory memories[MOST_DEVICES];
static std::map<uint64_t, size_t> pinned;
thread_local int current = -1;

int current_device() { return current; }
void set_current_device(int device) { current = device; }

static size_t number(const char *variable, size_t usual) {
    const char *text = getenv(variable);
    return text ? strtoull(text, nullptr, 10) : usual;
}

int device_count() {
    static const int count = (int)std::min<size_t>(number("EMULATED_GPUS", 1), MOST_DEVICES);
    return count;
}

size_t total_bytes() {
    static const size_t total = number("EMULATED_GPU_MEMORY_MIB", 4096) << 20;
    return total;
}

size_t free_bytes(int device) { return total_bytes() - memories[device].used(); }

// ---- Addresses ----

static struct sigaction before;

static void on_fault(int signal, siginfo_t *what, void *context) {
    const uint64_t address = (uint64_t)what->si_addr;
    if (is_device_address(address)) {
        // Nothing is left to lose: the process ends.
        report("%#lx is touched, where no memory is: a kernel is out of bounds, or the host reads a device's memory",
               address);
        sigaction(signal, &before, nullptr);
        return;
    }
    if (before.sa_flags & SA_SIGINFO && before.sa_sigaction) before.sa_sigaction(signal, what, context);
    else sigaction(signal, &before, nullptr);
}

static void take_addresses() {
    static bool taken = false;
    if (taken) return;
    taken = true;
    void *found = mmap((void *)FIRST, SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    if (found != (void *)FIRST) {
        perror("emulated GPU: take addresses");
        abort();
    }
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &before);
}

bool is_device_address(uint64_t value) { return value >= FIRST && value < FIRST + SIZE; }

static DevicePointer unused_addresses(size_t bytes) {
    static uint64_t next = FIRST + PAGE;
    const uint64_t whole = (bytes + PAGE - 1) / PAGE * PAGE + PAGE;
    for (int turn = 0; turn < 2; turn++) {
        for (auto after = allocations.lower_bound(next);; ++after) {
            const uint64_t end = after == allocations.end() ? FIRST + SIZE : after->first;
            if (next + whole <= end) {
                const DevicePointer address = next;
                next += whole;
                return address;
            }
            if (after == allocations.end()) break;
            next = after->first + after->second.pages() + PAGE;
        }
        next = FIRST + PAGE;
    }
    return 0;
}

// ---- Allocations ----

// As devices do.
static size_t rounded(size_t bytes) { return (bytes + 511) / 512 * 512; }

static bool pay(Owner owner, Memory &memory, size_t bytes) {
    switch (owner) {
    case Owner::DEVICE:
        if (memory.used() + bytes > total_bytes()) return false;
        memory.by_device += bytes;
        return true;
    case Owner::POOL: {
        const size_t pool = std::max(memory.pool, (memory.in_pool + bytes + CHUNK - 1) / CHUNK * CHUNK);
        if (memory.used() - memory.pool + pool > total_bytes()) return false;
        memory.in_pool += bytes;
        memory.pool = pool;
        return true;
    }
    case Owner::GRAPH: return true;
    }
    return false;
}

void keep_for_graphs(int device, size_t bytes) {
    Memory &memory = memories[device];
    memory.graphs = std::max(memory.graphs, (bytes + CHUNK - 1) / CHUNK * CHUNK);
}

int reserve(Owner owner, int device, size_t bytes, DevicePointer *address) {
    if (bytes == 0) return INVALID_VALUE;
    take_addresses();
    if (!pay(owner, memories[device], rounded(bytes))) return OUT_OF_MEMORY;
    *address = unused_addresses(bytes);
    if (*address == 0) return OUT_OF_MEMORY;
    allocations[*address] = Allocation{bytes, device, owner};
    return SUCCESS;
}

void map(DevicePointer address) {
    Allocation &allocation = allocations.at(address);
    if (mprotect((void *)address, allocation.pages(), PROT_READ | PROT_WRITE) != 0) {
        perror("emulated GPU: take memory");
        abort();
    }
    memset((void *)address, POISON, allocation.pages());
    allocation.is_mapped = true;
}

static void look_behind(DevicePointer address, const Allocation &allocation) {
    const unsigned char *bytes = (const unsigned char *)address;
    for (size_t at = allocation.bytes; at < allocation.pages(); at++) {
        if (bytes[at] == POISON) continue;
        report("%#lx has %zu bytes, and byte %zu was written", address, allocation.bytes, at);
        fail(ILLEGAL_ADDRESS);
        return;
    }
}

void unmap(DevicePointer address) {
    auto found = allocations.find(address);
    if (found == allocations.end() || !found->second.is_mapped) return;
    Allocation &allocation = found->second;
    look_behind(address, allocation);
    // Its pages go back to the system.
    if (mmap((void *)address, allocation.pages(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) ==
        MAP_FAILED) {
        perror("emulated GPU: give memory back");
        abort();
    }
    allocation.is_mapped = false;
}

void forget(DevicePointer address) {
    unmap(address);
    const auto found = allocations.find(address);
    if (found == allocations.end()) return;
    const Allocation &allocation = found->second;
    if (allocation.owner == Owner::POOL && allocation.is_given_back)
        memories[allocation.device].leaving_pool -= rounded(allocation.bytes);
    allocations.erase(found);
}

bool is_allocated(DevicePointer address, Owner *owner) {
    auto found = allocations.find(address);
    if (found == allocations.end() || found->second.is_given_back) return false;
    *owner = found->second.owner;
    return true;
}

void give_back(DevicePointer address) {
    Allocation &allocation = allocations.at(address);
    allocation.is_given_back = true;
    Memory &memory = memories[allocation.device];
    const size_t bytes = rounded(allocation.bytes);
    if (allocation.owner == Owner::DEVICE) memory.by_device -= bytes;
    // The pool keeps what it has.
    if (allocation.owner == Owner::POOL) {
        memory.in_pool -= bytes;
        memory.leaving_pool += bytes;
    }
}

size_t pool_bytes(int device) { return memories[device].pool; }

void trim_pool(int device, size_t least) {
    Memory &memory = memories[device];
    const size_t used = std::max(least, memory.in_pool + memory.leaving_pool);
    memory.pool = std::min(memory.pool, (used + CHUNK - 1) / CHUNK * CHUNK);
}

static const Allocation *around(uint64_t address, DevicePointer *start) {
    auto after = allocations.upper_bound(address);
    if (after == allocations.begin()) return nullptr;
    --after;
    *start = after->first;
    return address <= after->first + after->second.bytes ? &after->second : nullptr;
}

bool check(const std::string &name, DevicePointer address, size_t bytes) {
    if (bytes == 0) return true;
    DevicePointer start = 0;
    const Allocation *allocation = around(address, &start);
    if (allocation && allocation->is_mapped && address + bytes <= start + allocation->bytes) return true;
    report("%s uses %zu bytes at %#lx, which are in no allocation", name.c_str(), bytes, address);
    fail(ILLEGAL_ADDRESS);
    return false;
}

bool check_parameter(const std::string &name, size_t offset, uint64_t value) {
    if (!is_device_address(value)) return true;
    DevicePointer start = 0;
    const Allocation *allocation = around(value, &start);
    if (allocation && allocation->is_mapped) return true;
    report("%s is given %#lx at byte %zu of its parameters, which is in no allocation%s", name.c_str(), value, offset,
           allocation ? ": it was given back" : "");
    fail(ILLEGAL_ADDRESS);
    return false;
}

void capture_allocation(Graph &graph, DevicePointer address, size_t bytes) {
    graph.own[address] = Graph::Own{bytes, false};
    graph.in_use += bytes;
    graph.most_in_use = std::max(graph.most_in_use, graph.in_use);
}

bool capture_free(Graph &graph, DevicePointer address) {
    auto found = graph.own.find(address);
    if (found == graph.own.end() || found->second.is_freed) return false;
    found->second.is_freed = true;
    graph.in_use -= found->second.bytes;
    return true;
}

// ---- Memory of the host that stays where it is ----

bool is_pinned(const void *host) {
    auto after = pinned.upper_bound((uint64_t)host);
    if (after == pinned.begin()) return false;
    --after;
    return (uint64_t)host < after->first + after->second;
}

void pin(void *host, size_t bytes) { pinned[(uint64_t)host] = bytes; }
bool unpin(void *host) { return pinned.erase((uint64_t)host) == 1; }

} // namespace gpu
