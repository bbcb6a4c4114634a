#!/usr/bin/env python3
"""Static archives that stand in for CUDA's shared libraries until one of their functions is called.

    lazy_libraries.py --bindings <folder of the cudarc crate> --output <folder>

A binary that is linked with `-lcuda` does not start where there is no driver. One that is linked with the archives
made here does: every function of libcuda, libcublas, libcublasLt, libcurand, libnvrtc and libnccl is a jump through
a table. At first all entries lead to code that opens the library, looks the function up and writes its address into
the table; from then on a call costs one indirect jump. A function that cannot be found ends the process with a
message that names it, so a program asks `lockstep_has_<library>()` before it calls any other.

Which functions there are is read from cudarc's bindings, the only code that declares them. x86-64, System V ABI.
"""

import argparse
import os
import re
import shutil
import subprocess
from pathlib import Path

# Library → (cudarc's module, names to try when it is opened, the first that works is taken).
LIBRARIES = {
    "cuda": ("driver", ["libcuda.so.1"]),
    "cublas": ("cublas", ["libcublas.so.13", "libcublas.so.12"]),
    "cublasLt": ("cublaslt", ["libcublasLt.so.13", "libcublasLt.so.12"]),
    "curand": ("curand", ["libcurand.so.10"]),
    "nvrtc": ("nvrtc", ["libnvrtc.so.13", "libnvrtc.so.12"]),
    "nccl": ("nccl", ["libnccl.so.2"]),
}

# What a call may carry in registers: six integers, the number of vector registers of a variadic call, and eight
# floating-point numbers. All of them survive the search for the function.
INTEGERS = ["rdi", "rsi", "rdx", "rcx", "r8", "r9", "rax"]
VECTORS = [f"xmm{number}" for number in range(8)]

# Bytes on the stack for them; with the return address and the function's number the stack stays aligned to 16.
SAVED = 192


def functions(bindings: Path, module: str) -> list[str]:
    """Every function of every CUDA version that cudarc declares for a library."""
    text = (bindings / "src" / module / "sys" / "mod.rs").read_text()
    found = re.findall(r'extern "C" \{\s*(?:#\[[^\]]*\]\s*)*(?:pub )?fn (\w+)\(', text)
    if not found:
        raise SystemExit(f"read {module} of {bindings}: no function is declared there; is it another cudarc?")
    return sorted(set(found))


def assembly(library: str, names: list[str]) -> str:
    """The functions, what they lead to at first, and the table between the two."""
    prefix = f"lockstep_lazy_{library}"
    lines = [".text"]
    for number, name in enumerate(names):
        lines += [
            f".globl {name}",
            f".type {name},@function",
            f"{name}: jmp *{prefix}_table+{8 * number}(%rip)",
            f"{prefix}_first_{number}: pushq ${number}",
            f" jmp {prefix}_find",
        ]
    vectors = [(register, 16 * at) for at, register in enumerate(VECTORS)]
    integers = [(register, 16 * len(VECTORS) + 8 * at) for at, register in enumerate(INTEGERS)]
    lines += [f"{prefix}_find:", f" subq ${SAVED},%rsp"]
    lines += [f" movups %{register},{at}(%rsp)" for register, at in vectors]
    lines += [f" movq %{register},{at}(%rsp)" for register, at in integers]
    lines += [f" movq {SAVED}(%rsp),%rdi", f" call {prefix}_resolve", " movq %rax,%r11"]
    lines += [f" movups {at}(%rsp),%{register}" for register, at in vectors]
    lines += [f" movq {at}(%rsp),%{register}" for register, at in integers]
    lines += [f" addq ${SAVED + 8},%rsp", " jmp *%r11"]
    lines += [".data", ".align 8", f".globl {prefix}_table", f".hidden {prefix}_table", f"{prefix}_table:"]
    lines += [f" .quad {prefix}_first_{number}" for number in range(len(names))]
    lines += ['.section .note.GNU-stack,"",@progbits']
    return "\n".join(lines) + "\n"


def resolver(library: str, names: list[str], files: list[str]) -> str:
    """Opens the library once, finds functions in it."""
    prefix = f"lockstep_lazy_{library}"

    def strings(values: list[str]) -> str:
        return ", ".join(f'"{value}"' for value in values)

    return f"""#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

extern void *{prefix}_table[] __attribute__((visibility("hidden")));
static const char *const functions[] = {{{strings(names)}}};
static const char *const files[] = {{{strings(files)}}};
static void *opened;

/* Two threads that come here at once open the same library twice, which is counted and harmless. */
int lockstep_has_{library}(void) {{
    void *library = __atomic_load_n(&opened, __ATOMIC_ACQUIRE);
    for (unsigned at = 0; !library && at < sizeof files / sizeof *files; at++)
        library = dlopen(files[at], RTLD_NOW | RTLD_GLOBAL);
    __atomic_store_n(&opened, library, __ATOMIC_RELEASE);
    return library != 0;
}}

__attribute__((visibility("hidden"))) void *{prefix}_resolve(long number) {{
    void *function = lockstep_has_{library}() ? dlsym(opened, functions[number]) : 0;
    if (!function) {{
        fprintf(stderr, "call %s: %s cannot be opened or has no such function\\n", functions[number], files[0]);
        abort();
    }}
    __atomic_store_n(&{prefix}_table[number], function, __ATOMIC_RELEASE);
    return function;
}}
"""


def archive(library: str, bindings: Path, output: Path) -> None:
    module, files = LIBRARIES[library]
    names = functions(bindings, module)
    sources = {f"{library}_table.S": assembly(library, names), f"{library}_find.c": resolver(library, names, files)}
    objects = []
    for source, text in sources.items():
        path = output / source
        path.write_text(text)
        objects.append(path.with_suffix(".o"))
        compiler = os.environ.get("CC", "cc")
        subprocess.run([compiler, "-O2", "-fPIC", "-c", str(path), "-o", str(objects[-1])], check=True)
    target = output / f"lib{library}.a"
    target.unlink(missing_ok=True)
    subprocess.run(["ar", "rcs", str(target), *map(str, objects)], check=True)
    print(f"{target.name}: {len(names)} functions")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bindings", type=Path, required=True, help="folder of the cudarc crate's source")
    parser.add_argument("--output", type=Path, required=True, help="folder the archives go to")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.output, ignore_errors=True)
    arguments.output.mkdir(parents=True)
    for library in LIBRARIES:
        archive(library, arguments.bindings, arguments.output)


if __name__ == "__main__":
    main()
