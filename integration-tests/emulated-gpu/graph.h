// What was captured: operations with all they were given, and memory that is there while they run.
#pragma once

#include <map>
#include <vector>

#include "device.h"

namespace gpu {

struct Graph {
    int device = 0;
    std::vector<Operation> operations;
    // Of its own allocations the bytes, and whether it gives them back itself.
    struct Own {
        size_t bytes;
        bool is_freed;
    };
    std::map<DevicePointer, Own> own;
    size_t in_use = 0, most_in_use = 0;
    // How many there are: the graph and what was made of it.
    int references = 1;
};

struct Executable {
    Graph *graph;
    unsigned flags;
};

void release(Graph *graph);

} // namespace gpu
