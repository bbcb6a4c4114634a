// Stacks that threads of a block run on, and the way from one to another: of use where kernels run on a CPU.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>
#include <vector>
#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace emulation {

constexpr size_t STACK = 128 << 10;
constexpr size_t GUARD = 64 << 10;

// Where something goes on that gave way.
#ifdef __x86_64__
typedef void *Place;
#else
typedef ucontext_t Place;
#endif

struct Stack {
    char *lowest = nullptr;
    Place entry;
};

// Leaves a note of where it is at `from`, and goes on at `to`.
#ifdef __x86_64__
// What a function must leave as it was, and the stack. Two system calls of swapcontext are spared. In assembly outside
// of any function, so that no compiler concludes from it what stays in which register.
asm(R"(
    .pushsection .text.lockstep_switch, "axG", @progbits, lockstep_switch, comdat
    .weak lockstep_switch
    .type lockstep_switch, @function
lockstep_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq (%rsi), %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size lockstep_switch, . - lockstep_switch
    .popsection
)");
extern "C" void lockstep_switch(void **from, void **to);
inline void switch_to(Place *from, Place *to) { lockstep_switch(from, to); }

inline void begin_at(Stack &stack, void (*function)()) {
    void **top = (void **)(stack.lowest + GUARD + STACK);
    // A function finds its stack 8 bytes below a multiple of 16, with a place to return to, which none here does.
    top[-1] = nullptr;
    top[-2] = (void *)function;
    for (int saved = 3; saved <= 8; saved++) top[-saved] = nullptr;
    stack.entry = &top[-8];
}
#else
inline void switch_to(Place *from, Place *to) { swapcontext(from, to); }

inline void begin_at(Stack &stack, void (*function)()) {
    getcontext(&stack.entry);
    stack.entry.uc_stack.ss_sp = stack.lowest + GUARD;
    stack.entry.uc_stack.ss_size = STACK;
    stack.entry.uc_link = nullptr;
    makecontext(&stack.entry, function, 0);
}
#endif

// Stacks that nobody runs on. They are kept, whichever kernel comes next; one that overflows ends the process.
class Stacks {
    std::vector<Stack> free;

  public:
    Stack take() {
        Stack stack;
        if (free.empty()) {
            void *memory = mmap(nullptr, GUARD + STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (memory == MAP_FAILED || mprotect(memory, GUARD, PROT_NONE) != 0) {
                perror("emulate a kernel: take memory for a stack");
                abort();
            }
            stack.lowest = (char *)memory;
        } else {
            stack = free.back();
            free.pop_back();
        }
        return stack;
    }

    void give_back(const Stack &stack) { free.push_back(stack); }
};

} // namespace emulation
